"""Localized attribution and its test: the top K for a box on one part, and for a box on another.

Two boxes A and B of every query are attributed one at a time, beside the whole image and a random box as large as A.
Without retraining: how many of the top K carry what the query shows in A, and in B (such as the same hat), where
the study knows the parts of its images. With retraining: remove them, and measure in A and in B. The contrasts are
defined in ``bench.report.localized``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bench.contracts import FLOOR, Method
from bench.data.face_queries import asked_parts
from bench.diffusion.queries import Query, QuerySpec
from bench.diffusion.regions import Region
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput
from bench.experiments.design import Chosen, Controls, Design
from bench.experiments.evaluation import Comparison
from bench.experiments.experiment import Measured
from bench.experiments.leave_k_out import MethodRemovals, keep_manifest, manifest_of
from bench.experiments.left_out import LeftOut
from bench.experiments.scoring import check_regions
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.foundation.digests import digest_of
from bench.records import folder, tables
from bench.records.names import MethodName
from bench.records.rows import Row, labels
from bench.records.store import write_whole
from bench.registry import metrics as metric_registry
from bench.registry import named
from bench.report import figures
from bench.report.localized import CHANCE, COLUMNS, RANDOM_BOX, SHARE, WHOLE, LocalReport
from bench.studies import Study

USUAL_QUERIES = 16
SHOWN_QUERIES, SHOWN_IMAGES = 2, 8
"""In the picture of each method."""
METRICS = ("loss_change_inside", "regeneration_mse_inside")
Tops = Mapping[str, Mapping[tuple[str, int], tuple[int, ...]]]
"""The top K by what they were chosen for, then by (query id, K)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalComparison(Comparison):
    """A comparison in one box of images that were chosen for another, or for the same.

    Attributes:
        chosen_in: what the images were chosen for: the name of a box, WHOLE or RANDOM_BOX.
        chosen_box: its corners.
    """

    chosen_in: str
    chosen_box: str


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalChosen(Chosen):
    """The same, with the top K.

    Attributes:
        tops: of each method.
    """

    tops: Mapping[Method, Tops]


@dataclass(frozen=True, kw_only=True)
class Localized(MethodRemovals[LocalReport]):
    """Boxes on two parts of every query.

    Attributes:
        methods: to compare; those without regions are skipped.
        boxes: one or two texts (``Study.region``). To one part the study finds another (``partner``).
        retrain: whether images are removed; else carriers alone are counted.
        floors: names of floors that choose for the whole image; every floor by default. ``random`` always is one.
        metrics: that measure in a box; METRICS where none is named.
    """

    boxes: Sequence[str]
    retrain: bool = True

    def __post_init__(self) -> None:
        if not self.metrics:
            object.__setattr__(self, "metrics", [metric_registry.create(name) for name in METRICS])
        for metric in self.metrics:
            if not metric.honours_regions:
                raise InvalidInput(f"{metric.name} does not measure in a box; with --box use {', '.join(METRICS)}.")
        if not self.retrain and not self.parts_known:
            raise InvalidInput(
                f"--box {' and '.join(self.parts)} of '{self.study.name}': carriers are counted in parts that are "
                "known; use faces, or `bench run --box`, which retrains."
            )
        if not any(method.honours_regions for method in self.methods):
            raise InvalidInput(
                f"--box: {' and '.join(map(self.label, self.methods))} cannot attribute a box: no regions."
            )
        super().__post_init__()

    @cached_property
    def regions(self) -> tuple[Region, Region]:
        """A and B."""
        if not 1 <= len(self.boxes) <= 2:
            raise InvalidInput(f"--box was given {len(self.boxes)} times: one or two boxes are expected.")
        first, *more = map(self.study.region, self.boxes)
        second = more[0] if more else partner(self.study, first)
        if first.box == second.box:
            raise InvalidInput(f"--box: {first.label} and {second.label} are the same box, {first.corners}.")
        return first, second

    @property
    def parts(self) -> tuple[str, str]:
        """What A and B are called."""
        first, second = self.regions
        return first.label, second.label

    @property
    def parts_known(self) -> bool:
        """Whether it is known what each image shows in A and B: both are parts."""
        return all(part in self.study.dataset.parts for part in self.parts)

    @cached_property
    def _fitting(self) -> list[QuerySpec]:
        """The study's queries that ask for a value of both parts; all where these are not known."""
        every = self.study.queries(len(self.study.prompts))
        return [spec for spec in every if not self.parts_known or set(self.parts) <= asked_parts(spec.prompt).keys()]

    @property
    def query_count(self) -> int:
        """How many queries: USUAL_QUERIES by default, or as many as fit."""
        return min(USUAL_QUERIES, len(self._fitting)) if self.num_queries is None else self.num_queries

    @property
    def specs(self) -> list[QuerySpec]:
        """The first of the study's queries whose prompt asks for both parts."""
        if not 0 < self.query_count <= len(self._fitting):
            raise InvalidInput(
                f"--queries {self.query_count}: {len(self._fitting)} queries of study '{self.study.name}' ask for "
                f"{' and '.join(self.parts)}."
            )
        return self._fitting[: self.query_count]

    @property
    def facts(self) -> dict[str, Any]:
        """Those of every removal, and the boxes."""
        return super().facts | {"boxes": {region.label: region.corners for region in self.regions}}

    def originals(self) -> list[TrainingJob]:
        """Those that removals are compared with; none where nothing is removed."""
        return super().originals() if self.retrain else []

    def choices(self, method: Method, query: Query) -> dict[str, Query]:
        """What ``method`` is asked for, by name: ``query`` in each region; whole alone where it is a floor."""
        if method.role == FLOOR:
            return {WHOLE: query}
        regions = {region.label: region for region in self.regions}
        drawn = {RANDOM_BOX: random_box(self.regions[0], query, self.study.seed)}
        return {name: query.within(region) for name, region in (regions | drawn).items()} | {WHOLE: query}

    def comparisons(self, workspace: Workspace, queries: Sequence[Query], controls: Controls, *, ahead: bool) -> Chosen:
        """Every choice of every method, measured in A and in B."""
        tops: dict[Method, Tops] = {}
        unscored: dict[Method, list[Query]] = {}
        lost = LeftOut(workspace, ahead)
        for method in self.with_floors:
            with lost.alone(self.label(method), f"method-{method.name}"):
                if method.role != FLOOR:
                    check_regions(method)
                workspace.require(method, ahead=ahead)
                tops[method], unscored[method] = self._tops(workspace, method, queries, ahead=ahead)
        missing = sum(map(len, unscored.values())) * len(self.ks) * len(self.seed_pairs())
        return LocalChosen(
            comparisons=self._comparisons(workspace, queries, tops) if self.retrain else [],
            tops=tops,
            unscored=unscored,
            unknown=missing if self.retrain else 0,
            later=self.originals() if any(unscored.values()) else (),
            skipped=lost.skipped,
            failures=lost.failed,
        )

    def _tops(
        self, workspace: Workspace, method: Method, queries: Sequence[Query], *, ahead: bool
    ) -> tuple[Tops, list[Query]]:
        """The top K for every choice, and what is not scored yet where that is to be said ``ahead``."""
        asked: dict[str, list[Query]] = {}
        for query in queries:
            for name, one in self.choices(method, query).items():
                asked.setdefault(name, []).append(one)
        unscored: list[Query] = []
        tops = {}
        for name, some in asked.items():
            known = [one for one in some if not ahead or workspace.is_selected(method, one, max(self.ks))]
            unscored += [one for one in some if one not in known]
            tops[name] = workspace.selections(method, known, self.ks) if known else {}
        return tops, unscored

    def _comparisons(
        self, workspace: Workspace, queries: Sequence[Query], tops: Mapping[Method, Tops]
    ) -> list[LocalComparison]:
        names = {method: named(method, self.study.name) for method in tops}
        return [
            LocalComparison(
                named=names[method],
                method_digest=method.digest,
                query=query.within(region),
                k=k,
                retrained=TrainingJob(tuple(sorted(top)), retrained),
                original=TrainingJob((), original),
                score_seconds=workspace.score_seconds(method, asked[chosen]),
                chosen_in=chosen,
                chosen_box=corners(asked[chosen]),
            )
            for method, of_method in tops.items()
            for query in queries
            for asked in [self.choices(method, query)]
            for chosen, of_choice in of_method.items()
            for k in self.ks
            if (top := of_choice.get((query.id, k))) is not None
            for retrained, original in self.seed_pairs()
            for region in self.regions
        ]

    def report(self, workspace: Workspace, design: Design, measured: Measured) -> LocalReport:
        """Shares of carriers and measured values, merged into the folder's frame."""
        chosen = design.chosen
        assert isinstance(chosen, LocalChosen)
        rows = self._measured_rows(chosen, measured) + self._carrier_rows(design.queries, chosen.tops)
        with workspace.store.lock("results"):
            manifest = manifest_of(self, workspace, design, measured, self.with_floors)
            keep_manifest(workspace.store, folder.LOCALIZED_MANIFEST, manifest)
        merged = tables.LOCALIZED.merge(workspace.store, pd.DataFrame(rows, columns=list(COLUMNS)))
        own = merged[merged["measured_in"].isin(self.parts)]
        report = LocalReport(
            parts=self.parts,
            frame=own.assign(label=labels(own)),
            place=workspace.store.root,
            skipped={**chosen.skipped, **measured.skipped_metrics},
            failures={**chosen.failures, **measured.failed_metrics},
            failed_trainings=sorted(set(measured.failed.values())),
            figures=self._draw(workspace, design.queries, chosen.tops),
        )
        table = workspace.store.path(folder.LOCALIZED_TABLE)
        write_whole(table, report.markdown().encode())
        workspace.store.list_digests([table, *report.figures])
        return report

    def _draw(self, workspace: Workspace, queries: Sequence[Query], tops: Mapping[Method, Tops]) -> list[Path]:
        """For each method with regions, the first images that it names for A and for B of the first queries."""
        paths = []
        for method, of_method in tops.items():
            if method.role == FLOOR:
                continue
            rows = []
            for query in queries[:SHOWN_QUERIES]:
                [image] = workspace.images([query])
                for region in self.regions:
                    top = of_method[region.label][query.id, max(self.ks)][:SHOWN_IMAGES]
                    rows.append((query.prompt, image, region, list(self.study.dataset.pixels(top))))
            stem = f"localized-{method.name}-{digest_of([method.digest, [region.box for region in self.regions]], 8)}"
            path = workspace.store.path(*folder.picture(stem))
            write_whole(path, figures.png(figures.local_images(rows, self.label(method))))
            paths.append(path)
        return paths

    def _measured_rows(self, chosen: LocalChosen, measured: Measured) -> list[dict[str, Any]]:
        """One for each comparison and metric, in the order of ``evaluate``."""
        compared = [one for one in chosen.comparisons for _ in measured.metrics]
        lines = []
        for row, one in zip(measured.rows, compared, strict=True):
            assert isinstance(one, LocalComparison)
            assert one.query.region is not None
            where = (one.chosen_in, one.chosen_box, one.query.region.label, one.query.region.corners)
            lines.append(_line(row, one.query, where))
        return lines

    def _carrier_rows(self, queries: Sequence[Query], tops: Mapping[Method, Tops]) -> list[dict[str, Any]]:
        """The share of carriers of the query's own value in A, and in B, among each top K; none without known parts."""
        if not self.parts_known:
            return []
        return [
            {
                "study": self.study.name, "study_digest": self.study.digest, **facts, "query": query.id,
                "query_digest": query.image_digest, "prompt": query.prompt, "k": k, "metric": SHARE,
                "measured_in": region.label, "measured_box": region.corners, "design": "not retrained",
                "seed": self.study.seed, "value": len(carriers.intersection(images)) / len(images), "status": "done",
                **dict.fromkeys(("evaluator", "reason", "model_key"), ""),
            }
            for query in queries
            for region in self.regions
            for carriers in [set(self._carriers(query, region.label))]
            for k in self.ks
            for facts, images in self._images(query, k, tops)
        ]  # fmt: skip

    def _images(
        self, query: Query, k: int, tops: Mapping[Method, Tops]
    ) -> Iterator[tuple[dict[str, str], Sequence[int]]]:
        """Who names which ``k`` images for ``query``, and for what; chance names all."""
        for method, of_method in tops.items():
            own = {**asdict(named(method, self.study.name)), "method_digest": method.digest}
            asked = self.choices(method, query)
            for chosen, of_choice in of_method.items():
                where = {"chosen_in": chosen, "chosen_box": corners(asked[chosen])}
                yield own | where, of_choice[query.id, k]
        chance = {**asdict(MethodName(CHANCE)), "method_digest": "", "chosen_in": WHOLE, "chosen_box": ""}
        yield chance, range(len(self.study.dataset))

    def _carriers(self, query: Query, part: str) -> list[int]:
        """The training images whose ``part`` has the value that the query's prompt asks for."""
        return self.study.dataset.carriers(part, asked_parts(query.prompt)[part])


def _line(row: Row, query: Query, where: tuple[str, ...]) -> dict[str, Any]:
    """A row of ``evaluate`` with where images were chosen, and where it was measured."""
    chosen: dict[str, Any] = dict(zip(tables.CHOICE, where, strict=True))
    found = asdict(row) | {"query_digest": query.image_digest} | chosen
    return {name: found[name] for name in COLUMNS}


def corners(query: Query) -> str:
    """Of the query's box; "" for the whole image."""
    return query.region.corners if query.region else ""


def partner(study: Study, region: Region) -> Region:
    """The named part of the images that lies elsewhere than ``region`` and is most nearly as large."""
    others = [study.region(part) for part in study.dataset.named_parts]
    apart = [other for other in others if not bool((other.mask & region.mask).any())]
    if not apart:
        raise InvalidInput(f"--box {region.label}: no other part is known to lie elsewhere; give a second --box.")
    size = int(region.mask.sum())
    return min(apart, key=lambda other: (abs(int(other.mask.sum()) - size), other.label))


def random_box(region: Region, query: Query, seed: int) -> Region:
    """A box as large as ``region`` anywhere in the picture, keyed by the study's seed and the query."""
    (x0, y0, x1, y1), (width, height) = region.box, region.picture
    stream = seeds.generator("random-box", seed, query.noise_key, x1 - x0, y1 - y0)
    left, top = (int(stream.integers(room + 1)) for room in (width - (x1 - x0), height - (y1 - y0)))
    box = (left, top, left + x1 - x0, top + y1 - y0)
    return Region(box, region.picture, region.latent, name=RANDOM_BOX)
