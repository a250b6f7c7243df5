"""The AbC benchmark on its released data (``bench.data.abc``), for whoever has them: Recall@10 of known exemplars.

As in the study ``customized``, a method scores the exemplars of a customized model and distractors for each query, by
the customized weights; what is known before the customization, such as the Fisher information, is the base model's
(arXiv 2406.09408, section 5.2 and C.2). Query images are encoded to the posterior's mean times the scaling factor, as
exemplars are; in the released code they are not scaled. Which noise a query came from is not published: it is NaN here,
and a method that looks at it fails.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.attribution.fisher import fisher_key
from bench.attribution.influence import InfluenceMethod
from bench.attribution.unlearning import Unlearning
from bench.contracts import AttributionContext, Method
from bench.data.abc import FISHER, LATENTS, STATES, AbcFolder, AbcModel, images_of
from bench.data.customizations import OBJECT, REPORTED, STYLE
from bench.data.dataset import Dataset
from bench.diffusion.customized_weights import changed_weights, new_words, weights_file
from bench.diffusion.losses import strided_timesteps
from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.diffusion.pipelines import ClipEncoder, pipeline_settings, unet_state
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.diffusion.training import TrainingData
from bench.errors import InvalidInput, Unavailable
from bench.experiments.known_exemplars import CustomizedOne
from bench.experiments.left_out import LeftOut
from bench.experiments.scoring import score
from bench.experiments.workspace import keep_failure
from bench.foundation import seeds
from bench.foundation.digests import digest_of, tensors_digest
from bench.foundation.machine import available_threads, compute_threads, device_of
from bench.foundation.progress import Progress
from bench.records import folder
from bench.records.store import Artifacts, Store
from bench.registry import named
from bench.report.customized import CustomizedReport, RetrievalRow, frame_of, merge
from bench.report.shown import ReportOnMethods, Table

NAME = "abc"
BASE = "stable-diffusion-v1-4"
DISTRACTORS, QUERIES = 1000, 20
SAMPLER = Sampler(num_steps=50, guidance=6.0)
"""Stands in queries for the authors' sampler, with which nothing is sampled again."""
BACKWARD = 3
"""A gradient costs as much as so many evaluations."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class AbcRun:
    """Score the queries of AbC's customized models, and see how high their exemplars stand.

    Attributes:
        data: the folder of the released data.
        methods: to compare.
        base: the folder of the pipeline that was customized; ``BASE`` in ``data`` by default.
        results: folder; ``results/runs/abc`` by default.
        models: the first so many; all by default.
        queries: of each model, at most.
        distractors: images of the pool, drawn by key.
        without_word: whether the new word is left out of the prompt that a method sees.
        device, threads: where and how to compute.
    """

    data: Path
    methods: Sequence[Method] = ()
    base: Path | None = None
    results: Path | None = None
    models: int | None = None
    queries: int = QUERIES
    distractors: int = DISTRACTORS
    without_word: bool = False
    device: str = "cpu"
    threads: int = field(default_factory=available_threads)

    def __post_init__(self) -> None:
        limits = {
            "--models": (len(self.source.models), len(self.source.models) if self.models is None else self.models),
            "--queries": (max(len(model.queries) for model in self.source.models), self.queries),
            "--distractors": (len(self.source.laion), self.distractors),
        }
        for option, (most, value) in limits.items():
            if value < 1 or (value > most and option == "--models"):
                raise InvalidInput(f"{option} {value}: the data of {self.data} have {most}; give 1 to {most}.")

    @cached_property
    def source(self) -> AbcFolder:
        """The released data."""
        return AbcFolder(self.data)

    @property
    def pipeline(self) -> Path:
        """The folder of the pipeline that was customized; raises InvalidInput where there is none."""
        place = (self.base or self.data / BASE).resolve()
        if not place.is_dir():
            raise InvalidInput(
                f"There is no pipeline in {place}: give --base FOLDER, Stable Diffusion 1.4 as diffusers saves it "
                "(`save_pretrained`)."
            )
        return place

    @property
    def root(self) -> Path:
        """The results folder."""
        return Path(self.results) if self.results else Path("results/runs") / NAME

    @cached_property
    def chosen(self) -> tuple[AbcModel, ...]:
        """The models to run."""
        return self.source.models[: self.models]

    @cached_property
    def rows(self) -> list[int]:
        """Places of the distractors in the pool: a draw keyed by nothing but the pool's size."""
        count = len(self.source.laion)
        drawn = seeds.generator("abc-distractors", count).permutation(count)[: self.distractors]
        return sorted(int(row) for row in drawn)

    @cached_property
    def config(self) -> ModelConfig:
        """Of the model."""
        return ModelConfig(**pipeline_settings(self.pipeline))

    def model(self, one: AbcModel | None = None) -> DiffusionModel:
        """The base model, or ``one`` customized from it; raises InvalidInput where its weights do not fit."""
        made = DiffusionModel(self.config, device=device_of(self.device))
        state = unet_state(str(self.pipeline))
        if one is None:
            return made.load(state)
        made.load({**state, **changed_weights(weights_file(one.weights), state)})
        words = new_words(one.weights)
        asked = [one.caption, *(query.prompt for query in one.queries)]
        if words and isinstance(made.text_encoder, ClipEncoder):
            made.text_encoder = made.text_encoder.knowing(words)
        elif any("<new" in text for text in asked):
            raise InvalidInput(f"{one.weights} has no vector of the new word that its prompts hold: '<new1>.bin'.")
        return made

    @property
    def size(self) -> int:
        """Pixels of an image's side."""
        return self.config.sample_size * self.model_factor

    @cached_property
    def model_factor(self) -> int:
        """Pixels of a latent cell's side."""
        coder: Any = self.plain.autoencoder
        return int(coder.factor)

    @cached_property
    def plain(self) -> DiffusionModel:
        """The base model."""
        return self.model()

    @cached_property
    def pool(self) -> tuple[Dataset, TrainingData]:
        """The distractors, as images and as the base model sees them."""
        ids = [f"laion-{row:07d}" for row in self.rows]
        texts = [self.source.captions[row] for row in self.rows]
        files = [self.source.laion[row] for row in self.rows]
        dataset = images_of(NAME, files, ids, texts, self.size)
        count, encoder, shape = len(self.source.laion), self.plain.text_encoder, self.plain.latent_shape
        latents = self.source.array(LATENTS, (2 * count, *shape))
        states = self.source.array(STATES, (count, encoder.num_tokens, encoder.dim))
        if latents is None:
            both = self._encoded(dataset)
        else:
            sides = [torch.from_numpy(latents[[row + side * count for row in self.rows]]) for side in (0, 1)]
            both = torch.stack(sides, 1).float()
        told = encoder.encode(texts) if states is None else torch.from_numpy(states[self.rows]).float()
        return dataset, TrainingData(both, torch.cat([told, encoder.encode([""])]), torch.arange(len(texts)))

    def _encoded(self, dataset: Dataset) -> Tensor:
        encode = self.plain.autoencoder.encode
        return torch.stack([encode(dataset.pixels(flipped=flipped)) for flipped in (False, True)], 1)

    def execute(self, progress: Progress | None = None) -> CustomizedReport:
        """Do what is not done yet, model by model, then report. May be interrupted and called again at any time."""
        shown = progress or Progress()
        with compute_threads(self.threads):
            digest = digest_of(
                [NAME, tensors_digest(unet_state(str(self.pipeline)), {}), self.plain.text_encoder.digest,
                 self.pool[0].digest]
            )  # fmt: skip
            home = AbcHome(Store(self.root, note=shown.say, study=digest), shown)
            left_out = LeftOut(home)
            usable: list[Method] = []
            for method in self.methods:
                with left_out.alone(named(method, NAME).label, f"method-{method.name}"):
                    method.prepare()
                    usable.append(method)
            base = self._context(self.plain, *self.pool, Artifacts(home.store))
            self._take_fisher(usable, base)
            found: list[RetrievalRow] = []
            for number, one in enumerate(self.chosen, 1):
                shown.say(f"model {number} of {len(self.chosen)}: {one.name}")
                found += self._rows(one, base, digest, usable, home, left_out)
                merge(home.store, found)
        return CustomizedReport(
            frame=frame_of(found), root=self.root,
            skipped=left_out.skipped, failures=left_out.failed,
        )  # fmt: skip

    def _take_fisher(self, methods: Sequence[Method], base: AttributionContext) -> None:
        """Let methods find the released Fisher information where they would keep their own."""
        if not (self.data / FISHER).exists():
            return
        for method in methods:
            settings = method.settings()
            if settings.get("fisher") == "diagonal" and settings.get("weights") == "cross-attn-kv":
                key = fisher_key(settings["weights"], settings["num_fisher_draws"])
                base.cached(key, lambda: changed_weights(self.data / FISHER, unet_state(str(self.pipeline))))

    def _context(
        self, model: DiffusionModel, dataset: Dataset, data: TrainingData, cached: Any, base: Any = None
    ) -> AttributionContext:
        def ensemble(count: int) -> list[DiffusionModel]:
            if count > 1:
                raise Unavailable(f"{count} models: of each of AbC's models there is one")
            return [model]

        return AttributionContext(
            dataset=dataset, data=data, model=model, seed=0, cached=cached, ensemble=ensemble,
            progress=lambda done, total: None, base=base,
        )  # fmt: skip

    def _rows(
        self,
        one: AbcModel,
        base: AttributionContext,
        digest: str,
        methods: Sequence[Method],
        home: AbcHome,
        left_out: LeftOut,
    ) -> list[RetrievalRow]:
        model = self.model(one)
        ids = [f"{one.name}-{number:02d}" for number in range(len(one.exemplars))]
        exemplars = images_of(one.name, one.exemplars, ids, [one.caption] * len(ids), self.size)
        pool, data = self.pool
        count = len(data)
        joined = TrainingData(
            torch.cat([data.latents, self._encoded(exemplars)]),
            torch.cat([data.states[:count], model.text_encoder.encode([one.caption]), data.states[count:]]),
            torch.cat([data.caption_of, torch.full((len(ids),), count)]),
        )
        own = digest_of([digest, tensors_digest(model.state(), {}), exemplars.digest, one.caption])
        store = Store(folder.customized(self.root, one.name), note=home.progress.say, study=own)
        artifacts = Artifacts(store)
        context = self._context(model, pool.and_then(exemplars), joined, artifacts, base)
        queries, found = self._queries(one, model), []
        about = CustomizedOne(
            study=NAME, study_digest=digest, name=one.name, digest=own, kind=STYLE if one.is_style else OBJECT,
            split=REPORTED, exemplars=exemplars.ids, dataset=context.dataset, with_word=not self.without_word,
        )  # fmt: skip
        for method in methods:
            with left_out.alone(named(method, NAME).label, f"method-{method.name}"):
                progress = partial(home.progress.advance, f"score with {method.name}")
                made = replace(context, progress=progress)
                scores = score(method, queries, store, artifacts, lambda made=made: made)  # type: ignore[misc]
                found += about.rows(method, queries, scores)
        return found

    def _queries(self, one: AbcModel, model: DiffusionModel) -> list[Query]:
        asked = one.queries[: self.queries]
        texts = [self._text(query.prompt) for query in asked]
        files = [query.image for query in asked]
        pictures = images_of(one.name, files, [f"q{number:02d}" for number in range(len(files))], texts, self.size)
        latents = model.autoencoder.encode(pictures.pixels())
        unknown = torch.full(model.latent_shape, torch.nan)
        return [
            Query(name, prompt, number, unknown, latent, SAMPLER)
            for number, (name, prompt, latent) in enumerate(zip(pictures.ids, texts, latents, strict=True))
        ]

    def _text(self, prompt: str) -> str:
        """``prompt``, without the new word where that is asked for."""
        return " ".join(prompt.replace("<new1>", " ").split()) if self.without_word else prompt

    def plan(self) -> AbcPlan:
        """What the run would take: nothing is scored; one evaluation of the U-Net is timed."""
        state = unet_state(str(self.pipeline))
        for one in self.chosen:
            changed_weights(weights_file(one.weights), state)
        model, images = self.plain, len(self.rows) + max(len(one.exemplars) for one in self.chosen)
        text = model.text_encoder
        latent_bytes = 8 * torch.Size(model.latent_shape).numel()  # two sides
        parts = {
            "weights": 3 * 4 * sum(weight.numel() for weight in state.values()),
            "text states": 2 * 4 * images * text.num_tokens * text.dim,
            "latents": 2 * images * latent_bytes,
            "images": 2 * images * 3 * self.size**2,
        }
        with compute_threads(self.threads):
            seconds = _seconds_of_an_evaluation(model)
        released = (self.data / FISHER).exists()
        count = sum(len(one.queries[: self.queries]) for one in self.chosen)
        work: dict[str, float | None] = {}
        for method in self.methods:
            per = _evaluations(method, model, images, released)
            total = per and per[0] + len(self.chosen) * per[1] + count * per[2]
            work[named(method, NAME).label] = total and total * seconds / max(1, self.threads)
        kinds = [one.is_style for one in self.chosen]
        return AbcPlan(
            found=f"{len(kinds)} models ({kinds.count(False)} {OBJECT}, {kinds.count(True)} {STYLE}) with {count} "
            f"queries; {len(self.rows)} of {len(self.source.laion)} images as distractors; {self.size} pixels",
            released=[name for name in (LATENTS, STATES, FISHER) if (self.data / name).exists()],
            memory=parts,
            evaluation=seconds,
            work=work,
            skipped={named(m, NAME).label: why for m in self.methods if (why := m.unavailable())},
        )


def _seconds_of_an_evaluation(model: DiffusionModel) -> float:
    """Of the U-Net on one latent with its prompt; the second of two."""
    noisy, states = torch.zeros(1, *model.latent_shape), model.text_encoder.encode([""])
    inputs = noisy.to(model.device), torch.tensor([0], device=model.device), states.to(model.device)
    took = 0.0
    for _ in range(2):
        started = time.perf_counter()
        with torch.no_grad():
            float(model.predict_noise(*inputs).sum())  # waits for a GPU
        took = time.perf_counter() - started
    return took


def _evaluations(method: Method, model: DiffusionModel, images: int, released: bool) -> tuple[int, int, int] | None:
    """Evaluations of the U-Net: once, for each model, for each query; None where the method is not counted so."""
    settings: Mapping[str, Any] = method.settings()
    if isinstance(method, Unlearning):
        steps = [t for t in strided_timesteps(model, method.timestep_stride) if t < method.timestep_limit]
        losses = 2 * images * len(steps)
        known = released and settings.get("fisher") == "diagonal" and method.weights == "cross-attn-kv"
        once = 0 if known else BACKWARD * method.num_fisher_draws
        return once, losses, losses + BACKWARD * method.num_steps * method.num_gradient_draws
    if isinstance(method, InfluenceMethod):
        return 0, BACKWARD * 2 * images * method.num_timesteps, BACKWARD * method.num_query_draws
    return None


@dataclass(frozen=True)
class AbcHome:
    """The results folder, and who is told.

    Attributes:
        store: of the folder.
        progress: told what happens.
    """

    store: Store
    progress: Progress

    def keep_failure(self, name: str, error: BaseException) -> str:
        """Keep why ``name`` failed; returns where."""
        return keep_failure(self.store, name, error)


@dataclass(frozen=True, eq=False, kw_only=True)
class AbcPlan(ReportOnMethods):
    """What a run on AbC's data would take.

    Attributes:
        found: what the folder holds, in words.
        released: the files that need not be computed again.
        memory: bytes by what they are for.
        evaluation: seconds of one evaluation of the U-Net.
        work: seconds by method; None where they cannot be told.
    """

    found: str
    released: Sequence[str]
    memory: Mapping[str, int]
    evaluation: float
    work: Mapping[str, float | None]

    def tables(self) -> list[Table]:
        """Hours by method."""
        lines = [[name, "–" if took is None else f"{took / 3600:.3g}"] for name, took in self.work.items()]
        return [(["method", "hours"], lines)] if lines else []

    def notes(self) -> list[str]:
        """What is there, memory and time."""
        parts = ", ".join(f"{name} {size / GIB:.3g}" for name, size in self.memory.items())
        return [
            self.found,
            f"released files that are there: {', '.join(self.released) or 'none, they are computed'}",
            f"memory: about {sum(self.memory.values()) / GIB:.3g} GiB ({parts})",
            f"an evaluation of the U-Net takes {self.evaluation:.3g} s here",
            *super().notes(),
        ]
