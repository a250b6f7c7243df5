"""Stage 1, the data set: D = {(x_i, c_i)}, images with captions and stable string ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bench.errors import InvalidInput, UnknownName


@dataclass(frozen=True, eq=False)
class Dataset:
    """N images with captions.

    Attributes:
        name: of the data set.
        ids: N stable, unique strings; ties between scores are broken by them.
        captions: N texts.
        more_captions: the further captions of each image, of which each draw of training takes one as it does the
            first; () where every image has one. What reads a caption of an image by itself reads the first.
        concepts: N words for what is shown, styles: N words for how ("" where there is one style).
        images: uint8, images × height × width × channels.
        digest: of ids, captions and images; the parts are not in it.
        parts: part → N values ("" where an image lacks it), for controls, metrics and pages; no method reads them.
            Empty where a data set has no known parts.
        boxes: part → [x0, y0, x1, y1] in pixels (x1, y1 excluded), which holds every pixel that the part changes.
        named_parts: those of which captions may speak.
        images_digest: sha256 of the images' bytes where that is known; else they are all read for the digest.
        pieces: the data sets that it was joined of, in order; () where it was not. What is computed of each image by
            itself is kept for each piece, and shared by all that hold it.
    """

    name: str
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    images: UInt8[Tensor, "images height width channels"]
    digest: str = field(init=False)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    boxes: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    named_parts: tuple[str, ...] = ()
    images_digest: str = ""
    pieces: tuple[Dataset, ...] = ()
    more_captions: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        texts = [self.ids, self.captions, *([self.more_captions] if self.more_captions else [])]
        sha = hashlib.sha256(json.dumps(texts).encode())
        sha.update(str(tuple(self.images.shape)).encode())
        sha.update(self.images_digest.encode() or self.images.numpy().tobytes())
        object.__setattr__(self, "digest", sha.hexdigest()[:16])

    def __len__(self) -> int:
        return len(self.ids)

    def and_then(self, others: Dataset) -> Dataset:
        """These images, then ``others``, which must have the same size; their parts are not known where they have none.

        Raises InvalidInput where an id is in both.
        """
        if both := set(self.ids) & set(others.ids):
            raise InvalidInput(f"{len(both)} ids are in both data sets, such as '{min(both)}': rename them in one.")
        return replace(
            self,
            name=f"{self.name}+{others.name}",
            ids=(*self.ids, *others.ids),
            captions=(*self.captions, *others.captions),
            concepts=(*self.concepts, *others.concepts),
            styles=(*self.styles, *others.styles),
            images=torch.cat([self.images, others.images]),
            parts={
                part: (*column, *others.parts.get(part, ("",) * len(others))) for part, column in self.parts.items()
            },
            pieces=(self, others),
            more_captions=(
                *(self.more_captions or ((),) * len(self)),
                *(others.more_captions or ((),) * len(others)),
            )
            if self.more_captions or others.more_captions
            else (),
        )

    def only(self, indices: Sequence[int]) -> Dataset:
        """The images of ``indices``, in that order."""
        return replace(
            self,
            ids=tuple(self.ids[index] for index in indices),
            captions=tuple(self.captions[index] for index in indices),
            concepts=tuple(self.concepts[index] for index in indices),
            styles=tuple(self.styles[index] for index in indices),
            images=self.images[torch.as_tensor(indices)],
            images_digest="",
            parts={part: tuple(column[index] for index in indices) for part, column in self.parts.items()},
            pieces=(),
            more_captions=tuple(self.more_captions[index] for index in indices) if self.more_captions else (),
        )

    @property
    def texts(self) -> set[str]:
        """All different captions."""
        return {*self.captions, *(text for each in self.more_captions for text in each)}

    @cached_property
    def by_id(self) -> list[int]:
        """Indices in the order of ids: draw images from it, and the draw does not depend on how they are stored."""
        return sorted(range(len(self)), key=self.ids.__getitem__)

    def carriers(self, part: str, value: str) -> list[int]:
        """Indices of the images whose ``part`` is ``value``, ascending; raises UnknownName for an unknown part."""
        if part not in self.parts:
            raise UnknownName("part", part, self.parts)
        return [index for index, found in enumerate(self.parts[part]) if found == value]

    def pixels(
        self, indices: Sequence[int] | None = None, *, flipped: bool = False
    ) -> Float[Tensor, "images channels height width"]:
        """Images in [-1, 1], mirrored left to right where ``flipped``."""
        chosen = self.images if indices is None else self.images[torch.as_tensor(indices)]
        floats = chosen.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        return floats.flip(-1) if flipped else floats


def load_embedded(name: str, *, split: str = "train", per_concept: int | None = None) -> Dataset:
    """A data set that ships with the project (``bench/data/<name>.parquet`` or ``bench/data/<name>/<name>.parquet``).

    Args:
        name: "fashion", "emoji" or "faces".
        split: rows of which split ("train" or "held-out").
        per_concept: keep only the first so many images of each concept.
    """
    folder = resources.files("bench.data")
    nested = folder / name / f"{name}.parquet"
    with resources.as_file(nested if nested.is_file() else folder / f"{name}.parquet") as path:
        table = pq.read_table(path)
    meta = json.loads(table.schema.metadata[b"bench"])
    rows = table.to_pandas()
    rows = rows[rows["split"] == split]
    if per_concept is not None:
        rows = rows.groupby("concept", sort=False).head(per_concept)
    shape = (len(rows), meta["height"], meta["width"], meta["channels"])
    images = np.frombuffer(b"".join(rows["image"]), np.uint8).reshape(shape)
    return Dataset(
        name=name,
        ids=tuple(rows["id"]),
        captions=tuple(rows["caption"]),
        concepts=tuple(rows["concept"]),
        styles=tuple(rows["style"]),
        images=torch.from_numpy(images.copy()),
        parts={part: tuple(rows[part]) for part in meta.get("parts", ())},
        boxes={part: tuple(meta["boxes"][part]) for part in meta.get("parts", ())},
        named_parts=tuple(meta.get("named_parts", ())),
    )


@lru_cache(maxsize=4)
def places_of(ids: tuple[str, ...]) -> np.ndarray:
    """The place of each of ``ids`` among all of them in their order: these numbers sort faster than the ids do."""
    places = np.empty(len(ids), np.int64)
    places[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return places
