"""Fine-tuning: a training that starts from given weights, moves a named part of them, and may learn a new word.

Customized models are made so (Custom Diffusion, arXiv 2212.04488): of each batch a share are exemplars, whose captions
hold the new word V*, and the others are images that keep the model's prior knowledge; keys and values of
cross-attention move, and the vector of V* with them. Our encoders read "V*" as the word "v".

With ``rank`` r a selected matrix W moves by a product of low rank alone, W + B A (LoRA, arXiv 2106.09685), A of r rows
drawn as in the paper and B zero at first; what is kept is the sum, a plain U-Net that every method reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.data.captions import WORD
from bench.data.source import DataSource
from bench.diffusion.model import DiffusionModel
from bench.diffusion.selections import check_selection, select_weights
from bench.errors import InvalidInput
from bench.foundation import seeds
from bench.foundation.digests import tensors_digest


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from.

    Attributes:
        digest: names them: the ledger's key of a kept model, or a digest of a file's tensors.
        file: safetensors with the names of ``DiffusionModel.state``; where it lies is not part of what they are.
    """

    digest: str
    file: Path = field(compare=False)

    @classmethod
    def of_file(cls, file: Path) -> Start:
        """The weights of a user's safetensors file; raises InvalidInput where it cannot be read."""
        return cls(tensors_digest(_tensors(file), {})[:16], file)

    def load(self, model: DiffusionModel) -> DiffusionModel:
        """Give ``model`` these weights; raises InvalidInput where they are not of its kind."""
        try:
            return model.load(_tensors(self.file))
        except RuntimeError as error:
            raise InvalidInput(
                f"The weights of {self.file} do not fit this study's U-Net: {error}. Give weights that were trained "
                "with the same model configuration."
            ) from error


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(
            f"The weights to start from cannot be read from {file} ({error}): a safetensors file is expected."
        ) from error
    return found


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a training differs from one that starts at random weights; part of the study digest.

    Attributes:
        start: the weights at the start.
        weights: which of them move (``bench.diffusion.selections``).
        rank: of LoRA, by whose products the selected matrices move; 0 to move them freely.
        word: the new word V*, as the text encoder reads it; "" for none. Its vector is learned.
        word_rate: how many times as fast as a weight the vector of V* moves.
        exemplars: ids of the images that are seen at a fixed share; () to draw all images alike.
        exemplar_share: share of each batch that are exemplars. The others are drawn from all other images.
    """

    start: Start
    weights: str = "cross-attn-kv"
    rank: int = 0
    word: str = ""
    word_rate: float = 1.0
    exemplars: tuple[str, ...] = ()
    exemplar_share: float = 0.5

    def __post_init__(self) -> None:
        check_selection(self.weights)
        if self.rank < 0 or self.word_rate <= 0 or not 0 < self.exemplar_share <= 1:
            raise InvalidInput(
                f"Fine-tuning with rank={self.rank}, word_rate={self.word_rate}, exemplar_share={self.exemplar_share}: "
                "a rank of 0 or more, a rate above 0 and a share above 0 and at most 1 are expected."
            )
        if self.word and WORD.findall(self.word.lower()) != [self.word]:
            raise InvalidInput(f"The new word '{self.word}' is none: small letters and digits are expected.")

    @property
    def parts(self) -> dict[str, Any]:
        """What a model trained this way depends on, as JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "start"}
        return {**values, "start": self.start.digest}

    def with_word(self, model: DiffusionModel) -> DiffusionModel:
        """``model`` with a vector of the word: its own where it knows it, else a random one of the usual size."""
        if self.word and self.word not in model.text_encoder.learned:
            vectors, known = model.text_encoder.vectors, model.text_encoder.words
            drawn = seeds.normal((vectors.shape[1],), "new-word", self.word) * vectors.square().mean().sqrt()
            vector = vectors[known[self.word]] if self.word in known else drawn
            model.text_encoder = model.text_encoder.with_words({self.word: vector})
        return model

    def begin(self, model: DiffusionModel) -> DiffusionModel:
        """Give ``model`` the weights of the start and the new word; returns it."""
        return self.with_word(self.start.load(model))

    def trainable(self, unet: UNet2DConditionModel) -> UNet2DConditionModel:
        """``unet``, of which only what moves asks for gradients."""
        unet.requires_grad_(False)
        for name, weight in select_weights(unet, self.weights).items():
            place, _, part = name.rpartition(".")
            if self.rank and weight.ndim > 1:
                product = LowRank(weight.flatten(1), self.rank, name)
                parametrize.register_parametrization(unet.get_submodule(place), part, product)
            elif not self.rank:
                weight.requires_grad_(True)
        return unet


class LowRank(nn.Module):
    """W + B A, with A of ``rank`` rows drawn by ``name`` and B zero at first.

    Args:
        weight: W, a matrix; a convolution's with its other axes flattened.
        rank: of the product.
        name: of the weight.
    """

    def __init__(self, weight: Float[Tensor, "rows columns"], rank: int, name: str) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = seeds.normal((rank, columns), "low-rank", name) / math.sqrt(columns)
        self.inner = nn.Parameter(drawn.to(weight.device))
        self.outer = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in use."""
        return weight + (self.outer @ self.inner).view_as(weight)


@dataclass(frozen=True)
class Tuning:
    """A fine-tuning on one data set.

    Attributes:
        how: the fine-tuning.
        exemplars: indices of its exemplars.
        texts: image → caption, of those images whose caption holds the new word.
    """

    how: FineTuning
    exemplars: tuple[int, ...]
    texts: dict[int, str]

    @classmethod
    def on(cls, how: FineTuning, source: DataSource) -> Tuning:
        """Look up the exemplars; raises InvalidInput where one is not in ``source``."""
        row = {image: index for index, image in enumerate(source.ids)}
        missing = [image for image in how.exemplars if image not in row]
        if missing:
            raise InvalidInput(
                f"{len(missing)} exemplars are not in the data set, such as '{missing[0]}': give ids of its images."
            )
        texts = {
            index: caption
            for index, caption in enumerate(source.captions)
            if how.word and how.word in WORD.findall(caption.lower())
        }
        return cls(how, tuple(row[image] for image in how.exemplars), texts)
