"""The figure of docs/log/2026-11-27-magic.md: what ``magic`` predicts and what removals measure, from kept pairs.

Usage: python docs/magic.py [docs/log/2026-11-27-magic.csv docs/images]

One row of panels a study, one panel an ε of AdamW; a dot for each model and query. Prints Pearson's correlation and
the slope of measured on predicted for every panel and query as a Markdown table, and writes magic-removals.png. The
pairs are from ``python -m benchmarks.ceiling --study … --recipe epsilon=… --csv …``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import pearsonr

from bench.report import figures
from bench.report.shown import as_markdown

DOCS = Path(__file__).parent
PAIRS = DOCS / "log" / "2026-11-27-magic.csv"
COLOURS = (figures.OWN_COLOURS["magic"], figures.OWN_COLOURS["ours"])
HEAD = ("study", "recipe", "query", "models", "Pearson", "slope", "SD predicted", "SD measured", "its loss before")


def main() -> None:
    """Read, say, draw."""
    source, output = (Path(each) for each in (sys.argv[1:] or [PAIRS, DOCS / "images"]))
    pairs = pd.read_csv(source)
    print(as_markdown((HEAD, lines_of(pairs))))
    smoothed = pairs[pairs["recipe"].str.fullmatch(r"epsilon=\S+")]
    smoothed = smoothed.assign(epsilon=smoothed["recipe"].str.removeprefix("epsilon=").astype(float))
    path = output / "magic-removals.png"
    path.write_bytes(figures.png(drawn(smoothed)))
    print(f"written: {path}")


def lines_of(pairs: pd.DataFrame) -> list[list[str]]:
    """The table's lines, studies and recipes in the order of the pairs."""
    return [cells(*key, own) for key, own in pairs.groupby(["study", "recipe", "query"], sort=False)]


def fit(own: pd.DataFrame) -> tuple[float, float]:
    """Pearson's correlation, and the slope of measured on predicted."""
    x, y = own["predicted"].to_numpy(), own["measured"].to_numpy()
    return float(pearsonr(x, y).statistic), float(np.polyfit(x, y, 1)[0])


def cells(study: str, recipe: str, query: str, own: pd.DataFrame) -> list[str]:
    """A line of the table."""
    linear, slope = fit(own)
    spread = [f"{own[name].std(ddof=0):.5f}" for name in ("predicted", "measured")]
    return [study, recipe, query, str(len(own)), f"{linear:.2f}", f"{slope:.2f}", *spread, f"{own['loss'].iloc[0]:.4f}"]


def drawn(pairs: pd.DataFrame) -> Figure:
    """All panels; the axes of a panel are alike, so that the diagonal is what an exact prediction gives."""
    studies, epsilons = list(dict.fromkeys(pairs["study"])), sorted(set(pairs["epsilon"]))
    figure = Figure(figsize=(2.6 * len(epsilons), 2.7 * len(studies) + 0.3), layout="constrained")
    grid = figure.subplots(len(studies), len(epsilons), squeeze=False)
    for study, row in zip(studies, grid, strict=True):
        for epsilon, axes in zip(epsilons, row, strict=True):
            panel(axes, study, epsilon, pairs[(pairs["study"] == study) & (pairs["epsilon"] == epsilon)])
    figure.supxlabel("predicted change of the query's loss × 1000", fontsize=9)
    figure.supylabel("measured × 1000", fontsize=9)
    return figure


def panel(axes: Axes, study: str, epsilon: float, own: pd.DataFrame) -> None:
    """One study and ε; empty where it was not tried."""
    if own.empty:
        axes.set_axis_off()
        return
    scaled = own.assign(predicted=1000 * own["predicted"], measured=1000 * own["measured"])
    most = 1.1 * float(scaled[["predicted", "measured"]].abs().to_numpy().max())
    axes.plot([-most, most], [-most, most], color=figures.GREY, linewidth=0.8, linestyle=":")
    for (_, points), colour in zip(scaled.groupby("query"), COLOURS, strict=False):
        linear, slope = fit(points)
        label = f"r {linear:.2f}, slope {slope:.2f}"
        axes.scatter(points["predicted"], points["measured"], s=12, color=colour, alpha=0.8, linewidths=0, label=label)
    axes.set(xlim=(-most, most), ylim=(-most, most), aspect="equal")
    axes.set_title(f"{study}, ε = {epsilon:g}", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6.5, loc="upper left", frameon=False, handletextpad=0.1, borderaxespad=0.1)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
