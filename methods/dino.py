"""DINO: cosine similarity of self-supervised image features, the larger of the image and its mirror image.

    τ(ẑ, z_i) = max over flips f of cos( φ(x̂), φ(f(x_i)) ),   φ = class token of DINO ViT-B/16

Reference: arXiv 2406.09408, section 5.1; φ: Caron et al., 2021 (arXiv 2104.14294).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import ImageSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Dino(ImageSimilarity):
    """Similarity to DINO's eye."""

    name: ClassVar[str] = "dino"
    summary: ClassVar[str] = "cosine similarity of DINO ViT-B/16 features, max over flips"
    encoder: ClassVar[str] = "dino"
    needs: ClassVar[str] = ENCODERS["dino"].needs
