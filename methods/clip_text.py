"""CLIP text: cosine similarity of CLIP's text features of the query's prompt and the training captions.

    τ(ẑ, z_i) = cos( φ(c), φ(c_i) ),   φ = text embedding of CLIP ViT-B/32, OpenAI's weights

The generated image plays no part, and images of equal captions tie. Reference: arXiv 2406.09408, section 5.1; φ:
Radford et al., 2021 (arXiv 2103.00020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import SAME_CAPTION, TextSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class ClipText(TextSimilarity):
    """Similarity of prompt and caption to CLIP."""

    name: ClassVar[str] = "clip_text"
    summary: ClassVar[str] = "cosine similarity of CLIP ViT-B/32 text features of prompt and caption"
    encoder: ClassVar[str] = "clip"
    needs: ClassVar[str] = ENCODERS["clip"].needs
    self_rank: ClassVar[str] = SAME_CAPTION
