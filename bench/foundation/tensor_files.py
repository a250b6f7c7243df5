"""Tensors from files of others. Nothing is unpickled here."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.errors import InvalidInput


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of ``path``; raises InvalidInput where it is no safetensors file."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as safetensors ({error}); get it again.") from error
