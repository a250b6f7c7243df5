"""Methods tried before anything is trained: what breaks then costs no training.

Every method is asked for all that it says of itself. One that did not come with an installed package is also asked for
scores, on two images and one query of a model that is not trained: whatever it raises, and a result of another type,
shape or dtype, would come after hours too. That a score is not finite there proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.contracts import AttributionContext, Build, Method
from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingData
from bench.errors import MethodFailed
from bench.experiments.scoring import checked_scores
from bench.foundation import border, seeds
from bench.registry import methods, named
from bench.studies import Study

NUM_IMAGES = 2
"""One would not tell a transposed matrix from a right one."""


def vet(method: Method, study: Study) -> None:
    """Raise what ``method`` raises: Unavailable where it cannot run here, MethodFailed where it is broken."""
    method.prepare()
    named(method, study.name)
    _ = method.digest, method.sources()
    if not methods.is_installed(method.name) and border.module_file(type(method)):  # else: scores made elsewhere
        try:
            checked_scores(method, *_small(study))
        except MethodFailed as error:
            if not isinstance(error.__cause__, border.NotFinite):
                raise MethodFailed(
                    f"{error} (Tried on {NUM_IMAGES} images and a model that is not trained.)"
                ) from error


def _small(study: Study) -> tuple[AttributionContext, list[Query]]:
    """What a method sees of the first images of ``study``, and one query."""
    whole, model = study.dataset, study.fresh_model()
    dataset = whole.only(range(NUM_IMAGES))
    kept: dict[str, Mapping[str, Tensor]] = {}

    def cached(key: str, build: Build) -> dict[str, Tensor]:
        if key not in kept:
            kept[key] = {name: value.detach().cpu() for name, value in build().items()}
        return dict(kept[key])

    context = AttributionContext(
        dataset=dataset,
        data=TrainingData.of(dataset, model),
        model=model,
        seed=study.seed,
        cached=cached,
        ensemble=lambda count: [model] * count,
        progress=lambda done, total: None,
    )
    noise = seeds.normal(model.latent_shape, "trial")
    [spec] = study.queries(1)
    return context, [Query(spec.id, spec.prompt, spec.seed, noise, torch.tanh(noise), study.sampler)]
