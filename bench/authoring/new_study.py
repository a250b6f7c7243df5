"""``bench study new``: looks at a data set, proposes a study of it, and writes the study file with its reasons."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import study_file
from bench.data import prepared
from bench.data.captions import WORD
from bench.data.dataset import Dataset
from bench.data.prepared import Prepared, Survey
from bench.diffusion.fine_tuning import Tuning
from bench.diffusion.model import DiffusionModel
from bench.diffusion.phrases import text_encoder
from bench.diffusion.pipelines import HUB, folder_autoencoder, local_folder, pipeline_settings, unet_state
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
from bench.errors import InvalidInput
from bench.foundation import seeds
from bench.foundation.machine import compute_threads
from bench.foundation.progress import Progress
from bench.records.store import write_whole
from bench.report.shown import Report, Table
from bench.studies import HELD_OUT_SEED, STUDIES, Study, study
from bench.study_file import DataTable

USUAL_SIZE, LARGEST_SHALLOW = 16, 20
"""Pixels: what is proposed; above the second the U-Net has three resolutions instead of two."""
SHARES = (0.03, 0.08, 0.25)
"""Budgets as shares of the images, those of the study ``fashion``."""
MOST_REPORTED, MOST_HELD_OUT = 16, 8
USUAL_STEPS, BATCH = 1000, 32
EPOCHS = 5
FEWEST = 4
LONGEST_TEXT = 24
WEIGHTS_MEAN = {
    "given": "# given: θ0 has the pipeline's weights. `bench attribute` needs no training; what retrains is refused.",
    "fresh": "# fresh: the pipeline's architecture, trained from random weights by [recipe].",
    "fine-tune": "# fine-tune: every training starts from the pipeline's weights.",
}
MEASURED_STEPS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class NewStudy(Report):
    """What was written.

    Attributes:
        file: the study file.
        found: what the data are, in lines.
        seconds: one training takes about, on this machine; NaN where nothing is trained.
    """

    file: Path
    found: Sequence[str]
    seconds: float

    def tables(self) -> list[Table]:
        """None."""
        return []

    def notes(self) -> list[str]:
        """What was found and written, and what to do next."""
        name = self.file.as_posix()
        trained = not math.isnan(self.seconds)
        ways = [f"bench run --study {name} --method ours --method pixel --queries 2"] if trained else []
        return [
            *self.found,
            f"wrote {name} (images prepared in {study_file.prepared_folder(self.file).name}); read it, it says why",
            *([f"one training takes about {self.seconds:.0f} s here, on one processor"] if trained else []),
            "next: " + "; ".join([*ways, f"bench attribute --study {name} --method ours --prompt 'a caption'"]),
        ]


def new_study(
    file: Path,
    table: DataTable,
    *,
    size: int | None = None,
    pipeline: Path | None = None,
    weights: str = "given",
    progress: Progress | None = None,
) -> NewStudy:
    """Look at the data that ``table`` names and write the study file ``file``.

    Raises InvalidInput with one report of all that is bad in the data, unless that is to be skipped.

    Args:
        file: to write; its name is the study's.
        table: where the data are; its size and digest are found here.
        size: of the images, in pixels; None to propose one.
        pipeline: folder of a pretrained model, or "hub:owner/name"; None for a small U-Net on pixels.
        weights: of θ0: those that are "given" by the pipeline; or its architecture is trained, from "fresh" weights or
            from the pipeline's ("fine-tune").
        progress: told how far it is.
    """
    check_name(file)
    shown = progress or Progress()
    source = study_file.source_of(file, table)
    model = _pipeline(file, pipeline, weights, size) if pipeline else {}
    survey = Survey.of(source, lambda done, total: shown.advance("look at images", done, total))
    chosen = _size(survey, size, model)
    grey = table.grey or (survey.grey and not pipeline)
    table = replace(table, size=chosen, grey=grey, source=_shown_path(file, table), format=source.kind)
    wanted = Prepared(
        place=str(study_file.prepared_folder(file.resolve())), source=source, size=chosen, grey=grey,
        skip_broken=table.skip_broken,
    )  # fmt: skip
    dataset = prepared.prepare(wanted, survey, shown.advance)
    if len(dataset) < FEWEST:
        raise InvalidInput(
            f"{source.path} has {len(dataset)} images; a study of which some are removed takes {FEWEST}."
        )
    table = replace(table, digest=dataset.digest)
    text = _written(file, table, dataset, survey, model)
    write_whole(file, text.encode())
    made = study(str(file))
    seconds = float("nan") if made.given else _training_seconds(made)
    return NewStudy(file=file, found=found_in(source.kind, dataset, survey, chosen), seconds=seconds)


def check_name(file: Path) -> None:
    """Raise InvalidInput where no study file can be written there."""
    if file.suffix != study_file.SUFFIX:
        raise InvalidInput(f"A study file ends in {study_file.SUFFIX}; {file} does not.")
    if not study_file.NAME.fullmatch(file.stem) or file.stem in STUDIES:
        raise InvalidInput(
            f"A study cannot be called '{file.stem}': small letters, digits, '_' and '-' are expected, and none of "
            f"{', '.join(STUDIES)}."
        )
    if file.exists():
        raise InvalidInput(f"{file} is there already: give another name, or delete it first.")


def _pipeline(file: Path, pipeline: Path, weights: str, size: int | None) -> dict[str, Any]:
    """[model] for a pretrained pipeline."""
    place = local_folder(str(pipeline))
    known = pipeline_settings(place)
    if weights != "fresh":
        unet_state(str(place))  # damaged ones are refused now
    model: dict[str, Any] = {"pretrained": relative(file, pipeline), "weights": weights}
    factor = folder_autoencoder(str(place)).factor
    if size is not None:
        if size % factor:
            raise InvalidInput(f"--size {size}: the autoencoder makes one latent of {factor} pixels; give a multiple.")
        model["sample_size"] = size // factor
    model["pixels"] = size or known["sample_size"] * factor
    return model


def _size(survey: Survey, size: int | None, model: dict[str, Any]) -> int:
    """The images' size in pixels."""
    if model:
        return int(model.pop("pixels"))
    if size is None:
        return max(8, min(USUAL_SIZE, survey.side - survey.side % 2))
    step = 4 if size > LARGEST_SHALLOW else 2
    if size % step or not 8 <= size <= study_file.MOST_PIXELS:
        raise InvalidInput(
            f"--size {size}: a multiple of {step} from 8 to {study_file.MOST_PIXELS} is expected: the U-Net halves it."
        )
    return size


def _text(dataset: Dataset) -> tuple[str, int, str]:
    """Text encoder, number of tokens, and why."""
    longest = max(len(WORD.findall(caption)) for caption in dataset.texts)
    tokens = max(4, min(longest, LONGEST_TEXT) + 1)
    try:
        known = text_encoder("words", tokens)
        for caption in sorted(dataset.texts):
            known.tokens(caption)
    except InvalidInput:
        cut = f"; of longer captions the first {LONGEST_TEXT} words are read" if longest > LONGEST_TEXT else ""
        return "hashed", tokens, f"takes any word, needs no download (captions have up to {longest} words{cut})"
    return "words", tokens, "word vectors that ship with the project: they know every word of the captions"


def drawn_queries(
    dataset: Dataset, most_reported: int = MOST_REPORTED, most_held_out: int = MOST_HELD_OUT
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Prompts and seeds of the reported and the held-out queries: a draw of captions, keyed by the data."""
    distinct = sorted(set(dataset.captions))
    order = seeds.generator("study-queries", dataset.digest).permutation(len(distinct))
    drawn = [distinct[int(place)] for place in order]
    if len(drawn) >= most_reported + most_held_out:
        held_out, reported = drawn[:most_held_out], drawn[most_held_out : most_held_out + most_reported]
    elif len(drawn) > 2:
        held_out, reported = drawn[: len(drawn) // 3], drawn[len(drawn) // 3 :]
    else:
        held_out, reported = drawn, drawn
    asked = [(reported[place % len(reported)], place) for place in range(most_reported)]
    return asked, [(held_out[place % len(held_out)], HELD_OUT_SEED + place) for place in range(most_held_out)]


def _written(file: Path, table: DataTable, dataset: Dataset, survey: Survey, model: dict[str, Any]) -> str:
    """The text of the study file."""
    count, size = len(dataset), table.size
    budgets = sorted({min(count - 1, max(1, round(share * count))) for share in SHARES} - {0}) or [1]
    reported, held_out = drawn_queries(dataset)
    lines = [
        f"# A study of bench, written by `bench study new {file.name}`. Everything here may be changed until the",
        "# first run: a results folder belongs to one version of a study.",
        "",
        f"name = {toml(file.stem)}",
        f"description = {toml(f'{count:,} images of {Path(table.source).name} at {size}×{size} pixels')}",
        "# K: how many images are removed. 3, 8 and 25 % of all, as in the study `fashion`.",
        f"budgets = {budgets}",
        "# How many of the queries below a run has by default. 8 tell large differences, 16 small ones.",
        "num_queries = 8",
        'metrics = ["loss_change", "regeneration_mse"]',
        "",
        "[data]",
        *table_lines(table),
        f"# {survey.seen} examples were read; {count} are good. " + "; ".join(survey.converted(size)),
        "",
        "[model]",
    ]
    lines += _model_lines(dataset, table, model)
    lines += ["", "[recipe]", *_recipe_lines(count, model), "", "[sampler]"]
    lines += (
        ["num_steps = 50", "guidance = 7.5"]
        if model
        else [
            "num_steps = 25",
            "# A small model gives its best pictures without guidance (1.0); try 1.25.",
            "guidance = 1.0",
        ]
    )
    lines += [
        "",
        "# The queries: images that the model makes of a prompt and a noise, whose causes are asked for. The prompts",
        "# are captions drawn from the data, by a draw that depends on the data alone. Put your own here, before the",
        "# first run.",
    ]
    lines += query_lines(reported, held_out)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def query_lines(reported: Sequence[tuple[str, int]], held_out: Sequence[tuple[str, int]]) -> list[str]:
    """The lines of [[queries]] and [[held_out]]."""
    lines: list[str] = []
    for name, pairs in (("queries", reported), ("held_out", held_out)):
        if name == "held_out":
            lines += ["", "# Held-out queries: `bench tune` chooses settings on them; they are never reported."]
        for prompt, seed in pairs:
            lines += ["", f"[[{name}]]", f"prompt = {toml(prompt)}", f"seed = {seed}"]
    return lines


def _model_lines(dataset: Dataset, table: DataTable, model: dict[str, Any]) -> list[str]:
    if model:
        lines = [f"{name} = {toml(value)}" for name, value in model.items()]
        if model["weights"] == "fine-tune":
            moving = ["", "[fine_tuning]", "# What moves: cross-attn-kv, cross-attn, attn or all.", 'weights = "all"']
            rank = ["# The rank of LoRA; 0 moves the weights freely.", "rank = 0"]
            return [*lines, WEIGHTS_MEAN["fine-tune"], *moving, *rank]
        return [*lines, WEIGHTS_MEAN[str(model["weights"])]]
    name, tokens, why = _text(dataset)
    deep = table.size > LARGEST_SHALLOW
    return [
        "# A small U-Net on pixels"
        + (", as the study `faces` has it." if not deep else "; this size was not tried by us."),
        f"block_channels = {'[16, 32, 64]' if deep else '[16, 32]'}",
        f"cross_attention = {'[false, true, true]' if deep else '[false, true]'}",
        "attention_heads = 2",
        f"# {why}",
        f"text_encoder = {toml(name)}",
        f"num_tokens = {tokens}",
    ]


def _recipe_lines(count: int, model: dict[str, Any]) -> list[str]:
    steps = max(USUAL_STEPS, EPOCHS * count // BATCH)
    if model:
        return [
            f"num_steps = {steps}", "batch_size = 8", "num_shards = 1", "learning_rate = 1e-4",
            "caption_dropout = 0.1", "ema_decay = 0.999",
        ]  # fmt: skip
    return [
        f"# {steps} × {BATCH} samples: each image is seen {steps * BATCH / count:.0f} times; the rest as in `faces`.",
        f"num_steps = {steps}",
        f"batch_size = {BATCH}",
        "num_shards = 1",
        "learning_rate = 8e-3",
        "caption_dropout = 0.0",
        "weight_power = 0.75",
        "channels_last = true",
    ]


def table_lines(table: DataTable) -> list[str]:
    """The lines of [data], without what is as usual."""
    usual = DataTable(source="", size=0)
    return [f"{name} = {toml(value)}" for name, value in vars(table).items() if value != getattr(usual, name)]


def found_in(kind: str, dataset: Dataset, survey: Survey, size: int) -> list[str]:
    """What the data are, in lines."""
    captions = dataset.texts
    texts = (
        "no captions: every image has the empty prompt" if captions == {""} else f"{len(captions)} different captions"
    )
    bad = f", {survey.seen - len(dataset)} bad ones left out" if survey.seen > len(dataset) else ""
    return [f"{kind}: {len(dataset)} images{bad}, {texts}; {size} × {size} pixels", *survey.converted(size)]


def _training_seconds(made: Study) -> float:
    """What one training takes, by a few of its steps on one thread."""
    whole = made.dataset
    count = min(len(whole), BATCH)
    few = whole.only(range(count))
    with compute_threads(1):
        data = TrainingData.of(few, DiffusionModel(made.model))
        tuning = Tuning.on(made.fine_tuning, few) if made.fine_tuning else None
        run = TrainingRun(made.model, data, made.recipe, TrainingJob((), 0), device=torch.device("cpu"), tuning=tuning)
        run.advance()
        if run.finished:
            return 0.0
        started, steps = time.perf_counter(), min(MEASURED_STEPS, made.recipe.num_steps - 1)
        for _ in range(steps):
            run.advance()
        return (time.perf_counter() - started) / steps * made.recipe.num_steps


def _shown_path(file: Path, table: DataTable) -> str:
    return table.source if table.format == "hub" else relative(file, Path(study_file.source_of(file, table).path))


def relative(file: Path, path: Path) -> str:
    """``path`` relative to the study file where it lies below its folder, whole elsewhere; a hub id as it is."""
    if str(path).startswith(HUB):
        return str(path)
    home, there = file.resolve().parent, path.resolve()
    return os.path.relpath(there, home) if there.is_relative_to(home) else str(there)


def toml(value: object) -> str:
    """A number, text or list as TOML has it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
