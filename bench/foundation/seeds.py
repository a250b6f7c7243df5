"""Keyed randomness (law 2): every random number is a function of what it is for, never of when it is drawn.

A key is a tuple such as ``("score-noise", study_seed, image_id, flipped, timestep)``. It is hashed with BLAKE2b to
the 128-bit key of a Philox counter-based generator (Salmon et al., 2011), so that equal keys give equal numbers in
any order, batch, shard, process, and on any device: the numbers are drawn on the CPU and moved.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

KeyPart = str | int | bool


def generator(*key: KeyPart) -> np.random.Generator:
    """The random generator that belongs to ``key``."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal(shape: tuple[int, ...], *key: KeyPart) -> Float[Tensor, ...]:
    """Standard normal float32 numbers of ``shape``, a function of ``key`` alone."""
    return torch.from_numpy(generator(*key).standard_normal(shape, dtype=np.float32))


def integer(*key: KeyPart) -> int:
    """A 63-bit integer that belongs to ``key``, to seed a library's own generator."""
    return int(generator(*key).integers(0, 2**63 - 1))
