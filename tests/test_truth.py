"""Truth by parts: counts of carriers, their share by chance, and agreement with retraining."""

import numpy as np
import pandas as pd
import pytest
import torch

from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.report.truth import EVERY, agreement, found_carriers, summary, table_cells
from bench.studies import study


@pytest.fixture(scope="module")
def faces():
    return study("faces")


@pytest.fixture(scope="module")
def queries(faces):
    nothing = torch.zeros(3, 16, 16)
    return [Query(s.id, s.prompt, s.seed, nothing, nothing, Sampler(num_steps=1)) for s in faces.queries(8)]


@pytest.fixture(scope="module")
def frame(faces, queries):
    """A method that finds all carriers, one that finds one in four, one that finds none."""
    tops = {"perfect": {}, "quarter": {}, "blind": {}}
    for query in queries:
        carriers = sorted(faces.known_set(query))
        others = [index for index in range(len(faces.dataset)) if index not in set(carriers)]
        for label, count in (("perfect", len(carriers)), ("quarter", len(carriers) // 4), ("blind", 0)):
            tops[label][query.id, 400] = tuple((carriers[:count] + others)[:400])
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
    table = summary(frame)
    counts = table[table["label"] == "perfect"].set_index("group")["queries"]
    assert counts[EVERY] == 8
    assert counts["named"] + counts["unnamed"] == 8
    assert counts["named"] > 0 < counts["unnamed"]
    quarter = table[(table["label"] == "quarter") & (table["group"] == EVERY)].iloc[0]
    assert quarter.recall == pytest.approx(0.25, abs=0.01)
    assert quarter.low <= quarter.recall <= quarter.high
    assert [cells[1] for cells in table_cells(table)] == ["perfect", "quarter", "blind"]


def test_a_study_without_parts_has_no_truth(tiny, queries):
    assert summary(found_carriers(tiny, queries, {"any": {("q00", 8): (1, 2, 3)}})).empty


def test_agreement_is_the_mean_rank_correlation_over_queries(frame):
    order = {"perfect": 3.0, "quarter": 2.0, "blind": 1.0}
    names = sorted(set(frame["query"]))
    same = pd.DataFrame({label: value + np.arange(8) for label, value in order.items()}, index=names)
    assert agreement(frame, same, 400).mean == pytest.approx(1.0)
    assert agreement(frame, -same, 400).mean == pytest.approx(-1.0)
    assert np.isnan(agreement(frame, same[["perfect", "blind"]], 400).mean)  # two methods have no order to agree on
