"""MiniLM text: cosine similarity of sentence embeddings of the query's prompt and the training captions.

    τ(ẑ, z_i) = cos( φ(c), φ(c_i) ),   φ = mean over tokens of the last states of all-MiniLM-L6-v2

No baseline of the paper: it stands beside ``clip_text`` where CLIP's weights cannot be had, as its own come in a
package.
Reference of φ: Reimers & Gurevych, 2019 (arXiv 1908.10084); Wang et al., 2020 (arXiv 2002.10957).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.attribution.features import SAME_CAPTION, TextSimilarity
from bench.pretrained.encoders import ENCODERS
from bench.registry import register_method


@register_method
@dataclass(frozen=True, kw_only=True)
class MinilmText(TextSimilarity):
    """Similarity of prompt and caption to a sentence encoder."""

    name: ClassVar[str] = "minilm_text"
    summary: ClassVar[str] = "cosine similarity of MiniLM sentence embeddings of prompt and caption"
    encoder: ClassVar[str] = "minilm_text"
    needs: ClassVar[str] = ENCODERS["minilm_text"].needs
    self_rank: ClassVar[str] = SAME_CAPTION
