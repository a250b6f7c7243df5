"""Who trains: one small interface with two engines of this machine, this process and N local worker processes.

``bench.retraining.crews`` has those of other machines. All of them fulfil requests through the same ledger, whose files
and locks are the only thing they share; so it does not matter which engine, or which other run on the same folder,
finished what.

What one request raises is its own outcome, kept with its traceback in ``failures/``; the others go on. Two things stop
all of them: an interrupt, which leaves a checkpoint, and a results folder that cannot be written.
"""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from bench import registry
from bench.errors import PluginFailed, ResultsFolderError, TrainingFailed, UnknownName, cause_of, reason_of
from bench.foundation.machine import compute_threads, worker_threads
from bench.records.store import Store, folder_error
from bench.registry import load_plugin, metrics
from bench.retraining.ledger import TRIES, Busy, Ledger, Request, WorkerDied
from bench.studies import Study

REPORT_SECONDS = 0.5
BUSY_PAUSE_SECONDS = 1.0
TRAINING_TRIES = 2
"""A training that raises is begun so many times, unless it diverged: the same numbers would come again."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        index: of the request.
        failure: the reason where it failed.
        kind: the type of the exception where it failed, "" elsewhere.
    """

    index: int
    failure: str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Engine:
    """What a worker needs to build its own ledger."""

    study: Study
    root: Path
    device: str
    metric_names: tuple[str, ...]
    size_limit_mib: float
    plugins: tuple[str, ...] = field(default_factory=lambda: tuple(registry.PLUGINS))

    def ledger(self, **hooks: Any) -> Ledger:
        """The ledger of this run's results folder."""
        note = hooks.pop("note", lambda text: None)
        chosen = [metrics.get(name) for name in self.metric_names]
        return Ledger(
            self.study,
            Store(self.root, note=note, study=self.study.digest),
            device=torch.device(self.device),
            observations=[metric.observation for metric in chosen],
            on_controls=[metric.observation.name for metric in chosen if metric.relative_to_controls],
            size_limit_mib=self.size_limit_mib,
            **hooks,
        )


class Executor(ABC):
    """Fulfils requests, in any order; yields an outcome for each."""

    @abstractmethod
    def fulfil(self, requests: Sequence[Request], on_step: OnStep) -> Iterator[Outcome]:
        """Train and observe. ``on_step(request index, steps done)`` reports from within."""


class Pending:
    """Requests that wait for their turn; one that another process is at work on is left for last: they share the work.

    Attributes:
        left: pairs of index and request.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.left = deque(enumerate(requests))
        self._busy_in_a_row = 0

    def put_last(self, index: int, request: Request) -> None:
        """Another process trains it. A pause follows where that holds for all that are left."""
        self.left.append((index, request))
        self._busy_in_a_row += 1
        if self._busy_in_a_row >= len(self.left):
            time.sleep(BUSY_PAUSE_SECONDS)

    def one_is_done(self) -> None:
        """Something went on."""
        self._busy_in_a_row = 0


class Inline(Executor):
    """One request after another, in this process."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def fulfil(self, requests: Sequence[Request], on_step: OnStep) -> Iterator[Outcome]:
        """Each in its turn."""
        pending = Pending(requests)
        while pending.left:
            prepare(self.ledger, pending.left, on_step)
            index, request = pending.left.popleft()
            try:
                yield attempt(self.ledger, index, request, lambda step, index=index: on_step(index, step))  # type: ignore[misc]
            except Busy:
                pending.put_last(index, request)
            else:
                pending.one_is_done()


def prepare(ledger: Ledger, requests: Iterable[tuple[int, Request]], on_step: OnStep) -> None:
    """Where models are trained together and the first request's is untrained: train it with as many others as fit."""
    if ledger.together == 1:
        return
    first, *others = requests
    if ledger.is_trained(first[1].job):
        return
    wanted = ((i, each.job) for i, each in [first, *others] if ledger.is_due(each) and not ledger.is_trained(each.job))
    chosen = dict(itertools.islice(wanted, ledger.together))

    def all_at(step: int) -> None:
        for index in chosen:
            on_step(index, step)

    try:
        ledger.prepare(list(chosen.values()), all_at)
    except ResultsFolderError:
        raise
    except Exception as error:  # each is tried by itself next, and its failure kept
        why = reason_of(error)
        ledger.store.note(f"{len(chosen)} models trained together failed ({why}): they are tried one by one.")


class LocalWorkers(Executor):
    """N processes on this machine, the processors shared out among them. One that dies is replaced.

    Args:
        engine: to build the workers' ledgers.
        ledger: of this process, which keeps the failures of workers that died.
        workers: how many.
    """

    def __init__(self, engine: Engine, ledger: Ledger, workers: int) -> None:
        self.engine = replace(engine, study=replace(engine.study))  # leaves cached data behind
        self.ledger, self.workers = ledger, workers

    def fulfil(self, requests: Sequence[Request], on_step: OnStep) -> Iterator[Outcome]:
        """Every worker takes the next request when it is free."""
        pending, deaths = Pending(requests), Counter[int]()
        crew: list[Worker] = []
        try:
            while pending.left or any(worker.task for worker in crew):
                unfinished = len(pending.left) + sum(worker.task is not None for worker in crew)
                crew += [Worker(self.engine, self.workers) for _ in range(min(self.workers, unfinished) - len(crew))]
                for worker in crew:
                    if worker.task is None and pending.left:
                        worker.give(*pending.left.popleft())
                wait([place for worker in crew for place in (worker.pipe, worker.process.sentinel)])
                for worker in list(crew):
                    is_alive = worker.process.is_alive()  # asked first: all that a dead one has sent is here
                    for message in worker.messages():
                        yield from self._heard(worker, message, pending, on_step)
                    if not is_alive:
                        crew.remove(worker)
                        yield from self._buried(worker, pending, deaths)
        finally:
            for worker in crew:
                worker.pipe.close()  # asks it to leave a checkpoint and to end
            for worker in crew:
                worker.process.join()

    def _heard(self, worker: Worker, message: Any, pending: Pending, on_step: OnStep) -> Iterator[Outcome]:
        """Take in what ``worker`` says."""
        if isinstance(message, Stopped):
            raise ResultsFolderError(message.reason) if message.is_folder else TrainingFailed(message.reason)
        if isinstance(message, Outcome):
            worker.task = None
            pending.one_is_done()
            yield message
        elif isinstance(message, tuple):
            on_step(*message)
        elif worker.task is not None:  # None: another process is at work on it
            task, worker.task = worker.task, None
            pending.put_last(*task)

    def _buried(self, worker: Worker, pending: Pending, deaths: Counter[int]) -> Iterator[Outcome]:
        """Put the request of a dead worker last, or give it up."""
        worker.pipe.close()
        worker.process.join()
        if worker.task is None:
            return
        index, request = worker.task
        deaths[index] += 1
        if deaths[index] < TRIES:
            self.ledger.store.note(f"A worker process died ({worker.end}): its model is tried again.")
            pending.left.append(worker.task)
            return
        error = WorkerDied(
            f"Its worker process died {TRIES} times ({worker.end}). Where memory is short, fewer --workers help."
        )
        self.ledger.keep_failure(request.job, error)
        yield Outcome(index, str(error), type(error).__name__)


def attempt(
    ledger: Ledger, index: int, request: Request, on_step: Callable[[int], None], *, again: int = TRAINING_TRIES - 1
) -> Outcome:
    """Fulfil one request; what it raises so many times is its outcome, and kept.

    Raises Busy where another process is at work on it, ResultsFolderError where the folder cannot be written.
    """
    try:
        ledger.fulfil(request, on_step, wait=False)
    except (Busy, ResultsFolderError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise folder_error(ledger.store.root, error) from error
        if isinstance(error, SystemExit) and ledger.should_stop():
            raise  # it is this process that is to end
        goes_on = bool(again) and not isinstance(error, PluginFailed | TrainingFailed)  # those would fail again
        ledger.keep_failure(request.job, error, again=goes_on)
        if goes_on:
            ledger.store.note(f"A training failed ({reason_of(error)}): it is tried again.")
            return attempt(ledger, index, request, on_step, again=again - 1)
        return Outcome(index, ledger.reason(request.job, error), type(cause_of(error)).__name__)
    ledger.forget_failure(request.job)
    return Outcome(index)


@dataclass(frozen=True)
class Stopped:
    """A worker's word that no request can go on."""

    reason: str
    is_folder: bool


class Worker:
    """One process and a pipe of its own, so that its death harms no other. Closing the pipe asks it to stop.

    It sends (index, step) now and then, an Outcome, None where its request is busy elsewhere, or Stopped.

    Attributes:
        task: the request that it is at work on.
    """

    def __init__(self, engine: Engine, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, engine, workers))
        self.process.start()
        theirs.close()
        self.task: tuple[int, Request] | None = None

    def give(self, index: int, request: Request) -> None:
        """Let it fulfil ``request``."""
        self.task = index, request
        with suppress(OSError):  # it died: that is seen when its end is
            self.pipe.send(self.task)

    def messages(self) -> list[Any]:
        """All that it has sent."""
        found = []
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                found.append(self.pipe.recv())
        return found

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return "killed by SIGKILL: out of memory, or by hand"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _work(pipe: Connection, engine: Engine, workers: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, _leave)
    _end_with_parent()
    with suppress(EOFError, OSError, KeyboardInterrupt), compute_threads(worker_threads(workers)):
        try:
            for path in engine.plugins:
                load_plugin(Path(path))
            # while it is at work, only the end of the pipe can be read from it
            ledger = engine.ledger(workers=workers, should_stop=pipe.poll)
        except Exception as error:
            pipe.send(Stopped(f"A worker process could not start: {reason_of(error)}", is_folder=False))
            return
        while True:
            index, request = pipe.recv()
            try:
                outcome: Outcome | None = attempt(ledger, index, request, _reporter(pipe, index))
            except Busy:
                outcome = None
            except ResultsFolderError as error:
                pipe.send(Stopped(str(error), is_folder=True))
                return
            pipe.send(outcome)


def _leave(number: int, frame: object) -> None:
    """Asked to end: leave a checkpoint first."""
    raise KeyboardInterrupt


def _reporter(pipe: Connection, index: int) -> Callable[[int], None]:
    reported = time.monotonic()

    def on_step(step: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            with suppress(OSError):  # the parent has gone: the ledger sees that next
                pipe.send((index, step))

    return on_step


def _end_with_parent() -> None:
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


EXECUTORS: Mapping[str, Callable[[Engine, Ledger, int], Executor]] = {
    "inline": lambda engine, ledger, workers: Inline(ledger),
    "local": LocalWorkers,
}
"""By name: what makes an executor of the workers' engine, this process's ledger and a number of workers."""


def executor(name: str, engine: Engine, ledger: Ledger, workers: int = 1) -> Executor:
    """The executor called ``name``."""
    if name not in EXECUTORS:
        raise UnknownName("executor", name, EXECUTORS)
    return EXECUTORS[name](engine, ledger, workers)
