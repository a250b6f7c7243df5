"""Build `faces/faces.parquet`: 6,000 portraits of 16 x 16 pixels whose parts are known, and 1,000 held-out ones.

DiceBear's style "pixel-art" (design CC0 1.0, code MIT) draws heads, eyes, glasses, hair and clothes at their
native size, every variant fixed by `face_parts.py`; `face_layers.py` draws the rest under and over it.

Usage: python -m bench.building.faces SOURCES --output DIR, where the folder SOURCES holds the two npm packages named
in PACKAGES. Node 20 or later is needed.
"""

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image

from bench.building.face_layers import SIZE, compose
from bench.building.face_parts import ABSENT, NAMED, PARTS, Face, caption, draw_face, options
from bench.building.packages import read_checked
from bench.foundation.seeds import generator

PACKAGES = {
    "core": ("dicebear-core-9.4.3.tgz", "6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d"),
    "pixel-art": ("dicebear-pixel-art-9.4.3.tgz", "1252d798c632c20f194e7d8b2fbc18b23ad76b2511e668668d0051084bfaa754"),
}
NUM_TRAIN = 6000
NUM_HELD_OUT = 1000
BOX_FACES = 300
Pixels = np.ndarray


class Renderer:
    """Draws faces with Node, from the packages in `sources`, whose SHA-256 it checks."""

    def __init__(self, sources: Path, folder: Path) -> None:
        self.folder = folder
        for name, (file, sha256) in PACKAGES.items():
            content = read_checked(sources / file, sha256)
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                tar.extractall(folder / "unpacked" / name, filter="data")
            target = folder / "node_modules" / "@dicebear" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / "unpacked" / name / "package").rename(target)

    def draw(self, faces: list[Face]) -> Pixels:
        """The faces as uint8 [N, SIZE, SIZE, 3]."""
        script = Path(__file__).with_name("faces.mjs")
        command = ["node", str(script), str(self.folder)]
        done = subprocess.run(
            command, input=json.dumps([options(face) for face in faces]), capture_output=True, text=True, check=True
        )
        pairs = zip(faces, json.loads(done.stdout), strict=True)
        return np.stack([compose(face, rasterise(svg)) for face, svg in pairs])


def rasterise(svg: str) -> Pixels:
    """One SVG document as uint8 [SIZE, SIZE, 4], the last channel alpha."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
    pixels: Pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    return pixels


def train_faces() -> list[Face]:
    """NUM_TRAIN different faces, each with one rare value at most, in a keyed order."""
    rares = [{name: value} for name, part in PARTS.items() for value, count in part.rare.items() for _ in range(count)]
    rares += [{} for _ in range(NUM_TRAIN - len(rares))]
    order = generator("faces", "order").permutation(NUM_TRAIN)
    faces: list[Face] = []
    seen: set[tuple[str, ...]] = set()
    for index in order.tolist():
        faces.append(_new_face(rares[index], seen, "train", index))
    return faces


def _new_face(rare: Face, seen: set[tuple[str, ...]], *key: str | int) -> Face:
    """A face with the values `rare` that is not in `seen`, which it joins."""
    for attempt in range(10_000):
        face = draw_face(rare, *key, attempt)
        if face is not None and tuple(face.values()) not in seen:
            seen.add(tuple(face.values()))
            return face
    raise ValueError(f"no new face with {rare}")


def held_out_faces(train: list[Face]) -> list[Face]:
    """NUM_HELD_OUT faces whose named parts, taken together, are new; three quarters have one or two rare values."""
    rare_values = [(name, value) for name, part in PARTS.items() for value in part.rare]
    seen = {_named(face) for face in train}
    faces: list[Face] = []
    attempt = 0
    while len(faces) < NUM_HELD_OUT:
        attempt += 1
        stream = generator("faces", "held-out", attempt)
        chosen = stream.permutation(len(rare_values))[: int(stream.choice(3, p=[0.25, 0.5, 0.25]))]
        rare = dict(rare_values[int(index)] for index in chosen)
        face = draw_face(rare, "held-out", attempt) if len(rare) == len(chosen) else None
        if face is not None and _named(face) not in seen:
            seen.add(_named(face))
            faces.append(face)
    return faces


def _named(face: Face) -> tuple[str, ...]:
    return tuple(face[name] for name in NAMED)


def boxes(renderer: Renderer, faces: list[Face]) -> dict[str, list[int]]:
    """For each part the smallest box [x0, y0, x1, y1] (x1, y1 excluded) that holds every pixel that it changes."""
    found = {}
    for name, part in PARTS.items():
        changed = np.zeros((SIZE, SIZE), bool)
        before = renderer.draw(faces)
        for value in [*part.drawn, ABSENT] if name not in ("hair_length", "cut") else part.drawn:
            if name == "hair_length":
                cuts = {"short": "round", "long": "straight"}
                others = [{**face, "haircut": cuts[value]} for face in faces]
            elif name == "hat_shape":
                others = [{**face, "hat_shape": value} for face in faces if face["hat"]]
            elif value == ABSENT and ABSENT not in part.common and name != "hat":
                continue
            else:
                others = [{**face, name: value} for face in faces]
            old = before[[bool(face["hat"]) for face in faces]] if name == "hat_shape" else before
            changed |= (renderer.draw(others) != old).any(axis=(0, 3))
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        found[name] = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    return found


def build(sources: Path, output: Path) -> None:
    """Write `faces.parquet` into the folder `output`."""
    train = train_faces()
    faces = {"train": train, "held-out": held_out_faces(train)}
    with tempfile.TemporaryDirectory() as folder:
        renderer = Renderer(sources, Path(folder))
        images = {split: renderer.draw(of_split) for split, of_split in faces.items()}
        found = boxes(renderer, faces["held-out"][:BOX_FACES])
    rows = []
    for split, of_split in faces.items():
        for index, (face, image) in enumerate(zip(of_split, images[split], strict=True)):
            text = caption(face, split, index) if split == "train" else caption(face)
            basic = {"id": f"face-{split}-{index:04d}", "caption": text, "concept": "portrait", "style": ""}
            rows.append({**basic, "split": split, **face, "image": image.tobytes()})
    if len({row["image"] for row in rows}) < len(rows):
        raise ValueError("two faces look the same: a value of a part is not seen")
    metadata = {
        "name": "faces", "height": SIZE, "width": SIZE, "channels": 3,
        "source": "DiceBear pixel-art, npm packages @dicebear/core and @dicebear/pixel-art",
        "version": ", ".join(file.removesuffix(".tgz") for file, _ in PACKAGES.values()),
        "licence": "CC0-1.0 AND MIT", "source_sha256": dict(PACKAGES.values()),
        "parts": list(PARTS), "named_parts": NAMED, "boxes": found,
    }  # fmt: skip
    text_columns = ["id", "caption", "concept", "style", "split", *PARTS]
    schema = pa.schema(
        [pa.field(column, pa.string()) for column in text_columns] + [pa.field("image", pa.binary(SIZE * SIZE * 3))],
        metadata={"bench": json.dumps(metadata, sort_keys=True)},
    )
    table = pa.Table.from_pylist(rows, schema=schema)
    path = output / "faces.parquet"
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=text_columns)


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path, help="folder with the npm packages")
    parser.add_argument("--output", type=Path, required=True, help="folder to write faces.parquet into")
    arguments = parser.parse_args()
    build(arguments.sources, arguments.output)


if __name__ == "__main__":
    main()
