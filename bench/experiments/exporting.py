"""The queries of a study as plain files, so that a method in any language can score them.

    queries.json   the study, and of each query: id, prompt, seed, picture, sampler
    queries.npz    ids, noise and latent of each query, float32: queries × channels × rows × columns
    queries/       each query's picture as PNG, <id>.png
    images.csv     ids and captions of all training images; with their pictures, the column ``file``
    images/        their pictures, where asked for

What comes back are scores (``bench.authoring.external``): one for each query and image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bench.diffusion.queries import Query, QuerySpec
from bench.errors import InvalidInput
from bench.experiments.workspace import Workspace
from bench.foundation.machine import available_threads, compute_threads
from bench.records.store import write_whole
from bench.report.page import png_bytes
from bench.report.shown import Report, Table

QUERIES, ARRAYS, IMAGES = "queries.json", "queries.npz", "images.csv"


@dataclass(frozen=True)
class Exported(Report):
    """What was written.

    Attributes:
        output: the folder.
        study: name of the study.
        queries: those that it holds.
        images: how many training images there are.
    """

    output: Path
    study: str
    queries: Sequence[Query]
    images: int

    def tables(self) -> list[Table]:
        """Id and prompt of each query."""
        return [(["query", "prompt"], [[query.id, query.prompt] for query in self.queries])]

    def notes(self) -> list[str]:
        """Where they lie, and what to do with them."""
        return [
            f"written to {self.output}: {QUERIES}, {ARRAYS}, queries/, {IMAGES}",
            f"next: a score for each of {len(self.queries)} queries and {self.images} images, higher = more "
            "influential, in a CSV file with the columns query,image,score",
            f"then: bench run --study {self.study} --queries {len(self.queries)} --scores FILE.csv --name NAME",
        ]


def export(
    workspace: Workspace,
    specs: Sequence[QuerySpec],
    output: Path,
    *,
    with_images: bool = False,
    threads: int | None = None,
) -> Exported:
    """Write the queries of ``specs`` into the folder ``output``; θ0 is trained where it has not made them yet.

    Raises InvalidInput where ``output`` holds files already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidInput(f"{output} is not empty: name a new folder, or remove what is there.")
    study, dataset = workspace.study, workspace.study.dataset
    with compute_threads(threads or available_threads()):
        queries = workspace.queries(specs)
        pictures = workspace.images(queries)
    facts = [
        {
            "id": query.id,
            "prompt": query.prompt,
            "seed": query.seed,
            "image": f"queries/{query.id}.png",
            "sampler": asdict(query.sampler),
            "digest": query.digest,
        }
        for query in queries
    ]
    for fact, picture in zip(facts, pictures, strict=True):
        write_whole(output / str(fact["image"]), png_bytes(picture))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=np.array([query.id for query in queries]),
        noise=np.stack([query.noise.numpy() for query in queries]),
        latent=np.stack([query.latent.numpy() for query in queries]),
    )
    write_whole(output / ARRAYS, buffer.getvalue())
    table = pd.DataFrame({"id": dataset.ids, "caption": dataset.captions})
    if with_images:
        table["file"] = [f"images/{index:06d}.png" for index in range(len(dataset))]
        for index, (file, picture) in enumerate(zip(table["file"], dataset.pixels(), strict=True), 1):
            write_whole(output / file, png_bytes(picture))
            workspace.progress.advance("write images", index, len(dataset))
    write_whole(output / IMAGES, table.to_csv(index=False).encode())
    record = {"study": study.name, "study_digest": study.digest, "arrays": ARRAYS, "queries": facts}
    write_whole(output / QUERIES, (json.dumps(record, indent=1) + "\n").encode())
    return Exported(output=output, study=study.name, queries=queries, images=len(dataset))
