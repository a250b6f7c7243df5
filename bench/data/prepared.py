"""A user's data set, prepared once: every image cropped to a square, scaled, and kept as bytes in one mapped file.

A folder holds ``images.u8`` (images × height × width × channels, uint8), ``rows.json`` (ids, captions, concepts) and
``index.json``, a sealed record of both with what was asked for. Preparing is two passes over the source. The first, the
``Survey``, opens each image without decoding it and finds most of what is wrong; the second decodes. All that is found
is told in one report, and nothing is prepared from bad data unless that is asked for. A preparation that is
interrupted goes on where it was.

Cropping: the largest square in the middle; scaling: bicubic, with an antialiasing filter (Pillow). Colours: transparent
parts become white, 16-bit channels lose their lower 8 bits, of an animation the first picture counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from bench.data.dataset import Dataset
from bench.data.source_files import Example, Source
from bench.errors import DamagedArtifact, InvalidInput
from bench.foundation.digests import digest_of
from bench.records import folder
from bench.records.sealing import read_sealed, record_bytes
from bench.records.store import write_whole

T = TypeVar("T")
PIXELS, ROWS, JOURNAL = "images.u8", "rows.json", "journal.json"
BLOCK = 256
"""Images after which the journal is written."""
SHOWN = 20
MOST_PIXELS = 200_000_000
LABEL = 40
BROKEN = (OSError, ValueError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError, MemoryError)
Advance = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is to be prepared, and where.

    Attributes:
        place: the folder of the result.
        source: where the images come from.
        size: of the squares, in pixels.
        grey: one channel instead of three.
        skip_broken: whether bad examples are left out; else they are refused.
        digest: of the data set as it was when the study was made; "" where that is not fixed.
    """

    place: str
    source: Source
    size: int
    grey: bool = False
    skip_broken: bool = False
    digest: str = ""

    @property
    def asked(self) -> dict[str, Any]:
        """What the result depends on beside the examples themselves."""
        every = {"all_captions": True} if self.source.all_captions else {}
        return {"size": self.size, "grey": self.grey, **every}


@dataclass
class Survey:
    """What a source holds, by the headers of its images.

    Attributes:
        ids, captions, concepts, more: of the good examples, in the order of the source; more are further captions.
        problems: (place, what is wrong) of the bad ones.
        sides: the shorter side of each good image.
        modes: how many have which of Pillow's modes.
        not_square: how many will be cropped.
        seen: examples, good and bad.
    """

    ids: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    concepts: list[str] = field(default_factory=list)
    more: list[tuple[str, ...]] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    sides: list[int] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    seen: int = 0
    good: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source, progress: Advance = lambda done, total: None) -> Survey:
        """Look at all of ``source``."""
        found, known = cls(), set[str]()
        for example in source.examples():
            found._see(example, known)
            if found.seen % BLOCK == 0:
                progress(found.seen, found.seen + 1)  # how many there are is not known yet
        progress(found.seen, found.seen)
        return found

    def _see(self, example: Example, known: set[str]) -> None:
        self.seen += 1
        what = _fault(example, known)
        size, mode = (0, 0), ""
        if not what:
            try:
                size, mode = _header(example)
            except BROKEN as error:
                what = f"is no image that can be read ({_short(error)})"
        self.good.append(not what)
        if what:
            self.problems.append((example.place, what))
            return
        known.add(example.id)
        self.ids.append(example.id)
        self.captions.append(example.caption or "")
        self.concepts.append(example.concept)
        self.more.append(example.more)
        self.sides.append(min(size))
        self.sizes[size] += 1
        self.modes[mode] += 1

    @property
    def side(self) -> int:
        """The median of the shorter sides, in pixels; 0 where there is no good image."""
        return int(median(self.sides)) if self.sides else 0

    @property
    def grey(self) -> bool:
        """Whether no image has colours."""
        return bool(self.modes) and set(self.modes) <= {"1", "L", "I;16", "I", "LA"}

    def converted(self, size: int) -> list[str]:
        """What is done to images that are not as the model wants them, in lines."""
        uneven = sum(count for (width, height), count in self.sizes.items() if width != height)
        small = sum(side < size for side in self.sides)
        alpha = sum(count for mode, count in self.modes.items() if mode in ("LA", "RGBA", "PA", "La", "RGBa"))
        deep = sum(count for mode, count in self.modes.items() if mode.startswith("I"))
        cases = (
            (len(self.sizes) > 1, f"{len(self.sizes)} different sizes: all are scaled to {size} × {size} pixels"),
            (uneven, f"{uneven} are not square: cropped to the middle"),
            (small, f"{small} have less than {size} pixels: enlarged"),
            (alpha, f"{alpha} have transparent parts: put on white"),
            (deep, f"{deep} have 16 bits a channel: reduced to 8"),
        )
        return [text for there, text in cases if there]


def dataset(wanted: Prepared) -> Dataset:
    """The prepared data set, prepared now where it is missing or damaged; its images are mapped, not read.

    Raises InvalidInput where it is another one than the study was made with.
    """
    place = Path(wanted.place)
    try:
        found = opened(place, wanted.asked)
    except (DamagedArtifact, FileNotFoundError):
        found = prepare(wanted)
    if wanted.digest and found.digest != wanted.digest:
        raise InvalidInput(
            f"The data of {wanted.source.path} have changed: the study was made with version {wanted.digest}, now they "
            f"are version {found.digest}. Restore them, or begin a new study with `bench study new`."
        )
    return found


def prepare(
    wanted: Prepared, survey: Survey | None = None, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Dataset:
    """Prepare ``wanted``, going on where an earlier try was interrupted.

    Raises InvalidInput with a report of all that is bad, unless that is to be skipped.
    """
    survey = survey or Survey.of(wanted.source, lambda done, total: progress("look at images", done, total))
    place = Path(wanted.place)
    part = place.with_name(f".{place.name}.part")
    writer = _Writer(part, wanted, survey)
    writer.run(lambda done: progress("prepare images", done, survey.seen))
    problems = [*survey.problems, *writer.problems]
    if problems and not wanted.skip_broken:
        raise InvalidInput(report(wanted.source, problems, survey.seen))
    if not writer.kept:
        raise InvalidInput(report(wanted.source, problems, survey.seen) if problems else _empty(wanted.source))
    writer.finish(place)
    return opened(place, wanted.asked)


def opened(place: Path, asked: dict[str, Any]) -> Dataset:
    """The prepared data set in ``place``.

    Raises FileNotFoundError where there is none, DamagedArtifact where it is not what was written, or not ``asked``.
    """
    if not (place / folder.INDEX).exists():
        raise FileNotFoundError(place)
    try:
        index = read_sealed(place / folder.INDEX)
        rows = (place / ROWS).read_bytes()
        shape = tuple(index["shape"])
        if hashlib.sha256(rows).hexdigest() != index["rows"] or (place / PIXELS).stat().st_size != np.prod(shape):
            raise DamagedArtifact(f"{place} has another content than was written.")
        if asked != index["asked"]:
            raise DamagedArtifact(f"{place} was prepared in another way than is asked for now.")
        # mapped for private writing, as torch has no read-only tensors; nothing writes
        pixels = np.memmap(place / PIXELS, np.uint8, "c", shape=shape)
        columns = json.loads(rows)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedArtifact(f"{place} cannot be read ({error}).") from error
    return Dataset(
        name=str(index["name"]),
        ids=tuple(columns["ids"]),
        captions=tuple(columns["captions"]),
        concepts=tuple(columns["concepts"]),
        styles=("",) * len(columns["ids"]),
        images=torch.from_numpy(pixels),
        images_digest=str(index["images"]),
        more_captions=tuple(map(tuple, columns.get("more_captions", ()))),
    )


def report(source: Source, problems: Sequence[tuple[str, str]], seen: int) -> str:
    """All that is bad, in one text: every kind with how many, and the first places."""
    kinds = Counter(what.partition(" (")[0] for _, what in problems)
    counted = ", ".join(f"{count} {what}" for what, count in kinds.most_common())
    listed = "; ".join(f"{place} {what}" for place, what in problems[:SHOWN])
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return (
        f"{len(problems)} of {seen} examples of {source.path} are bad: {counted}. {listed}{more}. Mend them, or leave "
        "them out with --skip-broken (skip_broken = true in the study file)."
    )


class _Writer:
    """The second pass: decodes, crops, scales, writes; a journal says how far it is."""

    def __init__(self, part: Path, wanted: Prepared, survey: Survey) -> None:
        self.part, self.wanted, self.survey = part, wanted, survey
        more = [survey.more] if any(survey.more) else []
        self.who = digest_of([wanted.asked, wanted.source.path, survey.ids, survey.captions, survey.good, *more])
        self.seen = self.kept = 0
        self.problems: list[tuple[str, str]] = []
        self.dropped: list[int] = []
        journal = self._journal()
        if journal.get("who") == self.who:
            self.seen, self.kept = journal["seen"], journal["kept"]
            self.problems, self.dropped = [tuple(each) for each in journal["problems"]], journal["dropped"]
        else:
            shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True, exist_ok=True)

    def _journal(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.part / JOURNAL).read_text()))
        except (OSError, ValueError):
            return {}

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: height, width, channels."""
        return self.wanted.size, self.wanted.size, 1 if self.wanted.grey else 3

    def run(self, progress: Callable[[int], None]) -> None:
        """Decode all that is left."""
        if self.seen == self.survey.seen:
            return
        size = int(np.prod(self.shape))
        path = self.part / PIXELS
        path.touch()
        start = self.seen
        row = sum(self.survey.good[:start])
        with path.open("r+b") as file:
            file.truncate(self.kept * size)
            file.seek(self.kept * size)
            for number, example in enumerate(self.wanted.source.examples()):
                if number < start:
                    continue
                if number >= self.survey.seen:
                    raise InvalidInput(f"{self.wanted.source.path} changed while it was read; run the command again.")
                if self.survey.good[number]:
                    try:
                        file.write(square(example, self.wanted.size, grey=self.wanted.grey).tobytes())
                        self.kept += 1
                    except BROKEN as error:
                        self.problems.append((example.place, f"cannot be decoded ({_short(error)})"))
                        self.dropped.append(row)
                    row += 1
                self.seen = number + 1
                if self.seen % BLOCK == 0 or self.seen == self.survey.seen:
                    file.flush()
                    os.fsync(file.fileno())
                    self._note()
                    progress(self.seen)
        if self.seen < self.survey.seen:
            raise InvalidInput(f"{self.wanted.source.path} changed while it was read; run the command again.")

    def _note(self) -> None:
        journal = {
            "who": self.who, "seen": self.seen, "kept": self.kept, "problems": self.problems, "dropped": self.dropped,
        }  # fmt: skip
        write_whole(self.part / JOURNAL, json.dumps(journal).encode())

    def finish(self, place: Path) -> None:
        """Give the folder its record and its name."""
        gone = set(self.dropped)

        def kept(values: Sequence[T]) -> list[T]:
            return [value for row, value in enumerate(values) if row not in gone]

        captions = kept(self.survey.captions)
        concepts = [concept or _label(text) for concept, text in zip(kept(self.survey.concepts), captions, strict=True)]
        columns: dict[str, Any] = {"ids": kept(self.survey.ids), "captions": captions, "concepts": concepts}
        if any(more := kept(self.survey.more)):
            columns["more_captions"] = more
        rows = json.dumps(columns).encode()
        (self.part / ROWS).write_bytes(rows)
        with (self.part / PIXELS).open("rb") as file:
            images = hashlib.file_digest(file, "sha256").hexdigest()
        index = {
            "asked": self.wanted.asked, "name": Path(self.wanted.source.path).name, "shape": [self.kept, *self.shape],
            "rows": hashlib.sha256(rows).hexdigest(), "images": images, "skipped": len(self.problems)
            + len(self.survey.problems),
        }  # fmt: skip
        (self.part / JOURNAL).unlink(missing_ok=True)
        (self.part / folder.INDEX).write_bytes(record_bytes(place / folder.INDEX, index))
        shutil.rmtree(place, ignore_errors=True)
        self.part.replace(place)


def square(example: Example, size: int, *, grey: bool) -> np.ndarray:
    """The middle of an image as uint8, size × size × channels; raises one of BROKEN where it cannot be decoded."""
    with warnings.catch_warnings(), _open(example) as image:
        warnings.simplefilter("ignore")
        image.load()
        plain = _eight_bits(ImageOps.exif_transpose(image))
        width, height = plain.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        plain = plain.crop((left, top, left + side, top + side))
        if side != size:
            plain = plain.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(plain.convert("L" if grey else "RGB")).reshape(size, size, 1 if grey else 3)


def _eight_bits(image: Image.Image) -> Image.Image:
    """``image`` as L or RGB, transparent parts on white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values >> 8 if values.max(initial=0) > 255 else values).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _open(example: Example) -> Image.Image:
    assert example.image is not None
    return Image.open(io.BytesIO(example.image) if isinstance(example.image, bytes) else example.image)


def _header(example: Example) -> tuple[tuple[int, int], str]:
    """Size and mode; raises one of BROKEN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _open(example) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels are more than {MOST_PIXELS}")
            if image.mode == "F":
                raise ValueError("pixels are floating-point numbers")
            return image.size, image.mode


def _fault(example: Example, known: set[str]) -> str:
    """What is wrong with an example before its image is opened; "" where nothing is."""
    if example.image is None or (isinstance(example.image, Path) and not example.image.is_file()):
        return "has no image"
    if example.caption is None:
        return "has no caption"
    return "has an id that came before" if example.id in known else ""


def _label(caption: str) -> str:
    return caption if len(caption) <= LABEL else caption[: LABEL - 1].rsplit(" ", 1)[0] + "…"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = "unknown format" if "cannot identify image file" in text else text
    return text if len(text) <= 80 else f"{text[:79]}…"


def _empty(source: Source) -> str:
    return f"{source.path} holds no image."
