"""What is observed of one model alone, to be compared with another's by metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.diffusion.losses import query_loss_map, query_losses
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.errors import MetricFailed
from bench.foundation import border
from bench.foundation.machine import parallel


class Observation(ABC):
    """What is measured on one model alone, for one query; kept under the model's key so that the model may go.

    It is of the whole image: a query's region is for methods and metrics.
    """

    name: str
    """With its settings, such as "query_loss@5": observations of different names are never compared."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        border.guard(cls, Observation, MetricFailed, {"observe": border.observed})

    @abstractmethod
    def observe(self, model: DiffusionModel, queries: Sequence[Query], seed: int) -> list[Tensor]:
        """One tensor for each query."""


class QueryLoss(Observation):
    """L_t(ẑ, θ) at strided timesteps, the same noise for every model (the paper, section 4: stride 5).

    Args:
        stride: between timesteps, from 0 on.
    """

    def __init__(self, stride: int = 5) -> None:
        self.stride = stride
        self.name = f"query_loss@{stride}"

    def observe(self, model: DiffusionModel, queries: Sequence[Query], seed: int) -> list[Tensor]:
        """One loss for each timestep."""
        timesteps = range(0, model.config.num_timesteps, self.stride)
        return parallel(lambda query: query_losses(model, query, timesteps, seed=seed), queries)


class QueryLossMap(Observation):
    """The same loss of each latent cell, a mean over channels and timesteps, in which any region can be looked at.

    Args:
        stride: between timesteps, from 0 on.
    """

    def __init__(self, stride: int = 5) -> None:
        self.stride = stride
        self.name = f"query_loss_map@{stride}"

    def observe(self, model: DiffusionModel, queries: Sequence[Query], seed: int) -> list[Tensor]:
        """Rows × columns for each query."""
        timesteps = range(0, model.config.num_timesteps, self.stride)
        return parallel(lambda query: query_loss_map(model, query, timesteps, seed=seed), queries)


class Regeneration(Observation):
    """The image that the model makes from the query's own noise, prompt and sampler, in [−1, 1]."""

    name = "regeneration"

    def observe(self, model: DiffusionModel, queries: Sequence[Query], seed: int) -> list[Tensor]:
        """One image (channels × height × width) for each query."""

        def regenerate(query: Query) -> Tensor:
            latent = query.sampler.sample(model, query.noise[None], [query.prompt])
            return model.autoencoder.decode(latent)[0].cpu()

        with torch.no_grad():
            return parallel(regenerate, queries)
