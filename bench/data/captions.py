"""Captions as words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
"""A word: letters and digits, hyphens and apostrophes within."""


def phrases_ending_alike(prompt: str, captions: Sequence[str]) -> dict[str, list[str]]:
    """By each phrase of ``prompt`` that no caption has: the captions' phrases with the same last word, often first.

    Phrases are what commas part. "mint background" may give "blue background" and "grey background". A phrase without
    any such is left out.
    """
    counts = Counter(phrase.strip() for caption in captions for phrase in caption.lower().split(","))
    asked = [phrase.strip() for phrase in prompt.lower().split(",") if phrase.strip()]
    alike = {
        phrase: [known for known, _ in counts.most_common() if known.split()[-1:] == phrase.split()[-1:]]
        for phrase in asked
        if phrase not in counts
    }
    return {phrase: known for phrase, known in alike.items() if known}
