"""A user's pretrained model: a folder in the layout of diffusers' ``StableDiffusionPipeline``, and CLIP text encoders.

    model_index.json    unet/   vae/   text_encoder/   tokenizer/   scheduler/scheduler_config.json

Parts are loaded by diffusers and transformers. Digests are of the loaded tensors and settings, never of names, so that
one model in two folders is one model. A network with v-prediction (Salimans & Ho, 2022, arXiv 2202.00512) needs nothing
of its own: with v = sqrt(ᾱ) ε − sqrt(1 − ᾱ) x its noise prediction is

    ε_θ = sqrt(1 − ᾱ_t) x_t + sqrt(ᾱ_t) v_θ(x_t, t, c)

which is what ``preconditioned`` says. Losses are those of the noise in either case.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from bench.errors import InvalidInput, Unavailable
from bench.foundation.digests import digest_of, tensors_digest
from bench.foundation.machine import parallel

PREFIX = "folder:"
"""Begins the name of an autoencoder or a text encoder that lies in a folder of the user's."""
HUB = "hub:"
"""Begins the name of a pipeline on the hub, "hub:owner/name"."""
HUB_FILES = (
    "model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/*", "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip
"""Of a pipeline on the hub, all that is read: a repository holds the weights in other precisions too."""
BATCH = 16
SCHEDULES = ("linear", "scaled_linear")
PLAIN = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type", "num_class_embeds")
"""Settings of a U-Net that ask for more than a prompt: they must be absent."""


class FolderAutoencoder:
    """An ``AutoencoderKL`` of the user's; it encodes to the mean of its posterior.

    Args:
        folder: of a pipeline, or of the autoencoder alone.
    """

    latent_range = 0.0  # not clipped: Stable Diffusion's samplers do not

    def __init__(self, folder: Path) -> None:
        self.model: Any = _loaded(AutoencoderKL, folder, "vae", "autoencoder")
        self.model.eval().requires_grad_(False)
        settings: Any = self.model.config
        self.scaling, self.shift = float(settings["scaling_factor"]), float(settings.get("shift_factor") or 0.0)
        self.digest = _digest(self.model, settings)
        self.factor = 2 ** (len(settings["block_out_channels"]) - 1)
        self.channels, self.pixels = int(settings["latent_channels"]), int(settings["in_channels"])

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch channels rows columns"]:
        """Means of the posterior, multiplied by the scaling factor; on the CPU."""
        means = parallel(lambda part: self._mean(part), images.split(BATCH))
        return (torch.cat(means) - self.shift) * self.scaling

    def _mean(self, images: Tensor) -> Tensor:
        with torch.no_grad():  # a thread has its own mode
            mean: Tensor = self.model.encode(images.to(self.model.device)).latent_dist.mean
        return mean.cpu()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch c h w"]:
        """Images, on the CPU; each by itself, as a batch of others may change its bits."""
        parts = (latents.to(self.model.device) / self.scaling + self.shift).split(1)
        return torch.cat([self.model.decode(part).sample for part in parts]).clamp(-1, 1).cpu()


class ClipEncoder:
    """A CLIP text encoder of the user's: the last hidden states of all tokens, padding included.

    Args:
        folder: of a pipeline, with ``text_encoder`` and ``tokenizer``, or of a CLIP model with its tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
        except ImportError as error:
            raise Unavailable(
                "A CLIP text encoder needs the package transformers: pip install 'attribution-bench[data]'."
            ) from error
        self.model: Any = _loaded(CLIPTextModel, folder, "text_encoder", "text encoder")
        self.model.eval().requires_grad_(False)
        place = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
        if not any((place / name).exists() for name in ("vocab.json", "tokenizer.json")):
            raise InvalidInput(
                f"{place} holds no tokenizer: vocab.json with merges.txt, or tokenizer.json, is expected."
            )
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(place, local_files_only=True)
        except Exception as error:
            raise InvalidInput(f"The tokenizer in {place} cannot be loaded: {_line(error)}.") from error
        settings: Any = self.model.config
        settings = getattr(settings, "text_config", settings)
        self.dim, limit = int(settings.hidden_size), int(settings.max_position_embeddings)
        self.num_tokens = min(int(self.tokenizer.model_max_length), limit)
        words = self.tokenizer.get_vocab()
        if max(words.values()) >= int(settings.vocab_size):
            raise InvalidInput(
                f"The tokenizer in {place} has the token {max(words.values())}; the text encoder beside it knows "
                f"{settings.vocab_size} tokens. They do not belong together."
            )
        self.words: dict[str, int] = {}
        self.vectors = torch.ones(1, self.dim)
        self.learned: dict[str, Tensor] = {}
        self.digest = digest_of([_digest(self.model, settings.to_dict()), sorted(words.items()), self.num_tokens])

    def with_words(self, learned: Mapping[str, Tensor]) -> ClipEncoder:
        """Not to be had: raises InvalidInput."""
        raise InvalidInput("A CLIP text encoder learns no new word here: leave word out of the fine-tuning.")

    def knowing(self, words: Mapping[str, Float[Tensor, " dim"]]) -> ClipEncoder:
        """The same encoder, which reads each of ``words`` as one token of that vector.

        Raises InvalidInput where a vector has another length, or a word is a token already.
        """
        taken = self.tokenizer.get_vocab().keys() & words.keys()
        short = [word for word, vector in words.items() if vector.shape != (self.dim,)]
        if taken or short:
            raise InvalidInput(
                f"The text encoder cannot take over '{min(taken or short)}': "
                + ("it is a token already." if taken else f"its vector must have {self.dim} numbers.")
            )
        made = copy.copy(self)
        made.model, made.tokenizer = copy.deepcopy(self.model), copy.deepcopy(self.tokenizer)
        made.tokenizer.add_tokens(sorted(words))
        table: nn.Embedding = made.model.get_input_embeddings()
        rows = made.tokenizer.convert_tokens_to_ids(sorted(words))
        grown = torch.cat([table.weight.detach(), torch.zeros(max(0, max(rows) + 1 - len(table.weight)), self.dim)])
        grown[rows] = torch.stack([words[word].to(grown) for word in sorted(words)])
        table.weight = nn.Parameter(grown, requires_grad=False)
        table.num_embeddings = len(grown)
        made.learned = dict(words)
        made.digest = f"{self.digest}+{tensors_digest(dict(words), {})[:8]}"
        return made

    def knows_learned(self, prompt: str) -> bool:
        """Whether ``prompt`` holds a word of ``learned``."""
        return any(word in prompt for word in self.learned)

    def tokens(self, prompt: str) -> list[str]:
        """The tokens of ``prompt`` that are read; what is beyond ``num_tokens`` is cut off."""
        found: list[str] = self.tokenizer.tokenize(prompt)[: self.num_tokens - 2]
        return found

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompts tokens dim"]:
        """Hidden states of ``prompts``, on the CPU; each by itself, as a batch of others may change its bits."""
        given = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.num_tokens, return_tensors="pt"
        )
        device = self.model.device
        states = [self.model(input_ids=row.to(device)).last_hidden_state.cpu() for row in given.input_ids.split(1)]
        return torch.cat(states)


def local_folder(name: str) -> Path:
    """The folder of the pipeline ``name``: a path, or "hub:owner/name", fetched into the hub's cache on first use."""
    return _fetched(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name).resolve()


@cache
def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download  # a dependency of diffusers
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except HFValidationError as error:
        raise InvalidInput(f"'{HUB}{name}' is no id of the hub: hub:owner/name is expected.") from error
    except (OSError, ValueError) as error:  # no network, no such repository, no licence accepted, …
        raise Unavailable(
            f"The pipeline {name} cannot be had from the hub ({_line(error)}). Where it is a folder, leave out '{HUB}'."
        ) from error


@cache
def folder_autoencoder(folder: str) -> FolderAutoencoder:
    """The autoencoder in ``folder``, loaded once."""
    return FolderAutoencoder(Path(folder))


@cache
def folder_text_encoder(folder: str) -> ClipEncoder:
    """The text encoder in ``folder``, loaded once."""
    return ClipEncoder(Path(folder))


@cache
def unet_state(folder: str) -> dict[str, Tensor]:
    """The weights of the U-Net of the pipeline in ``folder``, by name."""
    model: Any = _loaded(UNet2DConditionModel, Path(folder), "unet", "U-Net")
    return {name: weight.detach() for name, weight in model.state_dict().items()}


@cache
def unet_digest(folder: str) -> str:
    """Of these weights."""
    return tensors_digest(unet_state(folder), {})[:16]


def unet_file(folder: Path) -> Path:
    """The file with the weights of the U-Net of the pipeline in ``folder``; raises InvalidInput where it is not one."""
    found = sorted((folder / "unet").glob("*.safetensors"))
    if len(found) != 1:
        raise InvalidInput(
            f"{folder / 'unet'} holds {len(found)} .safetensors files; one is expected to start a fine-tuning from "
            "(`save_pretrained(…, max_shard_size='100GB')` writes one)."
        )
    return found[0]


def pipeline_settings(folder: Path) -> dict[str, Any]:
    """What ``ModelConfig`` must say for the pipeline in ``folder``, as keyword arguments.

    Raises InvalidInput for a folder of another kind, with what is wrong.
    """
    index = _json(folder / "model_index.json", f"{folder} is no pipeline folder of diffusers")
    kind = str(index.get("_class_name", ""))
    if kind != "StableDiffusionPipeline":
        raise InvalidInput(f"{folder} holds a {kind or 'model of no class'}; a StableDiffusionPipeline is expected.")
    unet = _json(folder / "unet" / "config.json", f"The pipeline {folder} has no U-Net")
    unet = {name: value for name, value in unet.items() if not name.startswith("_")}
    more = [name for name in PLAIN if unet.get(name) is not None]
    if more:
        raise InvalidInput(
            f"The U-Net of {folder} asks for more than a prompt ({', '.join(more)}), as that of SDXL does. A study's "
            "model is a Stable Diffusion 1 or 2."
        )
    known = _json(folder / "scheduler" / "scheduler_config.json", f"The pipeline {folder} has no noise schedule")
    text, images = folder_text_encoder(str(folder)), folder_autoencoder(str(folder))
    if unet.get("in_channels") != images.channels or unet.get("out_channels") != images.channels:
        raise InvalidInput(
            f"The U-Net of {folder} takes {unet.get('in_channels')} channels and gives {unet.get('out_channels')}; its "
            f"autoencoder has {images.channels}. A U-Net for inpainting or another autoencoder does not fit."
        )
    if unet.get("cross_attention_dim") != text.dim:
        raise InvalidInput(
            f"The U-Net of {folder} attends to states of {unet.get('cross_attention_dim')} numbers; its text encoder "
            f"gives {text.dim}."
        )
    size = unet.get("sample_size")
    if not isinstance(size, int) or size < 1:
        raise InvalidInput(f"The U-Net of {folder} has sample_size {size!r}: a number of rows and columns is expected.")
    return {
        "sample_size": size,
        "latent_channels": images.channels,
        "block_channels": tuple(unet.get("block_out_channels", ())),
        "cross_attention": tuple("CrossAttn" in name for name in unet.get("down_block_types", ())),
        "num_tokens": text.num_tokens,
        "autoencoder": f"{PREFIX}{folder}",
        "text_encoder": f"{PREFIX}{folder}",
        "unet": json.dumps(unet, sort_keys=True),
        **_schedule(folder, known),
    }


def _schedule(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The noise schedule, and what the U-Net predicts."""
    schedule, predicts = known.get("beta_schedule", "linear"), known.get("prediction_type", "epsilon")
    if known.get("trained_betas") is not None or schedule not in SCHEDULES:
        raise InvalidInput(
            f"The noise schedule of {folder} is '{schedule}'"
            + (" with β of its own" if known.get("trained_betas") is not None else "")
            + f"; {' or '.join(SCHEDULES)} is expected."
        )
    if predicts not in ("epsilon", "v_prediction"):
        raise InvalidInput(f"The U-Net of {folder} predicts '{predicts}'; epsilon or v_prediction is expected.")
    if known.get("rescale_betas_zero_snr"):
        raise InvalidInput(
            f"The noise schedule of {folder} ends in noise alone (rescale_betas_zero_snr), where no noise prediction "
            "tells the image: the losses of this project are those of the noise."
        )
    clipped = float(known.get("clip_sample_range", 1.0)) if known.get("clip_sample", False) else 0.0
    return {
        "num_timesteps": int(known.get("num_train_timesteps", 1000)),
        "beta_start": float(known.get("beta_start", 1e-4)),
        "beta_end": float(known.get("beta_end", 0.02)),
        "beta_schedule": schedule,
        "preconditioned": predicts == "v_prediction",
        "clip_range": clipped,
    }


def _loaded(kind: Any, folder: Path, part: str, what: str) -> nn.Module:
    """The model of class ``kind`` in ``folder/part``, or in ``folder`` where there is no such folder."""
    if not folder.is_dir():
        raise InvalidInput(f"{folder} is no folder: a pipeline folder of diffusers is expected (`save_pretrained`).")
    place = folder / part if (folder / part).is_dir() else folder
    settings = _json(place / "config.json", f"{folder} has no {what}")
    named = settings.get("_class_name") or next(iter(settings.get("architectures") or []), kind.__name__)
    if named not in (kind.__name__, "CLIPModel"):
        raise InvalidInput(f"{place} holds a {named}; a {kind.__name__} is expected.")
    files = [path for path in place.iterdir() if path.suffix in (".safetensors", ".bin") and path.stat().st_size]
    if not files:
        raise InvalidInput(f"{place} holds no weights: a .safetensors file is expected.")
    if any(
        path.read_bytes()[:40].startswith(b"version https://git-lfs") for path in files if path.stat().st_size < 1024
    ):
        raise InvalidInput(f"{place} holds pointers of Git LFS instead of weights: run `git lfs pull` there.")
    try:
        made, told = _quietly(lambda: kind.from_pretrained(place, local_files_only=True, output_loading_info=True))
    except Exception as error:  # a missing key, another shape, a cut file, …
        raise InvalidInput(f"The {what} in {place} cannot be loaded: {_line(error)}.") from error
    absent = sorted(map(str, [*told.get("missing_keys", []), *told.get("mismatched_keys", [])]))
    if absent:
        raise InvalidInput(f"The {what} in {place} lacks {len(absent)} of its weights, such as {absent[0]}.")
    model: nn.Module = made.float()
    wrong = [name for name, weight in model.state_dict().items() if not torch.isfinite(weight).all()]
    if wrong:
        raise InvalidInput(f"The {what} in {place} has weights that are no finite numbers: {', '.join(wrong[:3])}.")
    return model


def _quietly(load: Callable[[], Any]) -> Any:
    """Run ``load`` without the libraries' own lines; keys that lack or do not fit are errors."""
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    before = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    bars = of_transformers.is_progress_bar_enabled()
    of_diffusers.set_verbosity_error()
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    try:
        return load()
    finally:
        if bars:
            of_transformers.enable_progress_bar()
        of_diffusers.set_verbosity(before[0])
        of_transformers.set_verbosity(before[1])


def _digest(model: nn.Module, settings: Any) -> str:
    """Of the loaded tensors and of the settings that change what they compute."""
    plain = {name: value for name, value in dict(settings).items() if not str(name).startswith(("_", "transformers"))}
    drop = ("torch_dtype", "dtype", "architectures", "name_or_path", "id2label", "label2id")
    text = json.dumps({name: value for name, value in plain.items() if name not in drop}, sort_keys=True, default=str)
    return tensors_digest(model.state_dict(), {"settings": text})[:16]


def _json(path: Path, without: str) -> dict[str, Any]:
    """The JSON object in ``path``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(f"{without}: there is no {path}.") from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON ({_line(error)}).") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} holds no JSON object.")
    return value


def _line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]}…"
