"""Scores made elsewhere: a file takes a method's place, and everything after scoring is the same.

A parquet or CSV file in long form has the columns ``query``, ``image``, ``score``; an npz file has the arrays
``queries`` (Q ids), ``images`` (N ids) and ``scores`` (Q × N). Ids are those of the study ("q00", …, and the data
set's). Higher means more influential. ``bench queries export`` writes what the queries look like, and all ids.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from jaxtyping import Float
from pyarrow import csv, parquet
from torch import Tensor

from bench.contracts import AttributionContext, Method
from bench.diffusion.queries import Query
from bench.errors import BenchError, InvalidInput

COLUMNS = ("query", "image", "score")
ARRAYS = ("queries", "images", "scores")


MOST_SCORES = 500_000_000
"""Of a file: more would not fit the memory of a usual machine."""


@dataclass(frozen=True, kw_only=True)
class ImportedScores(Method):
    """A method that reads its scores from a file."""

    summary: ClassVar[str] = "scores made elsewhere"
    self_rank: ClassVar[str] = "the file has scores for the study's queries alone"
    path: ClassVar[Path]
    sha256: ClassVar[str]
    table: ClassVar[pd.DataFrame]

    def sources(self) -> dict[str, str]:
        """The file and its hash, of the bytes that the scores were read from."""
        return {"scores": self.path.name, "sha256": self.sha256}

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Float[Tensor, "queries images"]:
        """The file's rows of ``queries``, its columns in the data set's order."""
        names, ids = [query.id for query in queries], list(context.dataset.ids)
        self.expect(ids, names)
        return torch.from_numpy(self.table.loc[names, ids].to_numpy(np.float32, copy=True))

    @classmethod
    def expect(cls, images: Collection[str], queries: Collection[str]) -> None:
        """Raise InvalidInput where the file has not a score for each of ``queries`` and ``images``, and no others."""
        table, path = cls.table, cls.path
        _expect(path, "images", missing=set(images) - set(table.columns), unknown=set(table.columns) - set(images))
        _expect(path, "queries", missing=set(queries) - set(table.index), unknown=set())
        own = table.loc[list(queries)].to_numpy()
        flat = [query for query, row in zip(queries, own, strict=True) if len(row) > 1 and (row == row[0]).all()]
        if flat:
            raise InvalidInput(
                f"--scores {path}: all images have the same score for {', '.join(flat[:3])}: no image is named."
            )


def imported(path: Path, name: str) -> type[ImportedScores]:
    """A method called ``name`` whose scores are those of the file ``path``; not registered yet."""
    table, sha256 = _read(path)
    namespace = {"name": name, "path": path, "table": table, "sha256": sha256, "__module__": f"scores of {path}"}
    return type("ImportedScores", (ImportedScores,), namespace)


def _read(path: Path) -> tuple[pd.DataFrame, str]:
    """Scores as queries × images, and the file's sha256; raises InvalidInput where it is no such file.

    A pair that is missing, double or not finite is refused too.
    """
    if not path.is_file():
        raise InvalidInput(f"--scores {path}: there is no such file.")
    readers = {".npz": _of_arrays, ".parquet": _of_parquet, ".csv": _of_csv}
    if path.suffix.lower() not in readers:
        raise InvalidInput(f"--scores {path}: expected a .parquet, .csv or .npz file.")
    try:
        content = path.read_bytes()
        table = readers[path.suffix.lower()](path, content)
        values = table.to_numpy(np.float32)
    except BenchError:
        raise
    except (Exception, MemoryError) as error:  # numpy, zipfile and pyarrow raise nearly anything
        raise InvalidInput(f"--scores {path} cannot be read: {type(error).__name__}: {error}") from error
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise InvalidInput(
            f"--scores {path}: {bad} scores are missing, NaN or infinite (as 32-bit floats); every query needs every "
            "image."
        )
    return pd.DataFrame(values, index=table.index, columns=table.columns), hashlib.sha256(content).hexdigest()


def _of_parquet(path: Path, content: bytes) -> pd.DataFrame:
    source = io.BytesIO(content)
    _check_columns(path, parquet.read_schema(source).names)
    _check_size(path, parquet.read_metadata(source).num_rows)
    return _of_rows(path, parquet.read_table(source, columns=list(COLUMNS)).to_pandas())


def _of_csv(path: Path, content: bytes) -> pd.DataFrame:
    _check_size(path, content.count(b"\n"))
    ids = dict.fromkeys(COLUMNS[:2], pa.string())  # never numbers, never missing: an id may be 007 or NA
    table = csv.read_csv(io.BytesIO(content), convert_options=csv.ConvertOptions(column_types=ids))
    _check_columns(path, table.column_names)
    return _of_rows(path, table.select(COLUMNS).to_pandas())


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if missing := set(COLUMNS) - set(names):
        raise InvalidInput(f"--scores {path} lacks the columns {sorted(missing)}; expected {', '.join(COLUMNS)}.")
    double = [name for name in COLUMNS if names.count(name) > 1]
    if double:
        raise InvalidInput(f"--scores {path} has the column {double[0]} more than once.")


def _of_rows(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        raise InvalidInput(f"--scores {path} holds no rows.")
    for name in COLUMNS[:2]:
        if rows[name].isna().any() or not rows[name].map(lambda value: isinstance(value, str)).all():
            raise InvalidInput(f"--scores {path}: the column {name} must hold ids, which are texts.")
    _check_numbers(path, rows["score"].dtype)
    pairs = rows.duplicated(["query", "image"])
    if pairs.any():
        first = rows[pairs].iloc[0]
        raise InvalidInput(
            f"--scores {path}: {int(pairs.sum())} pairs of query and image come more than once, the first is "
            f"({first['query']}, {first['image']})."
        )
    queries, images = (rows[name].astype(str) for name in COLUMNS[:2])
    expected = queries.nunique() * images.nunique()
    if expected != len(rows):
        raise InvalidInput(
            f"--scores {path}: {expected - len(rows)} scores are missing, NaN or infinite; every query needs every "
            "image."
        )
    scores = rows.assign(query=queries, image=images)
    return scores.pivot_table(index="query", columns="image", values="score", dropna=False)


def _of_arrays(path: Path, content: bytes) -> pd.DataFrame:
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        names = [name.removesuffix(".npy") for name in members.namelist()]
        if missing := set(ARRAYS) - set(names):
            raise InvalidInput(f"--scores {path} lacks the arrays {sorted(missing)}; expected {', '.join(ARRAYS)}.")
        for name in ARRAYS:
            with members.open(f"{name}.npy") as member:
                _check_size(path, _count(member))
    with np.load(io.BytesIO(content), allow_pickle=False) as kept:
        arrays = {name: kept[name] for name in ARRAYS}
    for name in ARRAYS[:2]:
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "US":
            raise InvalidInput(f"--scores {path}: the array {name} must hold ids, which are texts, in one dimension.")
    queries, images = (arrays[name].astype(str) for name in ARRAYS[:2])
    scores, expected = arrays["scores"], (len(queries), len(images))
    _check_numbers(path, scores.dtype)
    if scores.shape != expected:
        hint = " It is transposed." if scores.shape == expected[::-1] else ""
        raise InvalidInput(
            f"--scores {path}: scores of shape {scores.shape}; expected queries × images {expected}.{hint}"
        )
    if not scores.size:
        raise InvalidInput(f"--scores {path} holds no scores.")
    for name, ids in (("queries", queries), ("images", images)):
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise InvalidInput(f"--scores {path}: {name} come more than once: {', '.join(values[counts > 1][:3])}.")
    return pd.DataFrame(scores, index=queries, columns=images)


def _count(member: Any) -> int:
    """How many numbers the .npy file says that it has, before room is made for them."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return int(math.prod(read(member)[0]))


def _check_size(path: Path, count: int) -> None:
    if count > MOST_SCORES:
        raise InvalidInput(f"--scores {path} says that it holds {count} scores; at most {MOST_SCORES} are expected.")


def _check_numbers(path: Path, kind: Any) -> None:
    if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind) or np.dtype(kind).kind == "c":
        raise InvalidInput(f"--scores {path}: the scores are of type {kind}; real numbers are expected.")


def _expect(path: Path, what: str, *, missing: set[str], unknown: set[str]) -> None:
    for kind, ids in (("lacks", missing), ("has unknown", unknown)):
        if ids:
            raise InvalidInput(
                f"--scores {path} {kind} {what}: {', '.join(sorted(ids)[:3])}{' …' if len(ids) > 3 else ''} "
                f"({len(ids)} in all). Expected the ids of the study's {what}, each once."
            )
