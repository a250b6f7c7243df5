"""Studies in which nothing is retrained, as what mattered is known: which they are, and what runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.contracts import Method
from bench.errors import InvalidInput
from bench.experiments.abc import NAME, AbcRun
from bench.experiments.customized import CustomizedRun
from bench.studies import Study, study

CUSTOMIZED = "customized"
NAMES = (CUSTOMIZED, NAME)
OWN = {
    CUSTOMIZED: ("results", "device", "models", "distractors", "pool", "held_out", "without_word", "queries"),
    NAME: ("results", "device", "models", "distractors", "without_word", "queries", "data", "base"),
}
"""The options of each."""


def known_run(name: str, methods: Sequence[Method], given: Mapping[str, Any]) -> CustomizedRun | AbcRun:
    """The experiment of the study ``name``, one of NAMES; raises InvalidInput for an option that it does not have.

    Args:
        methods: to compare.
        given: options by name; those that are None or False are not given.
    """
    chosen = {
        option: value
        for option, value in given.items()
        if value is not None and value is not False and value != () and (option, value) != ("seed", 0)
    }
    if chosen.keys() - {*OWN[name], "seed"}:
        raise InvalidInput(
            f"Study '{name}' retrains nothing: leave out options of retraining, floors, boxes and metrics. Of use "
            f"are --method, --set, {', '.join('--' + option.replace('_', '-') for option in OWN[name])}."
        )
    own = {option: value for option, value in chosen.items() if option != "seed"}
    if name == CUSTOMIZED:
        return CustomizedRun(study=replace(study(name), seed=chosen.get("seed", 0)), methods=methods, **own)
    if "data" not in own:
        raise InvalidInput(f"Study '{name}' needs the released data: give --data FOLDER (docs/customized.md).")
    if "seed" in chosen:
        raise InvalidInput(f"--seed: the models and queries of study '{name}' are given.")
    return AbcRun(methods=methods, **own)


def retrained(name: str) -> None:
    """Raise InvalidInput where the study ``name`` retrains nothing."""
    if name in NAMES:
        raise InvalidInput(
            f"Study '{name}' retrains nothing: it has `bench run`, customized `bench leaderboard`, abc `bench plan`. "
            "The base of customized is the study 'faces'."
        )


def board_study(name: str) -> Study | None:
    """The study whose board shows exemplars that were found; None for a study with retrainings."""
    if name == NAME:
        retrained(name)
    return study(name) if name == CUSTOMIZED else None
