"""One request that fails, and a worker that is killed, cost their own model and nothing else, here and in workers."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from bench import errors
from bench.diffusion.training import TrainingJob
from bench.errors import UnknownName
from bench.records.store import Store, read_tensors
from bench.registry import load_plugin, metrics
from bench.retraining.executors import EXECUTORS, TRIES, Engine, executor
from bench.retraining.ledger import Ledger, Request

pytestmark = pytest.mark.usefixtures("own_registry")
JOBS = [TrainingJob((index,), 1) for index in range(4)]
BOTH = pytest.mark.parametrize("name", sorted(EXECUTORS))
FAULTY = """
from bench.contracts import Metric
from bench.diffusion.observations import Observation
from bench.registry import register_metric

class Faulty(Observation):
    name = "faulty"

    def observe(self, model, queries, seed):
        return [[model.latent_shape and query][0 if query.id == "q00" else 7].latent for query in queries]

@register_metric
class Metrical(Metric):
    name, summary, unit = "faulty", "raises for q01", ""
    observation = Faulty()

    def value(self, query, original, retrained):
        return 0.0
"""
KILLED = """
import os, signal, time
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
advance, log = training.TrainingRun.advance, Path({log!r})

def faulty(self):
    victim, = self.draws.is_removed.nonzero()[0]
    with log.open("a") as file:
        file.write(f"{{victim}} {{self.step}}\\n")
    time.sleep({pause})
    if self.step == 5 and victim == 1 and log.read_text().splitlines().count("1 5") <= {times}:
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(self)

training.TrainingRun.advance = faulty
"""


@pytest.fixture
def killed(tiny, tmp_path):
    """An engine whose workers kill themselves at the sixth step of the second model, so many times."""

    def engine(times, pause=0.0):
        plugin = tmp_path / "killed.py"
        plugin.write_text(KILLED.format(log=str(tmp_path / "log"), times=times, pause=pause))
        return Engine(tiny, tmp_path / "run", "cpu", ("loss_change",), 1024.0, (str(plugin),))

    return engine


def steps_done(tmp_path):
    return [tuple(map(int, line.split())) for line in (tmp_path / "log").read_text().splitlines()]


def outcomes(name, engine, requests):
    made = executor(name, engine, engine.ledger(), 2)
    return {outcome.index: outcome for outcome in made.fulfil(requests, lambda index, step: None)}


def undisturbed(tiny, folder):
    ledger = Ledger(tiny, Store(folder), device=torch.device("cpu"), observations=[])
    return {ledger.key(job): ledger.model(job).state() for job in JOBS}


def assert_equal_models(folder, expected):
    for key, state in expected.items():
        found = read_tensors(folder / "models" / f"{key}.safetensors")[0]
        assert all(torch.equal(found[part], weight) for part, weight in state.items())


@BOTH
def test_an_observation_that_raises_costs_its_request_alone_and_its_traceback_is_kept(name, tiny, queries, tmp_path):
    plugin = tmp_path / "faulty.py"
    plugin.write_text(FAULTY)
    load_plugin(plugin)
    engine = Engine(tiny, tmp_path / "run", "cpu", ("faulty",), 1024.0, (str(plugin),))
    requests = [Request(job, (queries[int(index == 1)],)) for index, job in enumerate(JOBS[:3])]
    found = outcomes(name, engine, requests)
    assert sorted(found) == [0, 1, 2]
    assert [found[index].kind for index in range(3)] == ["", "IndexError", ""]
    assert [bool(found[index].failure) for index in range(3)] == [False, True, False]
    assert "IndexError: list index out of range" in found[1].failure
    ledger = engine.ledger()
    [kept] = (tmp_path / "run" / "failures").iterdir()
    assert kept.stem == ledger.key(JOBS[1])
    record = json.loads(kept.read_text())
    assert (record["type"], record["message"]) == ("IndexError", "list index out of range")
    assert "in observe" in record["traceback"]
    assert record["job"] == {"removed": [tiny.dataset.ids[1]], "seed": 1}
    assert record["date"]
    assert record["machine"]
    assert [ledger.is_due(request) for request in requests] == [False, True, False]
    metrics.get("faulty").observation.observe = lambda model, queries, seed: [query.latent for query in queries]
    assert not outcomes("inline", engine, requests[1:2])[0].failure
    assert not kept.exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("odd"), SystemExit(1), errors.TrainingFailed("nan")])
def test_whatever_a_training_raises_is_its_own_outcome(error, tiny, tmp_path):
    def trainer(runs):
        if runs[0].draws.is_removed[1]:
            raise error
        yield from ([run.advance() for run in runs] for _ in range(tiny.recipe.num_steps))

    ledger = Ledger(tiny, Store(tmp_path), device=torch.device("cpu"), observations=[], trainer=trainer)
    engine = Engine(tiny, tmp_path, "cpu", (), 1024.0)
    made = executor("inline", engine, ledger)
    found = list(made.fulfil([Request(job) for job in JOBS[:3]], lambda index, step: None))
    assert [outcome.kind for outcome in found] == ["", type(error).__name__, ""]
    assert str(error) in found[1].failure


@pytest.mark.parametrize("error", [errors.ResultsFolderError("full"), OSError(28, "No space left on device")])
def test_a_full_disk_stops_everything(error, tiny, tmp_path):
    def trainer(runs):
        raise error

    ledger = Ledger(tiny, Store(tmp_path), device=torch.device("cpu"), observations=[], trainer=trainer)
    made = executor("inline", Engine(tiny, tmp_path, "cpu", (), 1024.0), ledger)
    with pytest.raises(errors.ResultsFolderError, match="full"):
        list(made.fulfil([Request(job) for job in JOBS[:2]], lambda index, step: None))


def test_a_worker_killed_in_mid_training_is_replaced_and_the_models_have_the_same_bits(killed, tiny, tmp_path):
    found = outcomes("local", killed(times=1), [Request(job) for job in JOBS])
    assert sorted(found) == [0, 1, 2, 3]
    assert not any(outcome.failure for outcome in found.values())
    assert Counter(steps_done(tmp_path))[1, 5] == 2
    assert Counter(steps_done(tmp_path))[1, 4] == 1  # it went on from the checkpoint
    assert_equal_models(tmp_path / "run", undisturbed(tiny, tmp_path / "other"))
    assert not (tmp_path / "run" / "failures").exists()


def test_a_request_that_kills_its_worker_each_time_is_set_aside_and_the_others_are_done(killed, tiny, tmp_path):
    engine = killed(times=99)
    found = outcomes("local", engine, [Request(job) for job in JOBS])
    assert {index for index, outcome in found.items() if outcome.failure} == {1}
    assert sorted(found) == [0, 1, 2, 3]
    assert found[1].kind == "WorkerDied"
    assert "SIGKILL" in found[1].failure
    assert Counter(steps_done(tmp_path))[1, 5] == TRIES
    [kept] = (tmp_path / "run" / "failures").iterdir()
    assert kept.stem == engine.ledger().key(JOBS[1])
    others = undisturbed(tiny, tmp_path / "other")
    del others[kept.stem]
    assert_equal_models(tmp_path / "run", others)


def test_an_interrupt_stops_the_workers_and_leaves_a_checkpoint(killed, tmp_path):
    engine = replace(killed(times=0, pause=0.3))

    def interrupt(index, step):
        raise KeyboardInterrupt

    made = executor("local", engine, engine.ledger(), 1)
    with pytest.raises(KeyboardInterrupt):
        list(made.fulfil([Request(job) for job in JOBS], interrupt))
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.stem == engine.ledger().key(JOBS[0])
    assert {victim for victim, _ in steps_done(tmp_path)} == {0}


def test_executors_are_chosen_by_name(tiny, tmp_path):
    engine = Engine(tiny, tmp_path, "cpu", (), 1024.0)
    assert type(executor("inline", engine, engine.ledger())).__name__ == "Inline"
    with pytest.raises(UnknownName, match="Known: inline, local"):
        executor("cluster", engine, engine.ledger())
