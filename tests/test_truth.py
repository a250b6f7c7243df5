"""Truth by parts: counts of carriers, their share by chance, and agreement with retraining."""

import numpy as np
import pandas as pd
import pytest
import torch

from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.report.truth import EVERY, Truth, agreement, found_carriers, summary, table
from bench.studies import study


def _share(share):
    def top(faces, query):
        carriers = sorted(faces.known_set(query))
        others = [index for index in range(len(faces.dataset)) if index not in set(carriers)]
        return tuple((carriers[: int(share * len(carriers))] + others)[:400])

    return top


TOPS = {"perfect": _share(1), "quarter": _share(0.25), "blind": _share(0)}
"""Methods that find all carriers, one in four, none."""


@pytest.fixture(scope="module")
def faces():
    return study("faces")


@pytest.fixture(scope="module")
def queries(faces):
    nothing = torch.zeros(3, 16, 16)
    return [Query(s.id, s.prompt, s.seed, nothing, nothing, Sampler(num_steps=1)) for s in faces.queries(8)]


@pytest.fixture(scope="module")
def frame(faces, queries):
    tops = {label: {(query.id, 400): top(faces, query) for query in queries} for label, top in TOPS.items()}
    return found_carriers(faces, queries, tops)


def test_recall_precision_and_chance_are_those_of_the_definitions(faces, queries, frame):
    perfect = frame[frame["label"] == "perfect"].set_index("query")
    for query in queries:
        count = len(faces.known_set(query))
        assert count >= 60
        line = perfect.loc[query.id]
        assert (line.recall, line.precision, line.chance) == (1.0, count / 400, 400 / 6000)
    assert set(frame.loc[frame["label"] == "blind", "found"]) == {0}


def test_groups_are_summed_up_apart_and_together(frame):
    found = summary(frame)
    counts = found[found["label"] == "perfect"].set_index("group")["queries"]
    assert counts[EVERY] == 8
    assert counts["named"] + counts["unnamed"] == 8
    assert counts["named"] > 0 < counts["unnamed"]
    quarter = found[(found["label"] == "quarter") & (found["group"] == EVERY)].iloc[0]
    assert quarter.recall == pytest.approx(0.25, abs=0.01)
    assert quarter.low <= quarter.recall <= quarter.high
    head, lines = table(found)
    assert head[3:6] == ("carriers found, of all [95 % interval]", "where named", "where unnamed")
    assert [cells[1] for cells in lines] == ["perfect", "quarter", "blind"]
    assert lines[0][4:6] == ["1.00", "1.00"]


def test_a_study_without_parts_has_no_truth(tiny, queries):
    assert summary(found_carriers(tiny, queries, {"any": {("q00", 8): (1, 2, 3)}})).empty


def test_agreement_is_the_mean_rank_correlation_over_queries(frame):
    order = {"perfect": 3.0, "quarter": 2.0, "blind": 1.0}
    names = sorted(set(frame["query"]))
    same = pd.DataFrame({label: value + np.arange(8) for label, value in order.items()}, index=names)
    assert agreement(frame, same, 400).mean == pytest.approx(1.0)
    assert agreement(frame, -same, 400).mean == pytest.approx(-1.0)
    assert np.isnan(agreement(frame, same[["perfect", "blind"]], 400).mean)  # two methods have no order to agree on


def test_the_agreement_is_told_for_each_k_that_can_tell_it(faces, queries):
    tops = {label: {(query.id, 400): top(faces, query) for query in queries} for label, top in TOPS.items()}
    names = [query.id for query in queries]
    values = pd.DataFrame({"perfect": 2.0, "quarter": 1.0, "blind": 0.0}, index=names)
    told = Truth.of(faces, queries, tops, {400: values, 100: values})
    assert told.notes() == [
        "K = 400: carriers found rank methods as retraining does with Spearman's ρ 1.00 [1.00, 1.00]"
    ]
    assert len(told.tables()) == 1
