"""Seeded random projection of gradients to few numbers that keep their inner products.

    φ = Rᵀ g / √d,   R of P × d independent signs (Achlioptas, 2003) or normal numbers
    E⟨φ, φ'⟩ = ⟨g, g'⟩, with a standard deviation of about ‖g‖ ‖g'‖ / √d (Johnson & Lindenstrauss, 1984)

R is made of chunks of a few million entries, each a function of (key, parameter's name, number of the chunk) alone: a
projected gradient depends neither on the batch nor on what is kept. One entry of signs is one bit, so that a matrix
of up to four billion entries is kept and reused for all batches; a larger one is drawn again, chunk by chunk, for
every batch, and never exists whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.errors import InvalidInput
from bench.foundation import seeds

EXACT, AUTO = "exact", "auto"
"""Stand for no projection, the gradients themselves (``Unprojected``); and for whichever is enough on the study
(``bench.attribution.dimensions``)."""
KINDS = ("rademacher", "normal")
CHUNK_ENTRIES = 2**22
KEPT_BYTES = 512 * 2**20

_SIGNS = torch.tensor([[1.0 if byte >> bit & 1 else -1.0 for bit in range(8)] for byte in range(256)])
"""The eight signs that a byte stands for."""


def check_projection(kind: str, dimension: int) -> None:
    """Raise InvalidInput for a projection that does not exist."""
    if kind not in (*KINDS, EXACT, AUTO):
        raise InvalidInput(f"projection='{kind}'; expected one of {', '.join((*KINDS, EXACT, AUTO))}.")
    if dimension < 1:
        raise InvalidInput(f"projection_dim={dimension}: a projection needs 1 dimension or more; 1024 is usual here.")


class Unprojected:
    """The gradients themselves, one parameter after the other: a projection that loses nothing.

    Args:
        sizes: number of weights of each parameter, by name.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.names, self.dimension = tuple(sizes), sum(sizes.values())

    def __call__(self, gradients: Mapping[str, Tensor]) -> Float[Tensor, "samples dimension"]:
        """Join gradients, for each parameter a tensor of samples × its shape."""
        return torch.cat([gradients[name].flatten(1) for name in self.names], 1)


@dataclass(frozen=True)
class _Chunk:
    """Rows ``start`` to ``stop`` of a parameter's part of R."""

    name: str
    number: int
    start: int
    stop: int


class Projection:
    """The map from gradients, parameter by parameter, to their projections.

    Args:
        sizes: number of weights of each parameter, by name.
        dimension: d.
        key: of the random numbers.
        kind: "rademacher" or "normal".
        device: where gradients are.
        kept_bytes: R is kept between batches where it is no larger; it changes the speed alone.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        dimension: int,
        *key: seeds.KeyPart,
        kind: str = "rademacher",
        device: torch.device | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        check_projection(kind, dimension)
        self.dimension, self.kind, self.key = dimension, kind, key
        self.device = device or torch.device("cpu")
        self.num_weights = sum(sizes.values())
        rows = max(1, CHUNK_ENTRIES // dimension)
        self._chunks = [
            _Chunk(name, number, start, min(start + rows, size))
            for name, size in sizes.items()
            for number, start in enumerate(range(0, size, rows))
        ]
        self._signs = _SIGNS.to(self.device)
        bytes_an_entry = 1 / 8 if kind == "rademacher" else 4
        keep = self.num_weights * dimension * bytes_an_entry <= kept_bytes
        self._kept = [self._drawn(chunk) for chunk in self._chunks] if keep else None

    def __call__(self, gradients: Mapping[str, Tensor]) -> Float[Tensor, "samples dimension"]:
        """Project gradients, for each parameter a tensor of samples × its shape."""
        flat = {name: gradient.flatten(1) for name, gradient in gradients.items()}
        found = sum(gradient.shape[1] for gradient in flat.values())
        if found != self.num_weights:
            raise InvalidInput(f"Gradients of {found} weights were given to a projection of {self.num_weights}.")
        total = torch.zeros(len(next(iter(flat.values()))), self.dimension, device=self.device)
        for index, chunk in enumerate(self._chunks):
            drawn = self._drawn(chunk) if self._kept is None else self._kept[index]
            total.addmm_(flat[chunk.name][:, chunk.start : chunk.stop], self._matrix(chunk, drawn))
        return total / math.sqrt(self.dimension)

    def _drawn(self, chunk: _Chunk) -> Tensor:
        """The random numbers of a chunk: bytes of eight signs each, or normal numbers."""
        entries = (chunk.stop - chunk.start) * self.dimension
        stream = seeds.generator("projection", self.kind, self.dimension, *self.key, chunk.name, chunk.number)
        if self.kind == "normal":
            return torch.from_numpy(stream.standard_normal(entries, dtype=np.float32)).to(self.device)
        words = stream.integers(0, 2**64, -(-entries // 64), dtype=np.uint64)
        return torch.from_numpy(words.astype("<u8").view(np.uint8)).to(self.device)

    def _matrix(self, chunk: _Chunk, drawn: Tensor) -> Float[Tensor, "rows dimension"]:
        """The chunk of R that ``drawn`` stands for."""
        rows = chunk.stop - chunk.start
        if self.kind == "normal":
            return drawn.view(rows, self.dimension)
        signs = functional.embedding(drawn.int(), self._signs).flatten()
        return signs[: rows * self.dimension].view(rows, self.dimension)
