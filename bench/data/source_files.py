"""Where a user's images and captions come from: folders, WebDataset shards, parquet, the hub. Read by ``datasets``.

Everything is streamed and undecoded: an ``Example`` holds the bytes or the path of an image, so that one broken file
is one broken example (``bench.data.prepared`` says what becomes of it), never the end of the reading.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InvalidInput, Unavailable

CAPTIONS = ("text", "caption", "captions", "prompt", "txt", "description", "sentences")
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
IDS = ("id", "image_id", "key", "__key__", "file_name")
LABELS = ("label", "class", "category", "fine_label")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FORMATS = ("imagefolder", "webdataset", "parquet", "hub", "coco")
COCO_CAPTIONS = 5
"""Of an image of COCO, where all are asked for: its first annotations. Some have six or seven."""
INSTALL = "install the extra [data]: pip install 'attribution-bench[data]'"


@dataclass(frozen=True)
class Example:
    """One image as the source has it.

    Attributes:
        id: of the image within the source; "" where the source has none.
        image: its bytes, the path of its file, or None where there is none.
        caption: its text, None where there is none.
        concept: its class in words, "" where there are no classes.
        place: for messages: a file, or the number of a row.
        more: its further captions, where all are asked for.
    """

    id: str
    image: bytes | Path | None
    caption: str | None
    concept: str
    place: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source:
    """A user's data set.

    Attributes:
        path: a folder, a file, or the id of a data set on the hub.
        format: one of FORMATS; "" to tell it from what is there.
        split: of a data set on the hub.
        image, caption, id: names of columns; "" to find them by their usual names.
        annotations: the file with the captions of a "coco" data set.
        captionless: whether images without a caption are wanted with the empty prompt.
        all_captions: whether an image has all of its captions, of COCO the first five; else the first alone.
    """

    path: str
    format: str = ""
    split: str = "train"
    image: str = ""
    caption: str = ""
    id: str = ""
    annotations: str = ""
    captionless: bool = False
    all_captions: bool = False

    @property
    def kind(self) -> str:
        """The format; raises InvalidInput where it cannot be told."""
        if self.format:
            if self.format not in FORMATS:
                raise InvalidInput(f"The data format '{self.format}' is unknown; give one of {', '.join(FORMATS)}.")
            return self.format
        place = Path(self.path)
        if not place.exists():
            if self.path.count("/") == 1 and not self.path.startswith((".", "/", "~")):
                raise InvalidInput(
                    f"There is no folder or file {self.path}. If it is a data set on the hub, say so: --format hub."
                )
            raise InvalidInput(f"There is no folder or file {self.path}.")
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        found = {
            "webdataset": any(path.suffix == ".tar" for path in files),
            "parquet": any(path.suffix == ".parquet" and path.name not in METADATA for path in files),
            "imagefolder": any(path.suffix.lower() in SUFFIXES for path in files) and place.is_dir(),
        }
        kinds = [kind for kind, there in found.items() if there]
        if not kinds:
            raise InvalidInput(
                f"{self.path} holds no data that can be read: a folder with images ({', '.join(SUFFIXES[:4])}, …) is "
                "expected, with captions in metadata.jsonl or metadata.csv or with a folder for each class; or "
                "WebDataset shards (.tar); or parquet files with a column of images."
            )
        if len(kinds) > 1:
            raise InvalidInput(f"{self.path} holds data of several formats: give --format, one of {', '.join(kinds)}.")
        return kinds[0]

    def examples(self) -> Iterator[Example]:
        """All examples, in the order of the source; raises InvalidInput where the source as a whole cannot be read."""
        kind = self.kind
        if kind == "coco":
            yield from _coco(self)
            return
        rows = _rows(self, kind)
        captioned: set[Path] = set()
        root = Path(self.path).resolve()
        try:
            for number, row in enumerate(rows):
                example = self._example(row, number, kind)
                if kind == "imagefolder" and isinstance(example.image, Path):
                    captioned.add(example.image)
                yield example
        except (InvalidInput, Unavailable):
            raise
        except Exception as error:  # whatever a reader of four formats may raise
            raise InvalidInput(
                f"{self.path} cannot be read as {kind}: {_line(error)}. It is of another format, or damaged."
            ) from error
        if kind == "imagefolder" and any((root / name).exists() for name in METADATA):
            for path in sorted(root.rglob("*")):
                if path.suffix.lower() in SUFFIXES and path not in captioned and path.is_file():
                    name = path.relative_to(root).as_posix()
                    yield Example(name, path, "" if self.captionless else None, "", f"{name} (not in the metadata)")

    def _example(self, row: Mapping[str, Any], number: int, kind: str) -> Example:
        names = _Columns(self, row)
        image, path = _image(row.get(names.image))
        own = str(row[names.id]) if names.id and row.get(names.id) is not None else ""
        place = f"row {number}" + (f" ({own})" if own else "")
        if kind == "imagefolder" and path:
            own = place = Path(path).relative_to(Path(self.path).resolve()).as_posix()
        concept = names.label_of(row)
        caption = (_text(row.get(names.caption)) or None) if names.caption else concept
        if caption is None and self.captionless:
            caption = ""
        more = _more_texts(row.get(names.caption)) if self.all_captions and names.caption else ()
        return Example(own or f"{number:08d}", image, caption, concept, place, more)


def _coco(source: Source) -> Iterator[Example]:
    """Images and captions of COCO: the order and the ids of its own interface, one caption of each image or five."""
    file = Path(source.annotations)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = [(int(image["id"]), str(image["file_name"])) for image in content["images"]]
        said = [(int(each["image_id"]), str(each["caption"])) for each in content["annotations"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{file} cannot be read as captions of COCO ({_line(error)}): captions_train2017.json is expected, with "
            "'images' and 'annotations'."
        ) from error
    captions: dict[int, list[str]] = {}
    for image, text in said:
        captions.setdefault(image, []).append(" ".join(text.split()))
    for image, name in images:
        first, *others = captions.get(image) or [""]
        more = tuple(filter(None, others[: COCO_CAPTIONS - 1])) if source.all_captions else ()
        yield Example(str(image), Path(source.path) / name, first or None, "", name, more)


class _Columns:
    """Which column is what."""

    def __init__(self, source: Source, row: Mapping[str, Any]) -> None:
        self.features: Mapping[str, Any] = row.get("__features__", {})
        known = [name for name in row if name != "__features__"]

        def chosen(wanted: str, usual: tuple[str, ...], what: str) -> str:
            if wanted and wanted not in known:
                raise InvalidInput(f"There is no column '{wanted}' for the {what}; there are {', '.join(known)}.")
            return wanted or next((name for name in usual if name in known), "")

        self.image = chosen(source.image, IMAGES, "images")
        self.caption = chosen(source.caption, CAPTIONS, "captions")
        self.id = chosen(source.id, IDS, "ids")
        self.label = next((name for name in LABELS if name in known), "")
        if not self.image:
            raise InvalidInput(
                f"{source.path}: no column of images was found among {', '.join(known)}; name it with --image-column."
            )

    def label_of(self, row: Mapping[str, Any]) -> str:
        """The class in words."""
        value = row.get(self.label) if self.label else None
        names = getattr(self.features.get(self.label), "names", None)
        word = names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
        return "" if word is None else str(word).replace("_", " ").strip()


def _rows(source: Source, kind: str) -> Iterator[dict[str, Any]]:
    """Rows of ``source`` by ``datasets``, images undecoded; each with the features under "__features__"."""
    try:
        import datasets
    except ImportError as error:
        raise Unavailable(f"Reading {source.path} needs the package datasets; {INSTALL}.") from error
    datasets.disable_progress_bars()
    place = Path(source.path)
    if kind == "imagefolder":
        if not any((place / name).exists() for name in METADATA):
            _check_no_metadata_below(place)
        stream = datasets.load_dataset("imagefolder", data_dir=str(place.resolve()), split="train", streaming=True)
    elif kind == "hub":
        stream = datasets.load_dataset(source.path, split=source.split)
    else:
        suffix = ".tar" if kind == "webdataset" else ".parquet"
        files = [place] if place.is_file() else sorted(place.rglob(f"*{suffix}"))
        if not files:
            raise InvalidInput(f"{source.path} holds no {suffix} file.")
        features = _shard_features(files[0], datasets) if kind == "webdataset" else None
        names = [str(path.resolve()) for path in files]
        stream = datasets.load_dataset(
            kind, data_files={"train": names}, split="train", streaming=True, features=features
        )
    found = dict(stream.features or {})
    for name, feature in found.items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(name, datasets.Image(decode=False))
    for row in stream:
        yield {**row, "__features__": found}


def _check_no_metadata_below(place: Path) -> None:
    """A metadata file deeper in the folder speaks of that folder alone, which nobody means."""
    deeper = [path for name in METADATA for path in place.rglob(name)]
    if deeper:
        raise InvalidInput(
            f"{deeper[0]} lies below {place}: give the folder that holds it, or move it up to {place}, with file names "
            "relative to there."
        )


def _shard_features(shard: Path, datasets: Any) -> Any:
    """The fields of a WebDataset shard by its file names, so that an example that lacks one is one bad example.

    None where they cannot be told so: then ``datasets`` infers them.
    """
    try:
        with tarfile.open(shard) as archive:
            suffixes = {name.rpartition("/")[2].partition(".")[2].lower() for name in archive.getnames()}
    except (OSError, tarfile.TarError) as error:
        raise InvalidInput(f"{shard} is no tar file that can be read ({error}).") from error
    images = [suffix for suffix in sorted(suffixes) if f".{suffix}" in SUFFIXES]
    texts = [suffix for suffix in sorted(suffixes) if suffix in ("txt", "caption", "text")]
    if len(images) != 1 or not texts:
        return None
    text = {name: datasets.Value("string") for name in (*texts, "__key__", "__url__")}
    return datasets.Features({images[0]: datasets.Image(decode=False), **text})


def _image(value: Any) -> tuple[bytes | Path | None, str]:
    """Bytes or path of an image, and its path where it lies in a file."""
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), str(value.get("path") or "")
        return (content, "") if content is not None else (Path(path) if path else None, path)
    return (bytes(value), "") if isinstance(value, bytes | bytearray) else (None, "")


def _text(value: Any) -> str | None:
    """A caption; of several, the first."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, Mapping):
        value = json.dumps(value, sort_keys=True)
    return None if value is None else " ".join(str(value).split())


def _more_texts(value: Any) -> tuple[str, ...]:
    """The captions after the first, where there are several."""
    texts = map(_text, value[1:]) if isinstance(value, list | tuple) else ()
    return tuple(text for text in texts if text)


def _line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]}…"
