"""NDA: nonparametric data attribution, the part of each training image in the optimal score at the query's patches.

For the empirical distribution of the training images the denoiser that minimises the diffusion loss is known; its
local, translation-equivariant form (Kamb & Ganguli, 2024, arXiv 2412.20292) makes each position u of the image from
patches P_v of all training images at all positions v, which carry the weights

    w_u(i, v) = softmax over (i, v) of  − ‖P_u(x_t) − √ᾱ_t P_v(x_i)‖² / (2 (1 − ᾱ_t)),   x_t = √ᾱ_t x̂ + √(1 − ᾱ_t) ε

and NDA (Zhao et al., 2025, arXiv 2510.14269) reads the weight of an image as its influence:

    τ(ẑ, z_i) = max over flips of  mean over t and u of  Σ_s λ_s Σ_v w_u^(t,s)(i, v)

No model and no gradient is used, only the noise schedule, in the space where diffusion takes place (latents).

As in the released code: the two scales s are patches of ``patch_size`` pixels, and of ``coarse_size`` × ``coarse_size``
sums of 2×2 pixels divided by 2 (an orthogonal projection of a patch of twice the size), with λ = 1 − ``coarse_share``
and ``coarse_share``; what lies outside the image is marked, so that borders match borders; one noise draw a timestep.
Open in the paper, or ours: training images and their mirror images share one softmax, as training saw both; the mark
is a channel that is ``border`` outside and 0 inside, so that it cancels exactly where borders match; a patch for each
position at both scales; Σ_v runs over all positions (the code keeps an image's 100 largest weights of 1024); sizes
and timesteps, which the code tunes for each data set, are the ones that it names first for images of 32×32. Of a query
with a region, u runs over its cells alone; v runs over all positions, so a part may come from another place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.errors import InvalidInput
from bench.foundation import seeds
from bench.foundation.machine import parallel
from bench.registry import register_method

LOGITS_AT_ONCE = 160_000
"""Memory bound: pairs of positions in one product; small enough to stay in a processor's cache."""

NEGLIGIBLE = -80.0
"""Logits below the largest by more than this count as this; exponentials that underflow take 20 times as long."""


@register_method
@dataclass(frozen=True, kw_only=True)
class Nda(Method):
    """Nonparametric data attribution.

    Attributes:
        timesteps: noise levels over which weights are averaged.
        patch_size: rows and columns of a patch of the fine scale.
        coarse_size: the same of the coarse scale, in cells of 2×2 pixels.
        coarse_share: λ of the coarse scale, 0 for the fine scale alone.
        border: what marks the outside of the image.
    """

    name: ClassVar[str] = "nda"
    summary: ClassVar[str] = "weight of an image's patches in the optimal score at the query's patches"
    honours_regions: ClassVar[bool] = True

    timesteps: tuple[int, ...] = (100, 300)
    patch_size: int = 7
    coarse_size: int = 5
    coarse_share: float = 0.5
    border: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", tuple(self.timesteps))
        if not self.timesteps or min(self.patch_size, self.coarse_size) < 1 or not 0 <= self.coarse_share <= 1:
            raise InvalidInput(f"nda: {self}: timesteps, sizes of 1 or more and a share from 0 to 1 are expected.")

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """Shares of the query: over all images and both flips they sum to 1."""
        last = context.model.config.num_timesteps - 1
        if not all(0 < timestep <= last for timestep in self.timesteps):
            raise InvalidInput(f"nda: timesteps {self.timesteps} of this model must be from 1 to {last}.")
        scales = [(1, self.patch_size, 1 - self.coarse_share), (2, self.coarse_size, self.coarse_share)]
        rows = []
        for done, query in enumerate(queries):
            parts = [
                share * self.weights(context, query, timestep, cell, size)
                for timestep in self.timesteps
                for cell, size, share in scales
                if share > 0
            ]
            rows.append(torch.stack(parts).sum(0).amax(-1) / len(self.timesteps))
            context.progress(done + 1, len(queries))
        return torch.stack(rows).float()

    def weights(
        self, context: AttributionContext, query: Query, timestep: int, cell: int, size: int
    ) -> Float[Tensor, "images 2"]:
        """Mean over u in the query's region of Σ_v w_u(i, v), of each image and side, at one noise level and scale."""
        device, images = context.model.device, context.data.latents.flatten(0, 1)
        signal = context.model.alphas_cumprod[timestep].sqrt()
        variance = float(1 - signal.square())
        noise = seeds.normal(context.model.latent_shape, "nda", context.seed, query.noise_key, timestep).to(device)
        noisy = signal * query.latent.to(device) + variance**0.5 * noise
        asked = patches(noisy.unsqueeze(0), cell, size)[0].T
        outside = patches(torch.zeros_like(noisy[None, :1]), cell, size, around=self.border)[0].T
        mark = torch.cdist(outside, outside, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * variance)
        positions = len(asked)
        if query.region is not None:
            within = query.region.mask.flatten().to(device)
            asked, mark = asked[within], mark[within]

        def evidence(part: Tensor) -> Tensor:
            known = patches(signal * images[part].to(device), cell, size)
            bias = mark - known.square().sum(1, keepdim=True) / (2 * variance)
            queries = asked.expand(len(part), -1, -1)
            logits = torch.baddbmm(bias, queries, known, alpha=1 / variance)
            largest = logits.amax(2, keepdim=True)
            return logits.sub_(largest).clamp_(min=NEGLIGIBLE).exp_().sum(2).log() + largest.squeeze(2)

        chunks = torch.arange(len(images)).split(max(1, LOGITS_AT_ONCE // (len(asked) * positions)))
        weights = torch.cat(parallel(evidence, chunks)).double().softmax(0).mean(1)
        return weights.view(-1, 2).cpu()


def patches(
    images: Float[Tensor, "batch c h w"], cell: int, size: int, around: float = 0.0
) -> Float[Tensor, "batch values positions"]:
    """The patch around each position: size × size sums over cell × cell pixels, divided by ``cell``.

    Args:
        images: padded by ``around``.
        cell, size: the patch covers cell · size pixels a side.
    """
    before = (cell * size - 1) // 2
    after = cell * size - 1 - before
    padded = functional.pad(images, (before, after, before, after), value=around)
    cells = functional.avg_pool2d(padded, cell, stride=1) * cell
    return functional.unfold(cells, size, dilation=cell)
