"""Generation: x̂ = G_θ(ε, c), a deterministic function of weights, initial noise and prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from bench.model import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """DDIM with η = 0 (Song et al., 2021) and classifier-free guidance (Ho & Salimans, 2022).

    Attributes:
        num_steps: denoising steps.
        guidance: ε = ε(∅) + guidance · (ε(c) − ε(∅)).
    """

    num_steps: int = 50
    guidance: float = 1.5

    @torch.no_grad()
    def sample(
        self,
        model: DiffusionModel,
        noise: Float[Tensor, "batch channels rows columns"],
        prompts: list[str],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Final latents for ``prompts`` from initial ``noise``."""
        config = model.config
        scheduler = DDIMScheduler(
            num_train_timesteps=config.num_timesteps,
            beta_start=config.beta_start,
            beta_end=config.beta_end,
            beta_schedule="linear",
            clip_sample=True,
        )
        scheduler.set_timesteps(self.num_steps)
        states = model.text_encoder.encode([*prompts, *[""] * len(prompts)]).to(model.device)
        latents = noise.to(model.device)
        for timestep in scheduler.timesteps:
            both = model.unet(torch.cat([latents, latents]), timestep, states, return_dict=False)[0]
            with_prompt, without = both.chunk(2)
            predicted = without + self.guidance * (with_prompt - without)
            latents = scheduler.step(predicted, timestep, latents).prev_sample
        return latents
