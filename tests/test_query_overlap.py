"""What the top images of two queries have in common, on sets whose answer is known."""

import math
from dataclasses import replace

import pytest

from bench.report.query_overlap import notes, query_overlap


def test_the_share_is_a_mean_over_pairs_of_different_prompts(queries):
    same = replace(queries[0], id="q02")
    tops = {"q00": (0, 1, 2, 3), "q01": (3, 9, 8, 7), "q02": (3, 9, 2, 1)}
    prompts = {query.id: query.prompt for query in (*queries, same)}
    # q00 and q02 have one prompt: the pairs are (q00, q01) with 1 of 4 and (q01, q02) with 2 of 4.
    assert query_overlap(tops, prompts) == pytest.approx(0.375)
    assert math.isnan(query_overlap({"q00": tops["q00"], "q02": tops["q02"]}, prompts))  # no pair


def test_the_line_names_the_largest_first_and_what_chance_gives(queries):
    alike = {("q00", 2): (5, 6), ("q01", 2): (6, 5)}
    apart = {("q00", 2): (5, 6), ("q01", 2): (7, 8)}
    [line] = notes({"apart": apart, "alike": alike}, queries, [2], 80)
    assert "alike 1.00, apart 0.00 (two random choices: 0.03)" in line
    assert notes({"alike": alike}, queries[:1], [2], 80) == []
    assert notes({}, queries, [2], 80) == []
