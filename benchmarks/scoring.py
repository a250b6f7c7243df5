"""Scoring with ``ours``: what several queries at once cost beside one, on an untrained model.

Usage: python -m benchmarks.scoring [--study NAME] [--per-concept N] [--queries N]

From scratch, the Fisher and the losses of θ0 count; in a study whose cache holds these already, they do not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench import methods
from bench.contracts import AttributionContext
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query, QuerySpec, synthesize
from bench.diffusion.training import TrainingData
from bench.foundation.machine import available_threads, compute_threads, describe, peak_memory_mib
from bench.studies import study

SMALL_RISE = 0.001
"""An untrained model has little to lose; the search for the step costs the same as for any rise."""


def main() -> None:
    """Time one query and several, each from scratch and then with the cache filled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="fashion")
    parser.add_argument("--per-concept", type=int, default=100)
    parser.add_argument("--queries", type=int, default=8)
    given = parser.parse_args()
    the_study = replace(study(given.study), per_concept=given.per_concept)
    method = methods.create("ours", the_study.name, query_rise=SMALL_RISE)
    with compute_threads(available_threads()):
        model = DiffusionModel(the_study.model)
        for weight in model.unet.parameters():  # residual branches start at zero: let every layer matter
            weight.data += 0.02
        data = TrainingData.of(the_study.dataset, model)
        specs = [QuerySpec(f"b{i}", the_study.prompts[i], i) for i in range(given.queries)]
        queries = synthesize(model, the_study.sampler, specs)

        def seconds(asked: Sequence[Query]) -> tuple[float, float]:
            kept: dict[str, dict[str, torch.Tensor]] = {}

            def cached(key: str, build):  # type: ignore[no-untyped-def]
                if key not in kept:
                    kept[key] = {name: value.clone() for name, value in build().items()}
                return kept[key]

            context = AttributionContext(
                dataset=the_study.dataset, data=data, model=model, seed=0, cached=cached,
                ensemble=lambda count: [model] * count, progress=lambda done, total: None,
            )  # fmt: skip
            times = []
            for _ in range(2):
                started = time.perf_counter()
                method.scores(context, asked)
                times.append(time.perf_counter() - started)
            return times[0], times[1]

        one, several = seconds(queries[:1]), seconds(queries)
    for label, alone, together in zip(("from scratch", "with the cache filled"), one, several, strict=True):
        ratio = f"{together / alone:.2f} × one"
        print(f"{label}: one query {alone:.1f} s, {given.queries} at once {together:.1f} s ({ratio})")
    print(f"{len(the_study.dataset)} images; peak memory {peak_memory_mib():.0f} MiB; {describe()}")


if __name__ == "__main__":
    main()
