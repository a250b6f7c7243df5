"""Artifacts: whole, checked, set aside when damaged; folders of other versions refused."""

import errno
import time

import pytest
import torch

from bench.errors import DamagedArtifact, ResultsFolderError
from bench.experiments.workspace import Workspace
from bench.foundation.digests import digest_of
from bench.records.store import Artifacts, Store, read_tensors, write_tensors, write_whole
from bench.registry import metrics

LOSS = [metrics.create("loss_change")]


def test_tensors_come_back_with_their_metadata(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.arange(6).view(2, 3)}, colour="blue")
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(tensors["x"], torch.arange(6).view(2, 3))
    assert metadata == {"colour": "blue"}


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_damage_is_found_set_aside_and_rebuilt(tmp_path, harm):
    said = []
    store = Store(tmp_path, note=said.append)
    Artifacts(store)("a", lambda: {"x": torch.ones(100)})
    path = tmp_path / "cache" / "a.safetensors"
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-5] ^= 0xFF
    path.write_bytes(content[:-40] if harm == "truncate" else b"" if harm == "empty" else content)
    with pytest.raises(DamagedArtifact):
        read_tensors(path)
    rebuilt = Artifacts(store)("a", lambda: {"x": torch.full((100,), 2.0)})
    assert rebuilt["x"][0] == 2
    assert (tmp_path / "damaged" / "a.safetensors").exists()
    assert "rebuilt" in said[0]


def test_what_others_built_is_counted_once_and_what_one_builds_oneself_is_not(tmp_path):
    def slowly():
        time.sleep(0.2)
        return {"x": torch.ones(2)}

    first, second = Artifacts(Store(tmp_path)), Artifacts(Store(tmp_path))
    for artifacts in (first, first, second, second):
        assert torch.equal(artifacts("a", slowly)["x"], torch.ones(2))
    assert first.spared == 0
    assert 0.2 <= second.spared < 5


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr("bench.records.store.os.fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_said_in_words(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bench.records.store.os.fsync", full)
    with pytest.raises(ResultsFolderError, match="disk is full"):
        write_whole(tmp_path / "a", b"x")


def test_a_folder_of_another_version_is_refused_with_the_reason(tmp_path, tiny):
    from dataclasses import replace

    Workspace(tiny, tmp_path, metrics=LOSS)
    Workspace(tiny, tmp_path, metrics=LOSS)
    other = replace(tiny, recipe=replace(tiny.recipe, num_steps=13))
    with pytest.raises(ResultsFolderError, match="differ in: recipe"):
        Workspace(other, tmp_path, metrics=LOSS)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, tiny):
    (tmp_path / "f").write_text("x")
    with pytest.raises(ResultsFolderError, match="is a file"):
        Workspace(tiny, tmp_path / "f", metrics=LOSS)


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
