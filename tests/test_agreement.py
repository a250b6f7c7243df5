"""Whether two boards put methods into the same order: on tables whose order is known, and on the published folders."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench.report.agreement import rank_agreement
from cli import main

RESULTS = Path(__file__).parents[1] / "results"


def table(means, queries=12, noise=0.0, seed=0):
    """Queries × methods with these means."""
    drawn = np.random.default_rng(seed).normal(0, noise or 1e-9, (queries, len(means)))
    return pd.DataFrame(np.array(means) + drawn, columns=[f"m{i}" for i in range(len(means))])


def test_the_same_order_is_1_and_the_reverse_minus_1():
    one = table([1, 2, 3, 4, 5])
    assert rank_agreement(one, table([10, 20, 30, 40, 50])) == pytest.approx((1, 1, 1))
    assert rank_agreement(one, table([5, 4, 3, 2, 1])).mean == pytest.approx(-1)


def test_noise_among_queries_widens_the_interval():
    quiet, loud = (rank_agreement(table([1, 2, 3, 4, 5], noise=n), table([1, 2, 3, 4, 5])) for n in (0.1, 4))
    assert quiet.high - quiet.low < loud.high - loud.low
    assert loud.low <= loud.mean <= loud.high


def test_figures_as_published_are_one_row_and_stay():
    board = table([1, 2, 3, 4, 5], noise=2)
    found = rank_agreement(board, pd.DataFrame([[5.0, 4.0, 3.0, 2.0, 1.0]], columns=board.columns))
    assert found.low < 0
    few = rank_agreement(board.head(2), board.tail(2))
    assert np.isnan(few.low)


def test_the_published_boards_are_compared_and_what_is_no_board_is_refused(tmp_path):
    done = CliRunner().invoke(main, ["compare", str(RESULTS / "fashion"), str(RESULTS / "faces")])
    assert done.exit_code == 0
    assert "MSCOCO as published" in done.output
    wrong = CliRunner().invoke(main, ["compare", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "is no results folder" in wrong.output
    twice = CliRunner().invoke(main, ["compare", str(RESULTS / "fashion"), str(RESULTS / "fashion")])
    assert (twice.exit_code, "given twice" in twice.output) == (2, True)
