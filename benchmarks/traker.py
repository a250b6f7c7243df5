"""``trak:traker`` beside ``trak``: the same scores by the published package and by this project, their time and ranks.

Usage: pip install 'attribution-bench[trak]', then
    python -m benchmarks.traker [--study small] [--images 200] [--queries 2] [--rounds 5] [--results FOLDER]

Both score the same images from nothing: gradients, projection, kernel and scores, with the settings of the study, the
same draws and the same projection. They take turns in one process on one thread; the medians of processor seconds are
compared, which other jobs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from torch import Tensor

from bench import methods
from bench.attribution.dimensions import agreement, among
from bench.attribution.traker import same_projection, traker_scores
from bench.diffusion.selections import select_weights
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.foundation.machine import compute_threads, describe
from bench.studies import study


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

        def own() -> Tensor:
            return method.scores(among(whole, images), queries)

        def package() -> Tensor:
            return traker_scores(method, among(whole, images), whole.model, queries, projector=projector).amax(-1)

        spent: dict[str, list[float]] = {"trak": [], "trak:traker": []}
        for turn in range(given.rounds):
            ours, seconds = timed(own)
            theirs, others = timed(package)
            spent["trak"].append(seconds)
            spent["trak:traker"].append(others)
            print(f"round {turn + 1}: trak {seconds:.1f} s, trak:traker {others:.1f} s of the processor", flush=True)
    medians = {name: median(each) for name, each in spent.items()}
    ranks = ", ".join(f"{rho:.4f}" for rho in agreement(ours, theirs.float()).tolist())
    print(
        f"{chosen.name}, {len(images)} images, {len(queries)} queries, {sum(sizes.values())} weights, "
        f"{method.num_timesteps} draws an image and side, {method.projection_dim} dimensions: medians "
        + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items())
        + f", ratio {medians['trak:traker'] / medians['trak']:.2f}; Spearman's ρ of each query {ranks}"
    )
    print(describe())


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What ``work`` gives, and the processor seconds that it takes."""
    started = time.process_time()
    return work(), time.process_time() - started


if __name__ == "__main__":
    main()
