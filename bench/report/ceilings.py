"""A ceiling that measured rows hold: of each query, the best of all methods' sets, chosen by its measured value.

Whoever could retrain without every method's set would take the best one, so more than the best single method is
possible: a bound from below on what is. It reads the truth, so it stands beside the methods and competes with none.

Chosen by the value that is shown, the best of n is too high: n measured values hold the noise of n trainings, and the
maximum picks the luckiest. Where every set was removed under several training seeds, the set is chosen under all seeds
but one and valued under that one, a mean over seeds, which flatters nothing. With one seed the plain best is shown, and
beside it how much that can be at most, if trainings are as noisy as the values of ``random``, whose sets do not matter:

    σ(random) · E[ the largest of n standard normal numbers ]
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr

from bench.records.rows import BASELINE

BEST = "best measured set"
"""What the line is called."""


class BestSets(NamedTuple):
    """The best of several methods' sets.

    Attributes:
        by_query: the value of each query's best set.
        most: the largest number of sets that a query chooses from.
        fair: whether sets were chosen under other seeds than those they are valued under.
        flattered: by how much the mean is too high at most; 0 where ``fair``, NaN where nobody knows the noise.
    """

    by_query: pd.Series[float]
    most: int
    fair: bool
    flattered: float


def best_sets(rows: pd.DataFrame, among: list[str], *, higher_is_better: bool = True) -> BestSets | None:
    """The best set of each query, at one K and by one metric.

    Args:
        rows: finite values of that K and metric, with the columns label, query, seed and value.
        among: the labels to choose from; ``rows`` may hold others.
        higher_is_better: of the metric.

    Returns:
        None where no query has two sets to choose from.
    """
    sign = 1.0 if higher_is_better else -1.0
    own = rows[rows["label"].isin(among)]
    values, counts, fair = {}, [], True
    for query, of_query in own.groupby("query"):
        sets = sign * of_query.pivot_table(index="label", columns="seed", values="value")
        if len(sets) < 2:
            continue
        counts.append(len(sets))
        if sets.shape[1] > 1 and not sets.isna().to_numpy().any():
            values[query] = np.mean([sets[seed][sets.drop(columns=seed).mean(axis=1).idxmax()] for seed in sets])
        else:
            fair = False
            values[query] = sets.mean(axis=1).max()
    if not values:
        return None
    noise = rows.loc[rows["label"] == BASELINE, "value"]
    spread = float(noise.std()) if len(noise) > 1 else float("nan")
    flattered = 0.0 if fair else spread * largest_normal(max(counts))
    return BestSets(pd.Series(values) * sign, max(counts), fair, flattered)


def largest_normal(count: int) -> float:
    """E[ the largest of ``count`` standard normal numbers ], by the trapezoidal rule."""
    places = np.linspace(-9, 9, 4001)
    density = np.exp(-(places**2) / 2) / np.sqrt(2 * np.pi)
    return float(np.trapezoid(places * count * density * ndtr(places) ** (count - 1), places))
