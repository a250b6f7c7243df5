"""AbC on EfficientNet: similarity of linearly mapped features, the maps trained by this project and shipped with it.

    τ(ẑ, z_i) = max over flips f of cos( W_s P φ(x̂) + b_s, W_r P φ(f(x_i)) + b_r ),   φ = EfficientNet-Lite0

P centres φ and reduces it to 64 whitened components; W_s, b_s and W_r, b_r are trained as in Wang et al., 2023 (arXiv
2306.09345), on the held-out models of the study ``customized``, none of which is reported: ``bench train-heads`` makes
the file again (docs/customized.md). No method of the paper, which has CLIP and DINO: it stands in where their weights
cannot be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import CustomizationSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class AbcEfficientnet(CustomizationSimilarity):
    """Similarity in EfficientNet's features as customized models bend them."""

    name: ClassVar[str] = "abc_efficientnet"
    summary: ClassVar[str] = (
        "cosine similarity of linear maps of EfficientNet-Lite0 features trained on customized models"
    )
    encoder: ClassVar[str] = "efficientnet"
    needs: ClassVar[str] = ENCODERS["efficientnet"].needs
