"""Stage 3, the queries: synthesized images ẑ = (x̂, c) with everything that made them.

A query remembers its prompt, seed, initial noise, sampler settings and final latent, so that another model's
regeneration from the same noise differs in the weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from bench.diffusion.model import DiffusionModel
from bench.diffusion.regions import Region
from bench.diffusion.sampling import Sampler
from bench.foundation import seeds
from bench.foundation.digests import digest_of, tensors_digest
from bench.foundation.machine import parallel
from bench.records import folder
from bench.records.store import Store


@dataclass(frozen=True, eq=False)
class Query:
    """One synthesized image.

    Attributes:
        id: such as "q03" (reported), "held-out-01" (for tuning) or "free-5" (a prompt of the user's).
        prompt: c, seed: of the initial noise.
        noise: ε, channels × rows × columns.
        latent: the final latent, channels × rows × columns.
        sampler: that made it.
        region: where alone it is attributed (``bench.diffusion.regions``); None for the whole image.
        image_digest: of all of these but the region; part of the key of everything that is observed of the image.
        digest: of all of these; part of the key of everything that is computed from the query. The same as
            ``image_digest`` where there is no region.
        noise_key: of the noise of everything that is computed from the query. Not of the latent, whose last bits
            are the machine's: the same query gets the same noise everywhere, and so it does in every region.
    """

    id: str
    prompt: str
    seed: int
    noise: Float[Tensor, "channels rows columns"]
    latent: Float[Tensor, "channels rows columns"]
    sampler: Sampler
    region: Region | None = None
    image_digest: str = field(init=False)
    digest: str = field(init=False)
    noise_key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_key", digest_of([self.prompt, self.seed, asdict(self.sampler)]))
        metadata = {"noise_key": self.noise_key}
        tensors = {"noise": self.noise, "latent": self.latent}
        object.__setattr__(self, "image_digest", tensors_digest(tensors, metadata)[:16])
        part = self.region and digest_of([self.image_digest, self.region.box, self.region.cells])
        object.__setattr__(self, "digest", part or self.image_digest)

    def within(self, region: Region | None) -> Query:
        """The same query, attributed in ``region`` alone."""
        return replace(self, region=region)

    def observed_as(self, observation: str) -> str:
        """The name under which ``observation`` of this query is kept among what was observed of a model.

        What is observed is the whole image, whatever the region.
        """
        return f"{self.image_digest}.{observation}"


@dataclass(frozen=True)
class QuerySpec:
    """A query before it is synthesized."""

    id: str
    prompt: str
    seed: int


def synthesize(model: DiffusionModel, sampler: Sampler, specs: Sequence[QuerySpec]) -> list[Query]:
    """Generate the image of each spec with the original model, each by itself: a batch of others changes its bits."""

    def make(spec: QuerySpec) -> Query:
        noise = seeds.normal(model.latent_shape, "query-noise", spec.seed)
        latent = sampler.sample(model, noise[None], [spec.prompt])[0].cpu().clone()
        return Query(spec.id, spec.prompt, spec.seed, noise, latent, sampler)

    return parallel(make, specs)


def load_queries(store: Store) -> dict[str, Query]:
    """The queries kept in the results folder, by id."""
    found = store.tensors(folder.QUERIES)
    if found is None:
        return {}
    tensors, metadata = found
    facts = json.loads(metadata["queries"])
    return {
        name: Query(
            name,
            fact["prompt"],
            fact["seed"],
            tensors[f"{name}.noise"],
            tensors[f"{name}.latent"],
            Sampler(**fact["sampler"]),
        )
        for name, fact in facts.items()
    }


def save_queries(store: Store, queries: dict[str, Query]) -> None:
    """Keep ``queries`` in the results folder."""
    tensors: dict[str, Tensor] = {}
    for name, query in queries.items():
        tensors[f"{name}.noise"], tensors[f"{name}.latent"] = query.noise, query.latent
    facts = {
        name: {"prompt": query.prompt, "seed": query.seed, "sampler": asdict(query.sampler)}
        for name, query in queries.items()
    }
    store.write_tensors((folder.QUERIES,), tensors, queries=json.dumps(facts, sort_keys=True))
