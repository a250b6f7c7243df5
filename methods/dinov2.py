"""DINOv2: cosine similarity of self-supervised image features, the larger of the image and its mirror image.

    τ(ẑ, z_i) = max over flips f of cos( φ(x̂), φ(f(x_i)) ),   φ = class token of DINOv2 ViT-L/14 with registers

Reference: arXiv 2406.09408, section 5.1; φ: Oquab et al., 2023 (arXiv 2304.07193), Darcet et al., 2023
(arXiv 2309.16588). Images enter at 224 pixels, see ``bench.pretrained.encoders``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import ImageSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Dinov2(ImageSimilarity):
    """Similarity to DINOv2's eye."""

    name: ClassVar[str] = "dinov2"
    summary: ClassVar[str] = "cosine similarity of DINOv2 ViT-L/14 features, max over flips"
    encoder: ClassVar[str] = "dinov2"
    needs: ClassVar[str] = ENCODERS["dinov2"].needs
