"""Resolving power of a recipe of `faces` per second of training, and whether its pictures show what prompts ask for.

Usage: python -m benchmarks.faces_recipe OUTPUT.json [--model JSON] [--recipe JSON] [--prompts N] [--randoms N]
       [--seed N] [--weights FILE]

The options replace fields of the study's ModelConfig and Recipe. It trains, with one thread, an original model, one
without the carriers of the values CARRIERS (330 images), and some without as many random images, all paired. For each
of four values a handful of queries ask for it. The loss change of a query is the mean over timesteps of its DDPM loss
under the retrained model less that under the original one. With m = the mean over queries of the loss change without
carriers and s = the root mean square of the changes without random images,

    resolving power = ( m / s )²,   per second: divided by the seconds of one training.

The pictures of held-out prompts are judged by the probe: a prompt is right if every part that it asks for is.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.data.dataset import Dataset, load_embedded
from bench.data.face_queries import asked_parts
from bench.diffusion.losses import query_losses, strided_timesteps
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query, QuerySpec, synthesize
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
from bench.foundation import seeds
from bench.foundation.machine import compute_threads
from bench.pretrained.probe import embedded_probe
from bench.studies import Study, study
from benchmarks.forward_passes import varied

CARRIERS = (("hat", "pink"), ("clothes", "pink"), ("hat", "teal"), ("hat", "purple"))
QUERIES_PER_VALUE = 3
STRIDE = 50
BATCH = 50
COLOURS = ("red", "blue", "green", "black", "yellow", "purple")


def train(the_study: Study, data: TrainingData, removed: list[int]) -> tuple[DiffusionModel, float]:
    """A model without ``removed``, and the seconds that its training took."""
    job = TrainingJob(tuple(removed), the_study.seed)
    run = TrainingRun(the_study.model, data, the_study.recipe, job, device=torch.device("cpu"))
    start = time.perf_counter()
    while not run.finished:
        run.advance()
    seconds = time.perf_counter() - start
    return DiffusionModel(the_study.model).load(run.trained_state()), seconds


def pictures(the_study: Study, model: DiffusionModel, prompts: list[str]) -> list[dict[str, str]]:
    """What the probe finds in the picture of each prompt, each from a noise of its own."""
    found = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        noise = torch.stack([seeds.normal(model.latent_shape, "query-noise", start + i) for i in range(len(part))])
        latents = the_study.sampler.sample(model, noise, part)
        found += embedded_probe().parts(model.autoencoder.decode(latents))
    return found


def share_right(the_study: Study, model: DiffusionModel, prompts: list[str]) -> tuple[float, dict[str, int]]:
    """Share of the prompts whose picture has every part asked for, and how often each part is wrong."""
    wrong: dict[str, int] = {}
    right = 0
    for prompt, face in zip(prompts, pictures(the_study, model, prompts), strict=True):
        missed = [part for part, value in asked_parts(prompt).items() if face[part] != value]
        right += not missed
        for part in missed:
            wrong[part] = wrong.get(part, 0) + 1
    return right / len(prompts), wrong


def share_swapped(the_study: Study, model: DiffusionModel, count: int) -> float:
    """Share of ``count`` prompts in which swapping the colours of hat and clothes swaps them in the picture."""
    draw = random.Random(0)
    prompts, colours = [], []
    for _ in range(count):
        one, other = draw.sample(COLOURS, 2)
        rest = f"{draw.choice(['smile', 'frown'])}, {draw.choice(['grey', 'white'])} background"
        skin = f"{draw.choice(['pale', 'tan', 'dark'])} skin, short {draw.choice(['black', 'brown', 'blond'])} hair"
        for hat, clothes in ((one, other), (other, one)):
            prompts.append(f"{skin}, {hat} hat, {clothes} clothes, {rest}")
            colours.append((hat, clothes))
    faces = pictures(the_study, model, prompts[::2]), pictures(the_study, model, prompts[1::2])
    asked = colours[::2], colours[1::2]
    good = [
        all((faces[side][i]["hat"], faces[side][i]["clothes"]) == asked[side][i] for side in (0, 1))
        for i in range(count)
    ]
    return sum(good) / count


def loss_changes(the_study: Study, before: DiffusionModel, after: DiffusionModel, queries: list[Query]) -> torch.Tensor:
    """Mean loss change of each query."""
    timesteps = list(strided_timesteps(before, STRIDE))

    def losses(model: DiffusionModel) -> torch.Tensor:
        return torch.stack([query_losses(model, query, timesteps, seed=the_study.seed).mean() for query in queries])

    return losses(after) - losses(before)


def specs_for(dataset: Dataset) -> list[QuerySpec]:
    """Queries that ask for one of the values CARRIERS, the other words from held-out captions."""
    held_out = load_embedded("faces", split="held-out")
    specs = []
    for part, value in CARRIERS:
        fitting = [i for i in held_out.carriers(part, value) if held_out.parts["glasses"][i] != "sunglasses"]
        for index in fitting[:QUERIES_PER_VALUE]:
            specs.append(QuerySpec(f"{value}-{part}-{index}", held_out.captions[index], index))
    return specs


def measure(the_study: Study, *, num_prompts: int, num_randoms: int, weights: Path | None) -> dict[str, Any]:
    """All figures of one setting."""
    dataset = the_study.dataset
    data = TrainingData.of(dataset, DiffusionModel(the_study.model))
    times = []
    if weights is not None and weights.exists():
        original = DiffusionModel(the_study.model).load(load_file(weights))
    else:
        original, seconds = train(the_study, data, [])
        times.append(seconds)
        if weights is not None:
            save_file(original.state(), weights)
    captions = list(load_embedded("faces", split="held-out").captions[:num_prompts])
    right, wrong = share_right(the_study, original, captions)
    found: dict[str, Any] = {
        "model": asdict(the_study.model),
        "recipe": asdict(the_study.recipe),
        "weights": sum(weight.numel() for weight in original.unet.parameters()),
        "seconds": times,
        "right": right,
        "wrong": wrong,
        "swapped": share_swapped(the_study, original, num_prompts // 2),
    }
    if not num_randoms:
        return found
    queries = synthesize(original, the_study.sampler, specs_for(dataset))
    carriers = [index for part, value in CARRIERS for index in dataset.carriers(part, value)]
    others = [
        seeds.generator("recipe-random", draw).choice(len(dataset), len(carriers), replace=False).tolist()
        for draw in range(num_randoms)
    ]
    changes = []
    for removed in [carriers, *others]:
        model, seconds = train(the_study, data, removed)
        found["seconds"].append(seconds)
        changes.append(loss_changes(the_study, original, model, queries))
    effect, spread = changes[0].mean(), torch.stack(changes[1:]).square().mean().sqrt()
    power = float((effect / spread) ** 2)
    mean_seconds = sum(found["seconds"]) / len(found["seconds"])
    per_query = {query.id: [round(float(change[i]), 6) for change in changes] for i, query in enumerate(queries)}
    return found | {
        "loss_changes": per_query, "effect": float(effect), "spread": float(spread),
        "power": power, "power_per_second": power / mean_seconds,
    }  # fmt: skip


def main() -> None:
    """Parse the command line, measure, and write as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=json.loads, default={}, help="fields of ModelConfig to replace, as JSON")
    parser.add_argument("--recipe", type=json.loads, default={}, help="fields of Recipe to replace, as JSON")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--randoms", type=int, default=2, help="random removals; 0 for the pictures alone")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings; removals are judged by models of seed 1")
    parser.add_argument("--weights", type=Path, help="the original model's: kept here, or taken from here")
    given = parser.parse_args()
    the_study = replace(varied(study("faces"), given.model | given.recipe), seed=given.seed)
    with compute_threads(1):
        found = measure(the_study, num_prompts=given.prompts, num_randoms=given.randoms, weights=given.weights)
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print({name: value for name, value in found.items() if name not in ("model", "recipe")})


if __name__ == "__main__":
    main()
