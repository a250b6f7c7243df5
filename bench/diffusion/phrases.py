"""Text encoder "phrases": each word is seen in the context of its own phrase, so that a colour binds to its noun.

A prompt is cut at its commas into phrases of words w with vectors v(w). With rms(v) = v / sqrt(mean v²) the states are

    h_j = rms( v(w_j) + 0.7 · mean of v(w) over the other words of the phrase of w_j ),   h_0 = rms( mean of all h_j )

and h_0 again for the padding after the last word. So "green hair, purple hat" differs from "purple hair, green hat" in
every state, where a sentence that is the sum of its words would not. The order of phrases changes the order of states
alone, which cross-attention does not see. The empty prompt is all zeros.

The vectors are random, keyed by the word: 64 standard normal numbers. They served as well as those of a language
model in the prototype, where the vocabulary is some dozens of words that stand for looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from bench.diffusion.hashed import HashedEncoder
from bench.diffusion.pipelines import PREFIX, folder_text_encoder
from bench.diffusion.text import TextEncoder, WordEncoder, _rms, embedded_encoder
from bench.errors import UnknownName
from bench.foundation import seeds
from bench.foundation.digests import digest_of

DIMENSIONS = 64
CONTEXT = 0.7
WORDS = (
    "skin", "hair", "hat", "glasses", "sunglasses", "beard", "clothes", "smile",
    "frown", "background", "short", "long",
    "pale", "tan", "brown", "dark", "black", "blond", "red", "blue", "green", "white",
    "purple", "yellow", "teal", "pink", "grey", "lilac", "orange",
)  # fmt: skip
"""The vocabulary: every word of the captions of ``faces``."""


class PhraseEncoder(WordEncoder):
    """Word vectors put into the context of their phrase.

    Args:
        words: the vocabulary, lower case.
        num_tokens: length of every sequence: the mean and at most ``num_tokens - 1`` words.
    """

    def __init__(self, words: Sequence[str], *, num_tokens: int) -> None:
        vectors = torch.stack([_rms(seeds.normal((DIMENSIONS,), "word", word)) for word in words])
        digest = digest_of(["phrases", DIMENSIONS, CONTEXT, *words])
        super().__init__(words, vectors, num_tokens=num_tokens, digest=digest)

    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompts tokens dim"]:
        """States of ``prompts``; an empty prompt is all zeros. Raises UnknownWord, or InvalidInput if too long."""
        states = torch.zeros(len(prompts), self.num_tokens, self.dim)
        for row, prompt in enumerate(prompts):
            self.tokens(prompt)
            phrases = [words for phrase in prompt.split(",") if (words := self.tokens(phrase))]
            if not phrases:
                continue
            found = torch.cat([self._bound(words) for words in phrases])
            states[row] = _rms(found.mean(0))
            states[row, 1 : len(found) + 1] = found
        return states

    def _bound(self, words: list[str]) -> Float[Tensor, "words dim"]:
        """States of the words of one phrase."""
        vectors = self.vectors[[self.words[word] for word in words]]
        others = (vectors.sum(0) - vectors) / max(1, len(words) - 1)
        return _rms(vectors + CONTEXT * others)


@cache
def text_encoder(name: str, num_tokens: int) -> TextEncoder:
    """The text encoder ``name`` ("words", "phrases" or "hashed") for prompts of at most ``num_tokens - 1`` words.

    "folder:…" is a CLIP text encoder of the user's, which has its own number of tokens.

    Raises UnknownName for another name.
    """
    if name == "words":
        return embedded_encoder(num_tokens)
    if name == "phrases":
        return PhraseEncoder(WORDS, num_tokens=num_tokens)
    if name == "hashed":
        return HashedEncoder(num_tokens)
    if name.startswith(PREFIX):
        return folder_text_encoder(name.removeprefix(PREFIX))
    raise UnknownName("text encoder", name, ["words", "phrases", "hashed"])
