"""Stage 8, the figures of a run, drawn from the records in its results folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import sparse
from torch import Tensor

from bench.contracts import CEILING, FLOOR, METHOD
from bench.data.face_queries import part_words, rare_parts
from bench.diffusion.observations import Regeneration
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingJob
from bench.experiments.evaluation import evaluation_seed
from bench.experiments.workspace import Workspace
from bench.pretrained.probe import embedded_probe
from bench.records import folder
from bench.records.rows import NOTHING_REMOVED, labels
from bench.records.store import Store, write_whole
from bench.registry import role_of
from bench.report import figures
from bench.report.figures import Note

SHOWN_LEADERS = 3
"""Methods in the figure of removals."""
SHOWN_REMOVALS = 6
"""Queries in it."""
SHOWN_IMAGES = 8
SHOWN_QUERIES = 8
SHOWN_ROWS = 40
"""Of the figure of top images: a row is one method's images for one query."""

Chosen = Mapping[str, Mapping[tuple[str, int], tuple[int, ...]]]


def draw_figures(
    workspace: Workspace,
    store: Store,
    queries: Sequence[Query],
    selections: Chosen,
    ks: Sequence[int],
    frame: pd.DataFrame,
) -> list[Path]:
    """Write the figures of a run as PNG files into the folder ``figures`` of ``store``; returns their paths."""
    drawn: dict[str, Figure] = {}
    if selections:
        leading = _leading(workspace, frame, selections, ks)
        drawn = _pictures(workspace, list(queries)[:SHOWN_QUERIES], selections, ks, leading)
    if len(selections) > 1:
        for k in ks:
            drawn[f"overlap_{k}"] = figures.overlap(overlaps(selections, queries, k), k)
    for metric in (metric for metric in workspace.metrics if metric.name in set(frame["metric"])):
        label = f"{metric.name.replace('_', ' ')} ({'higher' if metric.higher_is_better else 'lower'} is better)"
        drawn[metric.name] = figures.loss_change(frame, metric.name, label, len(workspace.study.dataset))
    paths = []
    for name, figure in drawn.items():
        path = store.path(*folder.picture(name))
        write_whole(path, figures.png(figure))
        paths.append(path)
    return paths


def _pictures(
    workspace: Workspace,
    shown: Sequence[Query],
    selections: Chosen,
    ks: Sequence[int],
    leading: Sequence[tuple[str, int]],
) -> dict[str, Figure]:
    """What the methods chose, and what the models without it make of the queries."""
    prompts = [query.prompt for query in shown]
    originals = [workspace.images([query])[0] for query in shown]
    few = max(1, min(len(shown), SHOWN_ROWS // len(selections)))
    top = _top_images(workspace, shown[:few], selections, max(ks))
    remade = _regenerations(workspace, shown, selections, ks)
    notes = _notes(shown, remade)
    first = slice(SHOWN_REMOVALS)
    names = [_about(query) or query.prompt for query in shown]
    removals = {key: remade[key][first] for key in leading if key in remade}
    return {
        "top_images": figures.top_images(originals[:few], prompts[:few], top),
        "regenerations": figures.regenerations(originals, prompts, remade, notes),
        "removals": figures.regenerations(
            originals[first], names[first], removals, {key: notes[key][first] for key in removals}
        ),
    }


def _leading(workspace: Workspace, frame: pd.DataFrame, selections: Chosen, ks: Sequence[int]) -> list[tuple[str, int]]:
    """(method, K) of the columns of the figure of removals: nothing removed, floors, the leading methods, ceilings."""
    k, metric = workspace.study.middle_budget, workspace.metrics[0]
    k = k if k in ks else max(ks)
    rows = frame[(frame["k"] == k) & (frame["metric"] == metric.name) & (frame["status"] == "done")]
    rows = rows.assign(label=labels(rows))
    rows = rows[rows["label"].isin(list(selections))]
    means = rows.groupby(["label", "method"])["value"].mean().sort_values(ascending=not metric.higher_is_better)
    ranked = {
        role: [str(label) for label, method in means.index if role_of(method) == role]
        for role in (FLOOR, METHOD, CEILING)
    }
    shown = [*ranked[FLOOR], *ranked[METHOD][:SHOWN_LEADERS], *ranked[CEILING]]
    return [(NOTHING_REMOVED, 0), *((label, k) for label in shown)]


def _about(query: Query) -> str:
    """The rare values that ``query`` was chosen to show, "" where it was chosen for none."""
    return ", ".join(part_words(part, value) for part, value in rare_parts(query.prompt, query.seed))


def _notes(
    queries: Sequence[Query], remade: Mapping[tuple[str, int], Sequence[Tensor | None]]
) -> dict[tuple[str, int], list[Note]]:
    """What the probe sees of each query's rare parts in each image; empty words where there are none."""
    rare = [dict(rare_parts(query.prompt, query.seed)) for query in queries]

    def note(own: Mapping[str, str], image: Tensor | None) -> Note:
        if not own or image is None:
            return Note("", lost=False)
        [seen] = embedded_probe().parts(image[None])
        text = "\n".join(part_words(part, seen[part], instead_of=value) for part, value in own.items())
        return Note(text, lost=any(seen[part] != value for part, value in own.items()))

    return {key: [note(*pair) for pair in zip(rare, column, strict=True)] for key, column in remade.items()}


def overlaps(selections: Chosen, queries: Sequence[Query], k: int) -> pd.DataFrame:
    """For each pair of methods, the share of their top ``k`` that is common to both, a mean over ``queries``."""
    names = list(selections)
    common = np.zeros((len(names), len(names)), np.int64)
    for query in queries:
        tops = [np.asarray(selections[name][query.id, k], np.int64) for name in names]
        rows = np.repeat(np.arange(len(tops)), [len(top) for top in tops])
        columns = np.concatenate(tops)
        chosen = sparse.csr_array((np.ones(len(columns), np.int64), (rows, columns)))
        common += (chosen @ chosen.T).toarray()
    return pd.DataFrame(common / (k * len(queries)), index=names, columns=names)


def _top_images(
    workspace: Workspace, queries: Sequence[Query], selections: Chosen, k: int
) -> dict[str, list[list[Tensor]]]:
    dataset = workspace.study.dataset
    return {
        method: [list(dataset.pixels(chosen[query.id, k][:SHOWN_IMAGES])) for query in queries]
        for method, chosen in selections.items()
    }


def _regenerations(
    workspace: Workspace, queries: Sequence[Query], selections: Chosen, ks: Sequence[int]
) -> dict[tuple[str, int], list[Tensor | None]]:
    """Images by retrained models, read from the ledger's observations."""
    ledger, seed = workspace.ledger, evaluation_seed(workspace.study)
    jobs = {(NOTHING_REMOVED, 0): [TrainingJob((), seed) for _ in queries]} | {
        (method, k): [TrainingJob(tuple(sorted(chosen[query.id, k])), seed) for query in queries]
        for method, chosen in selections.items()
        for k in ks
    }
    remade = {
        key: [
            ledger.observed(job)[0].get(query.observed_as(Regeneration.name))
            for job, query in zip(column, queries, strict=True)
        ]
        for key, column in jobs.items()
    }
    return {key: column for key, column in remade.items() if any(image is not None for image in column)}
