"""The pictures behind the numbers, read from a results folder's records: nothing is scored, trained or generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bench.data.face_queries import rare_parts
from bench.diffusion.autoencoder import autoencoder
from bench.diffusion.observations import Regeneration
from bench.diffusion.queries import Query, load_queries
from bench.errors import BenchError, DamagedArtifact, InvalidInput
from bench.foundation.digests import digest_of
from bench.records import folder
from bench.records.rows import NOT_RANKED, NOTHING_REMOVED
from bench.records.sealing import read_json, read_tensors
from bench.records.store import Store
from bench.studies import Study

SHOWN_IMAGES = 8


@dataclass(frozen=True, eq=False)
class Shown:
    """One method's part in one query's gallery.

    Attributes:
        method: its label.
        top: ids of its most influential training images, the most influential first.
        made: by K, the image that the model retrained without its top K makes from the query's noise.
        measured: by K, what each metric says of this removal: its paired value, a mean over seeds.
    """

    method: str
    top: tuple[str, ...]
    made: Mapping[int, Tensor]
    measured: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class QueryGallery:
    """One query: its image, what each method named, and what was left of it.

    Attributes:
        image: channels × height × width in [−1, 1]; None where it cannot be had.
        untouched: the image by the model that the retrained ones are compared with: nothing removed.
        rare: (part, value) of what the image shows that few training images have, where that is known.
        group: the group of queries that this one is reported in; "" where there are none.
    """

    id: str
    prompt: str
    image: Tensor | None
    untouched: Tensor | None
    shown: tuple[Shown, ...]
    rare: tuple[tuple[str, str], ...] = ()
    group: str = ""


@dataclass(frozen=True, eq=False)
class Gallery:
    """All queries, and the training images that appear, with their captions."""

    queries: tuple[QueryGallery, ...] = ()
    training: Mapping[str, Tensor] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def gallery(
    store: Store, study: Study, record: Mapping[str, Any], frame: pd.DataFrame, order: Sequence[str]
) -> Gallery:
    """What the records of ``store`` can show.

    Args:
        store: the results folder.
        study: as this code has it; its training images are shown where they are those of ``record``.
        record: what the rows' study is.
        frame: the rows, with the column ``label``.
        order: the methods' labels, in which they are shown.
    """
    notes: list[str] = []
    try:
        read_tensors(store.path(folder.QUERIES))
        queries = load_queries(store)
    except DamagedArtifact as error:
        return Gallery(notes=(f"No gallery: {error}",))
    seen = _Observations(store)
    original = digest_of([record["digest"], [], record["parts"]["seed"]])
    shown = []
    by_query = dict(iter(frame.groupby(["query", "query_digest"], sort=False)))
    for name in sorted(set(frame["query"]) & set(queries)):
        own = by_query.get((name, queries[name].digest))
        if own is not None:
            image = seen.regeneration(original, queries[name])
            image = _decoded(queries[name], study, record) if image is None else image
            found = _of_query(store, queries[name], own, image, seen, order)
            known = rare_parts(found.prompt, queries[name].seed) if study.dataset.parts else ()
            shown.append(replace(found, rare=known, group=study.group(queries[name])))
    training, captions = _training(study, record, shown, notes)
    return Gallery(queries=tuple(shown), training=training, captions=captions, notes=(*notes, *seen.notes))


class _Observations:
    """What was kept of each model, read once; a damaged file is named and passed over."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.notes: list[str] = []

    def regeneration(self, key: str, query: Query) -> Tensor | None:
        """The query made again by the model ``key``, None where that was not observed."""
        if key not in self.kept:
            try:
                path = self.store.path(*folder.observation(key))
                found = read_tensors(path)[0] if path.exists() else {}
                name = f".{Regeneration.name}"  # of the rest, a hundred thousand losses, nothing is shown
                self.kept[key] = {part: tensor for part, tensor in found.items() if part.endswith(name)}
            except (DamagedArtifact, InvalidInput) as error:
                self.kept[key] = {}
                self.notes.append(f"Pictures are missing: {error}")
        return self.kept[key].get(query.observed_as(Regeneration.name))


def _of_query(
    store: Store, query: Query, rows: pd.DataFrame, image: Tensor | None, seen: _Observations, order: Sequence[str]
) -> QueryGallery:
    nothing = rows[rows["method"] == NOTHING_REMOVED]["model_key"]
    untouched = seen.regeneration(str(nothing.iloc[0]), query) if len(nothing) else None
    paired = rows[(rows["design"] == "paired") & (rows["k"] > 0) & ~rows["method"].isin(NOT_RANKED)]
    shown = []
    first = paired.sort_values(["k", "seed"], kind="stable").drop_duplicates(["label", "k"])
    by_label = dict(iter(first.groupby("label", sort=False)))
    values = paired[paired["status"] == "done"].groupby(["label", "k", "metric"])["value"].mean().to_dict()
    measured: dict[str, dict[int, dict[str, float]]] = {}
    for (label, k, metric), value in values.items():
        measured.setdefault(label, {}).setdefault(int(k), {})[metric] = float(value)
    for label in order:
        own = by_label.get(label)
        if own is None:
            continue
        made = {
            int(line.k): found
            for line in own.itertuples()
            if (found := seen.regeneration(str(line.model_key), query)) is not None
        }
        top = _top(store, str(own["method"].iloc[0]), str(own["method_digest"].iloc[0]), query, seen.notes)
        shown.append(Shown(label, top, made, measured.get(label, {})))
    return QueryGallery(query.id, query.prompt, image, untouched, tuple(shown))


def _top(store: Store, method: str, digest: str, query: Query, notes: list[str]) -> tuple[str, ...]:
    """Ids of the most influential images, none where they were not kept."""
    try:
        path = store.path(*folder.selection(method, digest, query.digest))
        return tuple(str(image) for image in read_json(path)["ids"][:SHOWN_IMAGES])
    except (FileNotFoundError, InvalidInput):  # a row of somebody's may name a method that could not be registered
        return ()
    except (DamagedArtifact, KeyError, TypeError) as error:
        notes.append(f"Top images are missing: {error}")
        return ()


def _decoded(query: Query, study: Study, record: Mapping[str, Any]) -> Tensor | None:
    """The query's image from its latent, where this code has the same autoencoder."""
    try:
        decoder = autoencoder(study.model.autoencoder)
    except (OSError, KeyError, BenchError):
        return None
    same = decoder.digest == record["parts"].get("autoencoder")
    return decoder.decode(query.latent[None])[0] if same else None


def _training(
    study: Study, record: Mapping[str, Any], shown: Sequence[QueryGallery], notes: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The training images that appear, where this code has the same data set."""
    if study.dataset.digest != record["parts"].get("dataset"):
        notes.append("Training images are not shown: this installation has another version of the data set.")
        return {}, {}
    row_of = {image_id: row for row, image_id in enumerate(study.dataset.ids)}
    named = {image for query in shown for method in query.shown for image in method.top}
    known = sorted(named & row_of.keys())
    if not known:
        return {}, {}
    pixels: list[Tensor] = list(torch.unbind(study.dataset.pixels([row_of[image] for image in known])))
    captions = {image: study.dataset.captions[row_of[image]] for image in known}
    return dict(zip(known, pixels, strict=True)), captions
