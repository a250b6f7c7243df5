"""The three figures of docs/log/2026-11-27-ceilings.md, computed from a board: distance, overlap, groups.

Usage: python docs/ceilings.py results/faces docs/images

Prints one sentence each with its numbers, and writes ceiling-distance.png and ceiling-overlap.png; where the folder
holds the table of whole groups, ceiling-groups.png too. Run it again when the board has grown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.contracts import CEILING, METHOD
from bench.records import folder, tables
from bench.records.rows import load
from bench.records.sealing import read_json
from bench.records.store import Store
from bench.report import figures
from bench.report.board import RANKED_BY, Board, Line, leaderboard, ranked_rows
from bench.report.groups import summary
from bench.report.query_overlap import overlaps
from bench.studies import study


def main() -> None:
    """Read, say, draw."""
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    store = Store(root, read_only=True)
    frame, manifest = load(store), read_json(root / folder.MANIFEST)
    chosen = study(str(read_json(root / folder.STUDY)["name"]))
    shared = overlaps(store, ranked_rows(frame))
    board = leaderboard(frame, manifest, chosen.name, len(chosen.dataset), overlap=shared)
    lines = [line for line in board.lines if line.k == board.main_k and RANKED_BY in line.cells]
    most = max(line.cells[RANKED_BY].queries for line in lines)
    lines = [line for line in lines if line.cells[RANKED_BY].queries == most]
    save(distance(board, lines), output / "ceiling-distance.png")
    save(overlap(board, lines), output / "ceiling-overlap.png")
    kept = tables.GROUPS.labelled(store)
    if len(kept):
        save(groups(board, lines, kept), output / "ceiling-groups.png")


def save(figure: Figure, path: Path) -> None:
    """Write the figure."""
    path.write_bytes(figures.png(figure))
    print(f"written: {path}\n")


def mean(line: Line) -> float:
    """Of the metric that ranks."""
    return line.cells[RANKED_BY].mean


def distance(board: Board, lines: list[Line]) -> Figure:
    """Each method's mean as a share of the highest ceiling's."""
    ceilings = {line.method: mean(line) for line in lines if line.role == CEILING}
    top, methods = max(ceilings.values()), [line for line in lines if line.role == METHOD and line.name.plain]
    best = max(methods, key=mean)
    said = "; ".join(f"{name} {value:.5f}" for name, value in ceilings.items())
    print(
        f"At K = {board.main_k} over {best.cells[RANKED_BY].queries} queries the best method, {best.method}, reaches "
        f"{mean(best):.5f}, {mean(best) / top:.0%} of the highest ceiling ({said})."
    )
    return bars([line for line in lines if np.isfinite(mean(line))], lambda line: mean(line) / top,
                f"share of the highest ceiling's loss change, K = {board.main_k}")  # fmt: skip


def overlap(board: Board, lines: list[Line]) -> Figure:
    """What the top images of two queries have in common."""
    known = [line for line in lines if line.overlap is not None]
    chance, highest = board.main_k / board.num_images, max(known, key=lambda line: line.overlap or 0.0)
    told = ", ".join(
        f"{line.method} {line.overlap:.0%}" for line in sorted(known, key=lambda each: -(each.overlap or 0))
    )
    print(
        f"Two queries share {highest.overlap:.0%} of the top {board.main_k} by {highest.method} ({told}; "
        f"chance {chance:.0%})."
    )
    figure = bars(known, lambda line: line.overlap or 0.0, f"shared by two queries, of the top {board.main_k}")
    figure.axes[0].axvline(chance, color=figures.GREY, linestyle=":")
    return figure


def groups(board: Board, lines: list[Line], kept: pd.DataFrame) -> Figure:
    """Agreement on groups against the loss change of single images."""
    figure = Figure(figsize=(5.2, 3.6))
    axes, found = figure.add_subplot(), summary(kept)
    by_label = {line.method: line for line in lines}
    both = [(by_label[line.label], line.rho.mean, line.first) for line in found.itertuples() if line.label in by_label]
    for line, rho, _ in both:
        colour = figures.colour_of(line.name.method)
        axes.plot(rho, mean(line), marker=figures.mark_of(line.name.method, line.method), color=colour)
        axes.annotate(
            line.method, (rho, mean(line)), xytext=(5, 3), textcoords="offset points", fontsize=7, color=colour
        )
    axes.set(xlabel="Spearman's ρ over groups with the truth", ylabel=f"loss change without the top {board.main_k}")
    axes.spines[["top", "right"]].set_visible(False)
    methods = [each for each in both if each[0].role == METHOD]
    ranks = pd.DataFrame([(mean(line), rho) for line, rho, _ in methods]).rank().corr().iloc[0, 1] if methods else 0.0
    told = ", ".join(f"{line.method} {first.won:g} of {first.queries}" for line, _, first in both)
    print(f"Over {len(methods)} methods groups and images agree to a rank correlation of {ranks:+.2f}; the group that "
          f"mattered most is ranked first by {told}.")  # fmt: skip
    return figure


def bars(lines: list[Line], value: Callable[[Line], float], label: str) -> Figure:
    """One bar a line, the largest at the top."""
    ordered = sorted(lines, key=value)
    figure = Figure(figsize=(5.2, 0.3 * len(ordered) + 0.8))
    axes = figure.add_subplot()
    places, widths = range(len(ordered)), [value(line) for line in ordered]
    axes.barh(places, widths, color=[figures.colour_of(line.name.method) for line in ordered], height=0.65)
    for place, width in zip(places, widths, strict=True):
        axes.annotate(
            f"{width:.0%}", (max(width, 0), place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
        )
    names = [f"{line.method} ({line.role})" if line.role != METHOD else line.method for line in ordered]
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel(label, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
