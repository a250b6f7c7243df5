"""How high exemplars of customized models stand: rows, the table, and the published board.

A value is a mean over a model's queries, then over models: the queries of one model share its exemplars, so the model
is the unit of every standard error (20 clusters, not 100 queries). Values of pools of different sizes stand in tables
of their own: both metrics fall as a pool grows.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from bench.attribution.dimensions import Choice
from bench.contracts import METHOD
from bench.data.customizations import HELD_OUT, OBJECT, REPORTED, STYLE, customizations
from bench.data.dataset import load_embedded
from bench.diffusion.autoencoder import autoencoder
from bench.diffusion.queries import load_queries
from bench.errors import ResultsFolderError
from bench.records import folder
from bench.records.names import MethodName
from bench.records.store import Store, write_whole
from bench.registry import methods, role_of, says_tuned, tuned_on
from bench.report import figures
from bench.report.merging import places_to_merge
from bench.report.shown import Report, ReportOnMethods, Table, as_markdown
from bench.report.statistics import mean_and_error
from bench.studies import Study

GROUPS = (OBJECT, STYLE, "all")
WITHOUT = "without V*"
SAME = "The same queries are those that all methods answered, those aside that ran on fewer models."
SHOWN_QUERIES, SHOWN_IMAGES = 2, 8
PICTURE_DPI, PICTURE_COLOURS = 96, 256
"""Twenty pictures stand in one page of at most 2 MiB."""
STYLE_SHEET = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:78rem;margin:2rem auto;"
    "padding:0 1rem}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.8rem}td,th{padding:.2rem .5rem;"
    "border-bottom:1px solid #888;text-align:left}td{white-space:nowrap}img{max-width:100%;background:#fff}"
)
KEY = ["model_digest", "method_digest", "query_digest", "pool"]


class RetrievalRow(NamedTuple):
    """One ranking of one query.

    Attributes:
        study, study_digest: of the base.
        model, model_digest: the customized model, and the digest of its study.
        kind: "object-centric" or "style-centric".
        split: "reported" or "held-out".
        method, method_digest, settings: as tables call it; its settings as JSON.
        query, query_digest, prompt: the prompt is what the method saw.
        with_word: whether V* was in it.
        exemplars: how many.
        pool: images ranked, exemplars among them.
        recall_at_10: exemplars among the first 10, of all exemplars.
        average_precision: mean of the precision at each exemplar's rank.
        top: ids of the first 10, JSON.
        score_seconds: what scoring the query took.
    """

    study: str
    study_digest: str
    model: str
    model_digest: str
    kind: str
    split: str
    method: str
    method_digest: str
    settings: str
    query: str
    query_digest: str
    prompt: str
    with_word: bool
    exemplars: int
    pool: int
    recall_at_10: float
    average_precision: float
    top: str
    score_seconds: float


def frame_of(rows: Sequence[RetrievalRow]) -> pd.DataFrame:
    """A line for each row; all columns also where there is none."""
    return pd.DataFrame(list(rows), columns=list(RetrievalRow._fields))


def merge(store: Store, rows: Sequence[RetrievalRow]) -> pd.DataFrame:
    """Write ``rows`` among those that the results folder has; returns all of them."""
    with store.lock("results"):
        kept = store.frame(folder.RETRIEVAL)
        new = frame_of(rows)
        whole = new if kept is None else pd.concat([kept, new], ignore_index=True)
        whole = whole.drop_duplicates(KEY, keep="last", ignore_index=True)
        store.write_frame((folder.RETRIEVAL,), whole)
    return whole


def chance_of_precision(exemplars: int, pool: int) -> float:
    """The expected average precision of a random order: (H + (n − 1) (N − H) / (N − 1)) / N, H = 1 + 1/2 + … + 1/N.

    The image at rank r is an exemplar with n / N, and (r − 1) (n − 1) / (N − 1) of those before it are.

    Args:
        exemplars: n, of N.
        pool: N, 2 or more.
    """
    harmonic = sum(1 / rank for rank in range(1, pool + 1))
    return (harmonic + (exemplars - 1) * (pool - harmonic) / (pool - 1)) / pool


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A line for each size of the pool, method and group of models: large pools first, then the best mAP of all models.

    Columns: method, group, models, queries, distractors, pool, recall_at_10, recall_se, map, map_se, chance,
    chance_map, ceiling, seconds, tuned_on, map_shared, shared_queries. ``map_shared`` is the mAP on the queries that
    all methods answered, those aside that answered for fewer models than others, which have NaN there.
    """
    sizes = frame[["exemplars", "pool"]].drop_duplicates().to_numpy().tolist()
    expected = {(exemplars, pool): chance_of_precision(exemplars, pool) for exemplars, pool in sizes}
    full = frame.assign(
        label=frame["method"],
        method=frame["method"].where(frame["with_word"], frame["method"] + f" ({WITHOUT})"),
        ceiling=(10 / frame["exemplars"]).clip(upper=1),
        chance=(10 / frame["pool"]).clip(upper=1),
        chance_map=[expected[pair] for pair in zip(frame["exemplars"], frame["pool"], strict=True)],
        distractors=frame["pool"] - frame["exemplars"],
    )
    parts = [_summary_of(full[full["distractors"] == size]) for size in sorted(set(full["distractors"]), reverse=True)]
    return pd.concat(parts, ignore_index=True)


def _summary_of(named: pd.DataFrame) -> pd.DataFrame:
    """The lines of one size of the pool."""
    columns = ["recall_at_10", "average_precision", "chance", "chance_map", "ceiling", "pool", "score_seconds"]
    each = named.groupby(["method", "kind", "model"])[columns].mean().reset_index()
    asked = {method: set(zip(rows["model"], rows["query"], strict=True)) for method, rows in named.groupby("method")}
    answered = each.groupby("method")["model"].nunique()
    shared = set.intersection(*(asked[method] for method in answered.index[answered == answered.max()]))
    lines = []
    for method, table in each.groupby("method"):
        rows = named[named["method"] == method]
        for group in GROUPS:
            part = table if group == "all" else table[table["kind"] == group]
            if not len(part):
                continue
            recall, precision = (
                mean_and_error(part[name].to_numpy()) for name in ("recall_at_10", "average_precision")
            )
            own = set(part["model"])
            common = [pair in shared and pair[0] in own for pair in zip(rows["model"], rows["query"], strict=True)]
            on_shared = rows[common].groupby("model")["average_precision"].mean()
            lines.append(
                {
                    "method": method,
                    "group": group,
                    "models": len(part),
                    "queries": int(rows["model"].isin(part["model"]).sum()),
                    "distractors": int(rows["distractors"].iloc[0]),
                    "pool": round(float(part["pool"].mean()), 1),
                    "recall_at_10": recall.mean,
                    "recall_se": recall.standard_error,
                    "map": precision.mean,
                    "map_se": precision.standard_error,
                    "chance": float(part["chance"].mean()),
                    "chance_map": float(part["chance_map"].mean()),
                    "ceiling": float(part["ceiling"].mean()),
                    "seconds": float(part["score_seconds"].mean()),
                    "tuned_on": _tuned_on(str(rows["label"].iloc[0]), str(rows["study"].iloc[0])),
                    "map_shared": float(on_shared.mean()) if shared <= asked[method] else float("nan"),
                    "shared_queries": sum(common),
                }
            )
    result = pd.DataFrame(lines)
    best = result[result["group"] == "all"].set_index("method")["map"]
    whole = result["method"].map(answered) == answered.max()  # a method that answered for few models stands below
    order = (result["method"].map(best) + 2 * whole).rank(ascending=False).groupby(result["method"]).transform("min")
    place = result["group"].map(GROUPS.index)
    return (
        result.assign(order=order, place=place)
        .sort_values(["order", "method", "place"])
        .drop(columns=["order", "place"])
        .reset_index(drop=True)
    )


def _tuned_on(label: str, study: str) -> str:
    """On what the settings of the method that rows call ``label`` were tuned; "" where it has none."""
    name = MethodName.of_old_label(label)
    cls = methods.find(name.method)
    if cls is None or role_of(name.method) != METHOD or not fields(cls):
        return ""
    return tuned_on(cls, study, name)


def tables_of(found: pd.DataFrame) -> list[Table]:
    """The summary for people, a table for each size of the pool, with chance and ceiling."""
    return [_table_of(part) for _, part in found.groupby("distractors", sort=False)]


def _table_of(found: pd.DataFrame) -> Table:
    shared = found[found["map_shared"].notna() & (found["group"] == "all")]
    unequal = len(shared) > 0 and (shared["queries"] > shared["shared_queries"]).any()
    head = [
        "method", *(f"{group}: {name}" for group in GROUPS for name in ("Recall@10", "mAP")), "distractors", "models",
        "queries", "settings", "s/query",
        *([f"same {shared['shared_queries'].max()} queries: mAP"] if unequal else []),
    ]  # fmt: skip
    lines = []
    for method, part in found.groupby("method", sort=False):
        cells = [str(method)]
        groups = {row["group"]: row for row in part.to_dict("records")}
        for group in GROUPS:
            row = groups.get(group)
            cells += (
                [_cell(row["recall_at_10"], row["recall_se"]), _cell(row["map"], row["map_se"])] if row else ["–", "–"]
            )
        whole = groups["all"]
        how = whole["tuned_on"] and ("tuned" if says_tuned(whole["tuned_on"]) else "untuned")
        counts = [str(whole[name]) for name in ("distractors", "models", "queries")]
        on_shared = [_cell(whole["map_shared"])] if unequal else []
        lines.append([*cells, *counts, how, f"{whole['seconds']:.2f}", *on_shared])
    for name in ("chance", "ceiling"):
        cells = []
        for group in GROUPS:
            part = found[found["group"] == group]
            if not len(part):
                cells += ["–", "–"]
                continue
            most = part.loc[part["models"].idxmax()]
            cells += [f"{most[name]:.3f}", f"{most['chance_map']:.3f}" if name == "chance" else "1.000"]
        lines.append([name, *cells, str(found["distractors"].iloc[0]), *[""] * (len(head) - len(cells) - 2)])
    return head, lines


def _cell(mean: float, error: float = float("nan")) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"


@dataclass(frozen=True, eq=False, kw_only=True)
class CustomizedReport(ReportOnMethods):
    """What a run found.

    Attributes:
        frame: its rows.
        root: the results folder.
        projected: by method and model, what ``projection=auto`` chose.
    """

    frame: pd.DataFrame
    root: Path
    projected: Mapping[str, Mapping[str, Choice]] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Recall@10 and mAP of each method in each pool, with chance and ceiling."""
        return tables_of(summary(self.frame)) if len(self.frame) else []

    def notes(self) -> list[str]:
        """What the numbers are of, what was skipped, and which projections were chosen."""
        chosen = [
            f"{method}: {_chosen(dimension, [one for one in models.values() if one.dimension == dimension])}"
            for method, models in self.projected.items()
            for dimension in sorted({one.dimension for one in models.values()})
        ]
        return [*explained(self.frame), *super().notes(), *chosen, f"rows: {self.root / folder.RETRIEVAL}"]

    def problems(self) -> list[str]:
        """What failed; a run all of whose methods were skipped."""
        none = self.skipped and not len(self.frame) and not self.failures
        return [*super().problems(), *(["every method was skipped; see the reasons above."] if none else [])]


def _chosen(dimension: int, on_models: Sequence[Choice]) -> str:
    """On how many models a projection was chosen, and why."""
    models = f"{len(on_models)} model{'s' if len(on_models) > 1 else ''}"
    if not dimension:
        return f"nothing is projected on {models}: the gradients of all images fit the memory"
    rho = min(float(one.agreement.mean()) for one in on_models)
    return f"{dimension} dimensions on {models}, with no projection's ranks to a Spearman's ρ of {rho:.2f} or more"


def explained(frame: pd.DataFrame) -> list[str]:
    """What the values of ``frame`` are of, in sentences: a text for each size of the pool, the largest first."""
    size = frame["pool"] - frame["exemplars"]
    return [_explained(frame[size == each], each) for each in sorted(set(size), reverse=True)]


def _explained(frame: pd.DataFrame, distractors: int) -> str:
    models = frame.drop_duplicates("model")
    asked = frame.groupby(["method", "model", "with_word"]).size()
    each = f"{asked.max()} queries" if asked.min() == asked.max() else f"{asked.min()} to {asked.max()} queries"
    return (
        f"{len(models)} customized models ({', '.join(sorted(set(models['split'])))}), {each} each; "
        f"exemplars (1 to {models['exemplars'].max()} a model) among {distractors} distractors. "
        "Mean ± 1 SE, the model as unit. Recall@10 has the ceiling min(10, n)/n."
        + (f" {SAME}" if asked.min() < asked.max() else "")
    )


@dataclass(frozen=True, eq=False)
class CustomizedBoard(Report):
    """What was published.

    Attributes:
        frame: the rows.
        files: that were written.
        remarks: what a reader should know.
    """

    frame: pd.DataFrame
    files: tuple[Path, ...]
    remarks: tuple[str, ...]

    def tables(self) -> list[Table]:
        """The board, a table for each size of the pool."""
        return tables_of(summary(self.frame))

    def notes(self) -> list[str]:
        """Where the files lie."""
        return [*explained(self.frame), *self.remarks, *(f"wrote {path}" for path in self.files)]


def publish(study: Study, sources: Sequence[Path], target: Path) -> CustomizedBoard:
    """Merge runs of customized models with those that ``target`` holds: rows, CSV, Markdown, a picture for each model.

    Raises ResultsFolderError where there are no rows at all, where a source holds none, or rows of another version of
    the base or the models.
    """
    places = places_to_merge(study.name, sources, target, folder.RETRIEVAL)
    frames = [_rows(study, place) for place in places]
    whole = pd.concat(frames, ignore_index=True).drop_duplicates(KEY, keep="last", ignore_index=True)
    whole = whole[whole["split"] == REPORTED].reset_index(drop=True)
    if not len(whole):
        raise ResultsFolderError(f"No folder holds rows of reported models: {', '.join(map(str, places))}.")
    several = whole.groupby("model")["model_digest"].nunique()
    if (several > 1).any():
        raise ResultsFolderError(
            f"The rows hold several versions of the models {', '.join(several.index[several > 1])}, such as of several "
            "--distractors: values of different pools are never mixed. Give sources of one version."
        )
    store = Store(target)
    board = summary(whole)
    pictures, remarks = _pictures(study, whole, places, store)
    store.write_frame((folder.RETRIEVAL,), whole)
    manifests = [Store(place, read_only=True).record(folder.MANIFEST) or {} for place in places]
    runs: list[Any] = []
    for manifest in manifests:
        runs += [run for run in manifest.get("runs", []) if run not in runs]
    methods = {name: facts for manifest in manifests for name, facts in manifest.get("methods", {}).items()}
    shown = {name: facts for name, facts in methods.items() if name in set(whole["method"])}
    store.write_record((folder.MANIFEST,), {**manifests[-1], "methods": shown, "runs": runs})
    csv, page = store.path(folder.BOARD_CSV), store.path(folder.BOARD_TABLE)
    write_whole(csv, board.to_csv(index=False, float_format="%.6g").encode())
    lines = [f"# {study.name}: customized models", ""]
    for text, table in zip(explained(whole), tables_of(board), strict=True):
        lines += [text, "", as_markdown(table)]
    for name, path in pictures.items():
        kind = whole.loc[whole["model"] == name, "kind"].iloc[0]
        lines += [f"## {name} ({kind})", "", f"![{name}]({path.relative_to(target).as_posix()})", ""]
    write_whole(page, "\n".join(lines).encode())
    html_page = store.path(folder.BOARD_PAGE)
    write_whole(html_page, _html(study, whole, tables_of(board), pictures).encode())
    written = (csv, page, html_page, *pictures.values())
    store.list_digests(written)
    return CustomizedBoard(whole, (store.path(folder.RETRIEVAL), *written), tuple(remarks))


def _html(study: Study, frame: pd.DataFrame, tables: Sequence[Table], pictures: Mapping[str, Path]) -> str:
    """One file that opens from disk: a table for each size of the pool, then a picture of each model."""
    boards = [
        line
        for text, table in zip(explained(frame), tables, strict=True)
        for line in (f"<p>{escape(text)}</p>", *_as_html(table))
    ]
    kinds = dict(zip(frame["model"], frame["kind"], strict=True))
    shown = [
        f"<h2>{escape(name)} <small>{kinds[name]}</small></h2>"
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for name, path in pictures.items()
    ]
    title = escape(f"{study.name}: customized models")
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{STYLE_SHEET}</style>",
            f"<h1>{title}</h1>",
            *boards,
            "<p>Below, a green border is an exemplar.</p>",
            *shown,
            "</html>\n",
        ]
    )


def _as_html(table: Table) -> list[str]:
    head, lines = table
    rows = [("th", head), *(("td", line) for line in lines)]
    cells = ["<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) + "</tr>" for tag, line in rows]
    return ['<div class="wide" tabindex="0"><table>', *cells, "</table></div>"]


def _rows(study: Study, source: Path) -> pd.DataFrame:
    frame = Store(source, read_only=True).frame(folder.RETRIEVAL)
    if frame is None:
        raise ResultsFolderError(
            f"{source} holds no {folder.RETRIEVAL}: give folders of `bench run --study {study.name}` with --from."
        )
    if set(frame["study_digest"]) != {study.digest}:
        raise ResultsFolderError(f"{source} holds rows of another version of '{study.name}' than {study.digest}.")
    return frame


def _pictures(
    study: Study, frame: pd.DataFrame, places: Sequence[Path], store: Store
) -> tuple[dict[str, Path], list[str]]:
    """A picture of each model: drawn where a folder holds its queries, else the one that ``store`` has; remarks."""
    faces = load_embedded(study.dataset_name)
    images = {each: faces.pixels([row])[0] for row, each in enumerate(faces.ids)}
    found: dict[str, Path] = {}
    kept: list[str] = []
    missing: list[str] = []
    for each in (each for split in (REPORTED, HELD_OUT) for each in customizations(split)):
        rows = frame[(frame["model"] == each.name) & frame["with_word"]]
        if not len(rows):
            continue
        asked_in = rows.groupby("pool")["method"].nunique()  # of the pool that most methods were asked in
        rows = rows[rows["pool"] == max(asked_in.index, key=lambda pool: (asked_in[pool], pool))]
        roots = [folder.customized(place, each.name) for place in places]
        queries = {key: query for root in roots for key, query in load_queries(Store(root, read_only=True)).items()}
        asked = [name for name in sorted(set(rows["query"])) if name in queries][:SHOWN_QUERIES]
        path = store.path(*folder.picture(each.name))
        if not asked:
            if path.exists():
                found[each.name] = path
            (kept if path.exists() else missing).append(each.name)
            continue
        known = images | dict(zip(each.exemplars.ids, each.exemplars.pixels(), strict=True))
        decoder = autoencoder(study.model.autoencoder)
        made = [decoder.decode(queries[name].latent[None])[0] for name in asked]
        tops = _tops(rows, asked, known)
        figure = figures.customized_model(
            list(each.exemplars.pixels()), made, [queries[name].prompt for name in asked], tops, each.exemplars.ids
        )
        write_whole(path, figures.png(figure, PICTURE_DPI, colours=PICTURE_COLOURS))
        found[each.name] = path
    return found, [
        f"{what} of {', '.join(names)}: the queries are in none of the folders"
        for what, names in (("pictures that stay as they were", kept), ("no pictures", missing))
        if names
    ]


def _tops(
    rows: pd.DataFrame, queries: Sequence[str], images: Mapping[str, Tensor]
) -> dict[str, list[list[tuple[str, Tensor]]]]:
    """For each method, the best first, for each query, ids and images from the top; none that it was not asked."""
    order = rows.groupby("method")["average_precision"].mean().sort_values(ascending=False).index
    top = rows.set_index(["method", "query"])["top"]
    return {
        method: [
            [(image, images[image]) for image in json.loads(top.get((method, query), "[]"))[:SHOWN_IMAGES]]
            for query in queries
        ]
        for method in order
    }
