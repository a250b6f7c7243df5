"""AbC on CLIP: similarity of linearly mapped CLIP features, the maps trained on customized models.

    τ(ẑ, z_i) = max over flips f of cos( W_s φ(x̂) + b_s, W_r φ(f(x_i)) + b_r ),   φ = image embedding of CLIP ViT-B/32

W_s, b_s are the checkpoint's ``synth_mapper``, W_r, b_r its ``real_mapper``; φ enters unnormalised. Reference: Wang et
al., 2023 (arXiv 2306.09345), as a baseline in arXiv 2406.09408, section 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import CustomizationSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class AbcClip(CustomizationSimilarity):
    """Similarity in CLIP's features as customized models bend them."""

    name: ClassVar[str] = "abc_clip"
    summary: ClassVar[str] = "cosine similarity of AbC's linear maps of CLIP ViT-B/32 features, max over flips"
    encoder: ClassVar[str] = "clip"
    needs: ClassVar[str] = f"{ENCODERS['clip'].needs}, AbC's heads"
