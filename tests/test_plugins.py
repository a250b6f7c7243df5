"""Third parties: a method in a file of one's own, scores made elsewhere, a method to begin with."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench.authoring.checking import GLOBAL_STATES, check
from bench.authoring.external import imported
from bench.authoring.template import write_method
from bench.errors import InvalidInput
from bench.registry import Registry, load_plugin, methods
from bench.studies import study
from cli import main

pytestmark = pytest.mark.usefixtures("own_registry")


@pytest.fixture(autouse=True)
def shape_checks_may_draw(monkeypatch):
    """Those of the tests draw from Python's own random state."""
    monkeypatch.delitem(GLOBAL_STATES, "random")


@pytest.fixture
def table(tiny, queries):
    rng = np.random.default_rng(0)
    scores = rng.random((len(queries), len(tiny.dataset))).astype(np.float32)
    return pd.DataFrame(scores, index=[query.id for query in queries], columns=list(tiny.dataset.ids))


def long_form(table):
    return table.rename_axis("query").reset_index().melt("query", var_name="image", value_name="score")


def npz(path, table, **other):
    arrays = {
        "queries": np.array(list(table.index)), "images": np.array(list(table.columns)), "scores": table.to_numpy(),
    } | other  # fmt: skip
    np.savez(path, **arrays)
    return path


def scores_of(path, context, queries):
    return imported(path, "mine")().scores(context, queries).numpy()


def test_scores_come_in_whatever_the_order_of_the_file(context, queries, table, tmp_path):
    shuffled = table.sample(frac=1, axis=1, random_state=1).iloc[::-1]
    long_form(shuffled).to_parquet(tmp_path / "a.parquet")
    long_form(shuffled).assign(note="x")[["note", "score", "query", "image"]].to_csv(tmp_path / "a.csv", index=False)
    for path in (npz(tmp_path / "a.npz", shuffled), tmp_path / "a.parquet", tmp_path / "a.csv"):
        np.testing.assert_array_equal(scores_of(path, context, queries), table.to_numpy())


def test_bad_score_files_are_refused(context, queries, table, tmp_path):
    file = tmp_path / "a.npz"
    rows = long_form(table)
    cases = {
        "lacks images": lambda: npz(file, table.iloc[:, 1:]),
        "lacks queries": lambda: npz(file, table.iloc[1:]),
        "has unknown images": lambda: npz(file, table.assign(other=0.0)),
        "images come more than once": lambda: npz(
            file, table, images=np.repeat(np.array(table.columns[0]), table.shape[1])
        ),
        "It is transposed": lambda: npz(file, table, scores=table.to_numpy().T),
        "NaN or infinite": lambda: npz(file, table.where(table < 0.9)),
        "lacks the arrays": lambda: np.savez(file, scores=table.to_numpy()),
    }
    for words, write in cases.items():
        write()
        with pytest.raises(InvalidInput, match=words):
            scores_of(file, context, queries)
    parquet = tmp_path / "a.parquet"
    for words, frame in {
        "more than once": pd.concat([rows, rows.iloc[:1]]),
        "missing, NaN": rows.iloc[1:],
        "lacks the columns": rows.drop(columns="score"),
    }.items():
        frame.to_parquet(parquet)
        with pytest.raises(InvalidInput, match=words):
            scores_of(parquet, context, queries)
    text = rows.to_csv(index=False)
    for words, content in {
        "more than once": text + text.splitlines()[1] + "\n",
        "missing, NaN": text.replace(text.splitlines()[1], text.splitlines()[1].rpartition(",")[0] + ","),
        "lacks the columns": text.replace("score", "points", 1),
        "has the column query more than once": text.replace("\n", ",x\n").replace("score,x", "score,query", 1),
        "real numbers are expected": text + "q00,other,high\n",
        "cannot be read": text + "q00,other,1.0,2.0\n",
    }.items():
        (tmp_path / "b.csv").write_text(content)
        with pytest.raises(InvalidInput, match=words):
            scores_of(tmp_path / "b.csv", context, queries)
    for name, words in (
        ("none.npz", "no such file"),
        ("a.txt", "expected a .parquet, .csv or .npz"),
        ("b.npz", "cannot be read"),
    ):
        if name != "none.npz":
            (tmp_path / name).write_text("x")
        with pytest.raises(InvalidInput, match=words):
            imported(tmp_path / name, "mine")


def test_the_written_method_keeps_its_promises_and_its_name(tmp_path):
    source, test = write_method("my_method", tmp_path)
    assert len(source.read_text().splitlines()) < 40
    assert "check(" in test.read_text()
    load_plugin(source)
    assert "my_method" in methods.names()
    assert [f.message for f in check(methods.create("my_method"), study("tiny")) if f.status == "broken"] == []
    for name, words in (("my_method", "is taken"), ("ours", "is taken"), ("My-method", "cannot name")):
        with pytest.raises(InvalidInput, match=words):
            write_method(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "registers no method"),
        ("1 / 0", "ZeroDivisionError"),
        ("from methods.pixel import Pixel\nfrom bench import register_method\n"
         "@register_method\nclass Mine(Pixel): ...", "is taken"),
    ],
)  # fmt: skip
def test_bad_plugins_end_with_their_reason(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    outcome = CliRunner().invoke(main, ["list", "methods", "--plugin", str(path)])
    assert outcome.exit_code == 2
    assert words in outcome.output
    assert "Traceback" not in outcome.output


def test_a_missing_plugin_and_a_nameless_score_file_are_refused():
    for arguments, words in (
        (["list", "--plugin", "none.py"], "expected an existing Python file"),
        (["run", "--scores", "a.npz"], "each file needs a name"),
        (["run"], "No method was given"),
    ):
        outcome = CliRunner().invoke(main, arguments)
        assert (outcome.exit_code, words in outcome.output) == (2, True)


def test_a_taken_name_is_refused_only_for_another_class():
    registry = Registry("method", "none")
    registry.register(methods.get("pixel"))
    registry.register(methods.get("pixel"))
    assert registry.names() == ["pixel"]
