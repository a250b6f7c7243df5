"""Build `fashion.parquet`: 6,000 images of Fashion-MNIST (Xiao et al., 2017) at 14 x 14 pixels with captions.

Usage: python -m bench.building.fashion DATASET_FASHION_MNIST.deb --output DIR
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

from bench.building.images import Example, Metadata, box_mean, write_parquet
from bench.building.packages import read_deb

VERSION = "0.0~git20200523.55506a9-1"
SHA256 = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
FOLDER = "usr/share/datasets/fashion-mnist"
MEMBERS = [f"{FOLDER}/train-images-idx3-ubyte.gz", f"{FOLDER}/train-labels-idx1-ubyte.gz"]

# In the order of the labels 0 to 9 of the source.
CAPTIONS = [
    "a photo of a t-shirt",
    "a photo of trousers",
    "a photo of a pullover",
    "a photo of a dress",
    "a photo of a coat",
    "a photo of a sandal",
    "a photo of a shirt",
    "a photo of a sneaker",
    "a photo of a bag",
    "a photo of an ankle boot",
]
CONCEPTS = [
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
IMAGES_PER_CLASS = 600
DOWNSCALE = 2


def read_idx(content: bytes) -> np.ndarray:
    """Decode a gzipped idx file of uint8 (LeCun's MNIST format).

    It holds two zeros, the type, the rank, one big-endian uint32 for each dimension, and the values.
    """
    raw = gzip.decompress(content)
    rank = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the ascending positions of the first `count` examples of each class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]))


def build(package: Path, output: Path) -> None:
    """Write `fashion.parquet` into the folder `output`."""
    images, labels = (read_idx(content) for content in read_deb(package, SHA256, MEMBERS))
    kept = first_of_each_class(labels, IMAGES_PER_CLASS)
    small = box_mean(images[kept][..., None], DOWNSCALE)
    examples = [
        Example(
            id=f"fashion-train-{position:05d}",
            caption=CAPTIONS[labels[position]],
            concept=CONCEPTS[labels[position]],
            style="",
            split="train",
            image=image.tobytes(),
        )
        for position, image in zip(kept, small, strict=True)
    ]
    _, height, width, channels = small.shape
    metadata = Metadata(
        name="fashion",
        height=height,
        width=width,
        channels=channels,
        source="Fashion-MNIST, training split (Zalando SE), from the Debian package dataset-fashion-mnist",
        version=VERSION,
        licence="MIT",
        source_sha256={f"dataset-fashion-mnist_{VERSION}_all.deb": SHA256},
    )
    write_parquet(examples, metadata, output / "fashion.parquet")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help=f"dataset-fashion-mnist_{VERSION}_all.deb")
    parser.add_argument("--output", type=Path, required=True, help="folder to write fashion.parquet into")
    arguments = parser.parse_args()
    build(arguments.package, arguments.output)


if __name__ == "__main__":
    main()
