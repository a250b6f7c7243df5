"""Scoring throughput of ``ours``: image losses a second, one query and several at once, on an untrained model.

Usage: python -m benchmarks.scoring [--images N] [--queries N]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench import methods
from bench.contracts import AttributionContext
from bench.machine import available_threads, compute_threads, describe, peak_memory_mib
from bench.model import DiffusionModel
from bench.queries import QuerySpec, synthesize
from bench.study import study
from bench.training import TrainingData


def main() -> None:
    """Time the stages of scoring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="fashion")
    parser.add_argument("--per-concept", type=int, default=100)
    parser.add_argument("--queries", type=int, default=4)
    given = parser.parse_args()
    the_study = replace(study(given.study), per_concept=given.per_concept)
    method = methods.create("ours", the_study.name)
    with compute_threads(available_threads()):
        model = DiffusionModel(the_study.model)
        kept: dict[str, dict[str, torch.Tensor]] = {}

        def cached(key: str, build):  # type: ignore[no-untyped-def]
            if key not in kept:
                kept[key] = {name: value.clone() for name, value in build().items()}
            return kept[key]

        context = AttributionContext(
            dataset=the_study.dataset, data=TrainingData.of(the_study.dataset, model), model=model, seed=0,
            cached=cached, progress=lambda done, total: None,
        )  # fmt: skip
        specs = [QuerySpec(f"b{i}", the_study.prompts[i], i) for i in range(given.queries)]
        queries = synthesize(model, the_study.sampler, specs)
        seconds = []
        for label, asked in (("first query, with Fisher and θ0 losses", queries[:1]), ("one query", queries[:1]),
                             (f"{given.queries} queries at once", queries)):  # fmt: skip
            started = time.perf_counter()
            method.scores(context, asked)
            seconds.append(time.perf_counter() - started)
            print(f"{label}: {seconds[-1]:.1f} s for {len(the_study.dataset)} images")
    ratios = f"{seconds[2] / seconds[0]:.2f} × the first, {seconds[2] / seconds[1]:.2f} × another one"
    print(f"{given.queries} queries cost {ratios}")
    print(f"peak memory {peak_memory_mib():.0f} MiB; {describe()}")


if __name__ == "__main__":
    main()
