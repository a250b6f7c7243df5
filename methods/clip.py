"""CLIP: cosine similarity of CLIP's image features, the larger of the image and its mirror image.

    τ(ẑ, z_i) = max over flips f of cos( φ(x̂), φ(f(x_i)) ),   φ = image embedding of CLIP ViT-B/32, OpenAI's weights

Reference: arXiv 2406.09408, section 5.1; φ: Radford et al., 2021 (arXiv 2103.00020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import ImageSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Clip(ImageSimilarity):
    """Similarity to CLIP's eye."""

    name: ClassVar[str] = "clip"
    summary: ClassVar[str] = "cosine similarity of CLIP ViT-B/32 image features, max over flips"
    encoder: ClassVar[str] = "clip"
    needs: ClassVar[str] = ENCODERS["clip"].needs
