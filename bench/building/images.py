"""Downscale images and write the parquet file of an image-caption data set, byte for byte reproducibly."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Example:
    """One image with its caption.

    `concept` says what is shown, `style` how it is drawn ("" if the data set has one style only), `split` is
    "train" or "held-out", `image` is the row-major HWC image in uint8.
    """

    id: str
    caption: str
    concept: str
    style: str
    split: str
    image: bytes


@dataclass(frozen=True)
class Metadata:
    """What the parquet schema says about the data set, under the key `bench`.

    `licence` is an SPDX expression; `source_sha256` maps each source package's file name to its SHA-256.
    """

    name: str
    height: int
    width: int
    channels: int
    source: str
    version: str
    licence: str
    source_sha256: dict[str, str]


def box_mean(images: np.ndarray, factor: int) -> np.ndarray:
    """Downscale uint8 images [N, H, W, C] by the exact mean of factor x factor pixels, rounded half up."""
    count, height, width, channels = images.shape
    boxes = images.reshape(count, height // factor, factor, width // factor, factor, channels)
    area = factor * factor
    sums: np.ndarray = boxes.sum(axis=(2, 4), dtype=np.int64)
    return ((sums + area // 2) // area).astype(np.uint8)


def write_parquet(examples: list[Example], metadata: Metadata, path: Path) -> None:
    """Write `examples`, in the order given, with `metadata` in the schema."""
    image_bytes = metadata.height * metadata.width * metadata.channels
    text_columns = ["id", "caption", "concept", "style", "split"]
    schema = pa.schema(
        [pa.field(column, pa.string()) for column in text_columns] + [pa.field("image", pa.binary(image_bytes))],
        metadata={"bench": json.dumps(asdict(metadata), sort_keys=True)},
    )
    table = pa.Table.from_pylist([asdict(example) for example in examples], schema=schema)
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=text_columns)
