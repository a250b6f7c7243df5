"""Stage 8, the figures, laid out as the paper's: top images (2), loss change against K (3), regenerations (4)."""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image
from torch import Tensor

from bench.diffusion.regions import Region
from bench.records.rows import BASELINE, NOTHING_REMOVED, REFERENCE, labels
from bench.report.ceilings import BEST
from bench.report.statistics import mean_and_error
from bench.report.summary import reference_curve

CELL_INCHES = 0.62
LETTER = 0.6
"""Width of a letter, in heights of its font."""
GREY = "#777777"
COLOURS = (
    "#0b6e99",
    "#d1495b",
    "#7b5296",
    "#a86a00",
    "#1c7f6e",
    "#4d7a30",
    "#b5487a",
    "#3d5a80",
    "#9c6644",
    "#c84400",
    "#0087ab",
    "#5f0f40",
    "#6c63c7",
    "#8a8500",
    "#2f8f4e",
    "#a3262a",
    "#5a6472",
    "#b04bb3",
)
"""Of methods of one's own, by a hash of the name. Each is read on white, and, mixed with white, on black."""
OWN_COLOURS = {
    BASELINE: GREY, "same_caption": "#454545", "carriers": "#101010", BEST: "#7a5c00", "magic": "#2c3e70",
    "abc_clip": "#7b5296", "abc_dino": "#4d7a30", "clip": "#8a8500", "clip_text": "#6c63c7",
    "d_trak": "#d1495b", "das": "#3d5a80", "datainf": "#9c6644", "dino": "#a86a00", "dinov2": "#c84400",
    "efficientnet": "#0b6e99", "ekfac_influence": "#5f0f40", "journey_trak": "#b04bb3",
    "minilm_text": "#0087ab", "mucs": "#7d8c00", "nda": "#2f8f4e", "ours": "#b5487a", "ours_ekfac": "#5a6472",
    "abc_efficientnet": "#56707a", "concept_trak": "#7a4419", "fast": "#006d5b",
    "pixel": "#1c7f6e", "retrac": "#8c2f7a", "trak": "#a3262a",
}  # fmt: skip
"""Of what ships: floors and ceilings, which do not compete, and methods, each its own."""
LOST = "#b3261e"
FOUND = "#1a7f37"
"""Of words on a part that a picture no longer shows."""
STRIP_SCALE, STRIP_BORDER = 3, 3
"""Of a strip's images: pixels for each of theirs, and for the border."""
STRONGEST = 0.99
"""Share of the cells of a sheet's maps that are weaker than the strongest colour: one must not pale the rest."""
BOX = "#d1007a"
"""Of a box drawn on a picture."""
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""Signs of points, as matplotlib calls them, and as text."""


@dataclass(frozen=True)
class Note:
    """A few words under a picture, and whether they tell of a loss."""

    text: str
    lost: bool


def png(figure: Figure, dpi: int = 160, *, colours: int = 0) -> bytes:
    """The figure as PNG, the same bytes for the same figure.

    Args:
        figure: to draw.
        dpi: dots an inch.
        colours: at most 256, the nearest of a palette, which makes a picture of small pictures a third as large; 0
            for as they are.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    if not colours:
        return buffer.getvalue()
    smaller = io.BytesIO()
    picture = Image.open(buffer).convert("RGB")
    picture.quantize(colours, dither=Image.Dither.NONE).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def svg(figure: Figure) -> str:
    """The figure as SVG for a page, the same text for the same figure.

    Letters stay text, the ground is clear, and black and the colours of methods are variables that the page's style
    sets (``style_of_colours``). A legend is left to the page.
    """
    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            legend.remove()
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=dict.fromkeys(
            ("Creator", "Date", "Format", "Type")))  # fmt: skip
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|\w*Collection)_\d+"', "", text)
    text = re.sub(r' id="series-(\d+)(?:-\d+)?"', r' data-series="\1"', text)
    text = re.sub("<[^>]*>", lambda tag: re.sub(r"(-?\d+\.\d{2})\d+", r"\1", tag[0]), text)  # places, not what is said
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r"#([0-9a-f]{6})\b(?=[;\" ])", r"var(--x\1, #\1)", text)
    return re.sub(r"\s*\n\s*", " ", text)


def style_of_colours(dark: bool) -> str:
    """The variables that ``svg`` names, as CSS: as they are on a light page, and lighter on a dark one."""
    shown = {colour: _lighter(colour) if dark else colour for colour in (*COLOURS, *OWN_COLOURS.values())}
    return "".join(f"--x{colour[1:]}: {seen}; " for colour, seen in shown.items())


def _lighter(colour: str) -> str:
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return "#" + "".join(f"{round(part + (255 - part) * 0.5):02x}" for part in parts)


def top_images(
    query_images: Sequence[Tensor], prompts: Sequence[str], chosen: Mapping[str, Sequence[Sequence[Tensor]]]
) -> Figure:
    """Each query with its most influential images by each method, side by side (the paper's figure 2).

    Args:
        query_images: channels × height × width in [−1, 1].
        prompts: of the queries.
        chosen: for each method, for each query, images from the most influential on.
    """
    methods = list(chosen)
    shown = max(len(images) for rows in chosen.values() for images in rows)
    height = (CELL_INCHES + 0.06) * len(methods) + 0.45  # of one query's block
    figure = Figure(figsize=(CELL_INCHES * (shown + 3.6), height * len(query_images)))
    blocks = figure.subfigures(len(query_images), 1, squeeze=False)[:, 0]
    for index, (block, image, prompt) in enumerate(zip(blocks, query_images, prompts, strict=True)):
        grid = block.add_gridspec(
            len(methods), shown + 3, top=1 - 0.35 / height, bottom=0.08 / height, left=0.01, right=0.99
        )
        block.suptitle(f"“{prompt}”", x=0.015, y=1 - 0.1 / height, ha="left", fontsize=9)
        _show(block.add_subplot(grid[:, :2]), image, border="#222222")
        for row, method in enumerate(methods):
            label = block.add_subplot(grid[row, 2])
            label.axis("off")
            label.text(1, 0.5, wrapped(method), ha="right", va="center", fontsize=7, transform=label.transAxes)
            for column, picture in enumerate(chosen[method][index]):
                _show(block.add_subplot(grid[row, 3 + column]), picture)
    return figure


def customized_model(
    exemplars: Sequence[Tensor],
    queries: Sequence[Tensor],
    prompts: Sequence[str],
    tops: Mapping[str, Sequence[Sequence[tuple[str, Tensor]]]],
    truth: Collection[str],
) -> Figure:
    """A customized model: its exemplars, then queries with what each method names; a green border is an exemplar.

    Args:
        exemplars, queries: channels × height × width in [−1, 1].
        prompts: of the queries.
        tops: for each method, for each query, ids and images from the most influential on; [] where it has no answer.
        truth: ids of the exemplars.
    """
    shown = max((len(row) for rows in tops.values() for row in rows), default=1)
    columns = max(shown + 4, len(exemplars) + 1)
    answers = [
        {method: rows[number] for method, rows in tops.items() if rows[number]} for number in range(len(queries))
    ]
    lines = 1 + sum(map(len, answers))
    figure = Figure(figsize=(0.62 * columns, 0.66 * lines + 0.3 * len(queries) + 0.2))
    heights = [1.0, *(height for answered in answers for height in (0.45, *(1.0 for _ in answered)))]
    grid = figure.add_gridspec(
        len(heights), columns, height_ratios=heights, left=0.01, right=0.99, top=0.99, bottom=0.01, hspace=0.06
    )
    _write(figure.add_subplot(grid[0, 0]), "exemplars")
    _strip(figure.add_subplot(grid[0, 1 : 1 + len(exemplars)]), exemplars, [True] * len(exemplars))
    first = 1
    for image, prompt, answered in zip(queries, prompts, answers, strict=True):
        title = figure.add_subplot(grid[first, :])
        title.axis("off")
        title.text(0.0, 0.1, f"“{prompt}”", fontsize=8, transform=title.transAxes)
        _show(figure.add_subplot(grid[first + 1 : first + 3, :2]), image, border="#222222")
        for row, (method, top) in enumerate(answered.items()):
            _write(figure.add_subplot(grid[first + 1 + row, 2:4]), wrapped(method))
            pictures = [picture for _, picture in top]
            axes = figure.add_subplot(grid[first + 1 + row, 4 : 4 + len(pictures)])
            _strip(axes, pictures, [name in truth for name, _ in top])
        first += 1 + len(answered)
    return figure


def _strip(axes: Axes, images: Sequence[Tensor], marked: Sequence[bool]) -> None:
    """Draw images side by side as one picture, a border around the marked ones: an axes for each would take minutes."""
    cells = []
    for image, is_marked in zip(images, marked, strict=True):
        pixels = ((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
        large = pixels.repeat(STRIP_SCALE, 0).repeat(STRIP_SCALE, 1)
        cell = np.ones((large.shape[0] + 2 * STRIP_BORDER, large.shape[1] + 2 * STRIP_BORDER, 3))
        cell[:] = to_rgb(FOUND) if is_marked else 1.0
        cell[STRIP_BORDER:-STRIP_BORDER, STRIP_BORDER:-STRIP_BORDER] = large
        cells.append(np.pad(cell, ((1, 1), (1, 1), (0, 0)), constant_values=1.0))
    axes.imshow(np.concatenate(cells, 1), interpolation="nearest")
    axes.axis("off")


def _write(axes: Axes, text: str) -> None:
    axes.axis("off")
    axes.text(0.97, 0.5, text, ha="right", va="center", fontsize=8, transform=axes.transAxes)


def contact_sheet(
    query_image: Tensor,
    prompt: str,
    method: str,
    images: Sequence[Tensor],
    labels: Sequence[str],
    *,
    region: Region | None = None,
    maps: Tensor | None = None,
) -> Figure:
    """One query and the training images that mattered for it, each with its rank and caption.

    Args:
        query_image: channels × height × width in [−1, 1].
        prompt: of the query.
        method: as tables call it.
        images: the most influential first; labels: of these.
        region: for which the images mattered; its box is drawn on the query.
        maps: what each latent cell brings to the score, images × rows × columns; drawn below each image.
    """
    columns, lines = min(8, max(len(images), 4)), 1 if maps is None else 2
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.25 * (columns + 2.4), 1.42 * rows * lines + 0.6))
    part = f" for the {region.label.replace('_', ' ') if region.name else 'box'}" if region else ""
    title = f"“{prompt}” and the {len(images)} most influential training images{part} ({method})"
    figure.suptitle(title, fontsize=10)
    top = 0.86 if rows > 1 else 0.72
    gap = 0.45 if maps is None else 0.3
    grid = figure.add_gridspec(rows * lines, columns + 2, hspace=gap, top=top, bottom=0.06)
    axes = figure.add_subplot(grid[: min(rows * lines, 2), :2])
    _show(axes, query_image, border="#222222")
    note = "" if maps is None else "\n\nbelow each image: where its\nloss rose (red) or fell (blue)"
    axes.set_xlabel("generated" + (f", box {region.corners}" if region else "") + note, fontsize=8)
    if region:
        _frame(axes, region)
    strongest = 0.0 if maps is None else float(maps.abs().quantile(STRONGEST))
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[row * lines, 2 + column])
        _show(axes, image)
        axes.set_xlabel(textwrap.fill(label, 22), fontsize=6)
        if maps is not None:
            _heat(figure.add_subplot(grid[row * lines + 1, 2 + column]), image, maps[index], strongest)
    return figure


def local_images(rows: Sequence[tuple[str, Tensor, Region, Sequence[Tensor]]], method: str) -> Figure:
    """Queries with a box each, and the training images that mattered most for what is in it.

    Args:
        rows: prompt, the query's image (channels × height × width in [−1, 1]), the box, the images in order. A prompt
            is written once, above its first row.
        method: as tables call it.
    """
    shown = max(len(images) for *_, images in rows)
    pitch = CELL_INCHES + 0.34
    height = pitch * 1.45 * len(rows) + 0.7
    figure = Figure(figsize=(pitch * (shown + 1.9), height))
    figure.suptitle(f"whose images made the part in the box possible ({method})", fontsize=10)
    grid = figure.subplots(len(rows), shown + 1, width_ratios=[1.5, *[1.0] * shown], squeeze=False)
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.02, top=1 - 0.7 / height, wspace=0.08, hspace=0.22)
    before = ""
    for line, (prompt, image, region, images) in zip(grid, rows, strict=True):
        _show(line[0], image, border="#222222")
        _frame(line[0], region)
        line[0].set_ylabel(region.label.replace("_", " "), fontsize=8)
        if prompt != before:
            line[1].set_title(f"“{prompt}”", fontsize=8, loc="left", pad=12)
        before = prompt
        for axes, picture in zip(line[1:], images, strict=False):
            _show(axes, picture)
        for axes in line[1 + len(images) :]:
            axes.axis("off")
    return figure


def regenerations(
    originals: Sequence[Tensor],
    prompts: Sequence[str],
    remade: Mapping[tuple[str, int], Sequence[Tensor | None]],
    notes: Mapping[tuple[str, int], Sequence[Note]] | None = None,
) -> Figure:
    """Each query made again, from the same noise, by the models retrained without each method's images (figure 4).

    Args:
        originals: the queries' images, channels × height × width in [−1, 1].
        prompts: of the queries.
        remade: for each (method, K), an image for each query, None where it is missing.
        notes: what stands under these images; nothing by default.
    """
    columns, pitch = list(remade), CELL_INCHES + 0.25
    names = [textwrap.fill(prompt.removeprefix("a photo of "), 20) for prompt in prompts]
    room = LETTER * 7 / 72 * max(len(line) for name in names for line in name.splitlines())
    figure = Figure(figsize=(room + pitch * (len(columns) + 1), pitch * len(originals) + 0.7))
    grid = figure.subplots(len(originals), len(columns) + 1, squeeze=False)
    for row, original in enumerate(originals):
        _show(grid[row, 0], original, border="#222222")
        grid[row, 0].set_ylabel(names[row], fontsize=7, rotation=0, ha="right", va="center")
        for column, key in enumerate(columns, start=1):
            picture = remade[key][row]
            if picture is None:
                grid[row, column].axis("off")
            else:
                _show(grid[row, column], picture)
                if notes:
                    note = notes[key][row]
                    style = {"color": LOST, "fontweight": "bold"} if note.lost else {"color": GREY}
                    grid[row, column].set_xlabel(note.text, fontsize=6.5, labelpad=2, **style)
    grid[0, 0].set_title("query", fontsize=8)
    for column, (method, k) in enumerate(columns, start=1):
        title = f"{wrapped(method)}\nK = {k}" if k else method.replace(" ", "\n")
        widest = max(len(line) for line in title.splitlines())
        grid[0, column].set_title(title, fontsize=min(8.0, 72 * pitch / (LETTER * widest)))
    figure.tight_layout(pad=0.4)
    return figure


def loss_change(frame: pd.DataFrame, metric: str, label: str, num_images: int) -> Figure:
    """A metric against K for each method, mean ± 1 standard error over queries, with both floors (figure 3, top).

    Where the random reference has been run, its curve is shown and K of ``num_images`` is on a logit axis.
    """
    figure = Figure(figsize=(5.6, 3.6))
    axes = figure.add_subplot()
    told_apart = frame.assign(label=labels(frame))
    rows = told_apart[(told_apart["metric"] == metric) & (told_apart["status"] == "done")]
    floor = rows[rows["method"] == NOTHING_REMOVED].groupby("query")["value"].mean()
    if len(floor):
        axes.axhline(floor.abs().mean(), color="#999999", linestyle=":", linewidth=1.2)
        note = "nothing removed, other seed\n(unpaired floor, mean size)"
        axes.annotate(note, (1, floor.abs().mean()), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                      textcoords="offset points", ha="right", fontsize=7, color="#666666")  # fmt: skip
    paired = rows[(rows["design"] == "paired") & (rows["k"] > 0) & (rows["method"] != REFERENCE)]
    curve = reference_curve(frame, metric)
    if len(curve):
        _draw_reference(axes, curve)
    budgets = sorted(set(paired["k"].tolist()))
    method_of = dict(zip(paired["label"], paired["method"], strict=True))
    for index, name in enumerate(sorted(method_of)):
        own, method = paired[paired["label"] == name], method_of[name]
        ks = sorted(set(own["k"].tolist()))
        stats = [mean_and_error(own[own["k"] == k].groupby("query")["value"].mean().to_numpy()) for k in ks]
        style = {"color": colour_of(method), "linestyle": "--" if method == BASELINE else "-"}
        errors = [0.0 if np.isnan(stat.standard_error) else stat.standard_error for stat in stats]
        places = dodged(ks, index, len(method_of)) if len(curve) else _shifted(ks, budgets, index, len(method_of))
        axes.errorbar(
            places,
            [stat.mean for stat in stats],
            errors,
            marker=mark_of(method, name),
            capsize=3,
            label=wrapped(name),
            **style,  # type: ignore[arg-type]
        )
    axes.set(xlabel="K, images removed", ylabel=label)
    if len(curve):
        logit_axis(axes, sorted({*budgets, *curve.index}), num_images)
    else:
        axes.set_xticks(budgets)
    if len(budgets) == 1 and not len(curve):
        axes.set_xlim(budgets[0] - 0.1, budgets[0] + 0.1)
    axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    if budgets or len(curve):
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def overlap(shares: pd.DataFrame, k: int) -> Figure:
    """Heat map of the share of the top ``k`` that two methods have in common, a mean over queries.

    Args:
        shares: methods × methods, from 0 to 1.
    """
    side = 0.42 * len(shares) + 1.9
    figure = Figure(figsize=(side + 0.6, side))
    axes = figure.add_subplot()
    picture = axes.imshow(shares.to_numpy(), cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(shares)), [wrapped(name) for name in shares.columns], rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(shares)), [wrapped(name) for name in shares.index], fontsize=7)
    for row, column in np.ndindex(*shares.shape):
        share = float(shares.iloc[row, column])
        colour = "black" if share > 0.6 else "white"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=6, color=colour)
    axes.set_title(f"Shared part of the top {k} images, mean over queries", fontsize=9)
    figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
    figure.tight_layout()
    return figure


def wrapped(label: str) -> str:
    """A method's label with its settings below its name, one a line."""
    name, _, settings = label.partition("[")
    return "\n".join([name, *settings.removesuffix("]").split(", ")]) if settings else name


def _draw_reference(axes: Axes, curve: pd.DataFrame) -> None:
    """The random reference with ± 1 standard error over queries."""
    stats = [mean_and_error(row[~np.isnan(row)]) for row in curve.to_numpy(float)]
    means, errors = np.array([stat.mean for stat in stats]), np.array([stat.standard_error for stat in stats])
    axes.plot(curve.index, means, color="#777777", linewidth=1.2, marker=".", label=REFERENCE, zorder=1)
    axes.fill_between(curve.index, means - errors, means + errors, color="#777777", alpha=0.2, linewidth=0, zorder=0)


def colour_of(method: str) -> str:
    """Of a method and its variants: by its registered name, so that it is the same on every figure of every study."""
    return OWN_COLOURS.get(method) or COLOURS[_hashed(method) % len(COLOURS)]


def mark_of(method: str, label: str) -> str:
    """A circle for ``method`` itself, another sign for what has another ``label``: variants, other settings."""
    return "o" if label == method else list(MARKS)[1:][_hashed(label) % (len(MARKS) - 1)]


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def logit_axis(axes: Axes, ks: Sequence[int], num_images: int) -> None:
    """K on a logit axis, log K − log(N − K), so that few removed and few left are told apart."""

    def logit(k: np.ndarray) -> np.ndarray:
        share = np.clip(np.asarray(k, float) / num_images, 1e-9, 1 - 1e-9)
        return np.log(share / (1 - share))

    def removed(place: np.ndarray) -> np.ndarray:
        return np.asarray(num_images / (1 + np.exp(-place)))

    places = logit(np.asarray(ks))
    span = float(places[-1] - places[0])
    axes.set_xscale("function", functions=(logit, removed))
    axes.set_xlim(*removed(np.array([places[0], places[-1]]) + np.array([-1, 1]) * (0.05 * span or 0.3)))
    room = 0.11 * span
    named: list[int] = []
    for index, place in enumerate(places):
        if not named or place - places[named[-1]] > room:
            named.append(index)
    axes.xaxis.set_major_locator(FixedLocator([float(ks[index]) for index in named]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(f"K of {num_images:,} images removed (logit scale)")


def dodged(ks: Sequence[int], index: int, count: int) -> list[float]:
    """The budgets a little apart for each method on a logit axis, so that points at one K do not hide each other."""
    return [k * 1.03 ** (index - (count - 1) / 2) for k in ks]


def _shifted(ks: Sequence[int], budgets: Sequence[int], index: int, count: int) -> list[float]:
    """The same on a linear axis."""
    width = (max(budgets) - min(budgets) or 1) * 0.015
    return [k + (index - (count - 1) / 2) * width for k in ks]


def _frame(axes: Axes, region: Region) -> None:
    """Draw the box of ``region`` on a picture, seen on light and on dark."""
    x0, y0, x1, y1 = region.box
    for colour, width in (("white", 4.0), (BOX, 2.0)):
        place = ((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0)
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=colour, linewidth=width, clip_on=False, zorder=3))


def _heat(axes: Axes, image: Tensor, cells: Tensor, largest: float) -> None:
    """Draw a map over the shades of its image; values of ``largest`` and beyond have the strongest colour."""
    shades = image.mean(0, keepdim=True) * 0.3 + 0.6
    _show(axes, shades, border="#cccccc")
    height, width = image.shape[1:]
    place = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(
        cells.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.65, extent=place, interpolation="nearest"
    )


def _show(axes: Axes, image: Tensor, *, border: str | None = None) -> None:
    """Draw channels × height × width in [−1, 1] without ticks, pixels kept sharp."""
    pixels = ((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
    if pixels.shape[-1] == 1:
        axes.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(border is not None)
        spine.set_color(border or "none")
