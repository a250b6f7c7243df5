"""Generation: x̂ = G_θ(ε, c), a deterministic function of weights, initial noise and prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from bench.diffusion.model import DiffusionModel


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a sampling trajectory.

    Attributes:
        timestep: t.
        noisy: x_t, before the step.
        predicted: the clean latents x̂0 that the (guided, clipped) prediction at x_t implies.
    """

    timestep: int
    noisy: Float[Tensor, "batch channels rows columns"]
    predicted: Float[Tensor, "batch channels rows columns"]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """DDIM with η = 0 (Song et al., 2021) and classifier-free guidance (Ho & Salimans, 2022).

    Attributes:
        num_steps: denoising steps.
        guidance: ε = ε(∅) + guidance · (ε(c) − ε(∅)); 1 is the conditional model alone.
    """

    num_steps: int = 50
    guidance: float = 1.0

    def sample(
        self,
        model: DiffusionModel,
        noise: Float[Tensor, "batch channels rows columns"],
        prompts: list[str],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Final latents for ``prompts`` from initial ``noise``."""
        return self.run(model, noise, prompts, lambda step: None)

    def step_near(
        self,
        model: DiffusionModel,
        noise: Float[Tensor, "batch channels rows columns"],
        prompts: list[str],
        timestep: int,
    ) -> Step:
        """The step of the trajectory whose timestep is nearest to ``timestep``, the noisier one of two."""
        nearest: list[Step] = []

        def visit(step: Step) -> None:
            if not nearest or abs(step.timestep - timestep) < abs(nearest[0].timestep - timestep):
                nearest[:] = [step]

        self.run(model, noise, prompts, visit)
        return nearest[0]

    @torch.no_grad()
    def run(
        self,
        model: DiffusionModel,
        noise: Float[Tensor, "batch channels rows columns"],
        prompts: list[str],
        visit: Callable[[Step], None],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Final latents, showing every step of the trajectory to ``visit``."""
        config = model.config
        scheduler = DDIMScheduler(
            num_train_timesteps=config.num_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule=config.beta_schedule,
            clip_sample=model.clip_range > 0,
            clip_sample_range=model.clip_range,
        )
        scheduler.set_timesteps(self.num_steps)
        guided = self.guidance != 1
        states = model.text_encoder.encode([*prompts, *([""] * len(prompts) if guided else [])]).to(model.device)
        latents = noise.to(model.device)
        for timestep in scheduler.timesteps:
            times = timestep.expand(len(states)).to(model.device)
            predicted = model.predict_noise(torch.cat([latents, latents]) if guided else latents, times, states)
            if guided:
                with_prompt, without = predicted.chunk(2)
                predicted = without + self.guidance * (with_prompt - without)
            result = scheduler.step(predicted, timestep, latents)
            visit(Step(int(timestep), latents, result.pred_original_sample))
            latents = result.prev_sample
        return latents
