"""What the study ``faces`` knows beyond its captions: which parts a prompt asks for, and its fixed list of queries.

Each query has a *known set that matters*: the training images that carry its rare values. It is a measured ceiling
and a truth for precision and recall; no method may read it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from bench.data.dataset import Dataset
from bench.errors import InvalidInput

NOUNS = {"skin": "skin", "hat": "hat", "clothes": "clothes", "background": "background"}
ALONE = {
    "glasses": ("glasses", "glasses"),
    "sunglasses": ("glasses", "sunglasses"),
    "beard": ("beard", "beard"),
    "smile": ("mouth", "smile"),
    "frown": ("mouth", "frown"),
}
LENGTHS = ("short", "long")
SPLITS = ("reported", "held-out")


@dataclass(frozen=True, kw_only=True)
class FaceQuery:
    """One query of ``faces``.

    Attributes:
        prompt: c, seed: of the initial noise.
        group: "named" where the prompt asks for the rare values, "unnamed" where the noise brings one that no
            caption mentions.
        rare: (part, value) of one or two rare values that the picture shows.
    """

    prompt: str
    seed: int
    group: str
    rare: tuple[tuple[str, str], ...]

    def known_set(self, dataset: Dataset) -> list[int]:
        """Indices of the training images that carry any of the rare values, ascending."""
        return sorted({index for part, value in self.rare for index in dataset.carriers(part, value)})


@cache
def face_queries(split: str = "reported") -> tuple[FaceQuery, ...]:
    """The fixed queries: 64 reported ones (the first 8, 16, 32 are balanced lists too), or 16 to tune on.

    They were made by the committed script ``bench/building/face_queries.py``.

    Args:
        split: "reported" or "held-out". Raises InvalidInput for another.
    """
    if split not in SPLITS:
        raise InvalidInput(f"There are no '{split}' queries; give one of {', '.join(SPLITS)}.")
    text = (resources.files("bench.data") / "faces" / "queries.json").read_text(encoding="utf-8")
    return tuple(
        FaceQuery(
            prompt=entry["prompt"],
            seed=entry["seed"],
            group=entry["group"],
            rare=tuple((part, value) for part, value in entry["rare"]),
        )
        for entry in json.loads(text)[split]
    )


def rare_parts(prompt: str, seed: int) -> tuple[tuple[str, str], ...]:
    """(part, value) of the rare values that the fixed query of ``prompt`` and ``seed`` shows; () for any other."""
    found = fixed_query(prompt, seed)
    return found.rare if found else ()


def fixed_query(prompt: str, seed: int) -> FaceQuery | None:
    """The fixed query of ``prompt`` and ``seed``, reported or held out; None where there is none."""
    return _by_prompt_and_seed().get((prompt, seed))


@cache
def _by_prompt_and_seed() -> dict[tuple[str, int], FaceQuery]:
    return {(query.prompt, query.seed): query for split in SPLITS for query in face_queries(split)}


def part_words(part: str, value: str, *, instead_of: str = "") -> str:
    """A part's value as people say it: "purple hat", "blue hair", "curtains"; "no hat" where it is empty.

    Args:
        part, value: of ``Dataset.parts``.
        instead_of: the value that was expected: of a detail that is plain now, it is said what is missing.
    """
    noun = NOUNS.get(part) or ("hair" if part.startswith("hair_") else "")
    if value in ("", "plain"):
        return f"no {noun or instead_of or part}"
    return f"{value} {noun}".strip()


def asked_parts(prompt: str) -> dict[str, str]:
    """The parts that ``prompt`` asks for, part → value; what it does not mention is left out.

    A phrase that names no part is left out too; of two phrases on one part the last counts.
    """
    asked: dict[str, str] = {}
    for phrase in prompt.lower().split(","):
        words = phrase.split()
        if not words:
            continue
        if phrase.strip() in ALONE:
            part, value = ALONE[phrase.strip()]
            asked[part] = value
        elif words[-1] == "hair":
            for word in words[:-1]:
                asked["hair_length" if word in LENGTHS else "hair_colour"] = word
        elif words[-1] in NOUNS and len(words) > 1:
            asked[NOUNS[words[-1]]] = words[-2]
    return asked
