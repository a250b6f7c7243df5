"""The encoded data set: what the memory holds, made once, found damaged, no larger in memory than its pages."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bench.data import encoded
from bench.data.source import DataSource
from bench.diffusion.model import DiffusionModel
from bench.diffusion.training import TrainingData
from bench.errors import DamagedArtifact
from bench.records import folder
from bench.records.store import Store, write_json
from bench.report import doctor
from bench.retraining.ledger import Ledger

CPU = torch.device("cpu")


@pytest.fixture
def kept(tiny, tmp_path):
    place = tmp_path / "encoded"
    return place, TrainingData.kept(place, tiny.dataset, DiffusionModel(tiny.model))


def test_on_disk_and_in_memory_are_equal_to_the_bit(kept, data):
    _, found = kept
    assert torch.equal(found.latents, data.latents)
    assert torch.equal(found.states, data.states)
    assert torch.equal(found.caption_of, data.caption_of)


def test_batches_do_not_show(kept, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "ENCODING_BATCH", 7)
    other = TrainingData.kept(tmp_path / "other", tiny.dataset, DiffusionModel(tiny.model))
    torch.testing.assert_close(other.latents, kept[1].latents)
    torch.testing.assert_close(other.states, kept[1].states)


def test_a_data_set_is_a_source(tiny):
    assert isinstance(tiny.dataset, DataSource)


@pytest.mark.parametrize("name", ["latents.npy", "states.npy", "caption_of.npy", "index.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found(kept, name, damage):
    place, _ = kept
    path = place / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-5]), "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    with pytest.raises(DamagedArtifact, match="encoded"):
        encoded.check(place)
    if damage != "flip" or name == "index.json":
        with pytest.raises(DamagedArtifact, match="encoded"):
            encoded.opened(place)


def test_opening_reads_no_array_whole(kept, monkeypatch):
    monkeypatch.setattr(encoded, "_sha256", lambda path: pytest.fail("read"))
    encoded.opened(kept[0])


def test_a_folder_in_anothers_place_or_without_its_name_is_found_on_opening(kept, tmp_path):
    place, _ = kept
    encoded.check(place)
    index = json.loads((place / folder.INDEX).read_text())
    shutil.copytree(place, tmp_path / "other")
    with pytest.raises(DamagedArtifact, match="in another's place"):
        encoded.opened(tmp_path / "other")
    (place / folder.INDEX).write_text(json.dumps({key: index[key] for key in ("source", "sizes", "digests")}))
    with pytest.raises(DamagedArtifact, match="does not say whose"):
        encoded.opened(place)


def test_the_doctor_names_a_swapped_folder_and_one_without_its_record(tiny, tmp_path, data):
    ledger(tiny, tmp_path).data  # noqa: B018 - made on first use
    [place] = tmp_path.glob("cache/encoded-*")
    write_json(tmp_path / folder.STUDY, {})
    assert not doctor.examine(tmp_path).damages
    shutil.copytree(place, other := place.with_name("encoded-0123"))
    assert [each.path for each in doctor.examine(tmp_path).damages] == ["cache/encoded-0123"]
    shutil.rmtree(place)
    other.rename(place)
    assert not doctor.examine(tmp_path).damages
    (place / folder.INDEX).unlink()
    assert [each.path for each in doctor.examine(tmp_path).damages] == [f"cache/{place.name}"]
    assert torch.equal(ledger(tiny, tmp_path).data.latents, data.latents)
    assert tmp_path.joinpath(*folder.damaged(place.name)).exists()


def ledger(tiny, root):
    return Ledger(tiny, Store(root), device=CPU, observations=[])


def test_a_ledger_makes_it_once_and_again_where_it_is_damaged(tiny, tmp_path, monkeypatch, data):
    made = []
    whole = encoded.encode
    monkeypatch.setattr("bench.diffusion.training.encode", lambda *given: (made.append(1), whole(*given)))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: ledger(tiny, tmp_path).data, range(2)))
    assert len(made) == 1
    assert torch.equal(both[0].latents, both[1].latents)
    [place] = tmp_path.glob("cache/encoded-*")
    (place / "latents.npy").write_bytes(b"nothing")
    assert torch.equal(ledger(tiny, tmp_path).data.latents, data.latents)
    assert len(made) == 2
    assert (tmp_path.joinpath(*folder.damaged(place.name))).exists()


def test_a_second_damage_replaces_the_first_that_was_set_aside(tiny, tmp_path):
    for _ in range(2):
        ledger(tiny, tmp_path).data  # noqa: B018 - made on first use
        [place] = tmp_path.glob("cache/encoded-*")
        (place / "latents.npy").unlink()
    ledger(tiny, tmp_path).data  # noqa: B018
    assert (place / "latents.npy").exists()


def test_half_written_is_not_there(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "_sha256", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        TrainingData.kept(tmp_path / "encoded", tiny.dataset, DiffusionModel(tiny.model))
    assert not (tmp_path / "encoded").exists()
    shutil.rmtree(tmp_path / ".encoded.part")
