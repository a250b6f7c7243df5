"""Training throughput: this trainer against the plain loop that a diffusers user would write, same model and recipe.

Usage: python -m benchmarks.training [--study NAME] [--steps N] [--rounds N] [--colour]

The plain loop is that of diffusers' text-to-image training example: torch's own parallelism, diffusers' scheduler to
add noise and its EMAModel, torch's AdamW over the parameters and its gradient clipping; each step encodes its images
with the autoencoder and its captions with the text encoder. A second plain loop has latents and text states
precomputed, as this trainer has. The three take turns; the ratios of their medians are printed.
With --colour the images of ``fashion`` are padded to 16×16 pixels and three channels, and inputs are precomputed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.diffusion.model import DiffusionModel
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
from bench.foundation.machine import available_threads, compute_threads, describe, peak_memory_mib
from bench.studies import Study, study

JOB = TrainingJob((), 0)
CPU = torch.device("cpu")


def plain_loop(
    the_study: Study, data: TrainingData, steps: int, *, precomputed: bool, device: torch.device = CPU
) -> float:
    """Seconds a step of the loop of diffusers' example."""
    torch.set_num_threads(available_threads())
    model, recipe, dataset = DiffusionModel(the_study.model, device=device), the_study.recipe, the_study.dataset
    unet = model.unet.train()
    unet.set_default_attn_processor()
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=recipe.betas, weight_decay=recipe.weight_decay)
    ema = EMAModel(unet.parameters(), decay=recipe.ema_decay)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        images = torch.randint(len(data), (recipe.batch_size,))
        mirrored = torch.randint(2, (recipe.batch_size,))
        if precomputed:
            latents, states = data.latents[images, mirrored], data.states_of(images)
        else:
            pixels = dataset.pixels(images.tolist())
            with torch.no_grad():
                latents = model.autoencoder.encode(
                    torch.where(mirrored.view(-1, 1, 1, 1) == 1, pixels.flip(-1), pixels)
                )
                states = model.text_encoder.encode([dataset.captions[index] for index in images.tolist()])
        latents, states = latents.to(device), states.to(device)
        timesteps = torch.randint(1000, (recipe.batch_size,), device=device)
        noise = torch.randn_like(latents)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = model.predict_noise(noisy, timesteps, states, unet=unet)
        loss = torch.nn.functional.mse_loss(predicted, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), recipe.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def this_trainer(the_study: Study, data: TrainingData, steps: int) -> float:
    """Seconds a step of ``TrainingRun``."""
    seconds = []
    with compute_threads(available_threads()):
        run = TrainingRun(the_study.model, data, the_study.recipe, JOB, device=CPU)
        for _ in range(steps):
            started = time.perf_counter()
            run.advance()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def colourful(the_study: Study, data: TrainingData) -> tuple[Study, TrainingData]:
    """The study and its data at 16×16 pixels and three channels."""
    model = replace(the_study.model, sample_size=16, latent_channels=3)
    latents = torch.nn.functional.pad(data.latents.expand(-1, -1, 3, -1, -1), (1, 1, 1, 1))
    return replace(the_study, model=model), replace(data, latents=latents.contiguous())


def main() -> None:
    """Take turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="fashion")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--colour", action="store_true", help="16×16 pixels, three channels (with fashion)")
    given = parser.parse_args()
    the_study = study(given.study)
    data = TrainingData.of(the_study.dataset, DiffusionModel(the_study.model))
    if given.colour:
        the_study, data = colourful(the_study, data)
    rounds = []
    for _ in range(given.rounds):
        plain = plain_loop(the_study, data, given.steps, precomputed=given.colour)
        lean = plain_loop(the_study, data, given.steps, precomputed=True)
        ours = this_trainer(the_study, data, given.steps)
        rounds.append((plain / ours, lean / ours))
        print(
            f"plain loop {plain * 1e3:.0f} ms a step, precomputed {lean * 1e3:.0f} ms, this trainer {ours * 1e3:.0f} ms"
        )
    plain_ratio, lean_ratio = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"median ratios: {plain_ratio:.2f} to the plain loop, {lean_ratio:.2f} to the one with precomputed inputs")
    print(f"peak memory {peak_memory_mib():.0f} MiB; {describe()}")


if __name__ == "__main__":
    main()
