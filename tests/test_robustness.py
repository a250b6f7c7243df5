"""Nothing lost, nothing silently wrong: cases that the tests draw themselves, from seeds, so a failure comes again.

Tried in every run of the tests: 1,000 names; 16 kinds of artifacts × (60 flipped bits, 20 truncations, empty), 9 kinds
× swapped; 200 command lines; 60 scores files; 71 methods and 26 metrics that break their promises; 400 rounds of
processes that write one folder; one run in which a method raises, a training fails twice and a worker is killed; 50
kills by SIGKILL, SIGTERM and SIGINT.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import string
import subprocess
import sys
import time
import zipfile
from dataclasses import fields, make_dataclass, replace
from functools import partialmethod
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from bench import Method, Run, methods, study
from bench.authoring.external import imported
from bench.diffusion.training import TrainingJob
from bench.errors import (
    BenchError,
    DamagedArtifact,
    InvalidInput,
    MethodFailed,
    MetricFailed,
    PluginFailed,
    ResultsFolderError,
)
from bench.experiments.datamodels import DatamodelTest
from bench.experiments.evaluation import evaluation_seed
from bench.experiments.workspace import Workspace
from bench.foundation.digests import digest_of
from bench.foundation.settings import fitted
from bench.records import folder, rows
from bench.records.names import NAME, RESERVED
from bench.records.sealing import read_frame, read_json, read_tensors
from bench.records.selections import FIRST, packed, selected
from bench.records.store import Store, write_json
from bench.registry import Registry, check_name, load_plugin, metrics
from bench.report import doctor
from bench.report.shown import as_markdown
from bench.report.summary import TABLE_HEAD, summarize, table_cells
from bench.retraining.ledger import Ledger
from cli import main

pytestmark = pytest.mark.usefixtures("own_registry")
ROOT = Path(__file__).parents[1]
OWN_FACTS = ("seconds", "seed", "num_removed", "machine", "workers", "threads")
"""What an observation says of its model."""
CODES = {0, 1, 2, 75}
EARLIER = ("Traceback", "fault of bench")


@pytest.fixture(scope="module")
def quick(tiny):
    """``tiny`` with trainings that take a tenth of a second: what is tested here is files, not values."""
    return replace(tiny, recipe=replace(tiny.recipe, num_steps=5, batch_size=8))


def bench(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    assert result.exit_code in CODES, (arguments, result.output)
    assert not any(word in result.output for word in EARLIER), (arguments, result.output)
    return result


# --- names ---


def drawn_names(count):
    rng = random.Random(1)
    odd = [
        "",
        " ",
        "all",
        "nothing removed",
        "ours:all",
        "../x",
        "../../../x",
        "a/b",
        "a\\b",
        ".",
        "..",
        "a\nb",
        "-a",
        "a.b",
    ]
    odd += ["A", "é", "ǆ", "a" * 65, "a|b", "<b>", "`a`", "$(x)", "a\0b", "١", "a b", "a:b", "top_images", "con", "_a"]
    letters = string.ascii_lowercase + string.digits + "_-"
    while len(odd) < count:
        alphabet = letters if rng.random() < 0.5 else letters + "/.:\\ \n\t|<>*?\"'%$éß" + string.ascii_uppercase
        odd.append("".join(rng.choice(alphabet) for _ in range(rng.randint(0, 70))))
    return odd


def refusal(work, *given, error=InvalidInput):
    """What ``work`` raises, in words; "" where it does not."""
    try:
        work(*given)
    except error as found:
        return str(found) or "raised"
    return ""


def test_a_thousand_names_are_refused_or_stay_in_the_folder(tmp_path):
    accepted = 0
    for name in drawn_names(1000):
        good = bool(NAME.fullmatch(name)) and name not in RESERVED
        for kind in ("method", "metric"):
            why = refusal(check_name, kind, name)
            assert (why == "") == good, name
            assert "\n" not in why
        accepted += good
        store = Store(tmp_path / "run")
        for parts in (
            folder.selection(name, "0", "0"),
            folder.failure(name),
            folder.sheet(name),
            folder.scores(name, "0", "0"),
        ):
            try:
                place = store.path(*parts)
            except InvalidInput:
                assert not good
            else:
                assert place.resolve().is_relative_to((tmp_path / "run").resolve()), name
    assert 100 < accepted < 900
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["ours:all", "all", "", "nothing removed", "a\nb", "../../../x", "ours"])
def test_scores_made_elsewhere_take_no_name_that_means_something_else(tmp_path, name, scores_table):
    path = npz(tmp_path / "a.npz", scores_table)
    result = bench("plan", "--study", "tiny", "--scores", path, "--name", name, "--results", tmp_path / "run")
    assert result.exit_code == 2
    assert "cannot be called" in result.output or "is taken by" in result.output
    assert not (tmp_path / "run").exists()


def test_an_artifact_of_a_method_cannot_leave_the_cache(tmp_path):
    from bench.records.store import Artifacts

    for key in ("../x", "/etc/x", "a/b", "", "x" * 300, "a\nb"):
        with pytest.raises(InvalidInput):
            Artifacts(Store(tmp_path))(key, lambda: {"x": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_tables_hold_whatever_a_row_is_called():
    texts = dict.fromkeys(rows.COLUMNS, "") | {"status": "done", "method": "a|b\n<c>"}
    numbers = {"k": 1, "seed": 0, "value": 1.0, "score_seconds": 1.0, "train_seconds": 1.0}
    frame = pd.DataFrame([texts | numbers])
    text = as_markdown((TABLE_HEAD, table_cells(summarize(frame, 100))))
    assert len(text.splitlines()) == 3
    assert "a\\|b &lt;c&gt;" in text


# --- artifacts ---


@pytest.fixture(scope="module")
def whole(quick, tmp_path_factory):
    """A results folder with an artifact of every kind."""
    root = tmp_path_factory.mktemp("whole")
    chosen = [methods.create(name, "tiny") for name in ("pixel", "random")]
    run = Run(study=quick, methods=chosen, budgets=[8], num_queries=2, results=root, threads=1)
    report = run.execute()
    DatamodelTest(study=quick, methods=chosen, subsets=3, num_queries=2, results=root, threads=1).execute()
    workspace = run.open()
    for key in ("fisher-a", "fisher-b"):
        workspace.context().cached(key, lambda: {"x": torch.arange(40.0)})
        workspace.store.write_tensors(folder.checkpoint(key), {"x": torch.arange(40.0)}, seconds="1")
        workspace.keep_failure(f"method-{key}", ValueError("odd"))
    subset = next((root / "subsets").iterdir())
    write_json(root / "subsets" / f"{'0' * 16}.json", read_json(subset))
    doctor.seal(root)
    return run, report


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0].folder, tmp_path / "run")
    return tmp_path / "run"


KINDS = (
    "models",
    "checkpoints",
    "observations",
    "selections",
    "failures",
    "subsets",
    "cache",
    "cache/scores",
    "figures",
)
SINGLE = (
    "study.json",
    "queries.safetensors",
    "results.parquet",
    "manifest.json",
    "lds.parquet",
    "digests.json",
    "table.md",
)


def files_of(root, kind):
    if kind in SINGLE:
        return [root / kind]
    return sorted(path for path in (root / kind).iterdir() if path.is_file())


def content_of(path):
    """What a reader gets of ``path``; raises DamagedArtifact."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        return {name: (str(value.dtype), value.tolist()) for name, value in tensors.items()}, metadata
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix == ".parquet":
        return read_frame(path).to_csv()
    assert doctor._is_checked(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", [*KINDS, *SINGLE])
def test_a_flipped_bit_a_truncated_and_an_empty_file_are_found(whole, tmp_path, kind):
    root = whole[0].folder
    path = files_of(root, kind)[0]
    expected, content = content_of(path), path.read_bytes()
    rng = random.Random(kind)
    place = tmp_path / path.relative_to(root)
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind != "digests.json":
        shutil.copy(root / "digests.json", tmp_path)
    harmed = [b""] + [content[: rng.randrange(len(content))] for _ in range(20)]
    for _ in range(60):
        flipped, bit = bytearray(content), rng.randrange(8 * len(content))
        flipped[bit // 8] ^= 1 << bit % 8
        harmed.append(bytes(flipped))
    for index, harm in enumerate(harmed):
        place.write_bytes(harm)
        if not refusal(content_of, place, error=DamagedArtifact):
            assert index > 20 or harm.strip() == content.strip(), (kind, index)
            assert content_of(place) == expected, (kind, index)  # a flipped bit of white space changes nothing


@pytest.mark.parametrize("kind", KINDS)
def test_two_files_in_each_others_place_are_found(copy, kind):
    one, other = files_of(copy, kind)[:2]
    if one.read_bytes() == other.read_bytes():
        pytest.fail("the two are alike")
    spare = copy / "spare"
    one.rename(spare)
    other.rename(one)
    spare.rename(other)
    for path in (one, other):
        with pytest.raises(DamagedArtifact):
            content_of(path)
    found = {damage.path for damage in doctor.examine(copy).damages}
    assert {path.relative_to(copy).as_posix() for path in (one, other)} <= found


@pytest.fixture
def no_figures(monkeypatch):
    """They take half of a run's time here."""
    monkeypatch.setattr("bench.experiments.leave_k_out.draw_figures", lambda *given: [])


def test_files_of_another_study_are_found(copy, whole, quick, tmp_path, no_figures):
    run = replace(whole[0], methods=[methods.create("pixel")], results=copy)
    replace(run, study=replace(quick, seed=7), results=tmp_path / "o").execute()
    for name in ("queries.safetensors", "results.parquet", "study.json"):
        shutil.copy(copy / name, tmp_path / name)
        shutil.copy(tmp_path / "o" / name, copy / name)
        assert doctor.examine(copy).damages, name
        if name == "queries.safetensors":  # they are set aside, and made again
            run.execute()
            assert (copy / "damaged" / name).exists()
        else:
            with pytest.raises(ResultsFolderError):
                run.execute()
        shutil.copy(tmp_path / name, copy / name)


def test_a_run_on_a_folder_that_is_damaged_everywhere_says_so_and_gives_the_same_values(whole, copy, no_figures):
    run, report = whole
    before = doctor.examine(copy)
    assert not before.damages
    for kind in ("models", "observations", "selections", "cache/scores", "cache", "results.parquet", "manifest.json"):
        for path in files_of(copy, kind):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    assert len(doctor.examine(copy).damages) > 10
    again = replace(run, results=copy).execute()
    pd.testing.assert_series_equal(again.frame["value"], report.frame["value"])
    assert any("results.parquet" in line and "rows of all runs" in line for line in again.damage)
    assert any("results.parquet" in note for note in again.notes())
    assert (copy / "damaged" / "results.parquet").exists()


def test_what_was_set_aside_is_never_overwritten(tmp_path):
    store = Store(tmp_path)
    for content in ("one", "two", "three"):
        (tmp_path / "results.parquet").write_text(content)
        assert store.frame("results.parquet") is None
    assert sorted(path.read_text() for path in (tmp_path / "damaged").iterdir()) == ["one", "three", "two"]
    assert len(store.damage) == 3


def test_files_from_before_seals_are_read_and_said_to_be_unchecked(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"name": "a", "digest": digest_of({}), "parts": {}}))
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "lds.parquet")
    assert len(doctor.examine(tmp_path).unchecked) == 2
    assert not doctor.seal(tmp_path).unchecked
    (tmp_path / "study.json").write_text(json.dumps({"name": "b", "digest": digest_of({}), "parts": {}}))
    with pytest.raises(DamagedArtifact, match=r"digests\.json lists"):
        Store(tmp_path, read_only=True).record("study.json")
    with pytest.raises(DamagedArtifact, match="mend them first"):
        doctor.seal(tmp_path)


def test_a_lost_observation_that_rows_were_computed_from_is_found_and_made_again(whole, copy, quick, no_figures):
    run, report = whole
    store = Store(copy, study=quick.digest)
    original = Workspace(quick, copy, metrics=run.metrics).ledger.key(TrainingJob((), evaluation_seed(quick)))
    retrained = report.frame.loc[report.frame["k"] > 0, "model_key"].iloc[0]
    for key in (original, retrained):
        kept, facts = store.tensors(*folder.observation(key))
        lost = sorted(kept)[0]
        del kept[lost]
        store.write_tensors(folder.observation(key), kept, **{k: v for k, v in facts.items() if k in OWN_FACTS})
        [damage] = doctor.examine(copy).damages
        assert key in damage.path
        assert f"it lacks {lost.split('.')[1]} of q0" in damage.what
        replace(run, results=copy).execute()
        assert not doctor.examine(copy).damages


@pytest.mark.parametrize("name", ["faces", "fashion", "emoji", "customized"])
def test_the_published_folders_are_whole(name):
    result = bench("doctor", ROOT / "results" / name)
    assert result.exit_code == 0, result.output
    assert "0 damaged" in result.output


def test_damage_of_a_published_folder_is_found_and_verify_changes_nothing(tmp_path):
    shutil.copytree(ROOT / "results" / "emoji", tmp_path / "emoji")
    root, rng = tmp_path / "emoji", random.Random(2)
    for name in (
        "results.parquet",
        "study.json",
        "queries.safetensors",
        *(p.name for p in (root / "selections").iterdir()),
    ):
        path = root / name if (root / name).exists() else root / "selections" / name
        content = path.read_bytes()
        for _ in range(5):
            harm, bit = bytearray(content), rng.randrange(8 * len(content))
            harm[bit // 8] ^= 1 << bit % 8
            path.write_bytes(harm)
            result = bench("doctor", root)
            assert result.exit_code == 1
            assert f"DAMAGED {path.relative_to(root)}" in result.output
            if name != "study.json":
                listing = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
                assert bench("verify", "--results", root, "--row", "999999").exit_code == 2
                assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == listing
        path.write_bytes(content)
    assert bench("doctor", root).exit_code == 0


def test_temporary_files_of_dead_processes_are_cleaned_and_those_of_live_ones_stay(tmp_path, quick):
    from bench.records.store import HERE

    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = tmp_path / f".a.json.{HERE}.{gone.stdout.decode().strip()}.x1.part"
    alive, elsewhere, old = (tmp_path / name for name in (
        f".a.json.{HERE}.{os.getpid()}.x2.part", ".a.json.otherhost.1.x3.part", ".b.safetensors.abcd1234"))  # fmt: skip
    for path in (dead, alive, elsewhere, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    Workspace(quick, tmp_path, metrics=[metrics.create("loss_change")])
    assert [path.exists() for path in (dead, alive, elsewhere, old)] == [False, True, True, False]


def test_long_selections_are_packed_and_come_back(tmp_path):
    ids = [f"image-{index}" for index in np.random.default_rng(0).permutation(5000)]
    for count in (0, 1, FIRST, FIRST + 1, 5000):
        assert selected(json.loads(json.dumps(packed(ids[:count])))) == ids[:count]


# --- command lines ---

ODD_TEXTS = (
    "",
    " ",
    "x" * 5000,
    "../../x",
    "é",
    "nan",
    "null",
    "[]",
    "{}",
    "-",
    "a=b",
    "%s",
    "all",
    "ours:all",
    "\u202e",
)
ODD_NUMBERS = ("0", "-1", "1e5", "nan", "inf", "-inf", "9" * 20, "9" * 40, "1.5", "abc", "", "0x10", "１")
OPTIONS = {
    "--method": ("pixel", "random", "ours", "our", *ODD_TEXTS), "--metric": ("loss_change", "loss", *ODD_TEXTS),
    "--k": ("5", "199", "200", *ODD_NUMBERS), "--queries": ("1", "2", *ODD_NUMBERS), "--seed": ("0", "1", *ODD_NUMBERS),
    "--seeds": ("1", *ODD_NUMBERS), "--workers": ("1", *ODD_NUMBERS), "--keep-models-mib": ("10", *ODD_NUMBERS),
    "--design": ("both", "paired", *ODD_TEXTS),
    "--device": ("cpu", "meta", "xla", "mps", "cuda", "cpu:1", "cuda:99", *ODD_TEXTS),
    "--set": ("ours.step_size=0.1", "ours.step_size=x", "ours.num_steps=1e9", "pixel.x=1", "ours.flips=[]", *ODD_TEXTS),
    "--scores": ("none.npz", "pyproject.toml", "/", *ODD_TEXTS),
    "--name": ("mine", *ODD_TEXTS), "--weights": ("dino=x", *ODD_TEXTS),
    "--plugin": ("none.py", "README.md", *ODD_TEXTS),
    "--study": ("tiny", "tny", *ODD_TEXTS), "--results": ODD_TEXTS[:2],
}  # fmt: skip
OTHERS = (
    ("reference", "--study", "tiny", "--dry-run", "--models"), ("reference", "--study", "tiny", "--dry-run", "--k"),
    ("lds", "--study", "tiny", "--method", "pixel", "--dry-run", "--subsets"),
    ("lds", "--study", "tiny", "--method", "pixel", "--dry-run", "--seeds"),
    ("plan", "--study", "tiny", "--method", "pixel", "--effect"), ("verify", "--results", ".", "--row"),
    ("tune", "--study", "tiny", "--method", "ours", "--dry-run", "--grid"), ("doctor",), ("new-method",), ("list",),
    ("attribute", "--study", "tiny", "--method", "pixel", "--prompt", "a photo of a bag", "--top"),
    ("attribute", "--study", "tiny", "--method", "pixel", "--prompt"), ("leaderboard", "--study", "tiny", "--from"),
)  # fmt: skip


def test_two_hundred_command_lines_end_in_a_line(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise KeyboardInterrupt  # ends with 75: the line was good

    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", refuse)
    monkeypatch.setattr("bench.experiments.planning._times", lambda *arguments: [])
    monkeypatch.chdir(tmp_path)
    rng, codes = random.Random(3), {}
    for index in range(200):
        where = [] if rng.random() < 0.5 else ["--results", f"run-{index % 5}"]
        if index % 4 == 3:
            line = [
                *OTHERS[index // 4 % len(OTHERS)],
                rng.choice((*ODD_TEXTS, *ODD_NUMBERS, "step_size=0.1,x", "pixel")),
            ]
            where = where if line[0] in ("reference", "lds", "plan", "tune", "attribute") else []
        else:
            line = [rng.choice(("run", "plan")), "--study", "tiny", "--method", "pixel"]
            for option in rng.sample(sorted(OPTIONS), rng.choice((1, 1, 2, 3))):
                line += [option, rng.choice(OPTIONS[option])]
        result = bench(*line, *where)
        codes[result.exit_code] = codes.get(result.exit_code, 0) + 1
        if result.exit_code == 2:
            assert result.output.strip()
    assert codes[2] > 50
    assert sum(codes.values()) == 200


def test_settings_of_the_wrong_type_are_refused_for_every_method():
    values = [None, True, [], {}, "x", "", -1, 0, 1.5, float("nan"), float("inf"), 10**30, [1, "a"], [[1]]]
    tried = 0
    for cls in methods:
        for setting in [field.name for field in fields(cls)] + ["name", "self", "study"]:
            for value in values:
                tried += 1
                given = {setting: value}
                why = refusal(lambda cls=cls, given=given: methods.create(cls.name, "tiny", **given), error=BenchError)
                assert len(why) < 1000
                if not why:
                    json.dumps(methods.create(cls.name, "tiny", **given).settings(), allow_nan=False)
    assert tried > 500


def test_settings_fit_their_annotations():
    cls = make_dataclass("C", [("a", "float"), ("b", "tuple[int, ...]"), ("c", "str | None"), ("d", bool)])
    assert fitted("x", cls, {"a": 1, "b": [1, 2], "c": None, "d": True}) == {
        "a": 1.0,
        "b": (1, 2),
        "c": None,
        "d": True,
    }
    for bad in ({"a": True}, {"a": "1"}, {"b": 1}, {"b": [1.5]}, {"c": 1}, {"d": 1}, {"a": 10**400}):
        with pytest.raises(InvalidInput, match="expected"):
            fitted("x", cls, bad)


def test_a_broken_entry_point_costs_a_warning_and_its_own_name(monkeypatch):
    class Entry:
        def __init__(self, name, work):
            self.name, self.value, self.load = name, "some.package", work

    def broken():
        registry.register(methods.get("random"))
        raise ImportError("no module named x")

    def leaves():
        raise SystemExit(3)

    registry = Registry("method", "bench.methods")
    good = Entry("good", lambda: registry.register(methods.get("pixel")))
    monkeypatch.setattr(
        "bench.registry.entry_points", lambda group: [Entry("bad", broken), Entry("worse", leaves), good]
    )
    with pytest.warns(UserWarning, match="could not be loaded"):
        assert registry.names() == ["pixel"]
    with pytest.raises(BenchError, match="Not loaded: bad"):
        registry.get("random")


# --- scores files ---


@pytest.fixture(scope="module")
def scores_table():
    whole = study("tiny")
    values = np.random.default_rng(0).random((2, len(whole.dataset))).astype(np.float32)
    return pd.DataFrame(values, index=["q00", "q01"], columns=list(whole.dataset.ids))


def npz(path, table, **other):
    arrays = {"queries": list(table.index), "images": list(table.columns), "scores": table.to_numpy()} | other
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def long_form(table):
    return table.rename_axis("query").reset_index().melt("query", var_name="image", value_name="score")


def bomb(path):
    """An array that says that it holds 10^15 numbers."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**8, 10**7)}
    with zipfile.ZipFile(path, "w") as file:
        for name in ("queries", "images", "scores"):
            with file.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(member, header)
    return path


def bad_scores(table):
    """By what is wrong: writes the file."""
    t, n = table, len(table.columns)
    arrays = {
        "constant": {"scores": np.ones((2, n))}, "one constant": {"scores": np.vstack([np.ones(n), np.arange(n)])},
        "nan": {"scores": t.to_numpy() * np.nan}, "inf": {"scores": t.to_numpy() + np.inf},
        "beyond float32": {"scores": t.to_numpy().astype(float) * 1e300}, "text": {"scores": t.to_numpy().astype(str)},
        "complex": {"scores": t.to_numpy() * 1j}, "bool": {"scores": t.to_numpy() > 0.5},
        "object": {"scores": t.to_numpy().astype(object)}, "dates": {"scores": np.zeros((2, n), "M8[s]")},
        "transposed": {"scores": t.to_numpy().T}, "flat": {"scores": t.to_numpy().ravel()}, "scalar": {"scores": 1.0},
        "3d": {"scores": t.to_numpy()[None]}, "no scores": {"scores": None}, "no queries": {"queries": None},
        "unknown image": {"images": ["x", *t.columns[1:]]}, "unknown query": {"queries": ["q00", "x"]},
        "double image": {"images": [t.columns[0]] * n}, "double query": {"queries": ["q00", "q00"]},
        "numbers for ids": {"images": np.arange(n)}, "ids in 2d": {"queries": [["q00"], ["q01"]]},
        "id too many": {"images": [*t.columns, "x"]},
        "empty": {"queries": [], "images": [], "scores": np.zeros((0, 0))},
        "objects for ids": {"images": np.array(t.columns, object)}, "structured": {"scores": np.zeros((2, n), "f4,f4")},
    }  # fmt: skip
    rows, many = long_form(t), [f"x{index}" for index in range(5000)]
    frames = {
        "constant": rows.assign(score=1.0), "nan": rows.assign(score=np.nan), "text": rows.assign(score="a"),
        "beyond float32": rows.assign(score=1e300), "bool": rows.assign(score=True), "null id": rows.assign(image=None),
        "dates": rows.assign(score=pd.Timestamp(0)), "lists": rows.assign(score=[[1.0]] * len(rows)),
        "missing": rows.iloc[1:], "double": pd.concat([rows, rows.iloc[:1]]), "no column": rows.drop(columns="query"),
        "no rows": rows.iloc[:0], "unknown image": rows.replace({"image": {t.columns[0]: "x"}}),
        "unknown query": rows.replace({"query": {"q01": "x"}}), "numbers for ids": rows.assign(image=range(len(rows))),
        "other columns": pd.DataFrame({"a": [1]}), "wide": t.reset_index(), "all null": rows.assign(score=None),
        "many": pd.DataFrame({"query": many, "image": many, "score": 0.1}),
    }  # fmt: skip
    for name, other in arrays.items():
        yield f"{name}.npz", lambda path, other=other: npz(path, t, **other)
    for name, frame in frames.items():
        yield f"{name}.parquet", lambda path, frame=frame: frame.to_parquet(path)
    for suffix in (".npz", ".parquet", ".NPZ"):
        for size in (0, 1, 100):
            yield f"garbage{size}{suffix}", lambda path, size=size: path.write_bytes(bytes(range(size)))
    for suffix, whole in ((".npz", lambda path: npz(path, t)), (".parquet", lambda path: rows.to_parquet(path))):
        for share in (0.1, 0.9):
            yield (
                f"cut{share}{suffix}",
                lambda p, w=whole, s=share: (w(p), p.write_bytes(p.read_bytes()[: int(s * p.stat().st_size)])),
            )
    yield "bomb.npz", bomb
    yield "folder.npz", lambda path: path.mkdir()


def test_sixty_bad_scores_files_are_refused_in_a_line_before_anything_is_done(tmp_path, scores_table):
    tried = 0
    for name, write in bad_scores(scores_table):
        path = tmp_path / name
        write(path)
        registered = dict(methods._classes)
        result = bench("plan", "--study", "tiny", "--scores", path, "--name", "mine", "--results", tmp_path / "run")
        methods._classes = registered
        assert result.exit_code == 2, name
        assert "--scores" in result.output, (name, result.output)
        tried += 1
    assert tried >= 60
    assert not (tmp_path / "run").exists()


def test_a_scores_file_is_hashed_once(tmp_path, scores_table, monkeypatch):
    method = imported(npz(tmp_path / "a.npz", scores_table), "mine")()
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read again"))
    assert method.digest == method.digest
    assert len(method.sources()["sha256"]) == 64


# --- plugins ---

PLUGIN = """
import numpy as np
import torch
from bench import AttributionContext, Method, register_method
from dataclasses import dataclass

@register_method
@dataclass(frozen=True, kw_only=True)
class Odd(Method):
    name = "odd"
    summary = "odd"

    def scores(self, context, queries):
        return torch.zeros(len(queries), len(context.dataset))

    def {call}:
        {body}
"""
RAISES = (
    "raise RuntimeError('odd')", "raise SystemExit(3)", "raise MemoryError", "raise KeyError('x')",
    "return self.{name}_",
    "return [][0]", "import nowhere", "return self.{name}({given})", "raise GeneratorExit", "1 / 0",
)  # fmt: skip
CALLS = {"scores": "context, queries", "prepare": "", "unavailable": "", "sources": "", "caveat": ""}
RETURNS = {
    "scores": ("return None", "return [[0.0]]", "return np.zeros((len(queries), len(context.dataset)))", "return 1.0",
               "return torch.zeros(len(context.dataset), len(queries))", "return torch.zeros(3)",
               "return torch.zeros(len(queries), len(context.dataset), dtype=torch.bool)",
               "return torch.zeros(len(queries), len(context.dataset), dtype=torch.complex64)",
               "return torch.zeros(len(queries), len(context.dataset), device='meta')",
               "return torch.zeros(len(queries), len(context.dataset)).to_sparse()"),
    "unavailable": ("return 1", "return b'x'"), "caveat": ("return []", "return 1.0"),
    "sources": ("return None", "return {'a': torch.zeros(1)}", "return {1: 'a'}", "return {'a': float('nan')}",
                "return 'x'"),
}  # fmt: skip


def odd_methods():
    for name, given in CALLS.items():
        for body in RAISES:
            call = f"{name}(self{', ' if given else ''}{given})"
            yield name, PLUGIN.format(call=call, body=body.format(name=name, given=given)), "raised"
        for body in RETURNS.get(name, ()):
            call = f"{name}(self{', ' if given else ''}{given})"
            yield name, PLUGIN.format(call=call, body=body), "returned"


def test_methods_that_break_their_promises_fail_alone_and_before_anything_is_trained(tmp_path, quick, monkeypatch):
    monkeypatch.setattr("bench.retraining.ledger.Ledger._train", lambda *given: pytest.fail("trained"))
    tried = 0
    for number, (call, text, how) in enumerate(odd_methods()):
        path = tmp_path / f"odd{number}.py"
        path.write_text(text)
        methods._classes.pop("odd", None)
        load_plugin(path)
        workspace = Workspace(quick, tmp_path / "run", metrics=[metrics.create("loss_change")])
        chosen = [methods.create("odd"), methods.create("pixel")]
        workspace.vet(chosen)
        assert list(workspace.rejected) == chosen[:1], (call, text)
        error = workspace.rejected[chosen[0]]
        assert isinstance(error, PluginFailed), (call, error)
        assert how in str(error), (call, error)
        assert how == "returned" or f"{path.name}, line " in str(error), (call, error)
        tried += 1
    assert tried >= 50


METRIC = """
import numpy as np
import torch
from bench import Metric, Observation, register_metric

class Seen(Observation):
    name = "seen"

    def observe(self, model, queries, seed):
        {observe}

@register_metric
class Odd(Metric):
    name, summary, unit = "odd", "odd", ""
    observation = Seen()

    def value(self, query, original, retrained):
        {value}

    def unavailable(self):
        {unavailable}
"""
GOOD = {"observe": "return [torch.zeros(1) for _ in queries]", "value": "return 0.0", "unavailable": "return ''"}
BAD = {
    "observe": ("return None", "return []", "return [0.0 for _ in queries]",
                "return [torch.full((1,), float('nan'))] * len(queries)",
                "raise SystemExit", "raise ValueError('x')", "return [None]", "return torch.zeros(1)", "1 / 0",
                "return [torch.zeros(1, device='meta') for _ in queries]", "import nowhere", "raise MemoryError"),
    "value": ("return None", "return 'x'", "return [1.0]", "return torch.zeros(2)", "raise SystemExit(1)", "1 / 0",
              "return True",
              "return 1j", "raise KeyError", "raise GeneratorExit"),
    "unavailable": ("return 3", "raise OSError('x')", "1 / 0", "raise SystemExit"),
}  # fmt: skip


def test_metrics_and_observations_that_break_their_promises_fail_alone(tmp_path, queries, model):
    tried = 0
    for call, bodies in BAD.items():
        for body in bodies:
            path = tmp_path / f"metric{tried}.py"
            path.write_text(METRIC.format(**(GOOD | {call: body})))
            metrics._classes.pop("odd", None)
            load_plugin(path)
            odd = metrics.create("odd")
            calls = {
                "observe": lambda odd=odd: odd.observation.observe(model, queries, 0),
                "value": lambda odd=odd: odd.value(queries[0], torch.zeros(1), torch.zeros(1)),
                "unavailable": odd.prepare,
            }
            with pytest.raises(MetricFailed, match=r"raised|returned"):
                calls[call]()
            tried += 1
    assert tried == 26


@pytest.mark.parametrize("command", [("plan", "--effect", "0.1"), ("lds", "--dry-run")])
def test_what_fails_costs_a_plan_a_line(tmp_path, command, monkeypatch):
    monkeypatch.setattr("bench.experiments.planning._times", lambda *arguments: [])
    (tmp_path / "method.py").write_text(PLUGIN.format(call="unavailable(self)", body="1 / 0"))
    metric = METRIC.format(**(GOOD | {"unavailable": "raise SystemExit"})).replace('"odd", "odd"', '"worse", "odd"')
    (tmp_path / "metric.py").write_text(metric)
    line = [*command, "--study", "tiny", "--method", "odd", "--method", "pixel", "--queries", "1", "--plugin",
            tmp_path / "method.py", "--plugin", tmp_path / "metric.py", "--results", tmp_path / "run"]  # fmt: skip
    own = ("--metric", "worse", "--metric", "loss_change", "--k", "8") if command[0] == "plan" else ()
    result = bench(*line, *own)
    assert result.exit_code == 1, result.output
    shown = " ".join(result.output.split())
    assert "odd failed: Method 'odd' raised ZeroDivisionError: division by zero. (method.py, line" in shown
    assert "missing for 3 (method, query) pairs" in shown  # pixel and both floors
    if own:
        assert "worse failed: Metric 'worse' raised SystemExit" in shown
        assert "retrainings: 4 asked" in shown
    assert not (tmp_path / "run" / "failures").exists()


class Borrowed:
    def scores(self, context, queries):
        raise ValueError("borrowed")


@pytest.mark.parametrize(
    "body",
    [
        {"scores": staticmethod(lambda context, queries: 1 / 0)},
        {"scores": partialmethod(lambda self, one, context, queries: None, 1)},
        {},
    ],
)
def test_the_border_is_around_borrowed_functions_too(body):
    kind = type("Odd", (Borrowed, Method), {"name": "odd", "summary": "odd", **body})
    with pytest.raises(MethodFailed, match=r"Method 'odd' (raised|returned)"):
        kind().scores(None, [])


BAD_FILES = (
    "raise SystemExit(0)", "import nowhere", "def", "1 / 0", "x = 1", "raise MemoryError",
    "from bench import register_method\nregister_method(int)", "from bench import register_metric\nregister_metric(3)",
    *(f"import bench\n@bench.register_method\nclass A(bench.Method):\n    {body}" for body in (
        "name = '../x'; summary = ''", "name = 'aa'; summary = 3", "name, summary, variants = 'aa', '', 3")),
    "import bench\n@bench.register_metric\nclass A(bench.Metric):\n    name, summary, unit = 'aa', '', ''",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_FILES)
def test_files_that_register_nothing_good_end_in_a_line(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = bench("list", "methods", "--plugin", path)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("1 / 0")
    arguments = ["list", "methods", "--plugin", str(tmp_path / "mine.py")]
    assert "Traceback" not in CliRunner().invoke(main, arguments).output
    shown = CliRunner().invoke(main, [*arguments, "--debug"])
    assert "Traceback" in shown.output
    assert "ZeroDivisionError" in shown.output


# --- failures in a run ---

DISTURBED = """
import os, signal
from pathlib import Path
from dataclasses import dataclass
from bench import Method, register_method
from bench.diffusion import training

@register_method
@dataclass(frozen=True, kw_only=True)
class Broken(Method):
    name = "broken"
    summary = "raises once the model is trained"

    def scores(self, context, queries):
        if len(context.dataset) > 10:
            raise RuntimeError("not today")
        import torch
        return torch.zeros(len(queries), len(context.dataset))

HOME = Path({home!r})
advance = training.TrainingRun.advance

def taken(name, who):
    try:
        handle = os.open(HOME / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return (HOME / name).read_text() == who
    os.write(handle, who.encode())
    os.close(handle)
    return True

def disturbed(self):
    who = str(self.draws.is_removed.nonzero()[0].tolist())
    if self.step == 3 and self.draws.is_removed.any():
        if taken("fails", who):
            with (HOME / "failed").open("a") as file:
                file.write("x")
            raise RuntimeError("the machine has hiccups")
        if taken("dies", who) and not (HOME / "died").exists():
            (HOME / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return advance(self)

training.TrainingRun.advance = disturbed
"""


@pytest.fixture
def quick_workers(monkeypatch):
    """Workers come from a process that has imported everything: that takes ten seconds of each otherwise.

    tests/test_execution.py has those that begin from nothing, as they do outside the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.retraining.executors", "methods", "metrics"])
    monkeypatch.setattr("bench.retraining.executors.multiprocessing.get_context", lambda kind: context)


@pytest.fixture
def undisturbed(monkeypatch):
    """A plugin replaces what it patches in this process too."""
    from bench.diffusion import training

    monkeypatch.setattr(training.TrainingRun, "advance", training.TrainingRun.advance)


def test_a_method_that_raises_a_training_that_fails_twice_and_a_killed_worker_cost_their_own_rows(
    tmp_path, quick, monkeypatch, no_figures, quick_workers, undisturbed
):
    monkeypatch.setitem(__import__("bench.studies", fromlist=["STUDIES"]).STUDIES, "tiny", lambda: quick)
    plugin = tmp_path / "disturbed.py"
    plugin.write_text(DISTURBED.format(home=str(tmp_path)))
    line = ["run", "--study", "tiny", "--plugin", plugin, "--method", "broken", "--method", "pixel", "--queries", "2",
            "--k", "8", "--workers", "2", "--results", tmp_path / "run"]  # fmt: skip
    result = bench(*line)
    assert result.exit_code == 1, result.output
    frame = pd.read_parquet(tmp_path / "run" / "results.parquet")
    failed = frame[frame["status"] == "failed"]
    assert (tmp_path / "died").exists(), result.output
    assert (tmp_path / "failed").read_text() == "xx"
    assert len(set(failed["model_key"])) == 1
    assert len(failed) == 2
    assert len(frame) == 2 * 2 * 4  # two metrics, two queries; pixel, both floors, nothing removed
    for words in (
        "broken failed: Method 'broken' raised RuntimeError: not today",
        "1 trainings failed",
        "hiccups",
        "--retry-failed",
    ):
        assert words in result.output.replace("\n", " "), words
    manifest = read_json(tmp_path / "run" / "manifest.json")["runs"][-1]
    assert list(manifest["failures"]) == ["broken"]
    assert list(manifest["failed_trainings"]) == list(failed["model_key"].unique())
    ledger = Ledger(quick, Store(tmp_path / "run"), device=torch.device("cpu"), observations=[])
    kept = ledger.store.record(*folder.failure(failed["model_key"].iloc[0]))
    assert kept["tries"] == 2

    monkeypatch.setattr("bench.registry.PLUGINS", [])
    from bench.diffusion import training

    monkeypatch.setattr(training.TrainingRun, "advance", lambda self: pytest.fail("trained again"))
    methods._classes.pop("broken", None)
    again = ["run", "--study", "tiny", "--method", "pixel", "--queries", "2", "--k", "8", "--results", tmp_path / "run"]
    result = bench(*again)
    assert result.exit_code == 1
    assert "set aside" in result.output
    monkeypatch.undo()
    monkeypatch.setitem(__import__("bench.studies", fromlist=["STUDIES"]).STUDIES, "tiny", lambda: quick)
    result = bench(*again, "--retry-failed")
    assert result.exit_code == 0, result.output
    assert pd.read_parquet(tmp_path / "run" / "results.parquet")["status"].eq("done").all()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_exit_code_75(kind, tmp_path, quick, monkeypatch):
    from bench.diffusion import training

    advance = training.TrainingRun.advance

    def killed(self):
        if self.step == 3:
            os.kill(os.getpid(), kind)
        return advance(self)

    monkeypatch.setitem(__import__("bench.studies", fromlist=["STUDIES"]).STUDIES, "tiny", lambda: quick)
    monkeypatch.setattr(training.TrainingRun, "advance", killed)
    before = signal.getsignal(signal.SIGTERM)
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        result = bench("run", "--study", "tiny", "--method", "pixel", "--queries", "1", "--results", tmp_path)
    finally:
        signal.signal(signal.SIGINT, interrupted)
    assert result.exit_code == 75, result.output
    assert "what is finished is kept" in result.output
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_says_what_is_needed_and_ends_with_75(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.records.store.os.fsync", full)
    result = bench("plan", "--study", "tiny", "--method", "pixel", "--results", tmp_path)
    assert result.exit_code == 75
    assert "MiB were to be written" in result.output


def test_help_tells_the_exit_codes():
    assert "75 not finished" in " ".join(bench("--help").output.split())


# --- races ---


def write_rows(root, worker, rounds, digest):
    store = Store(Path(root))
    values = dict.fromkeys(rows.COLUMNS, "") | {"study_digest": digest, "value": 1.0, "status": "done", "k": worker,
              "seed": 0, "train_seconds": 1.0, "score_seconds": 1.0, "design": "paired"}  # fmt: skip
    frame = rows.frame_of([rows.Row(**values)])
    for index in range(rounds):
        with store.lock("results"):
            rows.merge(store, frame.assign(seed=index))
            kept = store.record(folder.MANIFEST) or {"runs": []}
            store.write_record((folder.MANIFEST,), {"runs": [*kept["runs"], [worker, index]]})


def write_and_delete(root, worker, rounds, digest):
    store, rng = Store(Path(root), note=lambda text: os._exit(3)), random.Random(worker)
    for _ in range(rounds * 4):
        parts = folder.model(f"{rng.randrange(3)}")
        choice = rng.randrange(3)
        if choice == 0:
            store.write_tensors(parts, {"x": torch.arange(50)})
        elif choice == 1:
            store.path(*parts).unlink(missing_ok=True)
        else:
            store.tensors(*parts)


@pytest.mark.parametrize("work", [write_rows, write_and_delete])
def test_processes_that_write_one_folder_lose_nothing(work, tmp_path):
    workers, rounds = 4, 50  # 200 in all
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(str(tmp_path), index, rounds, "d")) for index in range(workers)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * workers
    if work is write_rows:
        assert len(rows.load(Store(tmp_path))) == workers * rounds
        assert len(read_json(tmp_path / folder.MANIFEST)["runs"]) == workers * rounds


def test_locks_are_taken_in_one_order_and_again_by_their_holder(tmp_path):
    store = Store(tmp_path)
    with store.lock("results"), Store(tmp_path).lock("results"), store.lock("queries"):
        why = refusal(store.lock("model-a").__enter__, error=AssertionError)
    assert "LOCK_ORDER" in why
    with store.lock("model-a"), store.lock("results"):
        pass


def test_a_leaderboard_reads_within_its_lock(copy, quick, monkeypatch):
    from bench.records import store as module
    from bench.report import publishing

    def opened(root, name):
        assert [path.name for path in module._held.locks] == ["results.claim"]
        raise ResultsFolderError("seen")

    monkeypatch.setattr(publishing, "open_folder", opened)
    with pytest.raises(ResultsFolderError, match="seen"):
        publishing.publish(quick, [], copy)


def test_a_key_is_the_digest_of_study_ids_and_seed(quick, tmp_path):
    ledger = Ledger(quick, Store(tmp_path), device=torch.device("cpu"), observations=[])
    from bench.diffusion.training import TrainingJob

    for removed in ((), (3,), (11, 2, 30)):
        ids = sorted(quick.dataset.ids[index] for index in removed)
        assert ledger.key(TrainingJob(removed, 4)) == digest_of([quick.digest, ids, 4])


# --- kills ---


def _cli_process(line):
    """A process that runs the command ``line``, forked from a server that has imported everything already.

    So its whole life is the run itself, and a signal hits the work rather than the start of Python: it has begun when
    this returns.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli", "bench.experiments.leave_k_out", "bench.report.doctor"])
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command begins, a Ctrl-C is none of its business
begun.send(True)
os.chdir({str(ROOT)!r})
for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
sys.argv[1:] = {[str(word) for word in line]!r}
import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.main()
"""
    begun, sender = context.Pipe(duplex=False)
    process = context.Process(target=exec, args=(code, {"begun": sender}))
    process.start()
    sender.close()
    assert begun.recv()
    return process


def test_fifty_kills_lose_nothing(tmp_path):
    line = ["run", "--study", "tiny", "--method", "pixel", "--floor", "random", "--metric", "loss_change",
            "--queries", "1", "--k", "20", "--results"]  # fmt: skip

    def whole(root):
        started = time.monotonic()
        process = _cli_process([*line, root])
        process.join(240)
        assert process.exitcode == 0
        return time.monotonic() - started

    whole(tmp_path / "warm")
    usual = whole(tmp_path / "a")
    expected = pd.read_parquet(tmp_path / "a" / "results.parquet")
    rng, endings = random.Random(5), []
    for root in (tmp_path / f"b{number}" for number in itertools.count()):
        for _ in range(10):
            process = _cli_process([*line, root])
            process.join(rng.uniform(0.02, 0.3) * usual)
            if not process.is_alive():  # what was left to do took less time than that
                break
            os.kill(process.pid, rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
            process.join(60)
            endings.append(process.exitcode)
        whole(root)
        columns = ["train_seconds", "score_seconds"]
        found = pd.read_parquet(root / "results.parquet")
        pd.testing.assert_frame_equal(found.drop(columns=columns), expected.drop(columns=columns))
        assert not doctor.examine(root).damages
        assert not list(root.rglob(".*.part"))
        if sum(code != 0 for code in endings) >= 50:  # a signal to a process that had ended its work does not count
            break
    assert set(endings) <= {0, 75, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}, endings
