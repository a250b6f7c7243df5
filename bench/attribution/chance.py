"""Chance that a query's key decides: what puts equals in order, whatever order the images are stored in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bench.contracts import AttributionContext
from bench.diffusion.queries import Query
from bench.foundation import seeds


def tie_breaks(context: AttributionContext, query: Query, name: str) -> Float[Tensor, " images"]:
    """A number in [0, 1) for each training image (float64), keyed by ``name``, study seed, query and image id."""
    stream = seeds.generator(name, context.seed, query.id, query.prompt)
    numbers = torch.empty(len(context.dataset), dtype=torch.float64)
    numbers[context.dataset.by_id] = torch.from_numpy(stream.random(len(numbers)))
    return numbers
