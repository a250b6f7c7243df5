"""``bench leaderboard``: runs merged into one results folder, with tables, figures and a page that open from disk."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.contracts import METHOD
from bench.records import folder as names
from bench.records.rows import BASELINE, labels
from bench.records.store import Store, write_whole
from bench.report import figures
from bench.report.board import RANKED_BY, Board, Cell, Line, leaderboard, ranked_rows
from bench.report.board_figures import drawn, page_charts, pdf
from bench.report.ceilings import BEST
from bench.report.floors import in_words
from bench.report.gallery import gallery
from bench.report.merging import Merged, RunFolder, has_rows, keep, merge_folders, open_folder, places_to_merge
from bench.report.page import page
from bench.report.projections import agreements
from bench.report.query_overlap import overlaps
from bench.report.reliability import shared_tops
from bench.report.sections import sections
from bench.report.shown import Report, Table, as_markdown, markdown_cell
from bench.report.statistics import Won
from bench.studies import Study

NAME = "leaderboard"
AGREES = "of its top K in a second scoring too"
OVERLAP = "of its top K shared by two queries"


@dataclass(frozen=True, eq=False)
class Published(Report):
    """What was written.

    Attributes:
        board: the numbers.
        files: tables and page; figures lie in the folder ``figures`` beside them.
        remarks: what a reader should know.
    """

    board: Board
    files: tuple[Path, ...]
    remarks: tuple[str, ...]

    def tables(self) -> list[Table]:
        """The order of the methods, and their verdicts by each metric."""
        metrics = [metric.name for metric in self.board.metrics]
        head = ("K", "group", "rank", "method", RANKED_BY, *(f"{name}: verdict" for name in metrics))
        return [(head, [line_cells(line, metrics) for line in self.board.lines])]

    def notes(self) -> list[str]:
        """Who does not beat the floors, the remarks, how many values failed, and the files."""
        told = [f"{metric} at K = {k}: {text}" for (metric, k), text in self.board.not_beaten.items()]
        failed = sum(len(failure.queries) for failure in self.board.failures)
        left_out = f"{failed} values failed and are left out; the page lists them with their reasons."
        return [*told, *self.remarks, *([left_out] if failed else []), *(f"written: {path}" for path in self.files)]


def publish(study: Study, sources: Sequence[Path], root: Path) -> Published:
    """Merge the runs of ``sources`` with those that ``root`` holds, and write the leaderboard into ``root``.

    Nothing is trained, scored or generated. Everything is checked before the first file is written.

    Args:
        study: whose runs.
        sources: results folders, later ones win where two hold the same row.
        root: the results folder of the leaderboard.
    """
    places = places_to_merge(study.name, sources, root)
    if not has_rows(root):  # what is refused leaves no folder behind
        merge_folders([open_folder(path, study.name) for path in places])
    store = Store(root)
    with store.lock("results"):  # what is read here must still be there when it is written
        folders = [open_folder(path, study.name) for path in places_to_merge(study.name, sources, root)]
        merged = merge_folders(folders)
        keep(merged, folders, store)
        board = leaderboard(
            merged.frame,
            merged.manifest,
            study.name,
            len(study.dataset),
            study.margin(RANKED_BY),
            shared_tops(store),
            overlaps(store, ranked_rows(merged.frame)),
            agreements(store),
        )
        return _write(store, study, merged, folders, board)


def _write(store: Store, study: Study, merged: Merged, folders: Sequence[RunFolder], board: Board) -> Published:
    frame = merged.frame.assign(label=labels(merged.frame))
    pictures = gallery(store, study, merged.record, frame, list(board.methods))
    notes = (*merged.notes, *_version_note(study, merged))
    more = sections(store, board)
    facts = _facts(study, merged, store.root) | {
        "notes": list(notes),
        "sections": [section.facts() for section in more],
    }
    written = {
        names.BOARD_CSV: csv(board),
        names.BOARD_TABLE: "\n".join([markdown(board, study.name, notes), *(section.markdown() for section in more)]),
        names.BOARD_PAGE: page(board, pictures, facts, page_charts(board)),
    }
    for name, text in written.items():
        write_whole(store.path(name), text.encode())
    drawings = drawn(board, pictures)
    for name, figure in drawings.items():
        write_whole(store.path(*names.picture(name)), figures.png(figure))
        write_whole(store.path(*names.picture(name, ".pdf")), pdf(figure))
    pages = [store.path(name) for name in written]
    kinds = (".png", ".pdf")
    store.list_digests(pages + [store.path(*names.picture(name, kind)) for name in drawings for kind in kinds])
    return Published(board, tuple(store.path(name) for name in written), (*notes, *board.notes, *pictures.notes))


def _version_note(study: Study, merged: Merged) -> list[str]:
    if study.digest == merged.record["digest"]:
        return []
    return [
        f"These rows are of version {merged.record['digest']} of study '{study.name}'; this code makes version "
        f"{study.digest}, whose rows cannot be added to them."
    ]


def _facts(study: Study, merged: Merged, root: Path) -> dict[str, Any]:
    """What the page says of the study and of where the numbers come from."""
    models = merged.frame.drop_duplicates("model_key")
    place = root.name if root.is_absolute() else root.as_posix()
    return {
        "study": study.name,
        "description": study.description,
        "record": merged.record,
        "manifest": merged.manifest,
        "models": len(models),
        "trainSeconds": float(np.nansum(models["train_seconds"])),
        "machines": sorted(set(models["machine"]) - {""}),
        "command": f"bench {NAME} --study {study.name} --results {place}",
    }


def wide(board: Board) -> pd.DataFrame:
    """The lines as a frame: a row for each method and K, columns for each metric."""
    frame = pd.DataFrame([_record(line, board) for line in board.lines])
    whole = [name for name in frame if name == "group" or name.endswith(("rank_first", "rank_last"))]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def csv(board: Board) -> str:
    """The lines as CSV, with full precision and empty cells where nothing is known."""
    buffer = io.StringIO()
    wide(board).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _record(line: Line, board: Board) -> dict[str, Any]:
    record: dict[str, Any] = {"k": line.k, "group": line.group, "method": line.method, "role": line.role}
    for metric in board.metrics:
        cell = line.cells.get(metric.name)
        for floor in board.floors_named:
            won = cell.won.get(floor) if cell else None
            shares = (won.share, won.low, won.high) if won else (None, None, None)
            record |= {
                f"{metric.name}_won_{floor}{end}": value
                for end, value in zip(("", "_low", "_high"), shares, strict=True)
            }
            record[f"{metric.name}_verdict_{floor}"] = cell.against.get(floor) if cell else None
        first, last = (cell.ranks if cell else None) or (None, None)
        record |= {f"{metric.name}_rank_first": first, f"{metric.name}_rank_last": last}
        for name in (name for name in Cell.__dataclass_fields__ if name not in ("won", "against", "ranks")):
            record[f"{metric.name}_{name.replace('difference', f'minus_{BASELINE}')}"] = getattr(cell, name, None)
    found = line.equivalent
    left = found.left(board.num_images) if found else None
    record |= {
        "random_left": left.images if left else None,
        "random_left_low": left.low if left else None,
        "random_left_high": left.high if left else None,
        "equivalent_random": found.images if found else None,
        "equivalent_random_low": found.low if found else None,
        "equivalent_random_high": found.high if found else None,
        "equivalent_random_outside": found.outside if found else "",
    }
    return record | {
        "score_seconds": line.score_seconds,
        "shared_top": line.shared,
        "shared_by_queries": line.overlap,
        "tuned_on": line.tuned_on,
        "digest": line.digest,
    }


def markdown(board: Board, study: str, notes: Sequence[str] = ()) -> str:
    """The lines as Markdown, a table for each K, with what was left out."""
    parts = [f"# Leaderboard of `{study}`\n"]
    for k in board.ks:
        head = ["group", "rank", "method"]
        for metric in board.metrics:
            arrow = "↑" if metric.higher_is_better else "↓"
            head += [f"{metric.name} {arrow}, mean ± 1 SE [95 % interval]", f"minus {BASELINE}", "verdict"]
        head += [
            "as bad as trained on … random images",
            *(f"queries won against {floor}" for floor in board.floors_named),
        ]
        head += ["scoring s/query", *([AGREES] if board.shared_known else [])]
        head += [*([OVERLAP] if board.overlap_known else []), "tuned on"]
        lines = [_cells(line, board) for line in board.lines if line.k == k]
        parts.append(f"## K = {k}\n\n{as_markdown((head, lines))}")
        parts.append(_groups_text(board.groups.get(k, ())) + "\n")
        parts += [
            f"{markdown_cell(f'{metric}: {text}')}.\n" for (metric, at), text in board.not_beaten.items() if at == k
        ]
    parts.append(
        f"Group 1: nobody beats them on {RANKED_BY} at that K; group 2: nobody of the rest does; and so on. Rank: all "
        "that the settled pairs of methods leave open; floors and ceilings have none. A pair is settled by sign flips "
        "of whole queries at 5 %, corrected for all pairs of methods, apart for all pairs with a floor, and apart for "
        f"all pairs with a variant or a ceiling; each metric alone. {_margin_text(board)}Queries won: on how many the "
        "method is ahead of the floor, ties counted half, with the 95 % interval of the share. Intervals of means and "
        "differences: Student's over queries, 95 %, each alone: one that holds zero goes with no verdict, while one "
        "without zero may. As bad as trained on … random images: without the method's K images a model loses as much "
        "as one that was trained on so many random images alone; intervals from resampled queries. "
        f"{BEST[0].upper()}{BEST[1:]}: of each query, the best of all methods' sets by the measured value, a bound "
        "from below on what is possible.\n"
    )
    if board.overlap_known:
        parts.append(
            f"{OVERLAP[0].upper()}{OVERLAP[1:]}: a mean over pairs of queries with different prompts; two random "
            "choices share K / N. A method near 100 % names the same images for every query.\n"
        )
    if board.failures:
        listed = [
            f"- {failure.method}, K = {failure.k}, {failure.metric}, {', '.join(failure.queries)}: {failure.reason}"
            for failure in board.failures
        ]
        parts.append("## Failed, left out of every mean\n\n" + "\n".join(map(markdown_cell, listed)) + "\n")
    if every := [*notes, *board.notes]:
        parts.append("## Remarks\n\n" + "\n".join(f"- {markdown_cell(note)}" for note in every) + "\n")
    return "\n".join(parts)


def line_cells(line: Line, metrics: Sequence[str]) -> list[str]:
    """K, group, rank, method, the ranking metric and the verdicts by ``metrics`` as text, for a terminal."""
    cell = line.cells.get(RANKED_BY)
    texts = [str(line.k), _group_text(line), _rank_text(line), line.method, "" if cell is None else _mean_text(cell)]
    return texts + [in_words(line.cells[name].against) if name in line.cells else "" for name in metrics]


def _rank_text(line: Line) -> str:
    if line.ranks is None:
        return "–" if line.role == METHOD else line.role
    first, last = line.ranks
    return str(first) if first == last else f"{first}–{last}"


def _group_text(line: Line) -> str:
    return "–" if line.group is None else str(line.group)


def _groups_text(groups: Sequence[Sequence[str]]) -> str:
    """Who stands with whom."""
    if not groups:
        return "Too few queries for groups."
    return markdown_cell("; ".join(f"Group {place}: {', '.join(part)}" for place, part in enumerate(groups, 1))) + "."


def _margin_text(board: Board) -> str:
    if board.margin is None:
        return ""
    return (
        f"Two methods are equivalent where the 95 % interval of their difference lies within ±{board.margin:g}, the "
        "study's margin; else a pair that is not settled is just that. "
    )


def _won_text(won: Won | None) -> str:
    """As in: 7.5 of 8 [60, 99] %."""
    if won is None or not won.queries:
        return ""
    bounds = "" if math.isnan(won.low) else f" [{100 * won.low:.0f}, {100 * won.high:.0f}] %"
    return f"{won.won:g} of {won.queries}{bounds}"


def _cells(line: Line, board: Board) -> list[str]:
    texts = [_group_text(line), _rank_text(line), line.method]
    for metric in board.metrics:
        cell = line.cells.get(metric.name)
        verdict = "" if cell is None else in_words(cell.against)
        texts += ["", "", ""] if cell is None else [_mean_text(cell), _difference_text(line.method, cell), verdict]
    texts.append(line.equivalent.left(board.num_images).text if line.equivalent else "")
    won = line.cells[RANKED_BY].won if RANKED_BY in line.cells else {}
    texts += [_won_text(won.get(floor)) for floor in board.floors_named]
    shared = ["" if line.shared is None else f"{line.shared:.0%}"] if board.shared_known else []
    overlap = ["" if line.overlap is None else f"{line.overlap:.0%}"] if board.overlap_known else []
    seconds = "" if math.isnan(line.score_seconds) else f"{line.score_seconds:.2f}"
    return [*texts, seconds, *shared, *overlap, line.tuned_on]


def _mean_text(cell: Cell) -> str:
    failed = f" ({cell.failed} failed)" if cell.failed else ""
    if not cell.queries:
        return f"failed{failed}"
    error = "" if math.isnan(cell.standard_error) else f" ± {cell.standard_error:.5f}"
    interval = "too few queries for an interval" if math.isnan(cell.low) else f"[{cell.low:.5f}, {cell.high:.5f}]"
    return f"{cell.mean:.5f}{error} {interval}, {cell.queries} queries{failed}"


def _difference_text(method: str, cell: Cell) -> str:
    if method == BASELINE or not cell.queries:
        return ""
    if not cell.compared:
        return "no baseline"
    bounds = f"[{cell.difference_low:+.5f}, {cell.difference_high:+.5f}]"
    return f"{cell.difference:+.5f} " + ("too few queries" if math.isnan(cell.difference_low) else bounds)
