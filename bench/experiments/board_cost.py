"""What a whole leaderboard costs at the size of MSCOCO: as published, and paired with the power that was published.

Counted: U-Net passes and trainings, by the protocol of arXiv 2406.09408 (sections 5.1 and B): METHODS methods, 110
queries, three K, a random curve of 62 × 10 models, models of an ensemble for ``trak``. GPU-hours are these counts at
the paper's own pace on one A100: 16 hours for a training of 200 × 118,287 examples, 20 hours for the losses
that score one
query. Another U-Net takes its share by floating-point operations, which are counted by running it without memory.

Pairing. A comparison of two methods on one query deviates, over queries, by V_p where a retrained model and its
original share initial weights and draws (law 4), and by V_u = V_p + v where they do not; v is the deviation
of "nothing removed,
other seed". Retrained models and θ0 have each half of v; of two methods the θ0 is the same and cancels, and two
retrained models are left. So 110 · V_p / V_u paired queries show what 110 unpaired ones do. A curve of random removals
keeps its standard error with 1,100 / n · V_r / (V_r + v/2) models a point, V_r being the deviation of ``random`` and n
the number of queries. All deviations are variances over queries, measured on small studies, whose rows are read.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from scipy import special
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from bench.attribution.unlearning import Unlearning
from bench.contracts import CEILING, FLOOR, Method
from bench.diffusion.phrases import text_encoder
from bench.errors import InvalidInput
from bench.records import rows as results
from bench.records.rows import BASELINE, NOT_RANKED, NOTHING_REMOVED
from bench.records.store import Store
from bench.registry import methods
from bench.report.shown import Report, Table
from bench.report.statistics import MIN_QUERIES
from bench.shipped import CHECKOUT
from bench.studies import Study

METHODS = (
    "pixel", "clip_text", "clip", "dino", "dinov2", "abc_clip", "abc_dino", "trak", "journey_trak", "d_trak", "ours",
)  # fmt: skip
"""Of the paper's table beside ``random``, whose models are those of the curve."""
PAPER_HOURS = 77_000
"""GPU-hours that the paper states for all of its MSCOCO experiments."""
QUERIES, BUDGETS = 110, (500, 1000, 4000)
IMAGES, EPOCHS, BATCH, ROWS = 118_287, 200, 128, 16
"""ROWS of the latents, and columns."""
CURVE = (500, 1000, 2000, 3000, 4000, *range(5000, 118_287, 2000))
CURVE_MODELS, ENSEMBLE = 10, 20
TRAINING_HOURS, SCORING_HOURS = 16, 20
"""Of one A100: one training, the losses of one query."""
TIMESTEPS, CAPTIONS, SIDES = 20, 5, 2
"""Of the losses that score a query."""
UNLEARNING_DRAWS = 50_000
OBSERVING = 200 + 1000 * 2
"""Passes for one query under one model: its losses, and its image by 1000 guided steps."""
METRIC = "loss_change"
PUBLISHED = ("fashion", "faces")
"""Folders of `results` in a checkout whose rows tell variances."""
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The sizes of a study.

    Attributes:
        name: of the study.
        images: their number, pixels: rows and columns of each.
        captions: different ones, the empty prompt not counted.
        unet: settings of diffusers' ``UNet2DConditionModel``.
        tokens, text_dim: of a text state.
        steps, batch, shards: of the recipe.
    """

    name: str
    images: int
    pixels: int
    captions: int
    unet: Mapping[str, Any]
    tokens: int
    text_dim: int
    steps: int
    batch: int
    shards: int = 1

    @classmethod
    def of(cls, study: Study) -> Scale:
        """Those of ``study``."""
        encoder = text_encoder(study.model.text_encoder, study.model.num_tokens)
        return cls(
            name=study.name, images=len(study.dataset), pixels=study.dataset.images.shape[1],
            captions=len(study.dataset.texts - {""}), unet=study.model.unet_arguments(encoder.dim),
            tokens=study.model.num_tokens, text_dim=encoder.dim, steps=study.recipe.num_steps,
            batch=study.recipe.batch_size, shards=study.recipe.num_shards,
        )  # fmt: skip

    @cached_property
    def passes(self) -> Passes:
        """What one example costs."""
        return Passes.of(json.dumps(dict(self.unet), sort_keys=True), self.tokens)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What a U-Net takes for one example, counted without running it.

    Attributes:
        weights: its parameters.
        forward: floating-point operations of a forward pass, training: of a forward and a backward pass.
        kept_bytes: of activations that wait for the backward pass, as diffusers' own forward pass keeps them.
    """

    weights: int
    forward: int
    training: int
    kept_bytes: int

    @classmethod
    @cache
    def of(cls, settings: str, tokens: int) -> Passes:
        """Of the U-Net with these settings of diffusers as JSON, for prompts of so many tokens."""
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            whole = tensor if tensor._base is None else tensor._base
            kept[id(whole)] = whole
            return tensor

        with torch.device("meta"):
            unet: Any = UNet2DConditionModel(**json.loads(settings))
            unet.set_attn_processor(AttnProcessor())
            size = unet.config.sample_size
            inputs = (
                torch.empty(1, unet.config.in_channels, size, size),
                torch.zeros(1, dtype=torch.long),
                torch.empty(1, tokens, unet.config.cross_attention_dim),
            )
            with FlopCounterMode(display=False) as forward, torch.no_grad():
                unet(*inputs)
            with FlopCounterMode(display=False) as both:
                with saved_tensors_hooks(keep, lambda tensor: tensor):
                    output = unet(*inputs)[0]
                output.sum().backward()
        weights = {id(weight) for weight in unet.parameters()}
        return cls(
            weights=sum(weight.numel() for weight in unet.parameters()),
            forward=forward.get_total_flops(),
            training=both.get_total_flops(),
            kept_bytes=sum(each.numel() * each.element_size() for key, each in kept.items() if key not in weights),
        )


@dataclass(frozen=True, kw_only=True)
class Deviations:
    """Variances over queries that one results folder has, of ``loss_change`` at one K.

    Attributes:
        study: whose rows, k: at which K, queries: how many there are.
        pairs: V_p of each pair of methods, floors and ceilings left out.
        against_random: V_p of each method and ``random``.
        random: V_r of ``random`` alone.
        unpaired: v, of nothing removed.
        same_sets: share of the removals of these methods whose model another one's removal had trained already.
    """

    study: str
    k: int
    queries: int
    pairs: Sequence[float]
    against_random: Sequence[float]
    random: float
    unpaired: float
    same_sets: float

    @classmethod
    def of(cls, folder: Path) -> Deviations:
        """By the rows of ``folder``, at the K with the most of them; raises InvalidInput where they do not tell it."""
        frame = results.load(Store(folder))
        wanted = f"rows of `bench run` with {MIN_QUERIES} queries, two methods, `random` and nothing removed"
        frame = frame[(frame["metric"] == METRIC) & (frame["status"] == "done")]
        frame = frame.assign(label=results.labels(frame))
        paired = frame[(frame["design"] == "paired") & ~frame["method"].isin(NOT_RANKED) & (frame["variant"] == "")]
        nothing = frame.loc[frame["method"] == NOTHING_REMOVED, "value"]
        if paired.empty or len(nothing) < MIN_QUERIES:
            raise InvalidInput(f"{folder} does not tell the variances: {wanted} are expected.")
        k = int(paired["k"].value_counts().idxmax())
        own = paired[paired["k"] == k]
        values = own.pivot_table(index="query", columns="label", values="value")
        values = values.loc[:, values.count() == values.count().max()].dropna()
        roles = {name: methods.get(name).role for name in own["method"].unique() if name in methods.names()}
        judged = own[~own["method"].map(roles).isin((FLOOR, CEILING))]
        names = [name for name in values if name in set(judged["label"])]
        if len(names) < 2 or len(values) < MIN_QUERIES or BASELINE not in values:
            raise InvalidInput(f"{folder} does not tell the variances: {wanted} are expected.")

        def variance(one: str, other: str) -> float:
            return float((values[one] - values[other]).var())

        removals = judged.drop_duplicates(["label", "query", "seed"])
        return cls(
            study=str(own["study"].iloc[0]),
            k=k,
            queries=len(values),
            pairs=[variance(one, other) for one, other in itertools.combinations(names, 2)],
            against_random=[variance(one, BASELINE) for one in names],
            random=float(values[BASELINE].var()),
            unpaired=float(nothing.var()),
            same_sets=1 - removals["model_key"].nunique() / len(removals),
        )

    def queries_needed(self, variances: Sequence[float]) -> float:
        """Paired queries that show what QUERIES unpaired ones do, by the median of some V_p."""
        return QUERIES * float(np.median(self.shares(variances)))

    def shares(self, variances: Sequence[float]) -> list[float]:
        """V_p / V_u of each."""
        return [one / (one + self.unpaired) for one in variances]

    @property
    def judged(self) -> int:
        """Paired queries with the power of QUERIES unpaired ones between two methods."""
        return max(MIN_QUERIES, math.ceil(self.queries_needed(self.pairs)))

    @property
    def curve_models(self) -> int:
        """Of each point of the random curve."""
        share = self.random / (self.random + self.unpaired / 2)
        return max(1, math.ceil(QUERIES * CURVE_MODELS * share / self.judged))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a board's cost.

    Attributes:
        trainings: models; examples: that they are trained on, each forward and backward.
        forwards: passes forward alone.
        hours: of one A100 at the paper's pace.
    """

    trainings: int
    examples: int
    forwards: int
    hours: float

    def __add__(self, other: Part) -> Part:
        return Part(
            trainings=self.trainings + other.trainings,
            examples=self.examples + other.examples,
            forwards=self.forwards + other.forwards,
            hours=self.hours + other.hours,
        )


NAMES = ("originals", "removals", "random curve", "scores by unlearning", "observations")


@dataclass(frozen=True, kw_only=True)
class BoardCost(Report):
    """The cost of a board.

    Attributes:
        scale: of the study.
        methods: that are compared, unlearning: how many of these unlearn the query.
        measured: variances for the paired design, one column each.
        seconds: of one training at hand, where it was measured; else NaN.
    """

    scale: Scale
    methods: int = len(METHODS)
    unlearning: int = 1
    measured: Sequence[Deviations] = ()
    seconds: float = math.nan

    def parts(self, queries: int, curve_models: int, originals: int = ENSEMBLE) -> dict[str, Part]:
        """By name, in the order of NAMES.

        Args:
            queries: for which each method is judged at each K.
            curve_models: of each point of the random curve.
            originals: models with nothing removed.
        """
        passes, paper = self.scale.passes, mscoco().passes
        per_example = TRAINING_HOURS / (IMAGES * EPOCHS) * passes.training / paper.training
        per_forward = SCORING_HOURS / (IMAGES * SIDES * TIMESTEPS * CAPTIONS) * passes.forward / paper.forward

        def part(trainings: int = 0, forwards: int = 0, draws: int = 0) -> Part:
            examples = trainings * self.scale.steps * self.scale.batch + draws
            hours = examples * per_example + forwards * per_forward
            return Part(trainings=trainings, examples=examples, forwards=forwards, hours=hours)

        removals, curve = self.methods * queries * len(BUDGETS), len(CURVE) * curve_models
        losses = self.scale.images * SIDES * TIMESTEPS * CAPTIONS
        scored = self.unlearning * queries
        found = (
            part(originals),
            part(removals),
            part(curve),
            part(forwards=losses * (scored + (scored > 0)), draws=UNLEARNING_DRAWS * scored),
            part(forwards=OBSERVING * (removals + (curve + originals) * queries)),
        )
        return dict(zip(NAMES, found, strict=True))

    @cached_property
    def published(self) -> dict[str, Part]:
        """The parts of the design as published."""
        return self.parts(QUERIES, CURVE_MODELS)

    def paired(self, by: Deviations) -> dict[str, Part]:
        """Those of the paired design with its power; one original more, of the seed that judges."""
        return self.parts(by.judged, by.curve_models, ENSEMBLE + 1)

    def tables(self) -> list[Table]:
        """Cost by part, the savings and their shares, and room on disk and in memory."""
        columns = [self.published, *map(self.paired, self.measured)]
        totals = [sum(each.values(), start=Part(trainings=0, examples=0, forwards=0, hours=0.0)) for each in columns]
        names = ["as published, unpaired", *(f"paired, variances of {each.study}" for each in self.measured)]
        counts = [f"{QUERIES} queries", *(f"{each.judged} queries" for each in self.measured)]
        lines = [["queries for each method and K", *counts]]
        lines += [[name, *(_cost(each[name]) for each in columns)] for name in NAMES]
        lines += [
            ["all", *map(_cost, totals)],
            ["U-Net forwards", *(f"{(each.examples + each.forwards) / GB:.3g} billion" for each in totals)],
            ["of these with a backward pass", *(f"{each.examples / GB:.3g} billion" for each in totals)],
            ["A100-hours at the paper's pace", *(f"{each.hours:,.0f}" for each in totals)],
            [f"of the paper's {PAPER_HOURS:,} GPU-hours", *(f"{each.hours / PAPER_HOURS:.0%}" for each in totals)],
        ]
        if not math.isnan(self.seconds):
            hours = [each.trainings * self.seconds / 3600 for each in totals]
            lines.append(["hours of its trainings on the device at hand", *(f"{each:,.0f}" for each in hours)])
        return [(["", *names], lines), *self._savings(totals), self._room(totals)]

    def _savings(self, totals: Sequence[Part]) -> list[Table]:
        """Which share of what is saved each part has."""
        if not self.measured:
            return []
        whole = totals[0].hours
        lines = []
        why = {
            "originals": "one original more, of the seed that judges",
            "removals": "fewer queries with the same power",
            "random curve": "fewer models a point with the same standard error",
            "scores by unlearning": "fewer queries to score",
            "observations": "fewer models and queries",
        }
        for name in NAMES:
            saved = [self.published[name].hours - self.paired(each)[name].hours for each in self.measured]
            cells = [
                f"{hours:,.0f} h, {hours / (whole - total.hours):.1%}"
                for hours, total in zip(saved, totals[1:], strict=True)
            ]
            lines.append([name, why[name], *cells])
        lines.append(
            ["all", "", *(f"{whole - each.hours:,.0f} h, {1 - each.hours / whole:.0%} of all" for each in totals[1:])]
        )
        return [(["saved in", "by", *(f"variances of {each.study}" for each in self.measured)], lines)]

    def _room(self, totals: Sequence[Part]) -> Table:
        """Disk and memory."""
        scale, passes = self.scale, self.scale.passes
        size, channels = int(scale.unet["sample_size"]), int(scale.unet["in_channels"])
        latents = scale.images * SIDES * channels * size * size * 4
        states = (scale.captions + 1) * scale.tokens * scale.text_dim * 4
        model = passes.weights * 4
        optimizer = model * (4 + scale.shards)
        most = ", ".join(f"{each.trainings * model / GB:,.0f} GB" for each in totals)
        lines = [
            ["disk: images, 3 bytes a pixel", f"{scale.images * scale.pixels**2 * 3 / GB:.3g} GB"],
            ["disk: latents of both sides, fp32", f"{latents / GB:.3g} GB"],
            [f"disk: text states of {scale.captions:,} captions, fp32", f"{states / GB:.3g} GB"],
            ["disk: one model, fp32", f"{model / 1e6:,.0f} MB"],
            ["disk: all models of the columns above, if they were kept", most],
            ["disk: a checkpoint of a training that was stopped", f"{4 * model / 1e6:,.0f} MB"],
            ["memory: weights, average, two moments, gradients", f"{optimizer / GB:.3g} GB"],
            [
                f"memory: activations of {scale.batch} examples, fp32, at most",
                f"{scale.batch * passes.kept_bytes / GB:.3g} GB",
            ],
        ]
        return (["room", ""], lines)

    def notes(self) -> list[str]:
        """How it was counted, and what it does not say."""
        scale, passes = self.scale, self.scale.passes
        lines = [
            f"{scale.name}: {scale.images:,} images; a U-Net of {passes.weights:,} parameters, "
            f"{passes.forward / GB:.2f} "
            f"GFLOP forward, {passes.training / GB:.2f} with the backward pass; a training of {scale.steps:,} steps of "
            f"{scale.batch}",
            f"{self.methods} methods ({self.unlearning} unlearn), K = {', '.join(map(str, BUDGETS))}; a curve of "
            f"{len(CURVE)} × {CURVE_MODELS} models; pace of one A100 in the paper: {TRAINING_HOURS} h a training, "
            f"{SCORING_HOURS} h to score a query. Features and gradients of other methods are not counted; nor are the "
            "ablations that the paper's 77,000 hours hold too",
        ]
        for each in self.measured:
            shares = each.shares(each.pairs)
            lines.append(
                f"{each.study}, K = {each.k}, {each.queries} queries: paired variances are {min(shares):.0%} to "
                f"{max(shares):.0%} of the unpaired ones over {len(shares)} pairs of methods, median "
                f"{np.median(shares):.0%}: {each.judged} paired queries have the power of {QUERIES}; against random "
                f"{math.ceil(each.queries_needed(each.against_random))} would do. Equal removal sets: "
                f"{each.same_sets:.1%} "
                "of the removals, not taken off"
            )
        if self.measured:
            few = min(each.queries for each in self.measured) - 1
            low, high = (few / special.chdtri(few, tail) for tail in (0.025, 0.975))
            lines.append(
                f"a variance over {few + 1} queries is known to a factor of {low:.2f} to {high:.1f} (95 %, "
                f"if normal), and "
                "that the ratio of a small study holds for MSCOCO is assumed, not measured"
            )
            one = [sum(part.hours for part in self.paired(each).values()) for each in self.measured]
            less = [
                total - self.paired(each)["removals"].hours * (1 - 1 / len(BUDGETS))
                for total, each in zip(one, self.measured, strict=True)
            ]
            lines.append(
                f"K = 1000 alone, which answers less: {', '.join(f'{hours:,.0f} h' for hours in less)} paired, in the "
                "order of the columns"
            )
        else:
            lines.append(
                "the paired design is not counted: no measured variances were found; name a results folder with "
                "--variances"
            )
        return lines


def board_cost(
    scale: Scale, chosen: Sequence[Method] = (), folders: Sequence[Path] = (), seconds: float = math.nan
) -> BoardCost:
    """The cost of a board of a study of this ``scale``.

    Args:
        scale: of the study.
        chosen: methods of the board; those of the paper's table where there are none. ``random`` costs nothing more.
        folders: whose rows tell variances; the published ones of a checkout where none is named.
        seconds: of one training at hand, where it was measured.
    """
    published = [place for name in PUBLISHED if (place := CHECKOUT / "results" / name).is_dir()]
    measured = [Deviations.of(place) for place in folders or published]
    judged = [method for method in chosen if method.name != BASELINE]
    if not chosen:
        return BoardCost(scale=scale, measured=measured, seconds=seconds)
    unlearning = sum(isinstance(method, Unlearning) for method in judged)
    return BoardCost(scale=scale, methods=len(judged), unlearning=unlearning, measured=measured, seconds=seconds)


def unet_settings(text_dim: int = 1024, channels: int = 4) -> dict[str, Any]:
    """Settings of diffusers' ``UNet2DConditionModel``: 57,373,316 parameters with states of 1024 numbers."""
    attending = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    return {
        "sample_size": ROWS,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": [attending[0]] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + [attending[1]] * 3,
        "cross_attention_dim": text_dim,
        "attention_head_dim": 8,  # diffusers' name for the number of heads
    }


def mscoco() -> Scale:
    """Of the MSCOCO study as `bench prepare mscoco` writes it, one caption an image, before its data are there."""
    return Scale(
        name="mscoco", images=IMAGES, pixels=128, captions=IMAGES, unet=unet_settings(), tokens=77, text_dim=1024,
        steps=math.ceil(EPOCHS * IMAGES / BATCH), batch=BATCH,
    )  # fmt: skip


def _cost(part: Part) -> str:
    models = f"{part.trainings:,} models, " if part.trainings else ""
    return f"{models}{part.hours:,.0f} h"
