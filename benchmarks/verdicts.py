"""Which test of all pairs of methods settles most and keeps its error, and whether looking again keeps it too.

Usage: python -m benchmarks.verdicts [--rows FILE] [--metric NAME] [--k K] [--runs N] [--null-runs N] [--look-runs N]
                                     [--world NAME]

The worlds are those of ``benchmarks.intervals``, fitted to published rows, with all methods and ``random`` at once: "as
seen" with every method's mean, where all pairs differ; "none" with equal means, where none does; "twins" where
neighbours in the order share their mean, and these pairs alone must not be settled. Prints, as Markdown, the pairs
settled in the right and in the wrong direction and the share of runs with a pair settled that must not be, by test,
family (pairs of methods; each method against ``random``) and number of queries; then the same of a run that adds
queries until an order is settled.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from bench.report.looks import ORDERS, families, standings
from bench.report.statistics import CONFIDENCE, p_value
from bench.report.verdicts import Verdicts, family_verdicts, max_t
from bench.studies import LOOKS, Look
from benchmarks.intervals import World, fitted

COUNTS = (8, 16, 32, 64)
EARLY = (Look(8, 0.01), Look(16, 0.01), Look(32, 0.01), Look(64, 0.02))
"""With a look at 8 queries that can settle something: what it would cost."""
SEED = 0
Test = Callable[[np.ndarray], np.ndarray]


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (1979)."""
    order = np.argsort(p_values)
    steps = np.minimum(1, p_values[order] * np.arange(len(order), 0, -1))
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(steps)
    return corrected


def student(differences: np.ndarray) -> np.ndarray:
    """Of each column alone."""
    return np.array([p_value(own) for own in differences.T])


def tests(differences: np.ndarray) -> dict[str, np.ndarray]:
    """The corrected p-value of each pair, by test."""
    alone, flipped = student(differences), max_t(differences)
    return {
        "Student, Holm (before)": holm(alone),
        "max-T": flipped,
        "max-T and Student (now)": np.maximum(flipped, alone),
        "Wilcoxon, Holm": holm(stats.wilcoxon(differences, axis=0).pvalue),
    }


def worlds(seen: World) -> dict[str, World]:
    """By name."""
    twins = np.sort(seen.means)
    paired = twins[: len(twins) // 2 * 2].reshape(-1, 2).mean(1).repeat(2)
    order = np.argsort(np.argsort(seen.means))
    shared = np.append(paired, twins[len(paired) :])[order]
    return {"as seen": seen, "none": replace(seen, means=0 * seen.means), "twins": replace(seen, means=shared)}


def differences_of(board: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Queries × pairs."""
    return board[:, pairs[:, 0]] - board[:, pairs[:, 1]]


def by_count(world: World, runs: int, rng: np.random.Generator) -> pd.DataFrame:
    """A line for each test, family and number of queries: pairs settled rightly and wrongly, runs with a false one."""
    means = np.append(world.means, 0.0)
    floor = len(world.means)
    both = {
        "methods": np.array(list(combinations(range(floor), 2))),
        "floor": np.array([(method, floor) for method in range(floor)]),
    }
    lines = []
    for count in COUNTS:
        found: dict[tuple[str, str], list[tuple[int, int, bool]]] = {}
        for _ in range(runs):
            board = world.board(rng, count)
            for family, pairs in both.items():
                truth = np.sign(np.round(means[pairs[:, 0]] - means[pairs[:, 1]], 12))
                differences = differences_of(board, pairs)
                direction = np.sign(differences.mean(0))
                for name, p_values in tests(differences).items():
                    settled = p_values < 1 - CONFIDENCE
                    right, wrong = ((settled & (truth * direction == side)).sum() for side in (1, -1))
                    false = bool((settled & (truth == 0)).any())
                    found.setdefault((name, family), []).append((right, wrong, false))
        lines += [(*names, count, *np.mean(each, axis=0)) for names, each in found.items()]
    return pd.DataFrame(lines, columns=["test", "family", "queries", "right", "wrong", "error"])


def look_by_look(world: World, looks: Sequence[Look], runs: int, rng: np.random.Generator) -> pd.DataFrame:
    """A line for each order: queries until it stops, pairs, error at the looks, and of a board at 5 % afterwards."""
    names = [f"m{i}" for i in range(len(world.means))] + ["random"]
    means = dict(zip(names, np.append(world.means, 0.0), strict=True))
    lines = []
    boards = [pd.DataFrame(world.board(rng, COUNTS[-1]), columns=names) for _ in range(runs)]
    for order in ORDERS:
        each = []
        for board in boards:
            found = standings(board, looks, order=order, methods=names[:-1], floors=names[-1:])
            last = next((standing for standing in found if not standing.open), found[-1])
            stopped = board.iloc[: last.look.queries]
            after: Verdicts = {}
            for family in families(order, names[:-1], names[-1:]):
                after |= family_verdicts(stopped, family)
            each.append(
                (
                    last.look.queries,
                    not last.open,
                    sum(last.verdicts[pair].settled for pair in last.asked) / len(last.asked),
                    sum(found[0].verdicts[pair].settled for pair in found[0].asked) / len(found[0].asked),
                    *(any(v.settled and np.isclose(means[a], means[b]) for (a, b), v in verdicts.items())
                      for verdicts in (last.verdicts, after)),
                )
            )  # fmt: skip
        lines.append((order, *np.mean(each, axis=0)))
    return pd.DataFrame(lines, columns=["order", "queries", "stopped", "share", "first", "error", "board_error"])


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=Path("results/fashion/results.parquet"))
    parser.add_argument("--metric", default="loss_change")
    parser.add_argument("--k", type=int, default=500)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--null-runs", type=int, default=400)
    parser.add_argument("--look-runs", type=int, default=150, help="at most, of runs until settled")
    parser.add_argument("--world", action="append", choices=("as seen", "none", "twins"), help="default: all of them")
    given = parser.parse_args()
    seen = fitted(pd.read_parquet(given.rows), given.metric, given.k, effect=True)
    for name, world in worlds(seen).items():
        if given.world and name not in given.world:
            continue
        rng = np.random.default_rng(SEED)
        runs = given.runs if name == "as seen" else given.null_runs
        print(f"\n{given.metric}, {name}, {runs} runs: settled right | wrong | runs with a false one, at {COUNTS}")
        for (test, family), own in by_count(world, runs, rng).groupby(["test", "family"], sort=False):
            cells = [[f"{value:.{digits}f}" for value in own[column]]
                     for column, digits in (("right", 1), ("wrong", 2), ("error", 3))]  # fmt: skip
            print(f"| {test} | {family} | " + " | ".join(" / ".join(some) for some in cells) + " |", flush=True)
        for looks in (LOOKS, EARLY) if name == "as seen" else (LOOKS,):
            spent = ", ".join(f"{look.significance:g} at {look.queries}" for look in looks)
            some = min(runs, given.look_runs)
            head = f"{given.metric}, {name}, {some} runs, until settled ({spent})"
            print(f"\n{head}: queries when it stops | settled by then | pairs settled | at the first look | false | "
                  "false on a board at 5 % after the stop")  # fmt: skip
            for line in look_by_look(world, looks, some, rng).itertuples():
                shares = (line.stopped, line.share, line.first, line.error, line.board_error)
                cells = " | ".join(f"{share:.3f}" for share in shares)
                print(f"| {line.order} | {line.queries:.1f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
