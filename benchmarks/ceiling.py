"""How well ``magic`` predicts: the change of a query's loss without random images, predicted and measured.

Usage: python -m benchmarks.ceiling [--study small] [--queries 4] [--models 16] [--share 0.05] [--method magic]
           [--recipe epsilon=1e-2 warmup=0.5 …] [--csv FILE]

Each model is trained by the harness without ``--share`` of the images, drawn by chance, with the seed of the
training that is differentiated, so that nothing else differs. The prediction is the sum of the removed images' scores.
Printed: for each query the correlations of Pearson and Spearman over the models, the slope of measured on predicted;
and the times. ``--csv`` adds a line for each model and query to FILE, from which ``docs/magic.py`` draws.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from bench import methods
from bench.diffusion.losses import query_losses
from bench.diffusion.model import DiffusionModel
from bench.diffusion.training import Training, TrainingJob
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.foundation.machine import available_threads, compute_threads, describe
from bench.studies import study

COLUMNS = ("study", "recipe", "share", "model", "query", "prompt", "predicted", "measured", "loss")


def main() -> None:
    """Predict, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="small")
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--method", default="magic")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--recipe", nargs="*", default=[], metavar="NAME=VALUE", help="in place of the study's")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    chosen, changed = study(given.study), " ".join(given.recipe)
    changes = {name: json.loads(value) for name, value in (each.split("=", 1) for each in given.recipe)}
    chosen = replace(chosen, recipe=replace(chosen.recipe, **changes))
    with tempfile.TemporaryDirectory() as temporary, compute_threads(available_threads()):
        workspace = Workspace(chosen, given.results or Path(temporary), metrics=())
        queries = workspace.queries(chosen.queries(given.queries))
        method = methods.create(given.method, chosen.name)
        training = workspace.context().trainings[method.settings()["training"]]
        started = time.perf_counter()
        scores = workspace.scores(method, queries).matrix.double()
        print(f"scores of {len(queries)} queries: {time.perf_counter() - started:.0f} s", flush=True)
        count = round(given.share * len(chosen.dataset))

        def losses(removed: tuple[int, ...]) -> torch.Tensor:
            run = Training(
                training.config, training.data, training.ids, training.recipe, TrainingJob(removed, training.job.seed)
            ).run(workspace.device)
            while not run.finished:
                run.advance()
            model = DiffusionModel(training.config).load(run.trained_state())
            times = range(0, training.config.num_timesteps, 5)
            return torch.stack(
                [query_losses(model, query, times, seed=chosen.seed).double().mean() for query in queries]
            )

        started = time.perf_counter()
        before = losses(())
        print(f"one training and its losses: {time.perf_counter() - started:.0f} s", flush=True)
        predicted, measured = [], []
        for number in range(given.models):
            order = seeds.generator("ceiling", str(given.share), number).permutation(len(chosen.dataset))
            removed = tuple(sorted(int(index) for index in order[:count]))
            predicted.append(scores[:, list(removed)].sum(1))
            measured.append(losses(removed) - before)
            if given.csv:
                where = given.study, changed, given.share, number
                found = zip(queries, predicted[-1].tolist(), measured[-1].tolist(), before.tolist(), strict=True)
                add(given.csv, [(*where, query.id, query.prompt, *values) for query, *values in found])
        one, two = torch.stack(predicted).numpy(), torch.stack(measured).numpy()
    for column, query in enumerate(queries):
        x, y = one[:, column], two[:, column]
        linear, ranks, slope = pearsonr(x, y).statistic, spearmanr(x, y).statistic, np.polyfit(x, y, 1)[0]
        print(
            f"{query.id} {query.prompt}: Pearson {linear:.2f}, Spearman {ranks:.2f}; predicted SD {x.std():.5f}, "
            f"measured SD {y.std():.5f}, slope {slope:.3f}"
        )
    print(f"{given.models} models without {count} of {len(chosen.dataset)} images; {changed}; {describe()}")


def add(path: Path, lines: Sequence[Sequence[object]]) -> None:
    """Add ``lines`` to the table ``path``."""
    begins = not path.exists()
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines] if begins else lines)


if __name__ == "__main__":
    main()
