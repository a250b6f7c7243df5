"""The probe tells the parts of real faces, and of spoiled ones; prompts are read into the parts that they ask for."""

from importlib import resources
from pathlib import Path

import pytest
import torch

from bench.building.face_parts import PARTS, caption
from bench.building.face_probe import recoloured, spoiled, targets, values_of
from bench.data.dataset import load_embedded
from bench.data.face_queries import asked_parts
from bench.errors import InvalidInput
from bench.pretrained.probe import embedded_probe

HELD_OUT = load_embedded("faces", split="held-out")


def right(told: list[dict[str, str]]) -> dict[str, float]:
    """Share of the held-out faces whose part is told right."""
    return {
        name: sum(face[name] == value for face, value in zip(told, HELD_OUT.parts[name], strict=True)) / len(HELD_OUT)
        for name in PARTS
    }


def test_the_parts_of_real_faces_are_told() -> None:
    shares = right(embedded_probe().parts(HELD_OUT.pixels()))
    assert sum(shares.values()) / len(shares) > 0.995
    assert min(shares.values()) > 0.99


def test_mirrored_and_spoiled_faces_are_told_too() -> None:
    mirrored = right(embedded_probe().parts(HELD_OUT.pixels(flipped=True)))
    assert sum(mirrored.values()) / len(mirrored) > 0.99
    torch.manual_seed(5)
    noisy = right(embedded_probe().parts(spoiled(HELD_OUT.pixels())))
    assert sum(noisy.values()) / len(noisy) > 0.985


def test_recoloured_faces_are_told_by_their_new_colours() -> None:
    torch.manual_seed(5)
    values = values_of(HELD_OUT)
    before = targets(HELD_OUT, values)
    images, after = recoloured(HELD_OUT.images, before, values)
    changed = [name for name, column in zip(values, (before != after).any(0), strict=True) if column]
    assert changed == ["hair_colour", "hat", "background"]
    told = embedded_probe().parts(images.permute(0, 3, 1, 2) / 127.5 - 1)
    for name in changed:
        rows = after[:, list(values).index(name)].tolist()
        wanted = [values[name][row] for row in rows]
        assert sum(face[name] == value for face, value in zip(told, wanted, strict=True)) / len(told) > 0.98


def test_probabilities_belong_to_the_values_and_sum_to_one() -> None:
    probe = embedded_probe()
    tables = probe.probabilities(HELD_OUT.pixels(range(3)))
    assert list(tables) == list(PARTS)
    for part, table in tables.items():
        assert table.shape == (3, len(probe.values[part]))
        torch.testing.assert_close(table.sum(1), torch.ones(3))


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInput, match="16 × 16"):
        embedded_probe().parts(torch.zeros(1, 3, 8, 8))


def test_the_weights_are_small() -> None:
    path = Path(str(resources.files("bench.data"))) / "faces" / "probe.safetensors"
    assert path.stat().st_size < 1_000_000


def test_a_whole_caption_asks_for_the_named_parts_that_are_there() -> None:
    for index in range(len(HELD_OUT)):
        face = {name: HELD_OUT.parts[name][index] for name in PARTS}
        expected = {name: value for name, value in face.items() if value and PARTS[name].named}
        assert asked_parts(caption(face)) == expected


def test_parts_may_be_left_out_reordered_and_contradicted() -> None:
    assert asked_parts("Smile, teal hat,, long hair") == {"mouth": "smile", "hat": "teal", "hair_length": "long"}
    assert asked_parts("red hat, blue hat") == {"hat": "blue"}
    assert asked_parts("") == {}
