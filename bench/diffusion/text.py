"""The frozen text encoder of the embedded studies: words as vectors of a pretrained language model.

``bench/data/text_encoder.safetensors`` holds one vector for each known word, derived from all-MiniLM-L6-v2 by the
committed script ``bench/building/text_encoder.py``. A prompt of words w_1 … w_n becomes a sequence of states as a
language model would give them, each word seen in the context of its sentence:

    s   = rms( Σ_j v(w_j) / sqrt(r(w_j)) … over content words )    the sentence, frequent words weighing little
    h_0 = s,   h_j = rms( s + v(w_j) / 2 ),   h_j = s for the padding after the last word

with rms(v) = v / sqrt(mean v²). The empty prompt, which classifier-free guidance and caption dropout use, is all zeros.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from bench.data.captions import WORD
from bench.errors import InvalidInput, UnknownWord
from bench.foundation.digests import tensors_digest

STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "at",
        "by",
        "for",
        "from",
        "in",
        "of",
        "on",
        "or",
        "photo",
        "picture",
        "style",
        "the",
        "to",
        "with",
    ]
)
STOP_WORD_WEIGHT = 0.05
WORD_SHARE = 0.5


@runtime_checkable
class TextEncoder(Protocol):
    """What a model needs of a text encoder.

    Attributes:
        digest: of its weights and settings, part of the study digest.
        dim: of its states.
        num_tokens: states of a prompt.
        words: rows of ``vectors``, for the words whose vector may be learned; vectors: of words.
        learned: words whose vectors a fine-tuning learned, or will learn.
    """

    digest: str
    dim: int
    num_tokens: int
    words: dict[str, int]
    vectors: Tensor
    learned: dict[str, Tensor]

    def tokens(self, prompt: str) -> list[str]:
        """The words or tokens of ``prompt`` that are read; raises InvalidInput for a prompt that it cannot take."""
        ...

    def with_words(self, learned: Mapping[str, Tensor]) -> TextEncoder:
        """The same encoder with other vectors for some words, new words among them."""
        ...

    def knows_learned(self, prompt: str) -> bool:
        """Whether ``prompt`` holds a word of ``learned``."""
        ...

    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompts tokens dim"]:
        """Hidden states of ``prompts``."""
        ...


class WordEncoder:
    """Static word vectors put into the context of their sentence.

    Args:
        words: the vocabulary, lower case.
        vectors: one row for each word.
        num_tokens: length of every sequence: the sentence and at most ``num_tokens - 1`` words.
        digest: of the vectors' file, part of the study digest.

    Attributes:
        learned: words whose vectors a fine-tuning learned, or will learn.
    """

    def __init__(
        self, words: Sequence[str], vectors: Float[Tensor, "words dim"], *, num_tokens: int, digest: str
    ) -> None:
        self.words = {word: row for row, word in enumerate(words)}
        self.vectors = vectors
        self.num_tokens = num_tokens
        self.digest = f"{digest}-{num_tokens}"
        self.dim = vectors.shape[1]
        self.learned: dict[str, Tensor] = {}

    def with_words(self, learned: Mapping[str, Float[Tensor, " dim"]]) -> WordEncoder:
        """The same encoder with other vectors for some words, new words among them. Gradients flow to the vectors."""
        changed = copy.copy(self)
        changed.learned = {**self.learned, **learned}
        changed.words = dict(self.words)
        rows = list(self.vectors)
        for word, vector in learned.items():
            row = changed.words.setdefault(word, len(rows))
            rows[row:] = [vector.to(self.vectors.device), *rows[row + 1 :]]
        changed.vectors = torch.stack(rows)
        changed.digest = f"{self.digest}+{tensors_digest(dict(learned), {})[:8]}"
        return changed

    def knows_learned(self, prompt: str) -> bool:
        """Whether ``prompt`` holds a word of ``learned``."""
        return not self.learned.keys().isdisjoint(WORD.findall(prompt.lower()))

    def tokens(self, prompt: str) -> list[str]:
        """The words of ``prompt``; raises UnknownWord with the nearest known words."""
        words = WORD.findall(prompt.lower())
        unknown = [word for word in words if word not in self.words]
        if unknown:
            hints = []
            for word in dict.fromkeys(unknown):
                near = difflib.get_close_matches(word, self.words, n=3, cutoff=0.5)
                hints.append(f"'{word}' (nearest known: {', '.join(near) or 'none'})")
            raise UnknownWord(f"The prompt '{prompt}' has words unknown to the text encoder: {'; '.join(hints)}.")
        if len(words) >= self.num_tokens:
            raise InvalidInput(
                f"The prompt '{prompt}' has {len(words)} words; this study's model reads at most {self.num_tokens - 1}."
            )
        return words

    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompts tokens dim"]:
        """States of ``prompts``; an empty prompt is all zeros."""
        states = torch.zeros(len(prompts), self.num_tokens, self.dim)
        for row, prompt in enumerate(prompts):
            words = self.tokens(prompt)
            if not words:
                continue
            vectors = self.vectors[[self.words[word] for word in words]]
            weights = torch.tensor([STOP_WORD_WEIGHT if word in STOP_WORDS else 1.0 for word in words])
            sentence = _rms(weights @ vectors)
            states[row] = sentence
            states[row, 1 : len(words) + 1] = _rms(sentence + WORD_SHARE * vectors)
        return states


@cache
def embedded_encoder(num_tokens: int) -> WordEncoder:
    """The encoder that ships with the project, for prompts of at most ``num_tokens - 1`` words."""
    with (
        resources.as_file(resources.files("bench.data") / "text_encoder.safetensors") as path,
        safe_open(path, "pt") as file,
    ):
        meta = file.metadata()
        vectors = file.get_tensor("vectors").float() * file.get_tensor("scale")
    words = json.loads(meta["words"])
    return WordEncoder(words, vectors, num_tokens=num_tokens, digest=_file_digest("text_encoder.safetensors"))


def _file_digest(name: str) -> str:
    return hashlib.sha256((resources.files("bench.data") / name).read_bytes()).hexdigest()[:16]


def _rms(vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    return vectors / vectors.pow(2).mean(-1, keepdim=True).sqrt()
