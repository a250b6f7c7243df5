"""Workers on one folder: each model once, whoever dies, whatever the engine; results as of an undisturbed run."""

import json
import multiprocessing
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from bench.diffusion.training import TrainingJob
from bench.errors import EngineStopped, InvalidInput, ResultsFolderError, UnknownName
from bench.experiments.workspace import Workspace
from bench.foundation.machine import available_threads, compute_threads
from bench.records import folder
from bench.records.store import Store, read_tensors
from bench.retraining import crews, plans
from bench.retraining.executors import Engine, executor
from bench.retraining.ledger import TRIES, Ledger, Request
from bench.retraining.worker import work
from bench.studies import STUDIES, study
from cli import main

pytestmark = pytest.mark.usefixtures("own_registry")
JOBS = [TrainingJob((index,), 1) for index in range(4)]
DISTURBED = """
import os, signal
from pathlib import Path
from bench.contracts import Method
from bench.diffusion import training
from bench.registry import register_method
from bench.retraining import ledger

@register_method
class Unused(Method):
    name, summary = "unused", "a plugin must register something"

    def scores(self, context, queries): ...

ledger.CHECKPOINT_SECONDS = 0.0
advance, home = training.TrainingRun.advance, Path({home!r})

def disturbed(self):
    victim, = self.draws.is_removed.nonzero()[0]
    with (home / "log").open("a") as file:
        file.write(f"{{victim}} {{self.step}}\\n")
    if self.step == 5 and os.environ.get("BENCH_HOST", "one") == "one":
        try:
            (home / "killed").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            (home / "killed").write_text(str(victim))
            os.kill(os.getpid(), signal.SIGKILL)
    return advance(self)

training.TrainingRun.advance = disturbed
"""


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The models of an undisturbed run, by key."""
    ledger = Ledger(study("tiny"), Store(tmp_path_factory.mktemp("alone")), device=torch.device("cpu"), observations=[])
    with compute_threads(1):
        return {ledger.key(job): ledger.model(job).state() for job in JOBS}


@pytest.fixture
def planned(tmp_path):
    """A results folder with a plan of JOBS, whose first worker dies at the sixth step."""
    plugin, root = tmp_path / "disturbed.py", tmp_path / "run"
    plugin.write_text(DISTURBED.format(home=str(tmp_path)))
    workspace = Workspace(study("tiny"), root, metrics=[])
    engine = replace(workspace.engine, plugins=(str(plugin),))
    plans.write(workspace.store, engine, [Request(job) for job in JOBS])
    return engine


def command(line, environment):
    """A process that runs the command ``line``, forked from a server that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli", "bench.retraining.worker", "methods", "metrics"])
    code = f"""
import os, runpy, sys
os.environ.update({environment!r})
for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
sys.argv[1:] = {[str(word) for word in line]!r}
runpy.run_module("cli", run_name="__main__")
"""
    process = context.Process(target=exec, args=(code, {}))
    process.start()
    return process


def assert_each_once(home, expected):
    """The models are those of an undisturbed run; no step was done twice but the one that the death cut off."""
    for key, state in expected.items():
        found = read_tensors(home / "run" / "models" / f"{key}.safetensors")[0]
        assert all(torch.equal(found[part], weight) for part, weight in state.items())
    steps = Counter(tuple(map(int, line.split())) for line in (home / "log").read_text().splitlines())
    victim = int((home / "killed").read_text())
    assert steps == Counter({(job, step): 1 for job in range(4) for step in range(30)} | {(victim, 5): 2})


def test_two_hosts_share_a_folder_and_one_killed_in_mid_training_is_taken_over(planned, tmp_path, expected):
    line = ["work", "--results", planned.root, "--threads", "1"]
    one, two = (command(line, {"BENCH_HOST": name, "BENCH_HEARTBEAT": "1"}) for name in ("one", "two"))
    for process in (one, two):
        process.join(120)
    assert (one.exitcode, two.exitcode) == (-signal.SIGKILL, 0)
    assert_each_once(tmp_path, expected)
    assert not folder.plans(planned.root)
    assert not list((planned.root / "locks").iterdir())


def test_time_that_is_up_leaves_a_checkpoint_and_exit_code_75(tmp_path, expected, monkeypatch):
    from bench.diffusion import training

    advance = training.TrainingRun.advance
    monkeypatch.setattr(training.TrainingRun, "advance", lambda self: (time.sleep(0.05), advance(self))[1])
    workspace = Workspace(study("tiny"), tmp_path, metrics=[])
    plans.write(workspace.store, workspace.engine, [Request(job) for job in JOBS[:1]])
    result = CliRunner().invoke(main, ["work", "--results", str(tmp_path), "--for", "0.6s"], catch_exceptions=False)
    assert result.exit_code == 75
    assert "more to do" in result.output
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    monkeypatch.undo()
    result = CliRunner().invoke(main, ["work", "--results", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "nothing is left" in result.output
    [path] = (tmp_path / "models").iterdir()
    assert all(torch.equal(read_tensors(path)[0][part], weight) for part, weight in expected[path.stem].items())


def test_a_request_that_kills_its_workers_is_set_aside_and_said(tmp_path):
    workspace = Workspace(study("tiny"), tmp_path, metrics=[])
    ledger = workspace.ledger
    plans.write(workspace.store, workspace.engine, [Request(job) for job in JOBS[:2]])
    place = ledger.store.path(*folder.lock(f"model-{ledger.key(JOBS[0])}"))
    place.parent.mkdir(exist_ok=True)
    last = {"token": "dead", "host": "elsewhere", "pid": 1, "interval": 0.1, "deaths": TRIES - 1}
    place.write_text(json.dumps(last))
    assert work(tmp_path)
    assert [ledger.is_trained(job) for job in JOBS[:2]] == [False, True]
    assert "died 3 times (the last on elsewhere, process 1)" in ledger.failure(JOBS[0])[0]
    said = workspace.fulfil([Request(job) for job in JOBS[:2]])
    assert "set aside" in said[JOBS[0]]
    assert "--retry-failed" in said[JOBS[0]]
    assert not Workspace(study("tiny"), tmp_path, metrics=[], retry_failed=True).fulfil([Request(JOBS[0])])
    assert ledger.is_trained(JOBS[0])


def test_a_plan_is_for_its_version_of_the_study(tmp_path):
    workspace = Workspace(study("tiny"), tmp_path, metrics=[])
    other = replace(study("tiny"), recipe=replace(study("tiny").recipe, num_steps=31))
    plans.write(workspace.store, replace(workspace.engine, study=other), [Request(JOBS[0])])
    with pytest.raises(ResultsFolderError, match="install the version"):
        work(tmp_path)


def test_a_worker_needs_a_results_folder(tmp_path):
    with pytest.raises(ResultsFolderError, match="bench run"):
        work(tmp_path / "nothing")


def test_a_worker_may_come_before_the_run(tmp_path):
    def begin():
        workspace = Workspace(study("tiny"), tmp_path / "run", metrics=[])
        plans.write(workspace.store, workspace.engine, [Request(JOBS[0]), Request(JOBS[1])])

    assert work(tmp_path / "run", wait=True, seconds=0.1)
    late = threading.Timer(0.5, begin)
    late.start()
    try:
        assert work(tmp_path / "run", wait=True, most=1) is False
    finally:
        late.join()
    assert len(list((tmp_path / "run" / "models").glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("written", "share"), [("max 100000", 64), ("250000 100000", 3), ("1000 100000", 1), ("", 64), (None, 64)]
)
def test_a_container_may_have_fewer_processors(monkeypatch, tmp_path, written, share):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr("bench.foundation.machine.CONTAINER_QUOTA", tmp_path / "cpu.max")
    if written is not None:
        (tmp_path / "cpu.max").write_text(written)
    assert available_threads() == share


def driven(engine, crew):
    made = crews.Elsewhere(engine.ledger(), crew)
    return list(made.fulfil([Request(job) for job in JOBS], lambda index, step: None))


def test_a_worker_of_a_dask_cluster_that_dies_is_replaced(planned, tmp_path, expected):
    pytest.importorskip("distributed")
    import dask.config

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli", "bench.retraining.worker", "methods", "metrics"])
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):  # it begins ten seconds sooner
        found = driven(planned, crews.Dask(planned, 2, print))
    assert sorted(outcome.index for outcome in found) == [0, 1, 2, 3]
    assert not any(outcome.failure for outcome in found)
    assert_each_once(tmp_path, expected)


class Idle(crews.External):
    """Workers that end at once."""

    def ended(self):
        return "all ended"


def test_a_driver_whose_workers_ended_says_so(planned):
    with pytest.raises(EngineStopped, match="4 of 4 models are not done"):
        driven(planned, Idle(planned, 2, print))


def test_a_driver_hears_of_failures_and_of_models_that_others_made(tiny, tmp_path):
    workspace = Workspace(tiny, tmp_path, metrics=[])
    engine = Engine(tiny, tmp_path, "cpu", (), 1024.0)

    class Other(crews.External):
        def start(self, count):
            ledger = engine.ledger()
            ledger.keep_failure(JOBS[0], RuntimeError("tried"), again=True)
            for job in JOBS[1:]:
                ledger.model(job)

        def ended(self):
            engine.ledger().keep_failure(JOBS[0], RuntimeError("odd"))
            return ""

    workspace.ledger.keep_failure(JOBS[1], RuntimeError("of an earlier run"))
    found = {outcome.index: outcome.failure for outcome in driven(engine, Other(engine, 1, print))}
    assert found == {0: "RuntimeError: odd", 1: None, 2: None, 3: None}


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("slrum", {}, UnknownName, "Did you mean 'slurm'"),
        ("slurm", {"partitoin": "gpu"}, UnknownName, "Did you mean 'partition'"),
        ("local", {"time": "4h"}, InvalidInput, "--workers alone"),
    ],
)
def test_engines_and_their_settings_are_checked(name, options, error, message):
    with pytest.raises(error, match=message):
        crews.check_engine(name, options)


def test_the_local_engine_leaves_no_plan_behind(tiny, tmp_path):
    workspace = Workspace(tiny, tmp_path, metrics=[])
    workspace.fulfil([Request(JOBS[0])])
    assert not folder.plans(tmp_path)
    assert type(executor("inline", workspace.engine, workspace.ledger)).__name__ == "Inline"


def test_a_driver_that_is_stopped_leaves_its_plan_to_workers_and_finds_what_they_did(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(STUDIES, "tiny", lambda: tiny)
    driver = Workspace(tiny, tmp_path, metrics=[], crew="external")
    requests = [Request(job) for job in JOBS]

    def stopped(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crews.time, "sleep", stopped)
        with pytest.raises(KeyboardInterrupt):
            driver.fulfil(requests)
    assert len(folder.plans(tmp_path)) == 1
    assert work(tmp_path)
    monkeypatch.setattr(Ledger, "_train", lambda *given: pytest.fail("trained again"))
    assert not driver.fulfil(requests)
