"""The random reference: which removals it draws, that draws live side by side, and what the table makes of it."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from test_flow import quick_run

from bench.errors import InvalidInput
from bench.experiments.reference import Reference, random_removal, sweep
from bench.records import folder
from bench.records.rows import REFERENCE, labels
from bench.report.figures import loss_change
from bench.report.summary import by_group, equivalent, reference_curve, summarize, table_cells
from bench.studies import study
from cli import main


def reference_run(tiny, folder, **changes):
    return Reference(
        **({"study": tiny, "results": folder, "budgets": [8, 60], "models": 2, "num_queries": 2} | changes)
    )


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    run = reference_run(tiny, tmp_path_factory.mktemp("reference"))
    return run, run.execute()


def test_a_draw_is_evaluated_on_all_queries_and_trained_once(measured):
    run, report = measured
    rows = report.frame[report.frame["metric"] == "loss_change"]
    assert set(rows["method"]) == {REFERENCE}
    assert len(rows) == 2 * 2 * 2
    assert (rows["status"] == "done").all()
    assert rows.groupby("model_key")["query"].nunique().eq(2).all()
    assert len(list((run.folder / "models").iterdir())) == 2 + 2 * 2  # θ0, the pairs' original
    assert rows["method_digest"].nunique() == 2
    assert {path.name for path in report.figures} == {"loss_change.png", "regeneration_mse.png"}


def test_more_draws_come_beside_the_earlier_ones(measured, monkeypatch):
    run, first = measured
    more = replace(run, models=3, budgets=[8]).execute()
    assert len(more.merged) == len(first.frame) + 2 * 2
    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", lambda *args: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(run.execute().frame, first.frame)


def test_the_table_counts_random_images_once_there_is_a_reference(measured, tiny):
    run, _ = measured
    report = quick_run(tiny, run.folder, names=("pixel",)).execute()
    line = report.table.query("method == 'pixel' and metric == 'loss_change'").iloc[0]
    assert line["outside"] in ("below", "above") or 8 <= line["images"] <= 60
    assert math.isnan(line["images_low"])  # two queries are too few for an interval
    assert set(report.manifest["methods"]) == {"pixel", "random"}


def frame_of(values_by_method):
    """Rows for {(method, k, draw): one value for each query}."""
    rows = [
        {"method": method, "method_digest": f"{method}-{draw}", "k": k, "query": f"q{i}", "metric": "loss_change",
         "design": "paired", "status": "done", "value": value, "score_seconds": 0.0, "seed": 0}
        for (method, k, draw), values in values_by_method.items()
        for i, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_equivalents_against_a_known_curve():
    known = {(REFERENCE, k, draw): [k / 100 + draw - 0.5] * 6 for k in (100, 200, 400) for draw in (0, 1)}
    frame = frame_of(known | {("good", 10, 0): [3.0] * 6, ("best", 10, 0): [9.0] * 6, ("bad", 10, 0): [0.1] * 6})
    curve = reference_curve(frame, "loss_change")
    np.testing.assert_allclose(curve.to_numpy(), np.repeat([[1.0], [2.0], [4.0]], 6, 1))
    table = summarize(frame, 500).set_index("method")
    assert table.loc["good", ["images", "images_low", "images_high"]].tolist() == pytest.approx([300, 300, 300])
    assert table.loc["best", "outside"] == "above"
    assert table.loc["bad", "outside"] == "below"
    cells = {cell[2]: cell[-2] for cell in table_cells(summarize(frame, 500))}
    assert cells == {"good": "200 [200, 200]", "best": "fewer than 100", "bad": "more than 400", REFERENCE: ""}


def test_figures_of_one_name_with_other_settings_are_told_apart_not_averaged():
    frame = frame_of({("ours", 10, 0): [1.0] * 4, ("ours", 10, 1): [3.0] * 4, ("pixel", 10, 0): [2.0] * 4})
    frame = frame.assign(variant="", settings="")
    table = summarize(frame.assign(method=labels(frame)), 500).set_index("method")
    assert table["mean"].to_dict() == {"ours #ours-0": 1.0, "pixel": 2.0, "ours #ours-1": 3.0}


def test_groups_of_queries_are_told_apart():
    frame = frame_of(
        {("good", 10, 0): [1.0, 3.0, 10.0, 30.0], ("random", 10, 0): [0.0] * 4, (REFERENCE, 10, 0): [1.0] * 4}
    )
    groups = {"q0": "named", "q1": "named", "q2": "unnamed"}
    table = by_group(frame, groups).set_index("method")
    assert table["named"].to_dict() == {"good": "2.00000 ± 1.00000", "random": "0.00000 ± 0.00000"}
    assert table["unnamed"].to_dict() == {"good": "10.00000", "random": "0.00000"}
    assert by_group(frame, dict.fromkeys(groups, "named")).empty


def test_equivalents_use_common_queries_and_complete_points_only():
    curve = pd.DataFrame({"q0": [1.0, 2.0, 3.0], "q1": [1.0, 2.0, np.nan]}, index=[10, 20, 30])
    assert equivalent(pd.Series({"q0": 1.5, "q1": 1.5, "q9": 99.0}), curve).images == pytest.approx(15)
    assert equivalent(pd.Series({"q9": 1.0}), curve) is None
    assert equivalent(pd.Series({"q0": 1.0}), curve[:1]) is None
    falling = pd.DataFrame({"q0": [0.9, 0.5]}, index=[10, 20])
    assert equivalent(pd.Series({"q0": 0.7}), falling, higher_is_better=False).images == pytest.approx(15)


def test_removals_are_drawn_for_draw_and_budget_alone(tiny):
    one = random_removal(tiny, 0, 40)
    assert len(set(one)) == 40
    assert one == random_removal(tiny, 0, 40) == tuple(sorted(one))
    assert len({random_removal(tiny, draw, 40) for draw in range(5)}) == 5
    assert not set(random_removal(tiny, 0, 3)) <= set(one) or not set(random_removal(tiny, 1, 3)) <= set(one)


def test_the_sweep_reaches_from_the_smallest_budget_to_nearly_all():
    assert sweep(study("fashion")) == (180, 3000, 4400, 5180, 5570, 5780, 5880, 5940)
    assert sweep(study("tiny"))[-1] == 198


def test_the_figure_shows_the_curve_on_a_logit_axis(measured):
    _, report = measured
    axes = loss_change(report.merged, "loss_change", "loss change", 80).axes[0]
    places = axes.get_xaxis().get_transform().transform(np.array([20.0, 40.0, 60.0]))
    assert places == pytest.approx([-np.log(3), 0, np.log(3)])
    assert REFERENCE in [text.get_text() for text in axes.get_legend().get_texts()]


def test_bad_settings_are_refused(tiny, tmp_path):
    for changes in ({"models": 0}, {"budgets": [80]}, {"pairing": "pared"}):
        with pytest.raises(InvalidInput):
            reference_run(tiny, tmp_path, **changes)


def test_the_command_prints_the_curve(tmp_path):
    given = ["--study", "tiny", "--results", str(tmp_path), "--k", "100", "--models", "1", "--queries", "1"]
    outcome = CliRunner().invoke(main, ["reference", *given], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert REFERENCE in outcome.output
    assert (tmp_path / folder.ROWS).exists()
