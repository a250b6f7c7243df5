"""A hidden set: queries that are fixed before a season begins, and known when it is over.

What is published first is a hash of the queries and a salt (a commitment): it says nothing of them, and no others fit
it. After the closing date the secret is published, and anybody can see that it fits.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.diffusion.phrases import text_encoder
from bench.errors import InvalidInput
from bench.experiments.experiment import LARGEST_SEED
from bench.records.store import write_whole
from bench.report.shown import Report, Table
from bench.studies import STUDIES, Study, study

COLUMNS = ("prompt", "seed")


@dataclass(frozen=True, kw_only=True)
class Season(Report):
    """A season whose commitment was made, or was found to fit.

    Attributes:
        study: with the hidden queries in place of its own; of the same digest, so the same models.
        budgets: the K of the season.
        closes: last day on which methods are taken.
        commitment: sha256 of all of these and the salt.
        files: that hold it.
    """

    study: Study
    budgets: Sequence[int]
    closes: str
    commitment: str
    files: Sequence[Path]

    def tables(self) -> list[Table]:
        """None: whoever commits must not see the queries scroll by on a shared screen."""
        return []

    def notes(self) -> list[str]:
        """What was committed to."""
        return [
            f"{len(self.study.prompts)} hidden queries of '{self.study.name}', version {self.study.digest}, K = "
            f"{', '.join(map(str, self.budgets))}, open until {self.closes}",
            f"commitment {self.commitment}",
            *(f"in {path}" for path in self.files),
        ]


def commit(name: str, queries: Path, public: Path, secret: Path, closes: str) -> Season:
    """Fix the queries of the CSV file ``queries`` (columns prompt, seed) for a season of the study ``name``.

    Writes the commitment to ``public``, and what it is of to ``secret``. Raises InvalidInput where a query is not one
    that the study can make, is public already or comes twice, where ``closes`` is no date, or where a file exists.
    """
    for path in (public, secret):
        if path.exists():
            raise InvalidInput(f"{path} exists already: a season is committed to once.")
    try:
        datetime.date.fromisoformat(closes)
    except ValueError as error:
        raise InvalidInput(f"--closes {closes}: a date such as 2027-06-30 is expected.") from error
    the_study = study(name)
    chosen = _read(queries, the_study)
    promised = {
        "study": the_study.name,
        "study_digest": the_study.digest,
        "budgets": list(the_study.budgets),
        "closes": closes,
    }
    hidden = {"salt": secrets.token_hex(32), "queries": [list(query) for query in chosen]}
    commitment = _hash(promised, hidden)
    _write(secret, hidden)
    _write(public, promised | {"commitment": commitment})
    return _season(the_study, promised, hidden, commitment, [public, secret])


def reveal(public: Path, secret: Path, own: Study | None = None) -> Season:
    """The season of ``public``, whose queries ``secret`` tells; raises InvalidInput where they are not those.

    ``own`` is the study where it is a user's own.
    """
    promised, hidden = _record(public), _record(secret)
    commitment = promised.pop("commitment", None)
    if _hash(promised, hidden) != commitment:
        raise InvalidInput(f"{secret} does not fit the commitment of {public}: one of them was changed.")
    if own is None and promised["study"] not in STUDIES:
        raise InvalidInput(
            f"{public} is of study '{promised['study']}', which does not ship with the project: name its file with "
            "--study."
        )
    the_study = own or study(promised["study"])
    if the_study.digest != promised["study_digest"]:
        raise InvalidInput(
            f"The season is of version {promised['study_digest']} of study '{the_study.name}'; this code makes version "
            f"{the_study.digest}."
        )
    return _season(the_study, promised, hidden, str(commitment), [public, secret])


def _season(
    the_study: Study, promised: dict[str, Any], hidden: dict[str, Any], commitment: str, files: Sequence[Path]
) -> Season:
    prompts, chosen = zip(*hidden["queries"], strict=True)
    asked = replace(the_study, prompts=tuple(prompts), prompt_seeds=tuple(chosen), num_queries=len(prompts))
    return Season(
        study=asked, budgets=promised["budgets"], closes=promised["closes"], commitment=commitment, files=files
    )


def _read(path: Path, the_study: Study) -> list[tuple[str, int]]:
    """The prompts and seeds of a CSV file."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig")))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"--queries {path} cannot be read: {error}.") from error
    if not rows or not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise InvalidInput(f"--queries {path}: rows with the columns {', '.join(COLUMNS)} are expected.")
    words = text_encoder(the_study.model.text_encoder, the_study.model.num_tokens)
    specs = [
        *the_study.queries(len(the_study.prompts)), *the_study.held_out_queries(len(the_study.held_out_prompts)),
    ]  # fmt: skip
    known = {(spec.prompt, spec.seed) for spec in specs}
    found: list[tuple[str, int]] = []
    for line, row in enumerate(rows, 2):
        prompt, seed = (row["prompt"] or "").strip(), (row["seed"] or "").strip()
        if not prompt or not seed.lstrip("-").isdecimal() or abs(int(seed)) > LARGEST_SEED:
            raise InvalidInput(f"--queries {path}, line {line}: a prompt and a whole number as seed are expected.")
        words.tokens(prompt)
        query = prompt, int(seed)
        if query in known:
            raise InvalidInput(f"--queries {path}, line {line}: the query comes twice, or is one of the study's own.")
        known.add(query)
        found.append(query)
    return found


def _hash(promised: dict[str, Any], hidden: dict[str, Any]) -> str:
    text = json.dumps([promised, hidden], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, record: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as a season: {error}.") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{path} is no season: `bench season commit` writes one.")
    return record
