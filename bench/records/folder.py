"""The names of everything in a results folder. No other module spells one.

A results folder belongs to one version of one study. Each function or constant below gives the parts of a path, for
``Store.path(*parts)``; what is left out of the published folders is large or transient.

    study.json       what the study is, with its digest          queries.safetensors    the queries
    selections/      top-K ids by (method, settings, query)       observations/          what was measured, by model key
    results.parquet  one row per value; manifest.json, table.md, figures/ beside it
    subsets/, lds.*  the linear datamodeling score                attributions/, tuning/ contact sheets; held-out runs
    localized.*      what was attributed and measured in boxes    forgetting.*           what unlearning itself forgets
    reliability.*    what two scorings have in common             retrieval.parquet      ranks of known exemplars
    groups.*         whole groups left out, and their scores      projection.*           what random projections cost
    customized/      a results folder for each customized model, with pools/ for what is kept of smaller pools
    failures/        requests and methods that failed, with their tracebacks
    submissions/     of a board: what was sent in, each a results folder with a submission.json
    digests.json     sha256 of files that do not carry their own
    models/, checkpoints/, cache/, locks/, damaged/               large or transient: never committed
    work/, logs/     what workers elsewhere are to train, and what a cluster's jobs print: never committed
"""

from __future__ import annotations

import re
from pathlib import Path

Parts = tuple[str, ...]
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@=+,-]{0,199}")
"""What tensors that methods share may be called: it stands in a path."""

STUDY = "study.json"
QUERIES = "queries.safetensors"
ROWS = "results.parquet"
MANIFEST = "manifest.json"
TABLE = "table.md"
RETRIEVAL = "retrieval.parquet"
"""How high the exemplars of customized models stand."""
LDS, LDS_TABLE = "lds.parquet", "lds.md"
LOCALIZED, LOCALIZED_TABLE, LOCALIZED_MANIFEST = "localized.parquet", "localized.md", "localized.json"
RELIABILITY, RELIABILITY_TABLE = "reliability.parquet", "reliability.md"
FORGETTING, FORGETTING_TABLE = "forgetting.parquet", "forgetting.md"
GROUPS, GROUPS_TABLE = "groups.parquet", "groups.md"
PROJECTION, PROJECTION_TABLE = "projection.parquet", "projection.md"
BOARD_PAGE, BOARD_TABLE, BOARD_CSV = "leaderboard.html", "leaderboard.md", "leaderboard.csv"
DIGESTS = "digests.json"
INDEX = "index.json"
"""The record of an encoded data set, in its folder."""
SUBMISSION, SUBMISSIONS = "submission.json", "submissions"
"""What a submission says of itself; the folder of a board's submissions, each of which is a results folder."""
TUNING = "tuning"
"""The folder of held-out runs, which is a results folder of its own."""
NEEDED = (STUDY, ROWS, MANIFEST, QUERIES)
"""What a folder with rows must hold to be read by others."""

ENCODED = "encoded-"
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


def again() -> Parts:
    """The folder of second scorings, which is a results folder of its own."""
    return "cache", "again"


def encoded(digest: str) -> Parts:
    """The folder of the encoded data set."""
    return "cache", ENCODED + digest


def subsets(digest: str) -> Parts:
    """The random subsets of the linear datamodeling score."""
    return "subsets", digest + RECORD


def picture(name: str, suffix: str = ".png") -> Parts:
    """A figure of a run or of the board."""
    return "figures", name + suffix


def sheet(name: str, suffix: str = ".png") -> Parts:
    """The contact sheet of one prompt, and its table."""
    return "attributions", name + suffix


def customized(root: Path, name: str) -> Path:
    """The results folder of the customized model ``name``, in that of its base model."""
    return root / "customized" / name


def pool(root: Path, distractors: int) -> Path:
    """Of a customized model's folder: what methods gave for its exemplars among so many distractors alone."""
    return root / "pools" / str(distractors)


def lock(name: str) -> Parts:
    """The lock that is called ``name``."""
    return "locks", f"{name}.claim"


def plan(name: str) -> Parts:
    """The requests of one run that are to be fulfilled, for workers elsewhere."""
    return "work", name + RECORD


def plans(root: Path) -> list[Path]:
    """All such plans under ``root``."""
    return sorted((root / "work").glob(f"*{RECORD}"))


def logs() -> Parts:
    """Where a cluster's jobs write what they print."""
    return ("logs",)


def damaged(name: str) -> Parts:
    """Where a damaged file is set aside."""
    return "damaged", name


def places(root: Path) -> list[Path]:
    """The folders of a results folder that hold files."""
    kinds = (
        "models",
        "checkpoints",
        "observations",
        "selections",
        "failures",
        "subsets",
        "figures",
        "attributions",
        "work",
    )
    return [root, root / "cache", root / "cache" / "scores", root / TUNING, *(root / kind for kind in kinds)]


def models(root: Path) -> list[Path]:
    """All kept weights under ``root``."""
    return sorted((root / "models").glob(f"*{TENSORS}"))


def observations(root: Path) -> list[Path]:
    """All records of observations under ``root``."""
    return sorted((root / "observations").glob(f"*{TENSORS}"))


def failures(root: Path) -> list[Path]:
    """All records of failures under ``root``."""
    return sorted((root / "failures").glob(f"*{RECORD}"))


def selections(root: Path, *, method: str = "*", method_digest: str = "*", query_digest: str = "*") -> list[Path]:
    """All records of selections under ``root`` that fit."""
    return sorted((root / "selections").glob(f"{method}-{method_digest}-{query_digest}{RECORD}"))


OF_THE_FOLDER = (
    STUDY, QUERIES, ROWS, RETRIEVAL, MANIFEST, LDS, LOCALIZED, LOCALIZED_MANIFEST, RELIABILITY, FORGETTING, GROUPS,
    PROJECTION, DIGESTS, SUBMISSION,
)  # fmt: skip
COSTS = {
    "models": ("the weights of one model; what was observed of it stays", "it is trained again when they are needed"),
    "checkpoints": ("the steps of one training under way", "the training begins anew"),
    "observations": ("what was observed of one model", "the same run observes it again, trained anew if need be"),
    "selections": ("the top K of one method for one query", "the same run takes them from the scores, or scores again"),
    "failures": ("the reason of one failure", "nothing: the same run tries again"),
    "subsets": ("the record of which random halves were drawn", "`bench lds` writes it again"),
    "work": ("the list of what workers are to train", "the same run writes it again"),
    "cache": ("time", "whoever needs it builds it again"),
    "scores": ("the scores of one method for one query", "the same run scores again"),
    STUDY: ("the record of which study the folder belongs to", "the next run writes it; see that --study is the same"),
    QUERIES: ("the queries", "the next run makes them again: elsewhere with other bits and keys"),
    ROWS: ("the rows of all runs", "the commands named in manifest.json write theirs again from observations/"),
    RETRIEVAL: ("the rows of customized models", "the same command writes them again from the kept scores"),
    MANIFEST: ("the record of what produced the rows", "each run's command writes its part again"),
    LDS: ("the linear datamodeling scores", "`bench lds` writes them again from observations/"),
    LOCALIZED: ("what was measured in boxes", "`bench localized`, `bench run --box` write it again from observations/"),
    LOCALIZED_MANIFEST: ("the record of what produced the values in boxes", "each command writes its part again"),
    RELIABILITY: ("what two scorings have in common", "`bench reliability` writes it again"),
    FORGETTING: ("what unlearning forgets", "`bench forgetting` writes it again"),
    GROUPS: ("the scores of whole groups", "`bench groups` writes them again from observations/ and kept scores"),
    PROJECTION: ("how projections agree with none", "`bench projection` writes it again"),
    SUBMISSION: ("the list of what was sent in", "`bench submit` writes it again, from the run's folder"),
    DIGESTS: ("the digests of files without their own", "restore it, or `bench doctor --seal`"),
}  # fmt: skip
"""What damage of each kind of artifact costs, and how it heals."""
MADE_ANEW = ("nothing that is not in the rows", "`bench run` or `bench leaderboard` draws it again")


def kind(path: Path) -> str:
    """The kind of artifact that ``path`` is, a key of COSTS; "" for pages, tables and pictures."""
    if path.name in OF_THE_FOLDER:
        return path.name
    return path.parent.name if path.parent.name in COSTS else ""


def identity(path: Path) -> str:
    """Who the artifact at ``path`` is: kind and key. It does not depend on where the results folder lies."""
    is_single = kind(path) in ("", path.name) and path.name != INDEX
    return path.name if is_single else f"{path.parent.name}/{path.name}"


def cost(path: Path) -> str:
    """What the damage of ``path`` costs and how it heals, in a sentence."""
    lost, heals = COSTS.get(kind(path), MADE_ANEW)
    return f"It costs {lost}; {heals}."
