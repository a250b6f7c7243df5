"""The names of everything in a results folder. No other module spells one.

A results folder belongs to one version of one study. Each function or constant below gives the parts of a path, for
``Store.path(*parts)``; what is left out of the published folders is large or transient.

    study.json       what the study is, with its digest          queries.safetensors    the queries
    selections/      top-K ids by (method, settings, query)       observations/          what was measured, by model key
    results.parquet  one row per value; manifest.json, table.md, figures/ beside it
    subsets/, lds.*  the linear datamodeling score                attributions/, tuning/ contact sheets; held-out runs
    failures/        requests and methods that failed, with their tracebacks
    models/, checkpoints/, cache/, locks/, damaged/               large or transient: never committed
"""

from __future__ import annotations

from pathlib import Path

Parts = tuple[str, ...]

STUDY = "study.json"
QUERIES = "queries.safetensors"
ROWS = "results.parquet"
MANIFEST = "manifest.json"
TABLE = "table.md"
LDS, LDS_TABLE = "lds.parquet", "lds.md"
BOARD_PAGE, BOARD_TABLE, BOARD_CSV = "leaderboard.html", "leaderboard.md", "leaderboard.csv"
TUNING = "tuning"
"""The folder of held-out runs, which is a results folder of its own."""
NEEDED = (STUDY, ROWS, MANIFEST, QUERIES)
"""What a folder with rows must hold to be read by others."""

TENSORS = ".safetensors"
RECORD = ".json"


def model(key: str) -> Parts:
    """The weights of the model ``key``."""
    return "models", key + TENSORS


def checkpoint(key: str) -> Parts:
    """A training of the model ``key`` under way."""
    return "checkpoints", key + TENSORS


def observation(key: str) -> Parts:
    """What was observed of the model ``key``."""
    return "observations", key + TENSORS


def failure(name: str) -> Parts:
    """Why something failed, with the traceback."""
    return "failures", name + RECORD


def selection(method: str, method_digest: str, query_digest: str) -> Parts:
    """The ids that a method with its settings ranks first for a query."""
    return "selections", f"{method}-{method_digest}-{query_digest}{RECORD}"


def scores(method: str, method_digest: str, query_digest: str) -> Parts:
    """The scores of all training images."""
    return "cache", "scores", f"{method}-{method_digest}-{query_digest}{TENSORS}"


def artifact(key: str) -> Parts:
    """Tensors that methods share."""
    return "cache", key + TENSORS


def subsets(digest: str) -> Parts:
    """The random subsets of the linear datamodeling score."""
    return "subsets", digest + RECORD


def picture(name: str, suffix: str = ".png") -> Parts:
    """A figure of a run or of the board."""
    return "figures", name + suffix


def sheet(name: str, suffix: str = ".png") -> Parts:
    """The contact sheet of one prompt, and its table."""
    return "attributions", name + suffix


def lock(name: str) -> Parts:
    """The lock that is called ``name``."""
    return "locks", f"{name}.lock"


def damaged(name: str) -> Parts:
    """Where a damaged file is set aside."""
    return "damaged", name


def models(root: Path) -> list[Path]:
    """All kept weights under ``root``."""
    return sorted((root / "models").glob(f"*{TENSORS}"))


def observations(root: Path) -> list[Path]:
    """All records of observations under ``root``."""
    return sorted((root / "observations").glob(f"*{TENSORS}"))


def selections(root: Path, *, method: str = "*", method_digest: str = "*", query_digest: str = "*") -> list[Path]:
    """All records of selections under ``root`` that fit."""
    return sorted((root / "selections").glob(f"{method}-{method_digest}-{query_digest}{RECORD}"))
