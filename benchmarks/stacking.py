"""Models an hour: M at once against one by one, and against the loop that a diffusers user would write.

Usage: python -m benchmarks.stacking [--study NAME] [--device cpu|cuda] [--sizes 2,4,8] [--steps N] [--rounds N]

At once are M in one stack, and on a GPU M with a CUDA graph each. All train the study's recipe. They take turns, round
by round; printed are medians of the seconds a step of one model, and the models an hour that follow from the recipe's
steps. Making the models, recording the graphs and observing are not in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.diffusion.graphs import Graphs
from bench.diffusion.model import DiffusionModel
from bench.diffusion.stacking import Stack
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
from bench.foundation.machine import (
    available_threads,
    compute_exactly,
    compute_threads,
    describe,
    device_of,
    peak_memory_mib,
)
from bench.studies import Study, study
from benchmarks.training import plain_loop


def seconds_a_step(advance: Callable[[], object], steps: int, device: torch.device) -> float:
    """Wall time of one call, after one that warms up."""
    advance()
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        advance()
    _wait(device)
    return (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_by_one(the_study: Study, data: TrainingData, device: torch.device, steps: int) -> float:
    """Seconds a step of one model."""
    run = TrainingRun(the_study.model, data, the_study.recipe, TrainingJob((), 0), device=device)
    return seconds_a_step(run.advance, steps, device)


def stacked(the_study: Study, data: TrainingData, device: torch.device, steps: int, size: int) -> float:
    """Seconds a step of one of ``size`` models in a stack."""
    recipe = replace(the_study.recipe, stack=size)
    jobs = [TrainingJob((index,), index) for index in range(size)]
    runs = [TrainingRun(the_study.model, data, recipe, job, device=device) for job in jobs]
    return seconds_a_step(Stack(runs).advance, steps, device) / size


def graphed(the_study: Study, data: TrainingData, device: torch.device, steps: int, size: int) -> float:
    """Seconds a step of one of ``size`` models with a CUDA graph each."""
    jobs = [TrainingJob((index,), 0) for index in range(size)]
    runs = [TrainingRun(the_study.model, data, the_study.recipe, job, device=device) for job in jobs]
    trained = Graphs(size)(runs)
    return seconds_a_step(lambda: next(trained), steps, device) / size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="fashion")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", default="2,4,8")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="only so many images of each concept, which saves encoding")
    options = parser.parse_args()
    compute_exactly()
    device, whole = device_of(options.device), study(options.study)
    the_study = replace(whole, per_concept=options.images or whole.per_concept)
    data = TrainingData.of(the_study.dataset, DiffusionModel(the_study.model))
    ways: dict[str, Callable[[], float]] = {
        "one by one": lambda: one_by_one(the_study, data, device, options.steps),
        **{
            f"stack of {size}": lambda size=size: stacked(the_study, data, device, options.steps, size)  # type: ignore[misc]
            for size in map(int, options.sizes.split(","))
        },
    }
    if device.type == "cuda":
        ways |= {
            f"graphs of {size}": lambda size=size: graphed(the_study, data, device, options.steps, size)  # type: ignore[misc]
            for size in map(int, options.sizes.split(","))
        }
    ways["plain loop"] = lambda: plain_loop(the_study, data, options.steps, precomputed=True, device=device)
    times: dict[str, list[float]] = {name: [] for name in ways}
    with compute_threads(available_threads()):
        for _ in range(options.rounds):
            for name, measure in ways.items():
                times[name].append(measure())
    print(describe(device))
    base = statistics.median(times["one by one"])
    for name, found in times.items():
        median = statistics.median(found)
        hour = 3600 / (median * the_study.recipe.num_steps)
        ratios = [one / other for one, other in zip(times["one by one"], found, strict=True)]
        print(
            f"{name:12} {median * 1e3:8.1f} ms a step of a model, {hour:8.1f} models an hour, {base / median:5.2f} x "
            f"({min(ratios):.2f} to {max(ratios):.2f} over the rounds)"
        )
    print(f"peak memory {peak_memory_mib() / 1024:.1f} GiB")


if __name__ == "__main__":
    main()
