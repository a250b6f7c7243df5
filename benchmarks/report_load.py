"""What a report costs at size: 100,000 images, 100 queries, 20 methods, K of 100, 1,000 and 10,000, all synthetic.

Usage: python -m benchmarks.report_load [--images N] [--queries N] [--methods N] [--folder FOLDER] [--only STAGE]

Nothing is trained: rows and selections are drawn, observations are pictures of 14×14 pixels. Every stage is what a run
or the board does with them; its time and the peak of memory that Python and numpy held meanwhile are printed. With
``--only``, one stage runs alone (its resident memory is then its own).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.authoring.external import imported
from bench.contracts import Method
from bench.data.dataset import Dataset
from bench.diffusion.queries import Query, save_queries
from bench.diffusion.training import TrainingJob
from bench.experiments.pictures import overlaps
from bench.experiments.workspace import Workspace
from bench.records import folder
from bench.records.names import MethodName
from bench.records.rows import Row, frame_of, labels
from bench.records.store import write_json, write_tensors
from bench.registry import metrics
from bench.report.gallery import gallery
from bench.report.page import _gallery
from bench.report.summary import markdown, summarize
from bench.studies import Study, study

KS = (100, 1000, 10_000)
SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Drawn(Method):
    """A method that has scored already."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "drawn"
    draw: int = 0

    def scores(self, context: Any, queries: Any) -> Any:
        """Never asked."""
        raise AssertionError


def synthetic(images: int) -> Study:
    """``tiny`` with another data set."""
    made = replace(study("tiny"), budgets=KS)
    made.__dict__["dataset"] = Dataset(
        name="synthetic",
        ids=tuple(f"image-{index:06d}" for index in range(images)),
        captions=("a photo of a bag",) * images,
        concepts=("bag",) * images,
        styles=("",) * images,
        images=torch.randint(
            0, 255, (images, 14, 14, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        ),
    )
    return made


def main() -> None:
    """Draw, and time every stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run(given.images, given.queries, given.methods, given.folder or Path(temporary), given.only)


def run(images: int, num_queries: int, num_methods: int, root: Path, only: str | None) -> None:
    """All stages, in the order of a report."""
    whole = synthetic(images)
    ks = tuple(k for k in KS if k < images)
    workspace = Workspace(whole, root, metrics=[metrics.create("loss_change"), metrics.create("regeneration_mse")])
    rng = np.random.default_rng(0)
    queries = [query_of(whole, index) for index in range(num_queries)]
    methods = [Drawn(draw=index) for index in range(num_methods)]
    kept: dict[str, Any] = {}
    total = 0.0

    def stage(name: str, work: Callable[[], Any]) -> Any:
        nonlocal total
        started = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - started
        counted = only is None or only == name
        total += seconds if counted else 0.0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if counted:
            print(f"| {name} | {seconds:.2f} s | {peak:.0f} MiB |", flush=True)
        return found

    print(
        "resident at the start, libraries and images: "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )
    print("| stage | time | peak resident memory so far |\n|---|---|---|")
    if not (root / "selections").exists():
        save_queries(workspace.store, {query.id: query for query in queries})
        tops = [rng.permutation(images)[: max(ks)] for _ in range(num_queries)]
        started = time.perf_counter()
        for query, common in zip(queries, tops, strict=True):
            for method in methods:
                mixed = np.where(rng.random(len(common)) < 0.5, common, rng.permutation(images)[: len(common)])
                mixed = np.concatenate([mixed, np.arange(images)])
                chosen_ids = list(dict.fromkeys(mixed.tolist()))[: max(ks)]
                keep(workspace, method, query, [whole.dataset.ids[index] for index in chosen_ids])
        size = sum(path.stat().st_size for path in folder.selections(root)) / 2**20
        print(f"| (drawing and writing the selections: {size:.0f} MiB) | {time.perf_counter() - started:.2f} s | |")
    budgets = list(ks)

    def selections() -> Any:
        return {f"m{method.draw}": workspace.selections(method, queries, budgets) for method in methods}

    chosen = stage("selections", selections)
    jobs = [
        TrainingJob(tuple(sorted(chosen[name][query.id, k])), 1)
        for name in chosen
        for query in queries
        for k in budgets
    ]
    keys = stage(
        "Ledger.key, three times", lambda: [[workspace.ledger.key(job) for job in jobs] for _ in range(3)].pop()
    )
    stage("overlap", lambda: [overlaps(chosen, queries, k) for k in budgets])
    chosen.clear()
    jobs.clear()
    frame = rows(whole, queries, methods, budgets, keys, rng)
    stage("labels", lambda: kept.update(frame=frame.assign(label=labels(frame))))
    stage("summary", lambda: markdown(summarize(kept["frame"].assign(method=kept["frame"]["label"]))))
    record = {"digest": whole.digest, "parts": whole.parts}
    write_observations(workspace, queries, keys, len(budgets))
    order = list(dict.fromkeys(kept["frame"]["label"]))
    pictures = stage("gallery", lambda: gallery(workspace.store, whole, record, kept["frame"], order))
    shown = stage("gallery on the page", lambda: _gallery(pictures))
    path = root / "scores.npz"
    np.savez(path, queries=[q.id for q in queries], images=list(whole.dataset.ids),
             scores=rng.random((num_queries, images), dtype=np.float32))  # fmt: skip
    mine = imported(path, "mine")()
    stage("digest of a scores file, 19 times", lambda: [mine.digest for _ in range(19)])
    print(f"| all | {total:.2f} s | {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB |")
    print(f"\n{len(pictures.queries)} queries in the gallery, {len(shown['queries'])} of them on the page")


def query_of(whole: Study, index: int) -> Query:
    """A query that no model made."""
    noise = torch.randn(1, 14, 14, generator=torch.Generator().manual_seed(index))
    return Query(f"q{index:02d}", "a photo of a bag", index, noise, noise.tanh(), whole.sampler)


def keep(workspace: Workspace, method: Method, query: Query, ids: list[str]) -> None:
    """Write a selection, as this version of the code does it."""
    if hasattr(workspace, "keep_selection"):
        workspace.keep_selection(method, query, ids, SECONDS)
    else:
        record = {"method": method.name, "score_seconds": SECONDS, "ids": ids}
        write_json(workspace.store.path(*folder.selection(method.name, method.digest, query.digest)), record)


def rows(
    whole: Study, queries: list[Query], methods: list[Any], ks: list[int], keys: list[str], rng: np.random.Generator
) -> pd.DataFrame:
    """Rows of two metrics for all removals, and a reference curve."""
    found, key = [], iter(keys)
    common = {"study": whole.name, "study_digest": whole.digest, "design": "paired", "seed": 1, "status": "done",
              "reason": "", "train_seconds": 1.0, "machine": "none", "evaluator": ""}  # fmt: skip
    for method in methods:
        name = MethodName.of("random", "", {"draw": method.draw} if method.draw else None)
        for query in queries:
            for k in ks:
                one = next(key)
                found += [
                    common | {"method": "random", "variant": "", "settings": name.settings, "k": k, "metric": metric,
                              "method_digest": method.digest, "query": query.id, "query_digest": query.digest,
                              "prompt": query.prompt, "value": rng.normal(), "model_key": one,
                              "score_seconds": SECONDS}
                    for metric in ("loss_change", "regeneration_mse")
                ]  # fmt: skip
    for k in (100, 1000, 10_000, 50_000, 99_000):
        for draw in range(3):
            found += [
                common | {"method": "random reference", "variant": "", "settings": "", "k": k, "metric": metric,
                          "method_digest": hashlib.sha256(json.dumps(draw).encode()).hexdigest()[:16],
                          "query": query.id, "query_digest": query.digest, "prompt": query.prompt,
                          "value": k / 1e5 + rng.normal() / 100, "model_key": f"{draw}-{k}", "score_seconds": 0.0}
                for query in queries
                for metric in ("loss_change", "regeneration_mse")
            ]  # fmt: skip
    return frame_of(Row(**row) for row in found)


def write_observations(workspace: Workspace, queries: list[Query], keys: list[str], num_ks: int) -> None:
    """A regeneration for every model, of its own query."""
    if (workspace.store.root / "observations").exists():
        return
    for index, key in enumerate(keys):
        query = queries[index // num_ks % len(queries)]
        path = workspace.store.path(*folder.observation(key))
        write_tensors(
            path, {query.observed_as("regeneration"): query.latent, query.observed_as("query_loss@5"): query.noise}
        )


if __name__ == "__main__":
    main()
