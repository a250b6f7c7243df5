"""CPU time of a training step with each forward pass, of the study's model and of variants, side by side.

Usage: python -m benchmarks.forward_passes [--study NAME] [--rounds N] [--variant JSON …]

One thread. In each round every contender does one optimizer step, so that all meet the same load; CPU milliseconds of
an image are printed as their median and minimum over the rounds, and the median over rounds of the ratio to the first.
Contenders: diffusers' forward, ``bench.diffusion.fast_unet``, ``bench.diffusion.channels_last``; then this last one
with the fields of ``ModelConfig`` and ``Recipe`` that a ``--variant`` changes, such as '{"attention_heads": 2}'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import fields, replace
from typing import Any

import torch

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.diffusion import training
from bench.diffusion.channels_last import channels_last_forward
from bench.diffusion.fast_unet import fast_forward
from bench.diffusion.model import DiffusionModel
from bench.diffusion.training import Recipe, TrainingData, TrainingJob, TrainingRun
from bench.foundation.machine import compute_threads, describe
from bench.studies import Study, study


def varied(the_study: Study, changes: dict[str, Any]) -> Study:
    """The study with other fields of its recipe and model."""
    ours = {field.name for field in fields(Recipe)}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    recipe = replace(the_study.recipe, **{name: value for name, value in changes.items() if name in ours})
    model = replace(the_study.model, **{name: value for name, value in changes.items() if name not in ours})
    return replace(the_study, model=model, recipe=recipe)


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="faces")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--variant", nargs="*", type=json.loads, default=[])
    given = parser.parse_args()
    base = varied(study(given.study), {"channels_last": False})
    data = TrainingData.of(base.dataset, DiffusionModel(base.model))
    lean = varied(base, {"channels_last": True})
    passes = {"diffusers": (base, lambda unet: unet), "fast_unet": (base, fast_forward)}
    passes["channels_last"] = (lean, channels_last_forward)
    passes |= {json.dumps(changes): (varied(lean, changes), channels_last_forward) for changes in given.variant}
    runs, taken = {}, {name: [] for name in passes}
    with compute_threads(1):
        for name, (each, forward) in passes.items():
            training.fast_forward = training.channels_last_forward = forward
            runs[name] = TrainingRun(each.model, data, each.recipe, TrainingJob((), 0), device=torch.device("cpu"))
            runs[name].advance()
        for _ in range(given.rounds):
            for name, run in runs.items():
                started = time.process_time()
                run.advance()
                taken[name].append((time.process_time() - started) / run.recipe.batch_size * 1e3)
    print("| forward | weights | median ms | minimum ms | times as fast as diffusers |\n|---|---|---|---|---|")
    for name, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(taken["diffusers"], seconds, strict=True))
        size = runs[name].weights.numel()
        print(f"| {name} | {size} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {ratio:.2f} |")
    print(describe())


if __name__ == "__main__":
    main()
