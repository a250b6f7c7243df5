"""Customized models: a method is to name the exemplars that a model was customized on, among many other images.

The truth is known by construction, and nothing is retrained (arXiv 2406.09408, section 5.2; arXiv 2306.09345). The
base is the original model of ``faces``; each customized model is a study of its own, fine-tuned from the base on its
exemplars and on *distractors*, images of the base's training data; so it is kept, resumed and left out of like any
other. A method scores both for each query. Exemplars of other models are not in the pool, as in AbC.

A smaller *pool* has all exemplars and a draw of the distractors; the models are the same. A method that is run in it
sees its images alone, and what it takes of the data, such as a kernel matrix, it takes of these.

How strongly models are fine-tuned was chosen on held-out models: docs/log/2026-11-27-customized.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.attribution.dimensions import Choice
from bench.contracts import AttributionContext, Build, Method
from bench.data.customizations import HELD_OUT, NEW_WORD, NOISES, OBJECT, REPORTED, Customization, customizations
from bench.data.dataset import Dataset, load_embedded
from bench.diffusion.fine_tuning import FineTuning
from bench.diffusion.queries import Query, QuerySpec
from bench.errors import InvalidInput
from bench.experiments.known_exemplars import CustomizedOne
from bench.experiments.leave_k_out import keep_manifest
from bench.experiments.left_out import LeftOut
from bench.experiments.projecting import kept_choice
from bench.experiments.scoring import Scores, score
from bench.experiments.selection import drawn
from bench.experiments.workspace import Workspace
from bench.foundation.machine import available_threads, command_line, compute_threads, describe
from bench.foundation.progress import Progress
from bench.records import folder
from bench.records.store import Artifacts, Store
from bench.registry import named, tuned_on
from bench.report.customized import CustomizedReport, RetrievalRow, frame_of, merge
from bench.studies import Study

DISTRACTORS = 1000
QUERIES = 5
NOISE_SEED = 7000
STEPS, BATCH, RATE, WORD_RATE = 200, 16, 4e-3, 5.0
"""Of a fine-tuning, in which all weights move: keys and values of so small a network cannot draw what is new to it."""


@dataclass(frozen=True, kw_only=True)
class CustomizedModel(Study):
    """A model customized on known exemplars.

    Attributes:
        customization: its name.
        distractors: ids of the images that it sees beside its exemplars, and that these are to be told from.
    """

    customization: str
    distractors: tuple[str, ...]

    @cached_property
    def dataset(self) -> Dataset:
        """The distractors, then the exemplars."""
        exemplars = found(self.customization).exemplars
        return _distractors(self.dataset_name, self.distractors).and_then(exemplars)


def _distractors(name: str, ids: tuple[str, ...]) -> Dataset:
    faces = load_embedded(name)
    row = {image: index for index, image in enumerate(faces.ids)}
    return faces.only([row[image] for image in ids])


def found(name: str) -> Customization:
    """The customization called ``name``."""
    every = {each.name: each for split in (REPORTED, HELD_OUT) for each in customizations(split)}
    return every[name]


class CustomizedWorkspace(Workspace):
    """The results folder of a customized model, beside that of its base, with which it shares what it can.

    Args:
        base: the base model's folder.
        customization: of the model.
        distractors: how many.
        pool: among how many of these the exemplars are ranked; None for all.
        device, progress: as for a workspace.

    Attributes:
        pool: the images that are ranked, the exemplars last.
    """

    def __init__(
        self,
        base: Workspace,
        customization: Customization,
        distractors: int,
        *,
        pool: int | None = None,
        device: str,
        progress: Progress,
    ) -> None:
        self.base, self.customization = base, customization
        whole = base.study
        ids = tuple(whole.dataset.ids[index] for index in drawn(whole.dataset, distractors, "distractors"))
        start = base.ledger.start(base.original_job(), partial(_advance, progress, "train the base", whole))
        tuning = FineTuning(
            start=start,
            weights="all",
            word=NEW_WORD,
            word_rate=WORD_RATE,
            exemplars=customization.exemplars.ids,
        )
        study = CustomizedModel(
            name=whole.name,
            dataset_name=whole.dataset_name,
            model=whole.model,
            recipe=replace(whole.recipe, num_steps=STEPS, batch_size=BATCH, learning_rate=RATE),
            sampler=whole.sampler,
            prompts=customization.prompts,
            held_out_prompts=(),
            budgets=(len(customization.exemplars),),
            seed=whole.seed,
            fine_tuning=tuning,
            customization=customization.name,
            distractors=ids,
        )
        root = folder.customized(base.store.root, customization.name)
        super().__init__(study, root, metrics=(), device=device, progress=progress)
        self.pool, self.scored, self._ranked = study.dataset, self.store, None
        if pool is not None and pool < distractors:
            among = _distractors(whole.dataset_name, ids)
            chosen = drawn(among, pool, "pool", customization.name)
            self.pool = among.only(chosen).and_then(customization.exemplars)
            self._ranked = torch.tensor([*chosen, *range(distractors, len(study.dataset))])
            self.scored = Store(folder.pool(root, pool), note=progress.say, study=study.digest)
            self.scored.clean()

    def asked(self, count: int) -> list[Query]:
        """The first ``count`` queries: every prompt with one noise, then with the next."""
        prompts = self.customization.prompts
        specs = [
            QuerySpec(f"q{number:02d}", prompts[number % len(prompts)], NOISE_SEED + number) for number in range(count)
        ]
        return self.queries(specs)

    def context(
        self, progress: Callable[[int, int], None] = lambda done, total: None, artifacts: Artifacts | None = None
    ) -> AttributionContext:
        """What a method may see: the customized model and the pool, with the base behind it."""
        own, shared = artifacts or Artifacts(self.scored), Artifacts(self.base.store)

        def cached(key: str, build: Build) -> dict[str, Tensor]:
            of_images_alone = key.startswith(("features-", "text-features-"))  # named by a digest of their images
            return shared(key, build) if of_images_alone else own(key, build)

        whole = super().context(progress, own)
        data = whole.data if self._ranked is None else whole.data.only(self._ranked)
        return replace(whole, dataset=self.pool, data=data, cached=cached, base=self.base.context(progress, shared))

    def scores(self, method: Method, queries: Sequence[Query]) -> Scores:
        """The scores of the pool's images, computed for the queries that were not scored in this pool yet."""
        advance = partial(self.progress.advance, f"score with {method.name}")
        artifacts = Artifacts(self.scored)
        return score(method, queries, self.scored, artifacts, lambda: self.context(advance, artifacts))


def _advance(progress: Progress, task: str, study: Study, step: int) -> None:
    progress.advance(task, step, study.recipe.num_steps)


@dataclass(frozen=True, kw_only=True)
class CustomizedRun:
    """Score the queries of customized models, and see how high their exemplars stand.

    Attributes:
        study: the base.
        methods: to compare.
        results: folder; ``results/runs/customized`` by default.
        models: the first so many, object- and style-centric in turn; all by default.
        queries: of each model.
        distractors: images beside the exemplars.
        pool: among how many of these the exemplars are ranked; None for all. The models are the same.
        held_out: whether to run the held-out models, on which settings are tuned.
        without_word: whether V* is left out of the prompt that a method sees (the paper's ablation).
        device, threads: where and how to compute.
    """

    study: Study
    methods: Sequence[Method]
    results: Path | None = None
    models: int | None = None
    queries: int = QUERIES
    distractors: int = DISTRACTORS
    pool: int | None = None
    held_out: bool = False
    without_word: bool = False
    device: str = "cpu"
    threads: int = field(default_factory=available_threads)

    def __post_init__(self) -> None:
        limits = {
            "--models": (len(self.customizations), len(self.customizations) if self.models is None else self.models),
            "--queries": (NOISES * min(len(each.prompts) for each in self.customizations), self.queries),
            "--distractors": (len(self.study.dataset), self.distractors),
            "--pool": (self.distractors, self.distractors if self.pool is None else self.pool),
        }
        for option, (most, value) in limits.items():
            if not 0 < value <= most:
                raise InvalidInput(f"{option} {value}: study '{self.study.name}' has {most}; give 1 to {most}.")

    @cached_property
    def customizations(self) -> list[Customization]:
        """Of all models, object- and style-centric in turn."""
        every = customizations(HELD_OUT if self.held_out else REPORTED)
        objects, styles = ([each for each in every if (each.kind == OBJECT) == wanted] for wanted in (True, False))
        return list(chain.from_iterable(zip(objects, styles, strict=True)))

    @property
    def folder(self) -> Path:
        """The results folder."""
        return Path(self.results) if self.results else Path("results/runs") / self.study.name

    def execute(self, progress: Progress | None = None) -> CustomizedReport:
        """Do what is not done yet, model by model, then report. May be interrupted and called again at any time."""
        progress, started = progress or Progress(), time.perf_counter()
        with compute_threads(self.threads):
            base = Workspace(self.study, self.folder, metrics=(), device=self.device, progress=progress)
            left_out = LeftOut(base)
            usable: list[Method] = []
            base.vet(self.methods)
            for method in self.methods:
                with left_out.alone(named(method, self.study.name).label, f"method-{method.name}"):
                    base.require(method)
                    usable.append(method)
            rows: list[RetrievalRow] = []
            projected: dict[str, dict[str, Choice]] = {}
            for number, customization in enumerate(self.customizations[: self.models], 1):
                progress.say(f"model {number}: {customization.name} ({customization.kind})")
                home = CustomizedWorkspace(
                    base, customization, self.distractors, pool=self.pool, device=self.device, progress=progress
                )
                rows += self._rows(home, usable, left_out)
                merge(base.store, rows)
                for method in usable:
                    if (found := kept_choice(home.scored, method)) is not None:
                        projected.setdefault(named(method, self.study.name).label, {})[customization.name] = found
            with base.store.lock("results"):
                keep_manifest(base.store, folder.MANIFEST, self._manifest(base, usable, time.perf_counter() - started))
        return CustomizedReport(
            frame=frame_of(rows), root=base.store.root,
            skipped=left_out.skipped, failures=left_out.failed, projected=projected,
        )  # fmt: skip

    def _manifest(self, base: Workspace, methods: Sequence[Method], seconds: float) -> dict[str, Any]:
        """What produced the rows (law 6)."""
        names = {method: named(method, self.study.name) for method in methods}
        return {
            "study": self.study.name,
            "study_digest": self.study.digest,
            "parts": self.study.parts,
            "version": version("attribution-bench"),
            "fine_tuning": {"steps": STEPS, "batch": BATCH, "learning_rate": RATE, "word_rate": WORD_RATE},
            "metrics": {},
            "methods": {
                name.label: {
                    "settings": method.settings(),
                    "sources": method.sources(),
                    "digest": method.digest,
                    "tuned_on": tuned_on(type(method), self.study.name, name),
                }
                for method, name in names.items()
            },
            "run": {
                "command": command_line(),
                "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                "machine": describe(base.device),
                "threads": self.threads,
                "models": [each.name for each in self.customizations[: self.models]],
                "queries": self.queries,
                "distractors": self.distractors,
                "pool": self.distractors if self.pool is None else self.pool,
                "without_word": self.without_word,
                "wall_seconds": round(seconds, 2),
            },
        }

    def _rows(self, home: CustomizedWorkspace, methods: Sequence[Method], left_out: LeftOut) -> list[RetrievalRow]:
        """One for each query and method."""
        customization, queries = home.customization, home.asked(self.queries)
        rows: list[RetrievalRow] = []
        asked = queries
        if self.without_word:
            asked = [replace(query, prompt=customization.without_word(query.prompt)) for query in queries]
        about = CustomizedOne(
            study=self.study.name, study_digest=self.study.digest, name=customization.name, digest=home.study.digest,
            kind=customization.kind, split=customization.split, exemplars=customization.exemplars.ids,
            dataset=home.pool, with_word=not self.without_word,
        )  # fmt: skip
        for method in methods:
            with left_out.alone(named(method, self.study.name).label, f"method-{method.name}"):
                rows += about.rows(method, asked, home.scores(method, asked))
        return rows
