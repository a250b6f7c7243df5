"""Which methods beat the floors, and for which prompts that holds, in words: for a run, the tables and the page.

A method that does not beat a floor is not seen to do more than the floor does: chance, or reading the captions.
Methods are told from floors and ceilings by their roles (``bench.contracts``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.contracts import FLOOR, METHOD
from bench.records.names import MethodName
from bench.records.rows import NOT_RANKED, labels
from bench.registry import floors, phrase_of, role_of
from bench.report.verdicts import (
    BETTER,
    EQUIVALENT,
    FEWEST_SETTLED,
    TOO_FEW,
    UNSETTLED,
    WORSE,
    Verdicts,
    verdict_of,
    verdicts,
)

SAID = {
    BETTER: "beats {}",
    WORSE: "worse than {}",
    EQUIVALENT: "equivalent to {}",
    UNSETTLED: "not settled against {}",
    TOO_FEW: "too few queries",
}


class Parts(NamedTuple):
    """The labels of a table by what they are to its verdicts.

    Attributes:
        methods: that compete.
        floors: to be beaten.
        apart: variants and ceilings.
    """

    methods: tuple[str, ...]
    floors: tuple[str, ...]
    apart: tuple[str, ...]


def parts_of(names: Mapping[str, MethodName]) -> Parts:
    """Those of ``names`` by label."""
    roles = {label: role_of(name.method) if name.plain else "" for label, name in names.items()}
    methods, found = (tuple(label for label, role in roles.items() if role == one) for one in (METHOD, FLOOR))
    return Parts(methods, found, tuple(label for label in names if label not in (*methods, *found)))


def against(found: Verdicts, label: str, parts: Parts) -> dict[str, str]:
    """The verdict on ``label`` against each floor that it was compared with."""
    words = {floor: verdict_of(found, label, floor) for floor in parts.floors if floor != label}
    return {floor: word for floor, word in words.items() if word is not None}


def in_words(verdict: Mapping[str, str]) -> str:
    """The verdict against each floor, as in: beats random; not settled against a reader of captions."""
    named = {word: [phrase_of(floor) for floor, own in verdict.items() if own == word] for word in SAID}
    return "; ".join(SAID[word].format(" and ".join(some)) for word, some in named.items() if some)


def not_beaten(verdicts_on: Mapping[str, Mapping[str, str]], parts: Parts) -> str:
    """Which of the methods do not beat each floor, in one text.

    Args:
        verdicts_on: by method, ``against`` each floor; those that have no value are left out.
        parts: of the table.
    """
    own = {label: verdicts_on[label] for label in parts.methods if verdicts_on.get(label)}
    texts = []
    for floor in dict.fromkeys([*floors(), *parts.floors]):
        called = floor if phrase_of(floor) == floor else f"{floor} ({phrase_of(floor)})"
        words = {label: some[floor] for label, some in own.items() if floor in some}
        left = {label: word for label, word in words.items() if word != BETTER}
        if not words:
            texts.append(f"whether a method beats {called} is not known, as there are no rows to compare")
        elif set(words.values()) == {TOO_FEW}:
            texts.append(f"too few queries for a verdict against {called} ({FEWEST_SETTLED} at least)")
        elif not left:
            texts.append(f"every method beats {called}")
        elif len(left) == len(words) > 1 and set(left.values()) == {UNSETTLED}:
            texts.append(f"none of the {len(words)} methods beats {called}")
        else:
            listed = ", ".join(label if word == UNSETTLED else f"{label} ({word})" for label, word in left.items())
            texts.append(f"{len(left)} of {len(words)} methods do not beat {called}: {listed}")
    return "; ".join(texts)


def notes(frame: pd.DataFrame, higher_is_better: Mapping[str, bool]) -> list[str]:
    """Which methods do not beat the floors, by metric and K, from rows; alike texts in one line.

    Args:
        frame: rows with the columns of ``bench.records.rows.COLUMNS``.
        higher_is_better: by metric, those to tell of.
    """
    own = frame[
        (frame["design"] == "paired") & (frame["k"] > 0) & ~frame["method"].isin(NOT_RANKED)
        & (frame["status"] == "done") & np.isfinite(frame["value"]) & frame["metric"].isin(list(higher_is_better))
    ]  # fmt: skip
    if own.empty:
        return []
    own = own.assign(label=labels(own))
    parts = parts_of(names_of(own))
    if not parts.methods:
        return []
    heads: dict[str, list[str]] = {}
    prompts = prompts_of(own)
    for metric, higher in higher_is_better.items():
        for k, rows in own[own["metric"] == metric].groupby("k"):
            table = rows.pivot_table(index="query", columns="label", values="value", aggfunc="mean")
            found, where = judged(table, parts, higher_is_better=higher), f"{metric} at K = {k}"
            text = not_beaten({str(label): against(found, str(label), parts) for label in table}, parts)
            heads.setdefault(text, []).append(where)
            if text := over_prompts(table, prompts, found, parts, higher_is_better=higher):
                heads.setdefault(text, []).append(where)
    return [f"{', '.join(where)}: {text}" for text, where in heads.items()]


def prompts_of(frame: pd.DataFrame) -> pd.Series[str]:
    """The prompt of each query."""
    return frame.drop_duplicates("query").set_index("query")["prompt"]


def over_prompts(
    table: pd.DataFrame, prompts: pd.Series[str], found: Verdicts, parts: Parts, *, higher_is_better: bool
) -> str:
    """What is settled where a prompt is the unit, not a query; "" where that makes no difference or nothing is.

    Queries of one prompt are alike. For these prompts a verdict over queries holds, as what differs between the prompts
    only widens its intervals; for prompts like them it is false too often (docs/log/2026-11-27-shared-prompts.md).

    Args:
        table: queries × labels.
        prompts: ``prompts_of`` its queries.
        found: the verdicts over queries.
        parts: of the table.
        higher_is_better: whether high values are.
    """
    own = prompts[table.index]
    if own.is_unique:
        return ""
    compared = set(parts.methods) if len(parts.methods) > 1 else {*parts.methods, *parts.floors}
    pairs = [pair for pair in found if set(pair) <= compared]
    settled = sum(found[pair].settled for pair in pairs)
    if not settled:
        return ""
    of_prompts = judged(table.groupby(own).mean(), parts, higher_is_better=higher_is_better)
    over = sum(of_prompts[pair].settled for pair in pairs)
    return (
        f"{len(own)} queries share {own.nunique()} prompts; {settled} of {len(pairs)} pairs are settled for these "
        f"prompts, {over} for prompts like them (a prompt as the unit)"
    )


def names_of(frame: pd.DataFrame) -> dict[str, MethodName]:
    """The columns behind each label of rows that have one."""
    first = frame.drop_duplicates("label").sort_values("label")
    columns = zip(first["label"], first["method"], first["variant"], first["settings"], strict=True)
    return {str(label): MethodName(str(method), str(variant), str(given)) for label, method, variant, given in columns}


def judged(
    table: pd.DataFrame | None, parts: Parts, *, higher_is_better: bool, margin: float | None = None
) -> Verdicts:
    """The verdict on each pair of columns, those of ``parts`` in families of their own."""
    if table is None or len(table.columns) < 2:
        return {}
    known: Sequence[Sequence[str]] = [[label for label in some if label in table] for some in parts]
    return verdicts(table, floors=known[1], apart=known[2], higher_is_better=higher_is_better, margin=margin)
