"""The MSCOCO study of arXiv 2406.09408: its data, its U-Net of 57,373,316 parameters, its recipe, as a study file.

COCO 2017 train has 118,287 images in the order of ``captions_train2017.json``; the first caption of each is used, or
the first five, of which each draw of training takes one. The middle square becomes 128 × 128 pixels; flips are made in
pixels, before the autoencoder, which encodes to its mean times its scaling factor. The noise schedule is linear; the
predicted clean latents are clamped to [−1, 1].

Published: 200 epochs, batches of 128, learning rate 1e-4, flips, guidance 7.5. Ours, as nobody has published it: AdamW
with a cosine after a warm-up, a running average of the weights, caption dropout of 0.1, products in bfloat16 with a
compiled U-Net, deterministic sampling (DDIM) of 50 steps in place of 1000 random ones, and 110 prompts drawn from the
captions, keyed by the data.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from bench import study_file
from bench.authoring.new_study import (
    NewStudy,
    check_name,
    drawn_queries,
    found_in,
    query_lines,
    relative,
    table_lines,
    toml,
)
from bench.data import prepared
from bench.data.dataset import Dataset
from bench.data.prepared import Prepared, Survey
from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.diffusion.pipelines import PREFIX, folder_autoencoder, folder_text_encoder, local_folder
from bench.diffusion.released import CAPTIONS as RELEASED_CAPTIONS
from bench.diffusion.released import LATENTS, STATES, Release, expect_near, expect_states, import_release
from bench.errors import InvalidInput
from bench.experiments.board_cost import BATCH, BUDGETS, EPOCHS, QUERIES, ROWS, unet_settings
from bench.foundation import seeds
from bench.foundation.progress import Progress
from bench.records.store import write_whole
from bench.study_file import DataTable

HELD_OUT_QUERIES = 16
CHECKED = 8
"""Images whose released latents and text states are compared with those made here."""


def prepare_mscoco(
    file: Path,
    images: Path,
    captions: Path,
    pipeline: Path,
    *,
    skip_broken: bool = False,
    all_captions: bool = False,
    released: Path | None = None,
    weights: str = "given",
    progress: Progress | None = None,
) -> NewStudy:
    """Write the study file ``file`` and prepare the images, going on where an earlier call was interrupted.

    Raises InvalidInput with one report of all that is bad, unless that is to be skipped.

    Args:
        file: to write; its name is the study's.
        images: the folder ``train2017``.
        captions: ``captions_train2017.json``.
        pipeline: a folder with the autoencoder and the text encoder, or "hub:owner/name".
        skip_broken: whether bad images are left out.
        all_captions: whether an image has its first five captions; else it has one.
        released: the folder of what the authors released (``bench.diffusion.released``): its latents and text states
            are used, and, as ``weights`` says, its model, Fisher information and queries.
        weights: with ``released``: "given", or "fresh" for a model that the study trains itself, on its own queries.
        progress: told how far it is.
    """
    check_name(file)
    if weights != "given" and released is None:
        raise InvalidInput("--weights is of what was released: give --released FOLDER.")
    shown = progress or Progress()
    home = str(local_folder(str(pipeline)))
    coder, text = folder_autoencoder(home), folder_text_encoder(home)
    if not images.is_dir():
        raise InvalidInput(f"--images {images}: there is no such folder.")
    table = DataTable(
        source=str(images.resolve()), size=ROWS * coder.factor, format="coco", annotations=str(captions.resolve()),
        skip_broken=skip_broken, all_captions=all_captions,
    )  # fmt: skip
    source = study_file.source_of(file, table)
    survey = Survey.of(source, lambda done, total: shown.advance("look at images", done, total))
    place = str(study_file.prepared_folder(file.resolve()))
    wanted = Prepared(place=place, source=source, size=table.size, skip_broken=skip_broken)
    dataset = prepared.prepare(wanted, survey, shown.advance)
    table = replace(table, digest=dataset.digest, source=relative(file, images), annotations=relative(file, captions))
    count = len(dataset)
    steps = math.ceil(EPOCHS * count / BATCH)
    reported, held_out = drawn_queries(dataset, QUERIES, HELD_OUT_QUERIES)
    imported: list[str] = []
    if released is not None:
        imported, prompts = _imported(file, released, dataset, pipeline, weights, all_captions, shown)
        reported = [(prompt, number) for number, prompt in enumerate(prompts)]
    budgets = [k for k in BUDGETS if k < count] or [max(1, count // 30)]
    lines = [
        "# The MSCOCO study of arXiv 2406.09408, written by `bench prepare mscoco`.",
        f"name = {toml(file.stem)}",
        f"description = {toml(f'{count:,} images of COCO 2017 train, {table.size}×{table.size} pixels')}",
        f"budgets = {budgets}",
        f"num_queries = {min(16, len(reported))}",
        'metrics = ["loss_change", "regeneration_mse"]',
        "",
        "[data]",
        *table_lines(table),
        "",
        "[model]",
        f"autoencoder = {toml(PREFIX + relative(file, pipeline))}",
        f"text_encoder = {toml(PREFIX + relative(file, pipeline))}",
        f"num_tokens = {text.num_tokens}",
        "block_channels = [128, 256, 256, 256]",
        "cross_attention = [true, true, true, false]",
        f"unet = {toml(json.dumps(unet_settings(text.dim, coder.channels), sort_keys=True))}",
        "preconditioned = false",
        "clip_range = 1.0",
        *imported,
        "",
        "[recipe]",
        f"# {EPOCHS} epochs.",
        f"num_steps = {steps}",
        f"batch_size = {BATCH}",
        "num_shards = 1",
        "learning_rate = 1e-4",
        "betas = [0.95, 0.999]",
        "weight_decay = 1e-6",
        "ema_decay = 0.9999",
        "caption_dropout = 0.1",
        "# Made for a GPU, and not tried on one; a CPU does not compile. Without these lines: float32, as it is.",
        'precision = "bfloat16"',
        "compile = true",
        "",
        "[sampler]",
        "num_steps = 50",
        "guidance = 7.5",
        *query_lines(reported, held_out),
    ]
    write_whole(file, ("\n".join(lines) + "\n").encode())
    return NewStudy(file=file, found=found_in("coco", dataset, survey, table.size), seconds=float("nan"))


def _imported(
    file: Path, root: Path, dataset: Dataset, pipeline: Path, weights: str, all_captions: bool, progress: Progress
) -> tuple[list[str], list[str]]:
    """Import the release in ``root``; the lines of [released], and the prompts of its queries."""
    home = str(local_folder(str(pipeline)))
    coder, text = folder_autoencoder(home), folder_text_encoder(home)
    config = ModelConfig(
        sample_size=ROWS, latent_channels=coder.channels, block_channels=(), cross_attention=(), preconditioned=False,
        num_tokens=text.num_tokens, autoencoder=PREFIX + home, text_encoder=PREFIX + home,
        unet=json.dumps(unet_settings(text.dim, coder.channels)),
    )  # fmt: skip
    release, model = Release(root), DiffusionModel(config)
    check_release(release, dataset, model)
    made, prompts = import_release(
        study_file.released_folder(file.resolve()), release, model, len(dataset), dataset.images.shape[1],
        given=weights == "given", all_captions=all_captions, advance=progress.advance,
    )  # fmt: skip
    lines = [
        "",
        "[released]",
        "# Latents and text states of arXiv 2406.09408, imported. given: θ0 is the released model, and queries and",
        "# Fisher information are those released with it. fresh: [recipe] trains θ0, which makes its own queries.",
        f"folder = {toml(relative(file, root))}",
        f"weights = {toml(weights)}",
        f"digest = {toml(made.digest)}",
    ]
    return lines, prompts


def check_release(release: Release, dataset: Dataset, model: DiffusionModel) -> None:
    """Raise InvalidInput where the released latents and text states are not those of the images and captions at hand.

    A few images, drawn by a key, are encoded anew. What was released was drawn from the autoencoder's posterior, so it
    is near to its mean, not equal.
    """
    count, encoder = len(dataset), model.text_encoder
    if dataset.more_captions and set(map(len, dataset.more_captions)) != {RELEASED_CAPTIONS - 1}:
        raise InvalidInput(
            f"--all-captions with --released: {RELEASED_CAPTIONS} captions of every image are released, and some "
            "images have fewer in the file of --captions."
        )
    latents = torch.from_numpy(release.array(LATENTS, (2 * count, *model.latent_shape)))
    states = release.array(STATES, (count, RELEASED_CAPTIONS, encoder.num_tokens, encoder.dim))
    drawn = seeds.generator("check-release", dataset.digest).permutation(count)[:CHECKED]
    some = [int(row) for row in drawn]
    own = torch.cat([model.autoencoder.encode(dataset.pixels(some, flipped=flipped)) for flipped in (False, True)])
    expect_near(
        latents[some + [row + count for row in some]].float(), own,
        f"{release.place(LATENTS)} does not hold the latents of these images: they are in another order, not "
        "multiplied by the scaling factor, not mirrored in the second half, or the autoencoder of --model is another",
    )  # fmt: skip
    told = [[dataset.captions[row], *(dataset.more_captions[row] if dataset.more_captions else ())] for row in some]
    for row, texts in zip(some, told, strict=True):
        expect_states(release.place(STATES), torch.from_numpy(states[row, : len(texts)]), texts, model)
