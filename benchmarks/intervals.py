"""Which 95 % interval of a mean over few queries holds what it promises: coverage and width in a simulation.

Usage: python -m benchmarks.intervals [--rows FILE] [--runs N] [--resamples N]

A world is fitted to the differences to ``random`` in published rows: a query's difference is its scale times what the
method does to a query of scale one. Scales are lognormal (spread of the log as in the rows, where they differ tenfold),
the other factor has the method's mean and deviation over queries and the shape of all methods' pooled residuals. Its
true mean is therefore known. In a world "none" every method's mean is zero and its scatter stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from bench.records.rows import BASELINE, NOT_RANKED
from bench.report.statistics import CONFIDENCE, interval

COUNTS = (8, 16, 32)
TAIL = (1 - CONFIDENCE) / 2
SEED = 0
Bounds = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class World:
    """Differences as they could have been: ``means`` and ``deviations`` by method at scale one."""

    log_spread: float
    means: np.ndarray
    deviations: np.ndarray
    residuals: np.ndarray

    def draw(self, rng: np.random.Generator, runs: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Runs × queries, and the true mean of each run; methods take turns."""
        method = np.arange(runs) % len(self.means)
        scale = np.exp(self.log_spread * rng.normal(size=(runs, count)))
        own = rng.choice(self.residuals, (runs, count)) * self.deviations[method, None] + self.means[method, None]
        return scale * own, np.exp(self.log_spread**2 / 2) * self.means[method]

    def board(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Queries × methods, ``random`` the last, from which the differences are taken: zero."""
        scale = np.exp(self.log_spread * rng.normal(size=(count, 1)))
        own = rng.choice(self.residuals, (count, len(self.means))) * self.deviations + self.means
        return np.hstack([scale * own, np.zeros((count, 1))])


def fitted(rows: pd.DataFrame, metric: str, k: int, *, effect: bool) -> World:
    """The world of one metric at one K."""
    own = rows[(rows["metric"] == metric) & (rows["k"] == k) & (rows["design"] == "paired")]
    own = own[~own["method"].isin(NOT_RANKED) & (own["variant"] == "") & (own["settings"] == "")]
    table = own.pivot_table(index="query", columns="method", values="value")
    apart = table.drop(columns=BASELINE).sub(table[BASELINE], axis=0)
    scale = table.std(axis=1)  # over methods
    scale /= stats.gmean(scale)
    at_one = apart.div(scale, axis=0)
    means, deviations = at_one.mean().to_numpy(), at_one.std().to_numpy()
    residuals = ((at_one - means) / deviations).to_numpy().ravel()
    spread = float(np.log(scale).std(ddof=1))
    if effect:
        print(f"{metric}: scales of queries {scale.max() / scale.min():.1f}-fold, spread of the log {spread:.2f}, "
              f"skewness of residuals {stats.skew(residuals):+.2f}, {len(means)} methods")  # fmt: skip
    residuals = (residuals - residuals.mean()) / residuals.std()
    return World(spread, means if effect else 0 * means, deviations, residuals)


def student(values: np.ndarray) -> Bounds:
    """What the harness prints."""
    found = [interval(own) for own in values]
    return np.array([one.low for one in found]), np.array([one.high for one in found])


def sign_flip(values: np.ndarray, resamples: int, rng: np.random.Generator) -> Bounds:
    """The means that the two-sided sign-flip test does not reject (Hartigan, 1969).

    Dividing by the standard error changes nothing for one mean: flips leave the sum of squares as it is.
    """
    count = values.shape[1]
    if count <= 12:
        flipped = np.array(list(product((0.0, 1.0), repeat=count))[1:])
    else:
        flipped = rng.integers(0, 2, (10 * resamples, count)).astype(float)
        flipped = flipped[flipped.any(1)]
    dropped = int(TAIL * (len(flipped) + 1))  # with the unflipped one this many are as extreme
    found = []
    for part in np.array_split(values, max(1, len(values) // 100)):
        ordered = np.sort(part @ flipped.T / flipped.sum(1), axis=1)
        found.append((ordered[:, dropped - 1], ordered[:, -dropped]))
    lows, highs = zip(*found, strict=True)
    return np.concatenate(lows), np.concatenate(highs)


def bootstraps(values: np.ndarray, resamples: int, rng: np.random.Generator) -> dict[str, Bounds]:
    """Percentile, BCa and studentized bootstrap from the same resamples."""
    runs, count = values.shape
    names = ("percentile", "BCa", "bootstrap-t")
    found: dict[str, list[Bounds]] = {name: [] for name in names}
    for part in np.array_split(values, max(1, runs // 100)):
        drawn = np.take_along_axis(part[:, None, :], rng.integers(0, count, (len(part), resamples, count)), axis=2)
        means, errors = drawn.mean(2), drawn.std(2, ddof=1) / np.sqrt(count)
        mean, error = part.mean(1), part.std(1, ddof=1) / np.sqrt(count)
        ordered = np.sort(means, axis=1)
        found["percentile"].append((_quantile(ordered, np.full(len(part), TAIL)),
                                    _quantile(ordered, np.full(len(part), 1 - TAIL))))  # fmt: skip
        below = ((means < mean[:, None]).mean(1) + (means <= mean[:, None]).mean(1)) / 2
        bias = stats.norm.ppf(below.clip(1 / resamples, 1 - 1 / resamples))
        centred = mean[:, None] - part  # what leaving one query out adds to the mean, but for a factor
        speed = (-(centred**3)).sum(1) / (6 * (centred**2).sum(1) ** 1.5)
        ends = []
        for quantile in stats.norm.ppf([TAIL, 1 - TAIL]):
            shifted = bias + quantile
            ends.append(_quantile(ordered, stats.norm.cdf(bias + shifted / (1 - speed * shifted))))
        found["BCa"].append((ends[0], ends[1]))
        with np.errstate(divide="ignore", invalid="ignore"):
            pivots = np.sort((means - mean[:, None]) / errors, axis=1)  # one query drawn throughout: ±∞
        low, high = (_quantile(pivots, np.full(len(part), share)) for share in (1 - TAIL, TAIL))
        found["bootstrap-t"].append((mean - low * error, mean - high * error))
    return {name: (np.concatenate([low for low, _ in ends]), np.concatenate([high for _, high in ends]))
            for name, ends in found.items()}  # fmt: skip


def _quantile(ordered: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """A quantile of each row, each at its own share."""
    places = np.rint(shares * (ordered.shape[1] - 1)).astype(int)
    return np.take_along_axis(ordered, places[:, None], axis=1)[:, 0]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=Path("results/fashion/results.parquet"))
    parser.add_argument("--k", type=int, default=500)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=999)
    given = parser.parse_args()
    rows = pd.read_parquet(given.rows)
    rng = np.random.default_rng(SEED)
    lines = []
    for metric, effect in product(("loss_change", "regeneration_mse"), (True, False)):
        world = fitted(rows, metric, given.k, effect=effect)
        for count in COUNTS:
            values, truth = world.draw(rng, given.runs, count)
            found: dict[str, Bounds] = {"Student": student(values)}
            found |= bootstraps(values, given.resamples, rng)
            found["sign-flip"] = sign_flip(values, given.resamples, rng)
            for name, (low, high) in found.items():
                lines.append((metric, "as seen" if effect else "none", name, count, *_judged(low, high, truth)))
    columns = ["metric", "effect", "interval", "queries", "covered", "width", "above", "below", "settled"]
    print("\n" + _markdown(pd.DataFrame(lines, columns=columns)))


def _judged(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """Share that covers, mean width, shares wholly above and below the truth, share that excludes zero."""
    above, below = float((low > truth).mean()), float((high < truth).mean())
    return 1 - above - below, float((high - low).mean()), above, below, float(((low > 0) | (high < 0)).mean())


def _markdown(table: pd.DataFrame) -> str:
    head = ["metric", "effect", "interval"]
    shown: list[tuple[str, Callable[..., str]]] = [
        ("covered at", lambda line: f"{100 * line.covered:.1f}"),
        ("width at", lambda line: f"{1000 * line.width:.1f}"),
        ("excludes 0 at", lambda line: f"{100 * line.settled:.1f}"),
        ("too high / too low at", lambda line: f"{100 * line.above:.1f} / {100 * line.below:.1f}"),
    ]
    texts = [f"| {' | '.join(head + [f'{name} {count}' for name, _ in shown for count in COUNTS])} |"]
    texts.append("|" + "---|" * (len(head) + len(shown) * len(COUNTS)))
    for group, own in table.groupby(head, sort=False):
        lines = list(own.itertuples())
        texts.append(f"| {' | '.join([*map(str, group), *(text(line) for _, text in shown for line in lines)])} |")
    return "\n".join(texts)


if __name__ == "__main__":
    main()
