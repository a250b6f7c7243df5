"""Weights of a customized Stable Diffusion, as others keep them: only tensors are read, and every key must fit.

Three kinds of file say how the U-Net of a pipeline was changed:

- **plain**: keys and values of every cross-attention by the U-Net's own names (AbC's
  ``pytorch_custom_diffusion_weights.pt``): all of them, and nothing else;
- **Custom Diffusion** of diffusers (``pytorch_custom_diffusion_weights.bin``): the same by the names of attention
  processors, ``….attn2.processor.to_k_custom_diffusion.weight``; queries and outputs may be there too;
- **LoRA** of diffusers (``pytorch_lora_weights.safetensors``): for a matrix W the factors of B A, and W + B A · α/r
  where the file has an α.

A new word V* is a file of one vector: ``{"<new1>": tensor}`` (textual inversion). PyTorch's own files are read with
``weights_only``, which refuses whatever would run code; a file with a missing or an unknown key is refused too, as the
rest of the model would go unchanged without a word.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.selections import WEIGHT_SELECTIONS
from bench.errors import InvalidInput
from bench.foundation.tensor_files import read_safetensors

PROCESSOR = re.compile(r"(?P<layer>.+\.attn2)\.processor\.(?P<part>to_[kqv]|to_out)_custom_diffusion\.(?P<rest>.+)")
FACTOR = re.compile(
    r"(?:unet\.|base_model\.model\.)?(?P<layer>.+?)\.(?:lora_(?P<new>[AB])|lora\.(?P<old>down|up))\.weight"
)
ALPHA = re.compile(r"(?:unet\.|base_model\.model\.)?(?P<layer>.+)\.alpha")
FILES = (
    "pytorch_custom_diffusion_weights.pt",
    "pytorch_custom_diffusion_weights.bin",
    "pytorch_custom_diffusion_weights.safetensors",
    "pytorch_lora_weights.safetensors",
)
"""What the file with the weights of a customized model may be called."""
WORD = re.compile(r"<[^<>\s]+>")


def weights_file(folder: Path) -> Path:
    """The file of ``folder`` with the weights; raises InvalidInput where there is none, or more than one."""
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if len(found) != 1:
        raise InvalidInput(
            f"The customized model {folder} has {len(found)} files of weights; one of these is expected: "
            f"{', '.join(FILES)}."
        )
    return found[0]


def changed_weights(file: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that ``file`` changes, by the U-Net's names.

    Args:
        file: of one of the three kinds.
        state: the weights of the U-Net that was customized.

    Raises InvalidInput for a file of another kind, with missing or unknown keys, other shapes, or no finite numbers.
    """
    found = tensors_of(file)
    if any(FACTOR.fullmatch(name) for name in found):
        changed = _low_rank(file, found, state)
    else:
        changed = _renamed(file, found)
        kv = {name for name in state if any(part in name for part in WEIGHT_SELECTIONS["cross-attn-kv"])}
        if missing := sorted(kv - changed.keys()):
            raise InvalidInput(
                f"{file} lacks {len(missing)} of the {len(kv)} keys and values of cross-attention, such as "
                f"{missing[0]}: it is the file of another model, or cut."
            )
    if unknown := sorted(changed.keys() - state.keys()):
        raise InvalidInput(
            f"{file} has {len(unknown)} weights that the U-Net does not have, such as {unknown[0]}: give the pipeline "
            "that was customized."
        )
    for name, weight in changed.items():
        if weight.shape != state[name].shape:
            raise InvalidInput(
                f"{file}: {name} is {tuple(weight.shape)}; that of the U-Net is {tuple(state[name].shape)}."
            )
        if not torch.isfinite(weight).all():
            raise InvalidInput(f"{file}: {name} holds numbers that are not finite.")
    return changed


def new_words(folder: Path) -> dict[str, Tensor]:
    """The words that were learned with a customized model, with their vectors: all textual inversions in ``folder``.

    Raises InvalidInput for a file that holds another thing than one vector under a word like "<new1>".
    """
    places = [path for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".safetensors")]
    words: dict[str, Tensor] = {}
    for place in places:
        if place.name in FILES:
            continue
        found = tensors_of(place)
        if len(found) != 1 or not WORD.fullmatch(next(iter(found))):
            raise InvalidInput(
                f"{place} is no textual inversion: one vector under a word such as '<new1>' is expected, it holds "
                f"{', '.join(sorted(found)[:3]) or 'nothing'}."
            )
        [(word, vector)] = found.items()
        if vector.squeeze().ndim != 1 or not torch.isfinite(vector).all():
            raise InvalidInput(f"{place}: '{word}' is {tuple(vector.shape)}; one vector of finite numbers is expected.")
        words[word] = vector.squeeze()
    return words


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The tensors of ``file``, in float32; empty dictionaries, as diffusers writes them for other layers, are left out.

    Raises InvalidInput where it holds anything else, or code.
    """
    if file.suffix == ".safetensors":
        return {name: value.float() for name, value in read_safetensors(file).items()}
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"{file} is refused: it holds more than tensors, which might run as code when it is read, or is damaged. "
            "Get it again, or save the tensors alone, best as safetensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise InvalidInput(
            f"{file} cannot be read as PyTorch tensors ({type(error).__name__}); get it again."
        ) from error
    if not isinstance(loaded, dict):
        raise InvalidInput(f"{file} holds a {type(loaded).__name__}; a dictionary of tensors is expected.")
    found = {name: value for name, value in loaded.items() if not (isinstance(value, dict) and not value)}
    other = [str(name) for name, value in found.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if other:
        raise InvalidInput(f"{file}: '{other[0]}' is no tensor; a dictionary of tensors is expected.")
    return {name: value.float() for name, value in found.items()}


def _renamed(file: Path, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the U-Net's names; those of attention processors are put back."""
    renamed: dict[str, Tensor] = {}
    for name, value in found.items():
        match = PROCESSOR.fullmatch(name)
        renamed[f"{match['layer']}.{match['part']}.{match['rest']}" if match else name] = value
    if not renamed:
        raise InvalidInput(f"{file} holds no tensors.")
    return renamed


def _low_rank(file: Path, found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + B A α/r for every layer of ``found``."""
    factors: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items():
        if match := FACTOR.fullmatch(name):
            which = match["new"] or {"down": "A", "up": "B"}[match["old"]]
            factors.setdefault(match["layer"], {})[which] = value
        elif match := ALPHA.fullmatch(name):
            factors.setdefault(match["layer"], {})["alpha"] = value
        else:
            raise InvalidInput(f"{file}: '{name}' is no part of a LoRA of a U-Net.")
    changed = {}
    for layer, parts in factors.items():
        weight = state.get(f"{layer}.weight")
        if weight is None or not {"A", "B"} <= parts.keys():
            raise InvalidInput(
                f"{file}: the LoRA of '{layer}' "
                + ("belongs to no layer of the U-Net." if weight is None else "has one factor of two.")
            )
        inner, outer = parts["A"].flatten(1), parts["B"].flatten(1)
        if outer.shape[1] != len(inner) or len(outer) * inner.shape[1] != weight.numel():
            raise InvalidInput(
                f"{file}: the factors {tuple(outer.shape)} and {tuple(inner.shape)} of '{layer}' do not give its "
                f"weight of {tuple(weight.shape)}."
            )
        scale = float(parts["alpha"]) / len(inner) if "alpha" in parts else 1.0
        changed[f"{layer}.weight"] = weight + scale * (outer @ inner).view_as(weight)
    return changed
