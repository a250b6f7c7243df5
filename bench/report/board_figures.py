"""Figures of the leaderboard, as in the paper: top images (2), curves (3), regenerations (4), ablations (12–14)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from torch import Tensor

from bench.contracts import CEILING, METHOD
from bench.records.rows import BASELINE, NOTHING_REMOVED
from bench.report import figures
from bench.report.board import RANKED_BY, Board, Line, charted
from bench.report.gallery import Gallery
from bench.report.statistics import mean_and_error
from bench.report.verdicts import OPPOSITE, unsettled_sets

SHOWN_QUERIES = 8
SHOWN_METHODS = 12
MARKS = {"better": "▲", "worse": "▼", "equivalent": "=", "not settled": "·", "too few queries": "?"}


def drawn(board: Board, pictures: Gallery) -> dict[str, Figure]:
    """Every figure by the name of its file."""
    found = {f"curves_{metric.name}": curves(board, metric.name) for metric in board.metrics}
    for k in board.ks:
        lines = [line for line in board.lines if line.k == k]
        if any(line.equivalent for line in lines):
            found[f"equivalent_random_{k}"] = equivalent_random(board, k)
        if any(_finite(line) for line in lines):
            found[f"cost_{k}"] = cost(board, k)
        if board.pairs.get(k):
            found[f"verdicts_{k}"] = verdict_matrix(board, k)
        if len(_competing(board, k)) > 1:
            found[f"order_{k}"] = order(board, k)
        for base in families(lines):
            found[f"ablations_{base}_{k}"] = ablations(board, base, k)
    queries = [query for query in pictures.queries if query.image is not None][:SHOWN_QUERIES]
    if queries:
        found |= _pictures(board, pictures, [query.id for query in queries])
    return found


def pdf(figure: Figure) -> bytes:
    """The figure as PDF, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", bbox_inches="tight", metadata={"CreationDate": None, "Producer": None})
    return buffer.getvalue()


def page_charts(board: Board) -> dict[str, str]:
    """The charts of the page as SVG: those of the files, and with variants where there are any."""
    found: dict[str, Figure] = {}
    some = len(charted(board.lines)) < len(board.methods)
    for end, variants in {"": False, **({"_variants": True} if some else {})}.items():
        found |= {f"curves_{metric.name}{end}": curves(board, metric.name, variants) for metric in board.metrics}
        for k in board.ks:
            if any(line.k == k and _finite(line) for line in board.lines):
                found[f"cost_{k}{end}"] = cost(board, k, variants)
    for k in board.ks:
        if any(line.k == k and line.equivalent for line in board.lines):
            found[f"equivalent_random_{k}"] = equivalent_random(board, k)
        if len(_competing(board, k)) > 1:
            found[f"order_{k}"] = order(board, k)
    return {name: figures.svg(figure) for name, figure in found.items()}


def curves(board: Board, metric: str, variants: bool = False) -> Figure:
    """A metric against K, mean ± 1 standard error, with the random reference and the noise floor (figure 3).

    A line over several K is over the queries that the method has at all of them, so that it compares like with like.
    Without ``variants``, these stand beside their method in ``ablations`` alone.
    """
    figure = Figure(figsize=(5.8, 3.8))
    axes = figure.add_subplot()
    _floor(axes, board, metric)
    ks = set(board.ks)
    if metric in board.reference:
        reference = board.reference[metric]
        stats = [mean_and_error(values.to_numpy(float)) for _, values in reference.iterrows()]
        mean, error = np.array(stats).T
        low, high = mean - np.nan_to_num(error), mean + np.nan_to_num(error)
        axes.fill_between(reference.index, low, high, color=figures.GREY, alpha=0.25, linewidth=0)
        axes.plot(reference.index, mean, color=figures.GREY, linewidth=2, label="random reference")
        ks |= {int(k) for k in reference.index}
    names = sorted(board.methods if variants else charted(board.lines))
    for index, name in enumerate(names):
        points = _points(board, metric, name)
        if points:
            method = next(line.name.method for line in board.lines if line.method == name)
            own_ks, means, errors = zip(*points, strict=True)
            drawn_line = axes.errorbar(
                figures.dodged(own_ks, index, len(names)), means, np.nan_to_num(errors),
                marker=figures.mark_of(method, name), markersize=4, capsize=2, linewidth=1.4,
                color=figures.colour_of(method), linestyle="--" if name == BASELINE else "-",
                label=figures.wrapped(name),
            )  # fmt: skip
            _name_series(board, name, drawn_line)
    axes.axhline(0, color=figures.GREY, linewidth=0.8, zorder=0)
    for line in _ceilings(board.lines, metric) if len(board.ks) == 1 else ():
        axes.axhline(line.cells[metric].mean, color=figures.colour_of(line.name.method), linewidth=0.9, linestyle=":",
                     zorder=0)  # fmt: skip
    axes.set_ylabel(_label(board, metric))
    figures.logit_axis(axes, sorted(ks), board.num_images)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _points(board: Board, metric: str, name: str) -> list[tuple[int, float, float]]:
    """K, mean and standard error of ``name`` at each of its K, over the queries that it has at all of them.

    The best measured set is known by its cells alone: none where these differ in their number of queries.
    """
    cells = {line.k: line.cells[metric] for line in board.lines if line.method == name and metric in line.cells}
    cells = {k: cell for k, cell in cells.items() if np.isfinite(cell.mean)}
    columns = {k: board.tables[metric, k].get(name) for k in cells}
    known = {k: column for k, column in columns.items() if column is not None}
    if len(known) == len(cells) > 1:
        shared = pd.DataFrame(known).dropna()
        return [(k, *mean_and_error(shared[k].to_numpy(float))) for k in known] if len(shared) else []
    if len({cell.queries for cell in cells.values()}) > 1:
        return []
    return [(k, cell.mean, cell.standard_error) for k, cell in cells.items()]


def equivalent_random(board: Board, k: int) -> Figure:
    """How many random images are left where as much is lost as without the top ``k`` of each method, on a log axis.

    Nearly all of a study must go at random for the loss change of a good method, so what is left tells methods apart.
    """
    lines = [(line, line.equivalent.left(board.num_images)) for line in board.lines if line.k == k and line.equivalent]
    lines.sort(key=lambda pair: -(pair[1].end if pair[1].outside else pair[1].images))
    figure = Figure(figsize=(5.4, 0.34 * len(lines) + 0.9))
    axes = figure.add_subplot()
    for place, (line, left) in enumerate(lines):
        where = left.end if left.outside else left.images
        colour, mark = figures.colour_of(line.name.method), figures.mark_of(line.name.method, line.method)
        if np.isfinite(left.low):
            axes.plot([left.low, left.high], [place, place], color=colour, linewidth=1.4)
        arrow = {"fewer": "<", "more": ">"}.get(left.outside, mark)
        axes.plot(where, place, marker=arrow, markersize=6, color=colour, fillstyle="none" if left.outside else "full")
        text = f"{left.outside} than {where:,.0f}" if left.outside else f"{where:,.0f}"
        axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    for place in range(len(lines)):
        axes.axhline(place, color=figures.GREY, alpha=0.25, linewidth=0.8, zorder=-1)
    axes.set_xscale("log")
    axes.set_xlim(0.7 * (board.num_images - board.reference[RANKED_BY].index[-1]), 1.2 * board.num_images)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(lines)), [figures.wrapped(line.method) for line, _ in lines], fontsize=8)
    axes.set_xlabel(f"without the top {k}: as bad as trained on this many random images", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def cost(board: Board, k: int, variants: bool = False) -> Figure:
    """Loss change at ``k`` against seconds to score one query, on a log axis.

    Without ``variants``, these are left to ``ablations``.
    """
    figure = Figure(figsize=(5.2, 3.6))
    axes = figure.add_subplot()
    _floor(axes, board, RANKED_BY)
    timed = (line for line in board.lines if line.k == k and _finite(line) and np.isfinite(line.score_seconds))
    lines = sorted(timed, key=_mean)
    shown = charted(lines)
    lines = [line for line in lines if variants or line.method in shown]
    times = [max(line.score_seconds, 0.01) for line in lines]
    decades = [round(np.log10(seconds)) for seconds in times]
    right = {decade: seconds for seconds, decade in sorted(zip(times, decades, strict=True))}
    gap = 0.05 * (_mean(lines[-1]) - _mean(lines[0]))
    lowest: dict[int, float] = {}  # where the next name of a decade has room
    for line, seconds, decade in zip(lines, times, decades, strict=True):
        height = max(_mean(line), lowest.get(decade, -np.inf))
        lowest[decade] = height + gap
        colour = figures.colour_of(line.name.method)
        error = np.nan_to_num(line.cells[RANKED_BY].standard_error)
        mark = figures.mark_of(line.name.method, line.method)
        point = axes.errorbar(seconds, _mean(line), error, marker=mark, capsize=2, color=colour)
        name = axes.annotate(figures.wrapped(line.method), (right[decade], height), xytext=(7, -2),
                             textcoords="offset points", fontsize=8, color=colour)  # fmt: skip
        _name_series(board, line.method, point, name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="seconds to score one query (0.01 or less at the left)", ylabel=_label(board, RANKED_BY))
    axes.set_title(f"K = {k}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def verdict_matrix(board: Board, k: int) -> Figure:
    """Who is better than whom at ``k``: rows against columns."""
    compared = {name for pair in board.pairs[k] for name in pair}
    names = [line.method for line in board.lines if line.k == k and line.method in compared]
    side = 0.36 * len(names) + 1.6
    figure = Figure(figsize=(side + 0.8, side))
    axes = figure.add_subplot()
    shade = np.zeros((len(names), len(names)))
    for (one, other), found in board.pairs[k].items():
        for a, b, word in ((one, other, found.verdict), (other, one, OPPOSITE.get(found.verdict, found.verdict))):
            row, column = names.index(a), names.index(b)
            shade[row, column] = {"better": 1.0, "worse": -1.0}.get(word, 0.0)
            axes.text(column, row, MARKS[word], ha="center", va="center", fontsize=8)
    axes.imshow(shade, cmap="PiYG", vmin=-2, vmax=2)
    labels = [figures.wrapped(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), labels, fontsize=7)
    axes.set_title(f"Row better (▲) or worse (▼) than column, K = {k}", fontsize=8)
    return figure


def order(board: Board, k: int) -> Figure:
    """Methods at ``k`` by their mean; bars join those of which no pair is settled. Floors and ceilings stand below.

    A dotted line through the methods is a ceiling: so far is the best of them from what is known to be possible.

    Like a critical-difference diagram (Demšar, 2006), but made from the verdict on each pair: a bar joins the methods
    that have a dot on it.
    """
    competing = _competing(board, k)
    lines = {line.method: line for line in board.lines if line.k == k}
    beside = [name for name, line in lines.items() if line.role != METHOD and line.name.plain and _finite(line)]
    names = [*competing, *sorted(beside, key=lambda name: -_mean(lines[name]))]
    bars = unsettled_sets(board.pairs.get(k, {}), competing)
    heights = {name: len(names) - 1 - place for place, name in enumerate(names)}
    figure = Figure(figsize=(4.4 + 0.24 * len(bars), 0.3 * len(names) + 1.0))
    axes, side = figure.subplots(
        1, 2, sharey=True, width_ratios=[3.2, 0.24 * len(bars) + 0.1], gridspec_kw={"wspace": 0.03}
    )
    axes.axvline(0, color=figures.GREY, linewidth=0.8, zorder=0)
    for line in _ceilings(list(lines.values()), RANKED_BY):
        axes.axvline(_mean(line), color=figures.colour_of(line.name.method), linewidth=0.9, linestyle=":", zorder=0)
    for name, height in heights.items():
        line, cell = lines[name], lines[name].cells[RANKED_BY]
        colour, mark = figures.colour_of(line.name.method), figures.mark_of(line.name.method, name)
        reach = [[cell.mean - cell.low], [cell.high - cell.mean]]
        drawn_line = axes.errorbar(cell.mean, height, xerr=np.nan_to_num(reach), marker=mark, markersize=5, capsize=2,
                                   linewidth=1.2, color=colour)  # fmt: skip
        _name_series(board, name, drawn_line)
    for place, bar in enumerate(bars):
        ends = [heights[name] for name in bar]
        side.plot([place, place], [min(ends), max(ends)], color="#000000", linewidth=1.6, solid_capstyle="round")
        side.plot([place] * len(ends), ends, "o", color="#000000", markersize=4)
    for height in heights.values():
        for panel in (axes, side):
            panel.axhline(height, color=figures.GREY, alpha=0.25, linewidth=0.8, zorder=-1)
    if beside:
        axes.axhline(len(beside) - 0.5, color=figures.GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(list(heights.values()), [figures.wrapped(name) for name in heights], fontsize=8)
    axes.set_xlabel(f"{_label(board, RANKED_BY)}, K = {k}", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines[["top", "right"]].set_visible(False)
    side.set_xlim(-0.7, len(bars) - 0.3)
    side.set_title("not settled", fontsize=8, pad=3)
    side.set_xticks([])
    side.tick_params(left=False, labelleft=False)
    side.spines[:].set_visible(False)
    return figure


def families(lines: Sequence[Line]) -> list[str]:
    """Methods that stand there with variants or other settings."""
    bases = [line.name.method for line in lines]
    return sorted({base for base in bases if bases.count(base) > 1 and base != BASELINE})


def ablations(board: Board, base: str, k: int) -> Figure:
    """A method and its variants beside random, mean ± 1 standard error of each metric (figures 12 to 14)."""
    lines = [line for line in board.lines if line.k == k and line.name.method in (base, BASELINE)]
    figure = Figure(figsize=(2.6 * len(board.metrics) + 1.6, 0.36 * len(lines) + 1.0))
    panels = figure.subplots(1, len(board.metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(panels, board.metrics, strict=True):
        for place, line in enumerate(reversed(lines)):
            cell = line.cells.get(metric.name)
            if cell is not None and np.isfinite(cell.mean):
                mark, colour = figures.mark_of(line.name.method, line.method), figures.colour_of(line.name.method)
                error = np.nan_to_num(cell.standard_error)
                axes.errorbar(cell.mean, place, xerr=error, capsize=2, marker=mark, color=colour)
        axes.set_xlabel(_label(board, metric.name), fontsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(lines)), [figures.wrapped(line.method) for line in reversed(lines)], fontsize=7)
    return figure


def _pictures(board: Board, pictures: Gallery, shown_queries: Sequence[str]) -> dict[str, Figure]:
    """Top images of the leading methods, and what is made without them, a figure for each K."""
    queries = [query for query in pictures.queries if query.id in shown_queries]
    leading = charted(line for line in board.lines if line.k == board.main_k)[:SHOWN_METHODS]
    originals = [query.image for query in queries if query.image is not None]
    shown = {(query.id, method.method): method for query in queries for method in query.shown}
    few = queries[: max(1, 40 // max(1, len(leading)))]
    top: dict[str, list[list[Tensor]]] = {}
    for method in leading:
        rows = [shown.get((query.id, method)) for query in few]
        images = [[pictures.training[i] for i in (row.top if row else ()) if i in pictures.training] for row in rows]
        if any(images):
            top[method] = images
    found: dict[str, Figure] = {}
    if top:
        found["top_images"] = figures.top_images(originals[: len(few)], [query.prompt for query in few], top)
    untouched = [query.untouched for query in queries]
    for k in board.ks:
        made: dict[tuple[str, int], list[Tensor | None]] = {(NOTHING_REMOVED, 0): untouched}
        made |= {
            (method, k): [row.made.get(k) if (row := shown.get((query.id, method))) else None for query in queries]
            for method in leading
        }
        made = {key: images for key, images in made.items() if any(image is not None for image in images)}
        if any(at == k for _, at in made):
            name = "regenerations" if k == board.main_k else f"regenerations_{k}"
            found[name] = figures.regenerations(originals, [query.prompt for query in queries], made)
    return found


def _name_series(board: Board, method: str, drawn_line: Iterable[object], *others: Artist) -> None:
    """Mark what is drawn of a method, so that the page can light it."""
    artists = [*others]
    for part in drawn_line:
        artists += [one for one in (part if isinstance(part, tuple) else (part,)) if isinstance(one, Artist)]
    for place, artist in enumerate(artists):
        artist.set_gid(f"series-{board.methods.index(method)}-{place}")


def _competing(board: Board, k: int) -> list[str]:
    """Methods at ``k``, the best mean first."""
    lines = [line for line in board.lines if line.k == k and line.group is not None]
    [facts] = [facts for facts in board.metrics if facts.name == RANKED_BY]
    return [line.method for line in sorted(lines, key=_mean, reverse=facts.higher_is_better)]


def _ceilings(lines: Iterable[Line], metric: str) -> list[Line]:
    """Those of ``lines`` that are ceilings and have a value."""
    return [
        line for line in lines
        if line.role == CEILING and line.name.plain and metric in line.cells and np.isfinite(line.cells[metric].mean)
    ]  # fmt: skip


def _mean(line: Line) -> float:
    return line.cells[RANKED_BY].mean


def _finite(line: Line) -> bool:
    return RANKED_BY in line.cells and bool(np.isfinite(line.cells[RANKED_BY].mean))


def _label(board: Board, metric: str) -> str:
    [facts] = [facts for facts in board.metrics if facts.name == metric]
    return f"{metric.replace('_', ' ')} ({'higher' if facts.higher_is_better else 'lower'} is better)"


def _floor(axes: Axes, board: Board, metric: str) -> None:
    """The noise floor as a dotted line."""
    if metric in board.floors:
        axes.axhline(board.floors[metric], color=figures.GREY, linestyle=":", linewidth=1.2)
        axes.annotate("noise floor: nothing removed, another seed", (0.5, board.floors[metric]), fontsize=7,
                      xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
                      ha="center", color=figures.GREY)  # fmt: skip
