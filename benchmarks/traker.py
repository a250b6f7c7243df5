"""``trak:traker`` beside ``trak``: the same scores by the published package and by this project, their time and ranks.

Usage: pip install 'attribution-bench[trak]', then
    python -m benchmarks.traker [--study small] [--images 200] [--queries 2] [--rounds 5] [--results FOLDER]

All score the same images from nothing: gradients, projection, kernel and scores, with the settings of the study and the
same draws; the package once with this project's projection, and once with its own, as ``bench run`` has it. They take
turns in one process on one thread; the medians of processor seconds are compared, which other jobs on the machine
disturb least.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from torch import Tensor

from bench import methods
from bench.attribution.dimensions import agreement, among
from bench.attribution.traker import same_projection, traker_scores
from bench.diffusion.selections import select_weights
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.foundation.machine import compute_threads, describe
from bench.studies import study

if TYPE_CHECKING:
    from trak.projectors import AbstractProjector


def main() -> None:
    """Take turns, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="small")
    parser.add_argument("--images", type=int, default=200, help="drawn by chance")
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="with a trained model, else one is trained")
    given = parser.parse_args()
    chosen = study(given.study)
    method = methods.create("trak", chosen.name)
    with tempfile.TemporaryDirectory() as temporary, compute_threads(1):
        workspace = Workspace(chosen, given.results or Path(temporary), metrics=())
        queries, whole = workspace.queries(chosen.queries(given.queries)), workspace.context()
        images = drawn(chosen.dataset, min(given.images, len(chosen.dataset)), "projection", chosen.seed)
        sizes = {name: weight.numel() for name, weight in select_weights(whole.model.unet, method.weights).items()}
        projector = same_projection(sizes, method.projection_dim, whole.seed, 0)

        def package(projector: AbstractProjector | None) -> Tensor:
            found = traker_scores(method, among(whole, images), whole.model, queries, projector=projector)
            return found.amax(-1).float()

        ways: dict[str, Callable[[], Tensor]] = {
            "trak": lambda: method.scores(among(whole, images), queries),
            "trak:traker with the same projection": lambda: package(projector),
            "trak:traker": lambda: package(None),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        scores: dict[str, Tensor] = {}
        for turn in range(given.rounds):
            for name, way in ways.items():
                started = time.process_time()
                scores[name] = way()
                spent[name].append(time.process_time() - started)
            print(f"round {turn + 1}: " + ", ".join(f"{name} {each[-1]:.1f} s" for name, each in spent.items()))
    print(
        f"{chosen.name}, {len(images)} images, {len(queries)} queries, {sum(sizes.values())} weights, "
        f"{method.num_timesteps} draws an image and side, {method.projection_dim} dimensions, processor seconds:"
    )
    for name, each in spent.items():
        ranks = ", ".join(f"{rho:.3f}" for rho in agreement(scores["trak"], scores[name]).tolist())
        ratio = median(each) / median(spent["trak"])
        print(f"{name}: {median(each):.1f} s, {ratio:.2f} of trak's; Spearman's ρ with trak {ranks}")
    print(describe())


if __name__ == "__main__":
    main()
