"""Training heads (``bench.attribution.heads``) on what no board reports, and what they gain there.

Mappers are trained on the held-out models of ``customized``; temperature and regularisation are chosen by
cross-validation over models. A ranker is trained on queries whose prompts are captions drawn from the training set,
with noises of their own, as the teacher ranks the training images for them; how many of the first count is chosen on a
part of these queries. Both are then trained on all, and written in half precision.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from bench.attribution.features import (
    PIXEL,
    backbone_of_images,
    backbone_of_queries,
    backbone_weights,
    cosines,
)
from bench.attribution.heads import (
    RANKING_STEPS,
    CustomizedFeatures,
    Mappers,
    Ranker,
    components,
    principal,
    train_mappers,
    train_ranker,
)
from bench.contracts import AttributionContext, Method
from bench.data.customizations import HELD_OUT
from bench.diffusion.queries import QuerySpec
from bench.errors import InvalidInput
from bench.experiments.customized import DISTRACTORS, CustomizedRun, CustomizedWorkspace
from bench.experiments.retrieval import average_precision, recall_at_k
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.foundation.machine import available_threads, compute_threads
from bench.foundation.progress import Progress
from bench.pretrained.encoders import REDUCED
from bench.pretrained.weights import file_sha256
from bench.records.store import write_whole
from bench.registry import named
from bench.report.shown import Report, Table
from bench.report.statistics import interval, mean_and_error
from bench.studies import Study

Feature = Callable[[Tensor], Tensor]
FOLDS = 4
TEMPERATURES, REGULARIZATIONS = (0.05, 0.1, 0.2), (0.01, 0.1, 1.0)
CUTOFF_SHARES = (0.05, 0.1, 0.2)
"""Of the training images: how many of the teacher's first count."""
VALIDATION = 6
"""One in so many queries is not trained on while the cutoff is chosen."""
QUERY_SEED = 50_000
"""Of the noises of a ranker's queries: no other query has these."""
MODEL_QUERIES, QUERIES = 20, 240
"""Of each customized model; of a teacher."""


@dataclass(frozen=True, kw_only=True)
class HeadsFound(Report):
    """What was trained.

    Attributes:
        head, lines: the table of what the heads gain.
        about: what the numbers are of, and what was chosen.
        out: the file.
        name: how ``--weights`` calls it.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    about: Sequence[str]
    out: Path
    name: str

    def tables(self) -> list[Table]:
        """What the heads gain on what they were not trained on."""
        return [(self.head, self.lines)]

    def notes(self) -> list[str]:
        """What was chosen, and how to use the file."""
        return [
            *self.about,
            f"wrote {self.out} ({self.out.stat().st_size / 1024:.0f} KiB, sha256 {file_sha256(self.out)})",
            f"use it: bench run --method {self.name} --weights {self.name}={self.out}",
        ]


def check_out(out: Path) -> None:
    """Raise InvalidInput where no heads can be written to ``out``."""
    if out.suffix != ".safetensors":
        raise InvalidInput(f"--out {out}: heads are safetensors; give a name that ends in .safetensors.")


def write_heads(head: nn.Module, out: Path, **facts: object) -> None:
    """Write ``head`` in half precision, with ``facts`` on how it came about."""
    tensors = {name: weight.detach().half().contiguous() for name, weight in head.state_dict().items()}
    write_whole(out, save(tensors, {"made": json.dumps(facts, sort_keys=True)}))


@dataclass(frozen=True, kw_only=True)
class MapperTraining:
    """Train AbC's maps on the held-out customized models.

    Attributes:
        study: the base of ``customized``.
        backbone: the encoder whose features they stand on.
        out: the file to write.
        results: folder, as of a run; the customized models are kept there.
        models, queries, distractors: held-out models, queries of each, images that exemplars are told from.
        device, threads: where and how to compute.
    """

    study: Study
    backbone: str
    out: Path
    results: Path | None = None
    models: int | None = None
    queries: int | None = None
    distractors: int = DISTRACTORS
    device: str = "cpu"
    threads: int = field(default_factory=available_threads)

    def __post_init__(self) -> None:
        check_out(self.out)
        if self.backbone == PIXEL:
            raise InvalidInput("AbC's maps stand on an encoder's features: give --backbone efficientnet, clip or dino.")
        backbone_weights(self.backbone)
        _ = self.run  # its checks
        if len(self.run.customizations[: self.models]) < 2 * FOLDS:
            raise InvalidInput(f"--models {self.models}: at least {2 * FOLDS} are needed to choose settings on.")

    @property
    def run(self) -> CustomizedRun:
        """Whose models and queries are trained on."""
        return CustomizedRun(
            study=self.study, methods=(), results=self.results, models=self.models, distractors=self.distractors,
            held_out=True, device=self.device, threads=self.threads,
            queries=MODEL_QUERIES if self.queries is None else self.queries,
        )  # fmt: skip

    def execute(self, progress: Progress | None = None) -> HeadsFound:
        """Fine-tune the models that are missing, choose the settings, train, write."""
        run, shown = self.run, progress or Progress()
        with compute_threads(self.threads):
            given = self._features(run, shown)
            dim, reduced = given.distractors.shape[2], REDUCED.get(self.backbone, 0)
            tried = {
                (temperature, regularization): cross_validated(given, dim, reduced, temperature, regularization)
                for temperature, regularization in itertools.product(TEMPERATURES, REGULARIZATIONS)
            }
            best = max(tried, key=lambda settings: float(tried[settings][:, 1].mean()))
            head = _mappers(given, dim, reduced)
            plain = [found_by(lambda part: part, lambda part: part, given)]
            if reduced:
                plain.append(found_by(head.of_queries, head.of_images, given))
            trained = train_mappers(head, given, temperature=best[0], regularization=best[1])
        write_heads(
            trained, self.out, backbone=self.backbone, study=self.study.digest, temperature=best[0],
            regularization=best[1], models=[each.name for each in run.customizations[: self.models]],
        )  # fmt: skip
        names = [self.backbone, *([f"{self.backbone}, reduced"] if reduced else []), "trained, cross-validated"]
        lines = [_cells(name, values) for name, values in zip(names, [*plain, tried[best]], strict=True)]
        gain = interval((tried[best][:, 1] - plain[0][:, 1]).numpy())
        return HeadsFound(
            head=("features", "Recall@10", "mAP"),
            lines=lines,
            about=[
                f"{len(given.classes)} held-out models, {run.queries} queries each, {self.distractors} distractors; "
                "mean ± 1 SE, the model as unit",
                f"mAP gained: {gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}]; temperature {best[0]}, regularization "
                f"{best[1]}, the best of {len(tried)} settings in {FOLDS} folds",
            ],
            out=self.out,
            name=f"abc_{self.backbone}",
        )

    def _features(self, run: CustomizedRun, progress: Progress) -> CustomizedFeatures:
        base = Workspace(run.study, run.folder, metrics=(), device=self.device, progress=progress)
        classes, queries, exemplars = [], [], []
        distractors = torch.empty(0)
        for each in run.customizations[: self.models]:
            progress.say(f"features of {each.name} ({each.split})")
            assert each.split == HELD_OUT
            home = CustomizedWorkspace(base, each, self.distractors, device=self.device, progress=progress)
            context = home.context()
            known = backbone_of_images(context, self.backbone)
            distractors = known[: self.distractors]
            classes.append(each.name)
            exemplars.append(known[self.distractors :])
            queries.append(backbone_of_queries(context, self.backbone, home.asked(run.queries)))
        return CustomizedFeatures(tuple(classes), tuple(queries), tuple(exemplars), distractors)


def _mappers(given: CustomizedFeatures, dim: int, reduced: int) -> Mappers:
    """At the identity; the reduction is that of the distractors."""
    head = Mappers(dim, reduced)
    if reduced:
        head.reduce = principal(given.distractors.flatten(0, 1), reduced)
    return head.requires_grad_(True)


def cross_validated(
    given: CustomizedFeatures, dim: int, reduced: int, temperature: float, regularization: float
) -> Float[Tensor, "models 2"]:
    """Recall@10 and mAP on each model, by maps that were trained without it."""
    count = len(given.classes)
    order = seeds.generator("head-folds").permutation(count).tolist()
    result = torch.empty(count, 2)
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        head = _mappers(given, dim, reduced)
        kept = [model for model in range(count) if model not in out]
        train_mappers(head, given.only(kept), temperature=temperature, regularization=regularization)
        result[out] = found_by(head.of_queries, head.of_images, given.only(out))
    return result


@torch.no_grad()
def found_by(of_queries: Feature, of_images: Feature, given: CustomizedFeatures) -> Float[Tensor, "models 2"]:
    """Recall@10 and average precision of each model, means over its queries."""
    rows = []
    for queries, exemplars in zip(given.queries, given.exemplars, strict=True):
        pool = torch.cat([exemplars, given.distractors])
        scores = cosines(of_queries(queries), of_images(pool))
        names = [str(place) for place in range(len(pool))]
        ranks = [[names[place] for place in row.argsort(descending=True).tolist()] for row in scores]
        wanted = names[: len(exemplars)]
        values = [(recall_at_k(each, wanted), average_precision(each, wanted)) for each in ranks]
        rows.append(torch.tensor(values).mean(0))
    return torch.stack(rows)


def _cells(name: str, values: Float[Tensor, "models 2"]) -> list[str]:
    parts = [mean_and_error(column.numpy()) for column in values.unbind(1)]
    return [name, *(f"{part.mean:.3f} ± {part.standard_error:.3f}" for part in parts)]


@dataclass(frozen=True, kw_only=True)
class RankerTraining:
    """Train a head to rank as a slow teacher does.

    Attributes:
        study: whose training images are ranked.
        teacher: the method.
        backbone: an encoder, or "pixel".
        out: the file to write.
        results: folder of a run, in which queries and the teacher's scores are kept.
        queries: to train on.
        steps: of each training.
        device, threads: where and how to compute.
    """

    study: Study
    teacher: Method
    backbone: str
    out: Path
    results: Path | None = None
    queries: int = QUERIES
    steps: int = RANKING_STEPS
    device: str = "cpu"
    threads: int = field(default_factory=available_threads)

    def __post_init__(self) -> None:
        check_out(self.out)
        backbone_weights(self.backbone)
        most = len(self.study.dataset)
        if not VALIDATION <= self.queries <= most:
            raise InvalidInput(f"--queries {self.queries}: {VALIDATION} to {most} are expected, one for a caption.")

    @property
    def specs(self) -> list[QuerySpec]:
        """The queries: captions drawn by a key, each with a noise of its own."""
        dataset = self.study.dataset
        order = seeds.generator("head-queries", self.study.digest).permutation(len(dataset))[: self.queries]
        captions = [dataset.captions[dataset.by_id[int(place)]] for place in order]
        return [QuerySpec(f"head-{place:04d}", text, QUERY_SEED + place) for place, text in enumerate(captions)]

    def execute(self, progress: Progress | None = None) -> HeadsFound:
        """Have the teacher rank, choose the cutoff, train, write."""
        shown = progress or Progress()
        root = self.results or Path("results/runs") / self.study.name
        with compute_threads(self.threads):
            workspace = Workspace(self.study, root, metrics=(), device=self.device, progress=shown)
            self.teacher.prepare()
            asked = workspace.queries(self.specs)
            scores = workspace.scores(self.teacher, asked).matrix
            context: AttributionContext = workspace.context()
            queries = backbone_of_queries(context, self.backbone, asked)
            images = backbone_of_images(context, self.backbone)
            top = max(self.study.budgets)
            kept = torch.tensor([place % VALIDATION > 0 for place in range(len(asked))])
            others = ~kept
            plain = shared_top(cosines(queries[others], images), scores[others], top)
            tried = {}
            for cutoff in sorted({max(2, int(share * len(images))) for share in CUTOFF_SHARES}):
                shown.say(f"train with the first {cutoff} of the teacher")
                head = self._trained(queries[kept], images, scores[kept], cutoff)
                with torch.no_grad():
                    tried[cutoff] = shared_top(cosines(head(queries[others]), head(images)), scores[others], top)
            best = max(tried, key=lambda cutoff: float(tried[cutoff].mean()))
            trained = self._trained(queries, images, scores, best)
        label = named(self.teacher, self.study.name).label
        write_heads(
            trained, self.out, backbone=self.backbone, study=self.study.digest, teacher=label,
            teacher_digest=self.teacher.digest, queries=self.queries, cutoff=best,
        )  # fmt: skip
        gain = interval((tried[best] - plain).numpy())
        lines = [(f"{self.backbone}, untrained", plain), *((f"trained, first {k}", v) for k, v in tried.items())]
        parts = [(name, interval(values.numpy())) for name, values in lines]
        return HeadsFound(
            head=("features", f"of the teacher's top {top} [95 % interval]"),
            lines=[[name, f"{part.mean:.3f} [{part.low:.3f}, {part.high:.3f}]"] for name, part in parts],
            about=[
                f"teacher {label}; {int(others.sum())} of {self.queries} queries were not trained on for this table",
                f"gained: {gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}] by the first {best}, best of {len(tried)}",
            ],
            out=self.out,
            name="fast",
        )

    def _trained(self, queries: Tensor, images: Tensor, scores: Tensor, cutoff: int) -> Ranker:
        dim = images.shape[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer("ranker", self.study.digest))
            head = Ranker(dim, components(dim))
        head.reduce = principal(images[:, 0], components(dim))
        return train_ranker(head, queries, images[:, 0], scores, cutoff=cutoff, steps=self.steps)


def shared_top(
    found: Float[Tensor, "queries images"], wanted: Float[Tensor, "queries images"], top: int
) -> Float[Tensor, " queries"]:
    """The share of the first ``top`` images of each row of ``wanted`` that are among those of ``found``."""
    pairs = [(set(one.topk(top).indices.tolist()), set(other.topk(top).indices.tolist()))
             for one, other in zip(found, wanted, strict=True)]  # fmt: skip
    return torch.tensor([len(one & other) / top for one, other in pairs])
