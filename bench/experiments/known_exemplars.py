"""Rows of customized models, whose exemplars are known: from scores to ranks, the same for every source of models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bench.contracts import Method
from bench.data.dataset import Dataset
from bench.diffusion.queries import Query
from bench.experiments.evaluation import facts_of
from bench.experiments.retrieval import average_precision, recall_at_k
from bench.experiments.scoring import Scores
from bench.foundation import seeds
from bench.registry import named
from bench.report.customized import RetrievalRow

TOP = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class CustomizedOne:
    """A customized model, as far as rows tell of it.

    Attributes:
        study, study_digest: of the base.
        name, digest: of the model.
        kind: "object-centric" or "style-centric".
        split: "reported" or "held-out".
        exemplars: ids.
        dataset: the pool, the exemplars among it.
        with_word: whether V* stands in the prompts that methods see.
    """

    study: str
    study_digest: str
    name: str
    digest: str
    kind: str
    split: str
    exemplars: tuple[str, ...]
    dataset: Dataset
    with_word: bool

    def rows(self, method: Method, queries: Sequence[Query], scores: Scores) -> list[RetrievalRow]:
        """How high the exemplars stand in each query's ranking."""
        return [
            self._row(method, query, ranking(row, self.dataset, query), seconds)
            for query, row, seconds in zip(queries, scores.matrix, scores.seconds, strict=True)
        ]

    def _row(self, method: Method, query: Query, ranks: Sequence[str], seconds: float) -> RetrievalRow:
        return RetrievalRow(
            **facts_of(self.study, self.study_digest, query, method.digest, seconds),
            model=self.name,
            model_digest=self.digest,
            kind=self.kind,
            split=self.split,
            method=named(method, self.study).label,
            settings=json.dumps(method.settings(), sort_keys=True),
            with_word=self.with_word,
            exemplars=len(self.exemplars),
            pool=len(ranks),
            recall_at_10=recall_at_k(ranks, self.exemplars, TOP),
            average_precision=average_precision(ranks, self.exemplars),
            top=json.dumps(ranks[:TOP]),
        )


def ranking(scores: Float[Tensor, " images"], dataset: Dataset, query: Query) -> list[str]:
    """Ids by falling score; equals in random order, keyed by the query, as an exemplar's name must not help it."""
    shuffled = np.empty(len(dataset), np.int64)
    shuffled[dataset.by_id] = seeds.generator("ties", query.noise_key).permutation(len(dataset))
    order = np.lexsort((shuffled, -scores.double().numpy()))
    return [dataset.ids[index] for index in order]
