"""The autoencoder of a latent diffusion model: images in [-1, 1] to latents and back."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import resources
from typing import Protocol, runtime_checkable

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor

from bench.diffusion.pipelines import PREFIX, folder_autoencoder

BATCH = 64


@runtime_checkable
class Autoencoder(Protocol):
    """Flips are made in pixels, before encoding.

    Attributes:
        digest: names these weights, part of the study digest.
        latent_range: samplers clip the predicted latents to ± this; 0 for no clipping.
    """

    digest: str
    latent_range: float

    def encode(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch channels rows columns"]:
        """Latents, multiplied by the autoencoder's scaling factor."""
        ...

    def decode(self, latents: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch c h w"]:
        """Images in [-1, 1]."""
        ...


class Identity:
    """Pixels are the latents."""

    digest = "identity"
    latent_range = 1.0

    def encode(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        """The images themselves."""
        return images

    def decode(self, latents: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
        """The latents, clamped to the range of images."""
        return latents.clamp(-1, 1)


class Embedded:
    """A diffusers ``AutoencoderKL`` that ships with the project; it encodes to the mean of its posterior.

    Args:
        name: of ``bench/data/<name>.safetensors`` and of its configuration ``bench/data/<name>.json``.
    """

    latent_range = 4.0

    def __init__(self, name: str) -> None:
        folder = resources.files("bench.data")
        weights = (folder / f"{name}.safetensors").read_bytes()
        configuration = json.loads((folder / f"{name}.json").read_text())
        self.digest = hashlib.sha256(weights).hexdigest()[:16]
        self.model = AutoencoderKL.from_config(configuration)
        self.model.load_state_dict(load(weights))
        self.model.eval().requires_grad_(False)
        self.scaling = float(configuration["scaling_factor"])

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch channels rows columns"]:
        """Means of the posterior, scaled to a standard deviation of about one."""
        return torch.cat([self.model.encode(part).latent_dist.mean for part in images.split(BATCH)]) * self.scaling

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch c h w"]:
        """Images, on the CPU."""
        parts = (latents.cpu() / self.scaling).split(BATCH)
        return torch.cat([self.model.decode(part).sample for part in parts]).clamp(-1, 1)


@cache
def autoencoder(name: str) -> Autoencoder:
    """The autoencoder called ``name``: "identity", one that ships with the project, or "folder:…", a user's."""
    if name.startswith(PREFIX):
        return folder_autoencoder(name.removeprefix(PREFIX))
    return Identity() if name == "identity" else Embedded(name)
