"""What a plugin promises: the contracts of attribution methods and metrics.

A method is one file in ``methods/``: a frozen dataclass whose fields are its settings and whose ``scores`` returns a
matrix with **queries as rows, training images as columns, higher = more influential** (law 1). A metric is one file
in ``metrics/``: what it observes of a model, and how it compares two models' observations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from bench.data.dataset import Dataset
from bench.diffusion.model import DiffusionModel
from bench.diffusion.observations import Observation
from bench.diffusion.queries import Query
from bench.diffusion.training import Training, TrainingData
from bench.errors import MethodFailed, MetricFailed, PluginFailed, Unavailable
from bench.foundation import border
from bench.foundation.digests import digest_of

Build = Callable[[], Mapping[str, Tensor]]
METHOD, FLOOR, CEILING = "method", "floor", "ceiling"
"""Roles: a floor and a ceiling do not compete; they stand beside the methods, to be compared with."""
METHOD_CALLS: Mapping[str, border.Check] = {
    "scores": border.score_matrix,
    "maps": border.score_maps,
    "unavailable": border.text_or_none,
    "sources": border.json_texts,
    "prepare": border.nothing,
    "caveat": border.text_or_none,
    "settings": border.json_texts,
}
METRIC_CALLS: Mapping[str, border.Check] = {
    "value": border.number,
    "unavailable": border.text_or_none,
    "sources": border.json_texts,
    "prepare": border.nothing,
}
"""What may be called of a plugin, and what it must give (``bench.foundation.border``)."""


@dataclass(frozen=True)
class AttributionContext:
    """What a method may see.

    Attributes:
        dataset: D.
        data: the same as latents and text states, each image as it is and mirrored.
        model: the original model θ0.
        seed: of the study, the first part of every key of randomness.
        cached: ``cached(key, build)`` returns the tensors of an artifact, built on first use. All methods share the
            cache: begin the key with what it holds ("fisher-…"), and name in it everything it depends on beyond the
            study and θ0, best as a digest.
        ensemble: ``ensemble(count)`` returns θ0 and ``count − 1`` models trained on the same data with other seeds.
        progress: ``progress(done, total)``, called now and then.
        trainings: how θ0 ("original") and the model that judges removals ("judge") are trained, to be done again; empty
            where that is not known, or a fine-tuning. A method may take checkpoints of "original", ceilings all of it.
        base: of the model that θ0 was fine-tuned from, on its own training data; None where θ0 was not. What is known
            of the data before the fine-tuning, such as the Fisher information, is taken there.
        fisher: gives the diagonal Fisher information of all weights of θ0 by name, where it was published with them;
            None where whoever needs it computes it.
    """

    dataset: Dataset
    data: TrainingData
    model: DiffusionModel
    seed: int
    cached: Callable[[str, Build], dict[str, Tensor]]
    ensemble: Callable[[int], Sequence[DiffusionModel]]
    progress: Callable[[int, int], None]
    trainings: Mapping[str, Training] = field(default_factory=dict)
    base: AttributionContext | None = None
    fisher: Callable[[], Mapping[str, Tensor]] | None = None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An attribution method τ. Subclass it as a frozen dataclass; its fields are its settings.

    Attributes:
        name: on the command line and in tables.
        summary: its definition in one line.
        version: raise it when the same settings give other scores; scores of other versions are not reused.
        needs: what it needs beyond the study, in words.
        role: METHOD, FLOOR or CEILING. Only a ceiling may read the data set's parts.
        phrase: how sentences call a floor, such as "a reader of captions"; its name where this is "".
        self_rank: why a training image given as the query need not rank itself within the top 1 %; "" where it does.
        honours_regions: whether it attributes a query in ``query.region`` alone, where there is one. The whole image
            as region must give the whole image's scores, to the bit.
        has_maps: whether it tells where in a training image its score comes from (``maps``).
        variants: named settings, such as an ablation: ``name:variant`` is a method of its own on the command line.
        added: settings that it has only had since rows were made: told where they are not at their default, so that
            older rows keep their digests.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[str] = ""
    role: ClassVar[str] = METHOD
    phrase: ClassVar[str] = ""
    self_rank: ClassVar[str] = ""
    honours_regions: ClassVar[bool] = False
    has_maps: ClassVar[bool] = False
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    added: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        border.guard(cls, Method, MethodFailed, METHOD_CALLS)

    @abstractmethod
    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """τ(ẑ, z) for every query (rows) and training image (columns); higher = more influential.

        It must not depend on which other queries are asked at the same time, nor touch global random state.
        """

    def maps(
        self, context: AttributionContext, query: Query, images: Sequence[int]
    ) -> Float[Tensor, "images rows columns"]:
        """For each of ``images`` (indices), what each latent cell of it, unmirrored, brings to its score of ``query``.

        Only of a method whose ``has_maps`` is True.
        """
        raise NotImplementedError(f"{self.name} has no maps")

    def unavailable(self) -> str:
        """Why it cannot run on this machine and how to mend that; "" where it can. Cheap: nothing is computed."""
        return ""

    def sources(self) -> dict[str, str]:
        """What it brings along that settings do not say, for the manifest and the digest: weights with their hash."""
        return {}

    def prepare(self) -> None:
        """Get what it needs, once, before it is asked for its digest or for scores: here a download may take place.

        Raises Unavailable where that fails: the method is skipped.
        """
        if why := self.unavailable():
            raise Unavailable(why)

    def caveat(self) -> str:
        """What every table must say beside its name, such as "random weights"; "" where there is nothing to say."""
        return ""

    def settings(self) -> dict[str, Any]:
        """The settings by name; of those ``added`` the ones that are not at their default."""
        plain = {each.name: each.default for each in fields(self) if each.name in self.added}
        return {name: value for name, value in asdict(self).items() if name not in plain or value != plain[name]}

    @property
    def digest(self) -> str:
        """Names this method with these settings and sources."""
        return _digest(self, MethodFailed, [self.name, self.version, self.settings(), self.sources()])


class Metric(ABC):
    """How much of its capability to make a query a retrained model lost.

    Attributes:
        name: on the command line and in tables; with whatever makes values incomparable, such as an encoder's name.
        summary: its definition in one line.
        unit: of its values.
        higher_is_better: whether a higher value means that the removed images mattered more.
        observation: what it compares.
        version: raise it when the same observations give other values; rows of different versions are never mixed.
        honours_regions: whether it compares what is in ``query.region`` alone, where there is one.
        relative_to_controls: the value is that on the query minus the mean value on control queries, whose
            prompts have nothing to do with the query's (``Study.controls``).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    observation: ClassVar[Observation]
    version: ClassVar[int] = 1
    honours_regions: ClassVar[bool] = False
    relative_to_controls: ClassVar[bool] = False

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        border.guard(cls, Metric, MetricFailed, METRIC_CALLS)

    @abstractmethod
    def value(self, query: Query, original: Tensor, retrained: Tensor) -> float:
        """Compare the observation of the original model with that of a retrained one."""

    def unavailable(self) -> str:
        """Why it cannot be computed on this machine and how to mend that; "" where it can."""
        return ""

    def prepare(self) -> None:
        """Get what it needs, once; raises Unavailable where that fails: the metric is skipped."""
        if why := self.unavailable():
            raise Unavailable(why)

    def sources(self) -> dict[str, str]:
        """What its values depend on beyond the observations: weights with their hash."""
        return {}

    @property
    def digest(self) -> str:
        """Names the evaluator: values of different digests are never compared."""
        return _digest(self, MetricFailed, [self.name, self.version, self.observation.name, self.sources()])


def _digest(plugin: Method | Metric, failure: type[PluginFailed], value: object) -> str:
    try:
        return digest_of(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise failure(
            f"The settings of '{plugin.name}' are no JSON ({error}): fields may be numbers, texts, booleans, or tuples "
            "of these, so that a result can name what produced it. Keep tensors and models out of the fields."
        ) from error
