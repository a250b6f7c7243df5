"""Scores made elsewhere: a file takes a method's place, and everything after scoring is the same.

A parquet file in long form has the columns ``query``, ``image``, ``score``; an npz file has the arrays ``queries`` (Q
ids), ``images`` (N ids) and ``scores`` (Q × N). Ids are those of the study ("q00", …, and the data set's). Higher means
more influential. What the queries look like is in ``queries.safetensors`` of the results folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.errors import InvalidInput

COLUMNS = ("query", "image", "score")
ARRAYS = ("queries", "images", "scores")


@dataclass(frozen=True, kw_only=True)
class ImportedScores(Method):
    """A method that reads its scores from a file."""

    summary: ClassVar[str] = "scores made elsewhere"
    self_rank: ClassVar[str] = "the file has scores for the study's queries alone"
    path: ClassVar[Path]
    table: ClassVar[pd.DataFrame]

    def sources(self) -> dict[str, str]:
        """The file and its hash."""
        return {"scores": self.path.name, "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """The file's rows of ``queries``, its columns in the data set's order."""
        table, ids = self.table, list(context.dataset.ids)
        _expect(self.path, "images", missing=set(ids) - set(table.columns), unknown=set(table.columns) - set(ids))
        _expect(self.path, "queries", missing={query.id for query in queries} - set(table.index), unknown=set())
        return torch.from_numpy(table.loc[[query.id for query in queries], ids].to_numpy(np.float32, copy=True))


def imported(path: Path, name: str) -> type[ImportedScores]:
    """A method called ``name`` whose scores are those of the file ``path``; not registered yet."""
    namespace = {"name": name, "path": path, "table": _read(path), "__module__": f"scores of {path}"}
    return type("ImportedScores", (ImportedScores,), namespace)


def _read(path: Path) -> pd.DataFrame:
    """Scores as queries × images; raises InvalidInput where a pair is missing, double or not finite."""
    if not path.is_file():
        raise InvalidInput(f"--scores {path}: there is no such file.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                table = _of_arrays(path, {name: arrays[name] for name in arrays.files})
        elif path.suffix == ".parquet":
            table = _of_rows(path, pd.read_parquet(path))
        else:
            raise InvalidInput(f"--scores {path}: expected a .parquet or .npz file.")
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"--scores {path} cannot be read: {error}") from error
    bad = int((~np.isfinite(table.to_numpy(np.float64))).sum())
    if bad:
        raise InvalidInput(
            f"--scores {path}: {bad} scores are missing, NaN or infinite; every query needs every image."
        )
    return table


def _of_rows(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    if missing := set(COLUMNS) - set(rows.columns):
        raise InvalidInput(f"--scores {path} lacks the columns {sorted(missing)}; expected {', '.join(COLUMNS)}.")
    double = rows.duplicated(["query", "image"])
    if double.any():
        first = rows[double].iloc[0]
        raise InvalidInput(
            f"--scores {path}: {int(double.sum())} pairs of query and image come more than once, the first is "
            f"({first['query']}, {first['image']})."
        )
    return rows.pivot_table(index="query", columns="image", values="score", dropna=False)


def _of_arrays(path: Path, arrays: dict[str, np.ndarray]) -> pd.DataFrame:
    if missing := set(ARRAYS) - set(arrays):
        raise InvalidInput(f"--scores {path} lacks the arrays {sorted(missing)}; expected {', '.join(ARRAYS)}.")
    queries, images = (arrays[name].astype(str) for name in ARRAYS[:2])
    scores, expected = arrays["scores"], (len(queries), len(images))
    if scores.shape != expected:
        hint = " It is transposed." if scores.shape == expected[::-1] else ""
        raise InvalidInput(
            f"--scores {path}: scores of shape {scores.shape}; expected queries × images {expected}.{hint}"
        )
    for name, ids in (("queries", queries), ("images", images)):
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise InvalidInput(f"--scores {path}: {name} come more than once: {', '.join(values[counts > 1][:3])}.")
    return pd.DataFrame(scores, index=queries, columns=images)


def _expect(path: Path, what: str, *, missing: set[str], unknown: set[str]) -> None:
    for kind, ids in (("lacks", missing), ("has unknown", unknown)):
        if ids:
            raise InvalidInput(
                f"--scores {path} {kind} {what}: {', '.join(sorted(ids)[:3])}{' …' if len(ids) > 3 else ''} "
                f"({len(ids)} in all). Expected the ids of the study's {what}, each once."
            )
