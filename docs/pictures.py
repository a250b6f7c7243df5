"""Draw the pictures of docs/idea.md from the data set and the published records.

Usage: python docs/pictures.py
"""

from pathlib import Path

from matplotlib import pyplot

from bench.diffusion.autoencoder import autoencoder
from bench.diffusion.queries import load_queries
from bench.records import folder
from bench.records.sealing import read_json
from bench.records.selections import selected
from bench.records.store import Store
from bench.studies import study

ROOT = Path(__file__).resolve().parents[1]
BOARD = ROOT / "results" / "faces"
QUERY = "q00"
METHODS = {
    "d_trak": "by gradients\n(d_trak)",
    "ours": "by unlearning\n(ours)",
    "pixel": "by pixels\n(pixel)",
    "same_caption": "by captions\n(same_caption)",
    "random": "by chance\n(random)",
}


def draw(name, rows, size, columns):
    """Rows of (label, pictures, titles) in one figure."""
    figure, axes = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, (label, pictures, titles) in zip(axes, rows, strict=True):
        for axis, picture, title in zip(line, pictures, titles, strict=True):
            axis.imshow((picture.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) / 2, interpolation="nearest")
            axis.set_title(title, fontsize=7)
        for axis in line:
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "images" / name, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def main():
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    faces = study("faces")
    data, row_of = faces.dataset, {image: index for index, image in enumerate(faces.dataset.ids)}
    query = load_queries(Store(BOARD, read_only=True))[QUERY]
    [picture] = autoencoder(faces.model.autoencoder).decode(query.latent[None])
    examples = list(range(6))
    captions = [data.captions[index].replace(", ", "\n") for index in examples]
    asked = "the query\n" + query.prompt.replace(", ", "\n")
    draw("training.png", [("", [*data.pixels(examples), picture], [*captions, asked])], (9.5, 2.6), 7)
    rows = []
    for method, label in METHODS.items():
        digest = read_json(BOARD / folder.MANIFEST)["methods"][method]["digest"]
        [path] = folder.selections(BOARD, method=method, method_digest=digest, query_digest=query.digest)
        chosen = [row_of[image] for image in selected(read_json(path))[:8]]
        rows.append((label, list(data.pixels(chosen)), [""] * 8))
    draw("named.png", rows, (9.5, 5.6), 8)


if __name__ == "__main__":
    main()
