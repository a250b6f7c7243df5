"""A data set as a model sees it, on disk: encoded once, memory-mapped by every process that needs it.

A folder holds ``latents.npy`` (images × 2 × channels × rows × columns, each image as it is and mirrored),
``states.npy`` (one text state for each different caption, then the empty prompt's), ``caption_of.npy`` (row of
``states`` for each image) and ``index.json`` with the sha256 of each. It is written under another name and renamed
when it is whole. Pages are read when they are touched and shared among processes, so that a worker's own memory does
not grow with N.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.data.source import DataSource
from bench.errors import DamagedArtifact

ENCODING_BATCH = 512
ARRAYS = ("latents", "states", "caption_of")
INDEX = "index.json"
EncodeImages = Callable[[Tensor], Tensor]
EncodeTexts = Callable[[Sequence[str]], Tensor]


class Encoded(NamedTuple):
    """Latents and text states; see the module's text for their shapes."""

    latents: Float[Tensor, "images 2 channels rows columns"]
    states: Float[Tensor, "captions tokens dim"]
    caption_of: Int[Tensor, " images"]


def encode(place: Path, source: DataSource, images: EncodeImages, texts: EncodeTexts) -> None:
    """Write ``source``, as ``images`` and ``texts`` encode it, into the folder ``place``, whole or not at all.

    Args:
        images: batch × channels × height × width to latents.
        texts: captions to captions × tokens × dim.
    """
    fresh = place.with_name(f".{place.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    captions = sorted(set(source.captions))
    row = {caption: index for index, caption in enumerate(captions)}
    np.save(fresh / "caption_of.npy", np.array([row[caption] for caption in source.captions], np.int64))
    _fill(fresh / "latents.npy", len(source), lambda part: _both_sides(source, part, images))
    _fill(fresh / "states.npy", len(captions) + 1, lambda part: texts([[*captions, ""][index] for index in part]))
    digests = {name: _sha256(fresh / f"{name}.npy") for name in ARRAYS}
    (fresh / INDEX).write_text(json.dumps({"source": source.digest, "sha256": digests}))
    shutil.rmtree(place, ignore_errors=True)
    fresh.replace(place)


def opened(place: Path) -> Encoded:
    """The arrays of ``place``, memory-mapped; raises DamagedArtifact where they are not what was written."""
    try:
        wanted = json.loads((place / INDEX).read_text())["sha256"]
        damaged = [name for name in ARRAYS if _sha256(place / f"{name}.npy") != wanted[name]]
    except (OSError, ValueError, KeyError) as error:
        raise DamagedArtifact(f"{place} cannot be read ({error}).") from error
    if damaged:
        raise DamagedArtifact(f"{place} has another content than was written: {', '.join(damaged)}.")
    # Mapped for private writing, as torch has no read-only tensors; nothing writes.
    return Encoded(*(torch.from_numpy(np.load(place / f"{name}.npy", mmap_mode="c")) for name in ARRAYS))


def _both_sides(source: DataSource, part: list[int], images: EncodeImages) -> Tensor:
    return torch.stack([images(source.pixels(part, flipped=flipped)) for flipped in (False, True)], 1)


def _fill(path: Path, count: int, made: Callable[[list[int]], Tensor]) -> None:
    """Write ``made`` of all indices to ``path``, a batch at a time."""
    array: np.ndarray | None = None
    for part in torch.arange(count).split(ENCODING_BATCH):
        values = made(part.tolist()).detach().cpu().contiguous().numpy()
        if array is None:
            array = np.lib.format.open_memmap(path, "w+", values.dtype, (count, *values.shape[1:]))
        array[part.numpy()] = values
    if array is not None:
        array.flush()  # type: ignore[attr-defined]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
