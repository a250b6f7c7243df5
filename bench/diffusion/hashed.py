"""Text encoder "hashed": a vector for any word, without a vocabulary and without a download.

A word w is cut into subwords as fastText does (Bojanowski et al., 2017, arXiv 1607.04606): the n-grams of "<w>" for n
from 3 to 5, and "<w>" itself. Each subword g has 64 standard normal numbers u(g), keyed by its text. With
rms(v) = v / sqrt(mean v²)

    v(w) = rms( u("<w>") + Σ_g u(g) / sqrt(number of n-grams) )

so that "house" and "houses" are near each other and unrelated words are not. fastText learns u; here it is random, as
the model learns from scratch what words look like. The states of a prompt bind a word to its neighbours:

    h_j = rms( v(w_j) + 0.5 · (mean of v of the nearest words left and right that carry meaning, in the same phrase) )
    h_0 = rms( mean of h_j over the words that carry meaning )

A phrase is what commas part. h_0 comes again as padding after the last word. Words beyond ``num_tokens − 1`` are not
read, as CLIP does not read beyond 77 tokens. A prompt without any word is all zeros.

Ours: the choice of binding, 64 dimensions, the share of 0.5.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from bench.data.captions import WORD
from bench.diffusion.text import STOP_WORDS, _rms
from bench.foundation import seeds
from bench.foundation.digests import digest_of, tensors_digest

DIMENSIONS = 64
NEIGHBOURS = 0.5
LENGTHS = (3, 4, 5)


class HashedEncoder:
    """Vectors of subwords put into the context of their neighbours.

    Args:
        num_tokens: length of every sequence: the whole prompt and its first ``num_tokens - 1`` words.
    """

    dim = DIMENSIONS

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.words: dict[str, int] = {}
        self.vectors = torch.ones(1, DIMENSIONS)  # of the size of any word's
        self.learned: dict[str, Tensor] = {}
        self.digest = digest_of(["hashed", 1, DIMENSIONS, NEIGHBOURS, LENGTHS, sorted(STOP_WORDS), num_tokens])

    def with_words(self, learned: Mapping[str, Float[Tensor, " dim"]]) -> HashedEncoder:
        """The same encoder with other vectors for some words. Gradients flow to the vectors."""
        changed = copy.copy(self)
        changed.learned = {**self.learned, **learned}
        changed.words = {word: row for row, word in enumerate(changed.learned)}
        changed.vectors = torch.stack(list(changed.learned.values()))
        changed.digest = f"{self.digest}+{tensors_digest(dict(learned), {})[:8]}"
        return changed

    def knows_learned(self, prompt: str) -> bool:
        """Whether ``prompt`` holds a word of ``learned``."""
        return not self.learned.keys().isdisjoint(WORD.findall(prompt.lower()))

    def tokens(self, prompt: str) -> list[str]:
        """The words of ``prompt`` that are read."""
        return WORD.findall(prompt.lower())[: self.num_tokens - 1]

    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompts tokens dim"]:
        """States of ``prompts``; a prompt without words is all zeros."""
        states = torch.zeros(len(prompts), self.num_tokens, self.dim)
        for row, prompt in enumerate(prompts):
            phrases = [WORD.findall(phrase) for phrase in prompt.lower().split(",")]
            words = [word for phrase in phrases for word in phrase][: self.num_tokens - 1]
            if not words:
                continue
            found = torch.cat([self._bound(phrase) for phrase in phrases if phrase])[: len(words)]
            meant = [place for place, word in enumerate(words) if word not in STOP_WORDS] or list(range(len(words)))
            states[row] = _rms(found[meant].mean(0))
            states[row, 1 : len(words) + 1] = found
        return states

    def _bound(self, words: Sequence[str]) -> Float[Tensor, "words dim"]:
        """States of the words of one phrase."""
        vectors = torch.stack([self.learned[word] if word in self.learned else word_vector(word) for word in words])
        meant = [place for place, word in enumerate(words) if word not in STOP_WORDS]
        states = []
        for place, vector in enumerate(vectors):
            left, right = [p for p in meant if p < place][-1:], [p for p in meant if p > place][:1]
            near = vectors[left + right].mean(0) if left or right else torch.zeros_like(vector)
            states.append(_rms(vector + NEIGHBOURS * near))
        return torch.stack(states)


@lru_cache(maxsize=100_000)
def word_vector(word: str) -> Float[Tensor, " dim"]:
    """v(w)."""
    marked = f"<{word}>"
    parts = [marked[at : at + size] for size in LENGTHS for at in range(len(marked) - size + 1)]
    own = seeds.normal((DIMENSIONS,), "word", marked)
    if not parts:
        return _rms(own)
    grams = torch.stack([seeds.normal((DIMENSIONS,), "subword", part) for part in parts])
    return _rms(own + grams.sum(0) / len(parts) ** 0.5)
