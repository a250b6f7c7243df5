"""EfficientNet: cosine similarity of ImageNet features that need no model hub, the larger of both flips.

    τ(ẑ, z_i) = max over flips f of cos( φ(x̂), φ(f(x_i)) ),   φ = pooled features of EfficientNet-Lite0

No baseline of the paper: it stands in where CLIP's and DINO's weights cannot be had, as its own ship in a package.
Reference of φ: Tan & Le, 2019 (arXiv 1905.11946).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import ImageSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class Efficientnet(ImageSimilarity):
    """Similarity to an ImageNet classifier's eye."""

    name: ClassVar[str] = "efficientnet"
    summary: ClassVar[str] = "cosine similarity of EfficientNet-Lite0 features, max over flips"
    encoder: ClassVar[str] = "efficientnet"
    needs: ClassVar[str] = ENCODERS["efficientnet"].needs
