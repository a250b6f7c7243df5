"""The faces: parts are complete and seen, rare values have the carriers of the design, captions tell no more."""

import os
import subprocess
import sys
from importlib import resources
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from bench.building.face_layers import SIZE, compose
from bench.building.face_parts import NAMED, PARTS, caption, draw_face
from bench.data.dataset import Dataset, load_embedded
from bench.errors import UnknownName

FILE = Path(str(resources.files("bench.data"))) / "faces" / "faces.parquet"
UNNAMED_WORDS = {value for part in PARTS.values() if not part.named for value in part.drawn} - {"plain"}


@pytest.fixture(scope="module")
def faces() -> Dataset:
    """The training split."""
    return load_embedded("faces")


def test_every_part_has_a_value_of_its_list(faces: Dataset) -> None:
    assert len(faces) == 6000
    assert list(faces.parts) == list(PARTS) == list(faces.boxes)
    assert list(faces.named_parts) == NAMED
    for name, part in PARTS.items():
        assert set(faces.parts[name]) - {""} == set(part.drawn)


def test_images_are_all_different(faces: Dataset) -> None:
    everything = np.concatenate([faces.images.numpy(), load_embedded("faces", split="held-out").images.numpy()])
    assert len(np.unique(everything.reshape(7000, -1), axis=0)) == 7000


def test_rare_values_have_exactly_their_carriers_and_never_meet(faces: Dataset) -> None:
    carriers = [set(faces.carriers(name, value)) for name, part in PARTS.items() for value in part.rare]
    counts = [count for part in PARTS.values() for count in part.rare.values()]
    assert [len(found) for found in carriers] == counts
    assert set(counts) == {60, 150}
    assert {count for part in PARTS.values() if not part.named for count in part.rare.values()} == {150}
    assert not any(one & other for one, other in combinations(carriers, 2))


def test_carriers_of_unnamed_values_differ_from_the_common_value_in_many_pixels() -> None:
    """A small model can draw a shape of two dozen pixels; it rarely draws one of four."""
    face = draw_face({}, "any", 0)
    assert face is not None
    face |= {"hat": "red", "hat_shape": "plain", "haircut": "straight", "cut": "plain", "backdrop": "plain"}
    blank = np.zeros((SIZE, SIZE, 4), np.uint8)
    for name, part in PARTS.items():
        for value in part.rare if not part.named else ():
            if value == "bald top":
                continue  # DiceBear's, not ours
            changed = (compose(face, blank) != compose({**face, name: value}, blank)).any(-1)
            assert changed.sum() >= 15, (name, value)


def test_common_values_have_hundreds_of_carriers(faces: Dataset) -> None:
    for name, part in PARTS.items():
        for value in set(part.drawn) - set(part.rare):
            assert len(faces.carriers(name, value)) > 500, (name, value)


def test_captions_speak_of_named_parts_alone_and_leave_some_out(faces: Dataset) -> None:
    left_out = 0
    for index, text in enumerate(faces.captions):
        whole = caption({name: faces.parts[name][index] for name in PARTS}).split(", ")
        assert set(text.split(", ")) <= set(whole)
        left_out += len(whole) - len(text.split(", "))
        assert not UNNAMED_WORDS & set(text.replace(",", "").split())
    share = left_out / sum(len(caption(face_of(faces, index)).split(", ")) for index in range(len(faces)))
    assert share == pytest.approx(0.15, abs=0.01)


def face_of(faces: Dataset, index: int) -> dict[str, str]:
    """All parts of one image."""
    return {name: faces.parts[name][index] for name in PARTS}


def test_held_out_combinations_of_named_parts_are_new(faces: Dataset) -> None:
    held_out = load_embedded("faces", split="held-out")

    def named(dataset: Dataset) -> set[tuple[str, ...]]:
        return set(zip(*(dataset.parts[name] for name in NAMED), strict=True))

    assert len(named(held_out)) == len(held_out) == 1000
    assert not named(held_out) & named(faces)


@pytest.mark.parametrize("part", PARTS)
def test_two_faces_that_differ_in_one_part_differ_within_its_box_alone(faces: Dataset, part: str) -> None:
    others = [name for name in PARTS if name != part]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(faces)):
        groups.setdefault(tuple(faces.parts[name][index] for name in others), []).append(index)
    pairs = [pair for group in groups.values() for pair in combinations(group, 2)]
    x0, y0, x1, y1 = faces.boxes[part]
    for one, other in pairs:
        changed = (faces.images[one] != faces.images[other]).any(-1)
        assert changed[y0:y1, x0:x1].any()
        changed[y0:y1, x0:x1] = False
        assert not changed.any()


def test_parts_are_not_in_the_digest(faces: Dataset) -> None:
    bare = Dataset(faces.name, faces.ids, faces.captions, faces.concepts, faces.styles, faces.images)
    assert bare.parts == {}
    assert bare.digest == faces.digest


def test_an_unknown_part_is_refused(faces: Dataset) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'hat'"):
        faces.carriers("hats", "pink")


@pytest.mark.slow
@pytest.mark.skipif("BENCH_SOURCES" not in os.environ, reason="BENCH_SOURCES names the folder of the source packages")
def test_faces_are_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    """Needs Node."""
    command = [sys.executable, "-m", "bench.building.faces", os.environ["BENCH_SOURCES"], "--output", str(tmp_path)]
    subprocess.run(command, check=True)
    assert (tmp_path / "faces.parquet").read_bytes() == FILE.read_bytes()
