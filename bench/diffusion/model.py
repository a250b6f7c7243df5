"""Stage 2, the model: one kind of latent diffusion model at every scale, made of diffusers parts.

An autoencoder, a frozen text encoder, a ``UNet2DConditionModel`` and a DDPM noise schedule, of linear β and 1000 steps
where nothing else is said, with ε-prediction. The DDPM loss of an example z = (x, c) at timestep t with noise ε is (Ho
et al., 2020, eq. 14)

    L_t(z, θ) = mean over elements of ( ε − ε_θ(x_t, t, c) )²,   x_t = sqrt(ᾱ_t) x + sqrt(1 − ᾱ_t) ε

Where ``preconditioned``, the U-Net's output U enters as ε_θ = sqrt(1 − ᾱ_t) x_t + sqrt(ᾱ_t) U(x_t, t, c), in the
spirit of Karras et al. (2022): a small network need not spend its training on copying its input at high noise. With
it False, ε_θ = U, as Stable Diffusion has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.diffusion.autoencoder import Autoencoder, autoencoder
from bench.diffusion.phrases import text_encoder
from bench.diffusion.regions import Region, inside
from bench.diffusion.text import TextEncoder
from bench.foundation import seeds

LEARNED = "text_encoder.words."
"""Begins the names of learned words' vectors among the weights."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The U-Net and its surroundings.

    Attributes:
        sample_size: rows and columns of the latents.
        latent_channels: of the latents.
        block_channels: channels at each resolution, the finest first.
        cross_attention: at which of these resolutions the U-Net attends to the prompt.
        layers_per_block, attention_heads, norm_groups: of the U-Net.
        mid_block: diffusers' name of the middle block, or None for no middle block.
        preconditioned: whether the U-Net predicts what is left after an analytic share of the noise.
        num_tokens: length of the text sequence.
        autoencoder: by name, see ``bench.diffusion.autoencoder``.
        num_timesteps, beta_start, beta_end: of the linear noise schedule.
        text_encoder: by name, see ``bench.diffusion.phrases.text_encoder``.
        unet: the settings of diffusers' ``UNet2DConditionModel`` as JSON, instead of the U-Net that the attributes
            above describe; "" for that one.
        beta_schedule: "linear", or "scaled_linear" for β whose square roots are evenly spaced.
        clip_range: samplers clip the predicted latents to ± this; 0 for no clipping, None for the autoencoder's own.
    """

    sample_size: int
    latent_channels: int
    block_channels: tuple[int, ...]
    cross_attention: tuple[bool, ...]
    layers_per_block: int = 1
    attention_heads: int = 1
    norm_groups: int = 8
    mid_block: str | None = None
    preconditioned: bool = True
    num_tokens: int = 8
    autoencoder: str = "identity"
    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    text_encoder: str = "words"
    unet: str = ""
    beta_schedule: str = "linear"
    clip_range: float | None = None

    def unet_arguments(self, text_dim: int) -> dict[str, Any]:
        """Arguments of ``diffusers.UNet2DConditionModel``."""
        if self.unet:
            return dict(json.loads(self.unet))
        down = tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in self.cross_attention)
        up = tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(self.cross_attention))
        return {
            "sample_size": self.sample_size,
            "in_channels": self.latent_channels,
            "out_channels": self.latent_channels,
            "down_block_types": down,
            "mid_block_type": self.mid_block,
            "up_block_types": up,
            "block_out_channels": self.block_channels,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": text_dim,
            "attention_head_dim": self.attention_heads,  # diffusers' name for the number of heads
            "norm_num_groups": self.norm_groups,
        }


class DiffusionModel:
    """A text-to-image latent diffusion model.

    Args:
        config: of the U-Net.
        seed: of the initial weights, which are a function of it alone.
        device: where the U-Net lives.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, device: torch.device | None = None) -> None:
        self.config = config
        self.device = device or torch.device("cpu")
        self.text_encoder: TextEncoder = text_encoder(config.text_encoder, config.num_tokens)
        self.autoencoder: Autoencoder = autoencoder(config.autoencoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer("initial-weights", seed))
            self.unet = UNet2DConditionModel(**config.unet_arguments(self.text_encoder.dim))
        _silence_residuals(self.unet)
        self.unet.set_attn_processor(AttnProcessor())
        self.unet.to(self.device).eval()
        betas = _betas(config)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0).float().to(self.device)

    @property
    def clip_range(self) -> float:
        """Samplers clip the predicted latents to ± this; 0 for no clipping."""
        chosen = self.config.clip_range
        return self.autoencoder.latent_range if chosen is None else chosen

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns."""
        return (self.config.latent_channels, self.config.sample_size, self.config.sample_size)

    def noised(
        self,
        latents: Float[Tensor, "batch c h w"],
        noise: Float[Tensor, "batch c h w"],
        timesteps: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch c h w"]:
        """x_t = sqrt(ᾱ_t) x + sqrt(1 − ᾱ_t) ε."""
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise

    def predict_noise(
        self,
        noisy: Float[Tensor, "batch c h w"],
        timesteps: Int[Tensor, " batch"],
        states: Float[Tensor, "batch tokens dim"],
        *,
        unet: nn.Module | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        """ε_θ(x_t, t, c); ``unet`` stands in for the model's own."""
        output: Tensor = (self.unet if unet is None else unet)(noisy, timesteps, states, return_dict=False)[0]
        if not self.config.preconditioned:
            return output
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return (1 - alphas).sqrt() * noisy + alphas.sqrt() * output

    def losses(
        self,
        latents: Float[Tensor, "batch c h w"],
        states: Float[Tensor, "batch tokens dim"],
        timesteps: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch c h w"],
        *,
        unet: nn.Module | None = None,
        region: Region | None = None,
    ) -> Float[Tensor, " batch"]:
        """The DDPM loss of each example, a mean over its elements in ``region``, over all of them where that is None.

        ``unet`` stands in for the model's own.
        """
        errors = self.errors(latents, states, timesteps, noise, unet=unet)
        return inside(errors, region).flatten(1).mean(1)

    def errors(
        self,
        latents: Float[Tensor, "batch c h w"],
        states: Float[Tensor, "batch tokens dim"],
        timesteps: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch c h w"],
        *,
        unet: nn.Module | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        """(ε − ε_θ)², whose mean is the loss."""
        predicted = self.predict_noise(self.noised(latents, noise, timesteps), timesteps, states, unet=unet)
        return (noise - predicted).square()

    def state(self) -> dict[str, Tensor]:
        """The U-Net's weights by name, and the vectors of the words that were learned with them."""
        weights = {name: weight.detach() for name, weight in self.unet.state_dict().items()}
        return weights | {f"{LEARNED}{word}": vector for word, vector in self.text_encoder.learned.items()}

    def load(self, state: Mapping[str, Tensor]) -> DiffusionModel:
        """Take over weights and learned words; returns self."""
        words = {name.removeprefix(LEARNED): value for name, value in state.items() if name.startswith(LEARNED)}
        self.unet.load_state_dict({name: value for name, value in state.items() if not name.startswith(LEARNED)})
        if words:
            self.text_encoder = self.text_encoder.with_words(words)
        return self


def _betas(config: ModelConfig) -> Float[Tensor, " timesteps"]:
    """β of every timestep, in float64."""
    power = 0.5 if config.beta_schedule == "scaled_linear" else 1.0
    first, last = config.beta_start**power, config.beta_end**power
    return torch.linspace(first, last, config.num_timesteps, dtype=torch.float64) ** (1 / power)


def _silence_residuals(unet: nn.Module) -> None:
    """Zero the last layer of every residual branch and of the U-Net (Dhariwal & Nichol, 2021)."""
    for name, module in unet.named_modules():
        if name.rsplit(".", 1)[-1] in ("conv2", "proj_out", "conv_out"):
            assert isinstance(module, nn.Conv2d | nn.Linear)
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
