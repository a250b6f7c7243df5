"""Claims: one holder at a time, the dead are replaced once, the living never."""

import json
import multiprocessing
import os
import time

import pytest

from bench.errors import InvalidInput
from bench.records import claims
from bench.records.claims import Claim, Held, Owner, heartbeat

FAST = 0.2


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("BENCH_HEARTBEAT", str(FAST))
    monkeypatch.setattr(claims, "_hearts", set())  # a heart of an earlier test may beat slowly


def left_by(path, **facts):
    """The claim of somebody on another machine, who does not beat."""
    known = {"token": "dead", "host": "elsewhere", "pid": 1, "interval": FAST}
    path.write_text(json.dumps(known | facts))


def held(path, timeout=0.0):
    claim = Claim(path)
    claim.acquire(timeout)
    return claim


def test_one_holds_it_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.claim"
    first = held(path)
    with pytest.raises(Held, match=f"process {os.getpid()}"):
        held(path)
    first.release()
    held(path).release()
    assert not list(tmp_path.iterdir())


def test_whoever_beats_elsewhere_is_waited_for_and_the_dead_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.claim"
    monkeypatch.setenv("BENCH_HOST", "one")
    living = held(path)
    monkeypatch.setenv("BENCH_HOST", "two")
    with pytest.raises(Held):
        held(path, 8 * FAST)
    living.release()
    left_by(path)
    with pytest.raises(Held):
        held(path, 2 * FAST)
    successor = held(path, 20 * FAST)
    assert successor.taken_from.host == "elsewhere"
    assert successor.is_held()


def test_a_dead_process_of_this_machine_is_replaced_at_once(tmp_path):
    path = tmp_path / "a.claim"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=lambda: (held(path), os._exit(9)))
    process.start()
    process.join()
    assert held(path).taken_from.pid == process.pid


def test_an_owner_who_wakes_up_does_not_release_its_successor(tmp_path, monkeypatch):
    path = tmp_path / "a.claim"
    sleeper = Claim(path)
    left_by(path, token=sleeper.token)
    successor = held(path, 20 * FAST)
    assert not sleeper.is_held()
    sleeper.release()
    sleeper.beat()
    assert successor.is_held()


def test_deaths_are_counted_while_nothing_goes_on(tmp_path):
    path = tmp_path / "a.claim"
    for mark, deaths in (("step 5", 3), ("step 6", 1)):
        left_by(path, mark="step 5", deaths=2)
        claim = Claim(path, mark)
        claim.acquire(20 * FAST)
        assert claim.deaths == deaths
        assert Owner.of(path).deaths == deaths
        claim.release()


def grab(path, log, barrier):
    barrier.wait()
    try:
        claim = held(path, 2.0)
    except Held:
        os._exit(0)
    with log.open("a") as file:
        file.write(f"{os.getpid()} {claim.taken_from is not None}\n")
    time.sleep(3.0)
    os._exit(0)


@pytest.mark.parametrize("content", ["", '{"token": "dead", "host": "elsewhere", "interval": 0.2}'])
def test_of_many_watchers_one_takes_over(tmp_path, content):
    path, log = tmp_path / "a.claim", tmp_path / "log"
    path.write_text(content)  # where it is empty, its writer died before it had written
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    processes = [context.Process(target=grab, args=(path, log, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    [line] = log.read_text().splitlines()
    assert line.endswith("True")


@pytest.mark.parametrize("given", ["0", "soon", "-1", "nan"])
def test_a_heartbeat_is_a_number_of_seconds(given, monkeypatch):
    monkeypatch.setenv("BENCH_HEARTBEAT", given)
    with pytest.raises(InvalidInput, match="BENCH_HEARTBEAT"):
        heartbeat()
