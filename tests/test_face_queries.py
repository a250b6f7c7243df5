"""The queries of ``faces``: fixed, balanced in every beginning of the list, and each with a known set that matters."""

from collections import Counter

import pytest

from bench.building.face_parts import PARTS
from bench.data.dataset import load_embedded
from bench.data.face_queries import FaceQuery, asked_parts, face_queries, part_words
from bench.errors import InvalidInput
from bench.studies import study

REPORTED, HELD_OUT = face_queries(), face_queries("held-out")
DATASET = load_embedded("faces")


def rare_asked(query: FaceQuery) -> dict[str, str]:
    """The rare values that the prompt asks for."""
    return {part: value for part, value in asked_parts(query.prompt).items() if value in PARTS[part].rare}


def test_there_are_64_reported_and_16_other_queries_to_tune_on() -> None:
    assert len(REPORTED) == 64
    assert len(HELD_OUT) == 16
    assert len({(query.prompt, query.seed) for query in (*REPORTED, *HELD_OUT)}) == 80
    assert not {query.prompt for query in REPORTED} & {query.prompt for query in HELD_OUT}


@pytest.mark.parametrize("count", [8, 16, 32, 64])
def test_every_beginning_has_both_groups_in_equal_numbers_and_many_parts(count: int) -> None:
    beginning = REPORTED[:count]
    assert Counter(query.group for query in beginning) == {"named": count // 2, "unnamed": count // 2}
    parts = Counter(part for query in beginning for part, _ in query.rare)
    assert len(parts) >= 7
    assert max(parts.values()) <= count // 4


@pytest.mark.parametrize("query", [*REPORTED, *HELD_OUT], ids=lambda query: query.prompt)
def test_a_query_asks_for_its_named_rare_values_and_never_for_an_unnamed_one(query: FaceQuery) -> None:
    assert rare_asked(query) == {part: value for part, value in query.rare if PARTS[part].named}
    assert {PARTS[part].named for part, _ in query.rare} == {query.group == "named"}
    assert len(query.known_set(DATASET)) == sum(PARTS[part].rare[value] for part, value in query.rare)


def test_known_sets_are_the_carriers() -> None:
    for query in REPORTED:
        for index in query.known_set(DATASET):
            assert any(DATASET.parts[part][index] == value for part, value in query.rare)


def test_the_study_asks_these_queries_with_their_noises() -> None:
    faces = study("faces")
    assert [(spec.prompt, spec.seed) for spec in faces.queries(64)] == [
        (query.prompt, query.seed) for query in REPORTED
    ]
    assert [(spec.prompt, spec.seed) for spec in faces.held_out_queries(16)] == [
        (query.prompt, query.seed) for query in HELD_OUT
    ]


def test_another_list_is_refused() -> None:
    with pytest.raises(InvalidInput, match="reported, held-out"):
        face_queries("train")


@pytest.mark.parametrize(
    ("part", "value", "instead_of", "words"),
    [
        ("hat", "purple", "", "purple hat"),
        ("hat", "", "purple", "no hat"),
        ("hair_colour", "blue", "", "blue hair"),
        ("glasses", "", "sunglasses", "no sunglasses"),
        ("glasses", "glasses", "sunglasses", "glasses"),
        ("sides", "curtains", "", "curtains"),
        ("front", "plain", "sign", "no sign"),
    ],
)
def test_a_value_is_said_as_people_say_it(part: str, value: str, instead_of: str, words: str) -> None:
    assert part_words(part, value, instead_of=instead_of) == words
