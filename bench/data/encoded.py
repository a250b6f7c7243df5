"""A data set as a model sees it, on disk: encoded once, memory-mapped by every process that needs it.

A folder holds ``latents.npy`` (images × 2 × channels × rows × columns, each image as it is and mirrored),
``states.npy`` (one text state for each different caption, then the empty prompt's), ``caption_of.npy`` (row of
``states`` for each image), where images have further captions ``more_of.npy`` (their rows, −1 where there is none),
and ``index.json``, a sealed record of whose data set it is, with size and sha256 of each. It is written under another
name and renamed when it is whole. Pages are read when they are touched and shared among processes, so that a worker's
own memory does not grow with N. Opening it reads the record and compares sizes; all bytes are read by ``bench doctor``
alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.data.source import DataSource
from bench.errors import DamagedArtifact
from bench.records import folder
from bench.records.sealing import read_sealed, record_bytes
from bench.records.store import write_whole

ENCODING_BATCH = 512
ARRAYS = ("latents", "states", "caption_of")
MORE = "more_of"
"""A further array, where images have further captions."""
EncodeImages = Callable[[Tensor], Tensor]
EncodeTexts = Callable[[Sequence[str]], Tensor]
Allocate = Callable[[str, Any, tuple[int, ...]], np.ndarray]
"""An empty array of a name, dtype and shape."""


class Encoded(NamedTuple):
    """Latents and text states; see the module's text for their shapes."""

    latents: Float[Tensor, "images 2 channels rows columns"]
    states: Float[Tensor, "captions tokens dim"]
    caption_of: Int[Tensor, " images"]
    more_of: Int[Tensor, "images more"] | None = None


def encode(
    place: Path,
    source: DataSource,
    images: EncodeImages,
    texts: EncodeTexts,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``source``, as ``images`` and ``texts`` encode it, into the folder ``place``, whole or not at all.

    A call that was interrupted is gone on with: what it has encoded lies in ``.<place>.part``.

    Args:
        images: batch × channels × height × width to latents.
        texts: captions to captions × tokens × dim.
        progress: told how many images and texts are encoded, and how many there are.
    """
    fresh = place.with_name(f".{place.name}.part")
    journal = _Journal(fresh, source.digest, progress)
    for array in _made(source, images, texts, journal.allocate, journal):
        array.flush()  # type: ignore[attr-defined]
    journal.path.unlink(missing_ok=True)
    names = (*ARRAYS, *([MORE] if source.more_captions else []))
    digests = {name: _sha256(fresh / f"{name}.npy") for name in names}
    sizes = {name: (fresh / f"{name}.npy").stat().st_size for name in names}
    index = {"source": source.digest, "sizes": sizes, "digests": digests}
    (fresh / folder.INDEX).write_bytes(record_bytes(place / folder.INDEX, index))
    shutil.rmtree(place, ignore_errors=True)
    fresh.replace(place)


class _Journal:
    """How far an encoding is: batches that are done and on the disk, by array."""

    def __init__(self, fresh: Path, digest: str, progress: Callable[[int, int], None]) -> None:
        self.fresh, self.path, self.progress = fresh, fresh / "journal.json", progress
        self.done: dict[str, int] = {}
        self.total = 0
        try:
            kept = json.loads(self.path.read_text())
            if kept.pop("source") == digest:
                self.done = {name: int(count) for name, count in kept.items()}
        except (OSError, ValueError, KeyError, AttributeError):
            pass
        if not self.done:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        self.digest = digest

    def allocate(self, name: str, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The array in its file, as an interrupted call left it or new."""
        place = self.fresh / f"{name}.npy"
        if self.done.get(name):
            try:
                kept = np.lib.format.open_memmap(place, "r+")
                if kept.shape == shape and kept.dtype == kind:
                    return kept
            except (OSError, ValueError):
                pass
            self.done[name] = 0
        return np.lib.format.open_memmap(place, "w+", kind, shape)

    def note(self, name: str, count: int, array: np.ndarray) -> None:
        """``count`` rows of ``name`` are encoded."""
        array.flush()  # type: ignore[attr-defined]
        self.done[name] = count
        write_whole(self.path, json.dumps({**self.done, "source": self.digest}).encode())
        self.progress(sum(self.done.values()), self.total)


def encoded(source: DataSource, images: EncodeImages, texts: EncodeTexts) -> Encoded:
    """The same in memory, for a data set that is small."""
    made = _made(source, images, texts, lambda name, kind, shape: np.empty(shape, kind))
    return Encoded(*map(torch.from_numpy, made))


def opened(place: Path) -> Encoded:
    """The arrays of ``place``, memory-mapped; raises DamagedArtifact where it is another folder, or arrays are cut."""
    names = _compare(place, "sizes", lambda path: path.stat().st_size)
    try:
        # Mapped for private writing, as torch has no read-only tensors; nothing writes.
        return Encoded(*(torch.from_numpy(np.load(place / f"{name}.npy", mmap_mode="c")) for name in names))
    except (OSError, ValueError) as error:
        raise DamagedArtifact(f"{place} cannot be read ({error}).") from error


def check(place: Path) -> None:
    """Raise DamagedArtifact where any byte of ``place`` is not what was written."""
    opened(place)
    _compare(place, "digests", _sha256)


def _compare(place: Path, fact: str, found: Callable[[Path], Any]) -> tuple[str, ...]:
    """Names of the arrays; raises DamagedArtifact where the record says another ``fact`` of one than is ``found``."""
    try:
        wanted = read_sealed(place / folder.INDEX)[fact]
        names = (*ARRAYS, *([MORE] if MORE in wanted else []))
        damaged = [name for name in names if found(place / f"{name}.npy") != wanted[name]]
    except (OSError, KeyError, TypeError) as error:
        raise DamagedArtifact(f"{place} cannot be read ({error}).") from error
    if damaged:
        raise DamagedArtifact(f"{place} has another content than was written: {', '.join(damaged)}.")
    return names


def _made(
    source: DataSource, images: EncodeImages, texts: EncodeTexts, allocate: Allocate, journal: _Journal | None = None
) -> list[np.ndarray]:
    """The arrays in the order of ARRAYS, filled a batch at a time."""
    captions = sorted({*source.captions, *(text for each in source.more_captions for text in each)})
    row = {caption: index for index, caption in enumerate(captions)}
    prompts = [*captions, ""]
    if journal:
        journal.total = len(source) + len(prompts)
    latents = _filled("latents", len(source), lambda part: _both_sides(source, part, images), allocate, journal)
    states = _filled("states", len(prompts), lambda part: texts([prompts[at] for at in part]), allocate, journal)
    caption_of = allocate("caption_of", np.dtype(np.int64), (len(source),))
    caption_of[:] = [row[caption] for caption in source.captions]
    if not source.more_captions:
        return [latents, states, caption_of]
    more_of = allocate(MORE, np.dtype(np.int64), (len(source), max(map(len, source.more_captions))))
    more_of[:] = -1
    for image, texts_of in enumerate(source.more_captions):
        more_of[image, : len(texts_of)] = [row[text] for text in texts_of]
    return [latents, states, caption_of, more_of]


def _both_sides(source: DataSource, part: list[int], images: EncodeImages) -> Tensor:
    return torch.stack([images(source.pixels(part, flipped=flipped)) for flipped in (False, True)], 1)


def _filled(
    name: str,
    count: int,
    made: Callable[[list[int]], Tensor],
    allocate: Allocate,
    journal: _Journal | None = None,
) -> np.ndarray:
    """``made`` of the indices below ``count``, at least one, a batch at a time; what is done already is kept."""
    array: np.ndarray | None = None
    for part in torch.arange(count).split(ENCODING_BATCH):
        if array is not None and journal and journal.done.get(name, 0) > int(part[-1]):
            continue
        values = made(part.tolist()).detach().cpu().contiguous().numpy()  # the first batch tells dtype and shape
        if array is None:
            array = allocate(name, values.dtype, (count, *values.shape[1:]))
        array[part.numpy()] = values
        if journal:
            journal.note(name, max(journal.done.get(name, 0), int(part[-1]) + 1), array)
    assert array is not None
    return array


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
