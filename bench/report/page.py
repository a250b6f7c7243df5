"""The leaderboard's page: one HTML file that works from disk, without network.

Numbers travel as JSON and become text on the page, never markup, so a method may be called anything. The script and the
style lie in ``bench/report/assets`` and are put into the page; pictures are small PNG data URIs.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from bench.data.face_queries import part_words
from bench.records.rows import BASELINE
from bench.report.board import RANKED_BY, Board, Cell, Line, charted
from bench.report.figures import MARKS, colour_of, mark_of, style_of_colours
from bench.report.floors import in_words
from bench.report.gallery import Gallery
from bench.report.statistics import MIN_QUERIES, mean_and_error
from bench.report.verdicts import BETTER, Verdict

SCRIPTS = ("base.js", "table.js", "charts.js", "pairs.js", "gallery.js", "first.js", "words.js", "controls.js")
"""Put together in this order: what a file uses as it is read stands in an earlier one."""
PICTURE_BYTES = 1_200_000
"""Of all pictures together; where there are more, fewer top images, then fewer queries are shown."""


def page(board: Board, pictures: Gallery, facts: Mapping[str, Any], charts: Mapping[str, str]) -> str:
    """The page as HTML.

    Args:
        board: the numbers.
        pictures: of the gallery.
        facts: the study's name, description and number of images, the manifest, and how to make the page again.
        charts: SVG by name, as ``bench.report.board_figures.page_charts`` draws it.
    """
    assets = resources.files("bench.report.assets")
    whole, style = ((assets / f"leaderboard.{kind}").read_text() for kind in ("html", "css"))
    shown = payload(board, pictures, facts) | {"charts": dict(charts)}
    data = json.dumps(shown, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = {
        "{{title}}": html.escape(f"{facts['study']} leaderboard"),
        "/*{{style}}*/": _colours() + style,
        "{{data}}": escaped(data),
        "/*{{script}}*/": script(),
    }
    head, *rest = whole.split("{{data}}")
    for place, content in parts.items():
        if place != "{{data}}":
            head, rest = head.replace(place, content), [part.replace(place, content) for part in rest]
    return parts["{{data}}"].join([head, *rest])


def script() -> str:
    """The page's script: its files, one after the other, in a scope of their own."""
    assets = resources.files("bench.report.assets")
    return "\n".join(['"use strict";', "(() => {", *((assets / name).read_text() for name in SCRIPTS), "})();"])


def _colours() -> str:
    light, dark = (style_of_colours(dark) for dark in (False, True))
    return f":root {{ {light}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"


def escaped(data: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def payload(board: Board, pictures: Gallery, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page shows, as JSON has it."""
    shown = _gallery(pictures)
    return {
        "facts": dict(facts),
        "baseline": BASELINE,
        "rankedBy": RANKED_BY,
        "minQueries": MIN_QUERIES,
        "ks": list(board.ks),
        "images": board.num_images,
        "mainK": board.main_k,
        "methods": list(board.methods),
        "charted": charted(board.ordered),
        "marks": {
            line.method: [colour_of(line.name.method), MARKS[mark_of(line.name.method, line.method)]]
            for line in board.lines
        },
        "metrics": [
            {
                "name": metric.name,
                "unit": metric.unit,
                "summary": metric.summary,
                "higher": metric.higher_is_better,
                "power": _power(board, metric.name),
            }
            for metric in board.metrics
        ],
        "lines": [_line(line, board.num_images) for line in board.lines],
        "notBeaten": [{"metric": metric, "k": k, "text": text} for (metric, k), text in board.not_beaten.items()],
        "pairs": {str(k): [_pair(*names, found) for names, found in pairs.items()] for k, pairs in board.pairs.items()},
        "groups": {str(k): [list(part) for part in parts] for k, parts in board.groups.items()},
        "margin": number(board.margin),
        "reference": {metric: _curve(curve) for metric, curve in board.reference.items()},
        "floors": {metric: number(size) for metric, size in board.floors.items()},
        "failures": [
            {
                "method": failure.method,
                "k": failure.k,
                "metric": failure.metric,
                "queries": list(failure.queries),
                "reason": failure.reason,
            }
            for failure in board.failures
        ],
        "notes": [*facts.get("notes", []), *board.notes, *pictures.notes, *_left_out(shown)],
        "gallery": shown,
    }


def number(value: float | None) -> float | None:
    """A number that JSON has, to seven digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")


def _power(board: Board, metric: str) -> int:
    """The power of ten, a multiple of three, that gives the values one to three digits before the point."""
    sizes = [abs(line.cells[metric].mean) for line in board.lines if metric in line.cells]
    known = [size for size in sizes if math.isfinite(size) and size > 0]
    if not known or 0.1 <= max(known) < 1000:
        return 0
    return 3 * math.floor(math.log10(max(known)) / 3)


def _line(line: Line, num_images: int) -> dict[str, Any]:
    left = line.equivalent.left(num_images) if line.equivalent else None
    return {
        "method": line.method,
        "k": line.k,
        "role": line.role,
        "rank": line.ranks[0] if line.ranks else None,
        "rankLast": line.ranks[1] if line.ranks else None,
        "group": line.group,
        "cells": {metric: _cell(cell) for metric, cell in line.cells.items()},
        "left": None
        if left is None
        else {
            "images": number(left.images),
            "low": number(left.low),
            "high": number(left.high),
            "outside": left.outside,
            "end": number(left.end),
        },
        "seconds": number(line.score_seconds),
        "shared": number(line.shared),
        "overlap": number(line.overlap),
        "settings": dict(line.settings),
        "digest": line.digest,
        "tuned": line.tuned_on,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "mean": number(cell.mean),
        "se": number(cell.standard_error),
        "low": number(cell.low),
        "high": number(cell.high),
        "diff": number(cell.difference),
        "diffLow": number(cell.difference_low),
        "diffHigh": number(cell.difference_high),
        "won": {
            floor: {"won": won.won, "of": won.queries, "low": number(won.low), "high": number(won.high)}
            for floor, won in cell.won.items()
        },
        "verdict": in_words(cell.against),
        "beaten": sum(word == BETTER for word in cell.against.values()),
        "rank": cell.ranks[0] if cell.ranks else None,
        "rankLast": cell.ranks[1] if cell.ranks else None,
        "queries": cell.queries,
        "compared": cell.compared,
        "failed": cell.failed,
    }


def _pair(one: str, other: str, found: Verdict) -> dict[str, Any]:
    return {
        "a": one,
        "b": other,
        "verdict": found.verdict,
        "diff": number(found.difference),
        "p": number(found.p_value),
        "queries": found.queries,
        "needed": found.queries_needed,
    }


def _curve(curve: pd.DataFrame) -> list[dict[str, Any]]:
    found = [(int(k), mean_and_error(values.to_numpy(float))) for k, values in curve.iterrows()]
    return [{"k": k, "mean": number(stat.mean), "se": number(stat.standard_error)} for k, stat in found]


def _gallery(pictures: Gallery) -> dict[str, Any]:
    """The pictures that fit the page: fewer top images first, then fewer queries."""
    drawn: dict[int, str] = {}
    count = _fitting(pictures, 4, drawn)
    for shown in (8, 6) if count == len(pictures.queries) else ():
        chosen = _chosen(pictures, count, shown, drawn)
        if sum(map(len, chosen["images"].values())) <= PICTURE_BYTES:
            return chosen
    return _chosen(pictures, count, 4, drawn)


def _left_out(shown: Mapping[str, Any]) -> list[str]:
    """A note where not all queries have pictures."""
    count, whole = len(shown["queries"]), shown["all"]
    return [] if count == whole else [f"The gallery shows {count} of {whole} queries, as more would not fit the page."]


def _fitting(pictures: Gallery, shown: int, drawn: dict[int, str]) -> int:
    """How many of the queries fit with ``shown`` top images each; those after them are not even encoded."""
    size, seen = 0, set[str]()
    for count, query in enumerate(pictures.queries):
        one = _chosen(replace(pictures, queries=(query,)), 1, shown, drawn)["images"]
        size += sum(len(data) for name, data in one.items() if name not in seen or name not in pictures.training)
        seen.update(one)
        if size > PICTURE_BYTES:
            return count
    return len(pictures.queries)


def _chosen(pictures: Gallery, count: int, shown: int, drawn: dict[int, str]) -> dict[str, Any]:
    """The first ``count`` queries with ``shown`` top images each; ``drawn`` keeps every picture once it is encoded."""
    images: dict[str, str] = {}

    def uri(picture: Tensor) -> str:
        if id(picture) not in drawn:
            drawn[id(picture)] = png_uri(picture)
        return drawn[id(picture)]

    def kept(picture: Tensor | None) -> str | None:
        if picture is None:
            return None
        name = f"m{len(images)}"
        images[name] = uri(picture)
        return name

    queries = []
    for query in pictures.queries[:count]:
        methods = []
        for method in query.shown:
            top = [image for image in method.top[:shown] if image in pictures.training]
            for image in top:
                if image not in images:
                    images[image] = uri(pictures.training[image])
            made = {str(k): kept(picture) for k, picture in method.made.items()}
            values = {
                str(k): {metric: number(value) for metric, value in of_k.items()} for k, of_k in method.measured.items()
            }
            methods.append({"method": method.method, "top": top, "made": made, "values": values})
        queries.append(
            {
                "id": query.id,
                "prompt": query.prompt,
                "image": kept(query.image),
                "untouched": kept(query.untouched),
                "rare": [part_words(part, value) for part, value in query.rare],
                "group": query.group,
                "methods": methods,
            }
        )
    captions = {image: pictures.captions.get(image, "") for image in images if image in pictures.captions}
    return {"images": images, "captions": captions, "queries": queries, "all": len(pictures.queries)}


def png_uri(picture: Tensor) -> str:
    """channels × height × width in [−1, 1] as a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def png_bytes(picture: Tensor) -> bytes:
    """channels × height × width in [−1, 1] as a PNG file, a pixel for each value."""
    pixels = ((picture.detach().clamp(-1, 1) + 1) * 127.5).round().to("cpu").permute(1, 2, 0).numpy().astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
