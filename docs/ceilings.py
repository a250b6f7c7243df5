"""Four figures of the findings, computed from a board: distance from the ceiling, overlap, groups, two scorings.

Usage: python docs/ceilings.py results/faces docs/images

Prints one sentence each with its numbers, and writes ceiling-distance.png and ceiling-overlap.png; where the folder
holds the table of whole groups, ceiling-groups.png, and where methods were scored twice, scored-twice.png. Run it again
when the board has grown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bench.contracts import CEILING, METHOD
from bench.records import folder, tables
from bench.records.rows import load
from bench.records.sealing import read_json
from bench.records.store import Store
from bench.report import figures
from bench.report.board import RANKED_BY, Board, Line, leaderboard, ranked_rows
from bench.report.groups import summary
from bench.report.query_overlap import overlaps
from bench.report.reliability import shared_tops
from bench.studies import study

CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""Of a point, where its name may stand: right or left, above or below."""


def main() -> None:
    """Read, say, draw."""
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    store = Store(root, read_only=True)
    frame, manifest = load(store), read_json(root / folder.MANIFEST)
    chosen = study(str(read_json(root / folder.STUDY)["name"]))
    alike = overlaps(store, ranked_rows(frame))
    board = leaderboard(frame, manifest, chosen.name, len(chosen.dataset), shared=shared_tops(store), overlap=alike)
    lines = [line for line in board.lines if line.k == board.main_k and RANKED_BY in line.cells]
    most = max(line.cells[RANKED_BY].queries for line in lines)
    lines = [line for line in lines if line.cells[RANKED_BY].queries == most]
    save(distance(board, lines), output / "ceiling-distance.png")
    save(overlap(board, lines), output / "ceiling-overlap.png")
    kept = tables.GROUPS.labelled(store)
    if len(kept):
        save(groups(board, lines, kept), output / "ceiling-groups.png")
    if board.shared_known:
        save(scored_twice(board, lines), output / "scored-twice.png")


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
    found, by_label = summary(kept), {line.method: line for line in lines}
    both = [(by_label[line.label], line.rho.mean, line.first) for line in found.itertuples() if line.label in by_label]
    figure = scatter(
        [(line, rho) for line, rho, _ in both],
        "Spearman's ρ over groups with the truth",
        f"loss change without the top {board.main_k}",
    )
    methods = [each for each in both if each[0].role == METHOD]
    ranks = pd.DataFrame([(mean(line), rho) for line, rho, _ in methods]).rank().corr().iloc[0, 1] if methods else 0.0
    told = ", ".join(f"{line.method} {first.won:g} of {first.queries}" for line, _, first in both)
    print(f"Over {len(methods)} methods groups and images agree to a rank correlation of {ranks:+.2f}; the group that "
          f"mattered most is ranked first by {told}.")  # fmt: skip
    return figure


def scored_twice(board: Board, lines: list[Line]) -> Figure:
    """What two scorings name alike, all noise drawn anew, against the loss change of what the first one names."""
    known = [(line, line.shared) for line in lines if line.shared is not None]
    chance, told = board.main_k / board.num_images, sorted(known, key=lambda each: -each[1])
    said = ", ".join(f"{line.method} {share:.0%}" for line, share in told)
    print(f"Scored twice, a method names again of its top {board.main_k}: {said}; chance {chance:.0%}.")
    label = f"of the top {board.main_k} named again by a second scoring"
    figure = scatter(known, label, f"loss change without the top {board.main_k}")
    figure.axes[0].axvline(chance, color=figures.GREY, linestyle=":")
    return figure


def scatter(points: Sequence[tuple[Line, float]], label: str, height: str) -> Figure:
    """A named point for each line, as high as its mean; names where they cover no other name and no point."""
    figure = Figure(figsize=(5.2, 3.6), dpi=100)
    axes = figure.add_subplot()
    axes.set(xlabel=label, ylabel=height)
    axes.spines[["top", "right"]].set_visible(False)
    for line, value in points:
        mark = figures.mark_of(line.name.method, line.method)
        axes.plot(value, mean(line), marker=mark, color=figures.colour_of(line.name.method))
    figure.draw_without_rendering()  # settles where a value lies
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in
             (axes.transData.transform((value, mean(line))) for line, value in points)]  # fmt: skip
    for line, value in points:
        for right, up in CORNERS:
            name = axes.annotate(
                line.method, (value, mean(line)), xytext=(6 * right, 5 * up), textcoords="offset points", fontsize=7,
                color=figures.colour_of(line.name.method), ha="left" if right > 0 else "right", va="center",
            )  # fmt: skip
            place = name.get_window_extent()
            if (right, up) == CORNERS[-1] or not any(place.overlaps(other) for other in taken):
                break
            name.remove()
        taken.append(place)
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
