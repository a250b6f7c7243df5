"""Who trains: one small interface with two engines, this process and N local worker processes.

A cluster engine will be a third. All of them fulfil requests through the same ledger, whose files and locks are the
only thing they share; so it does not matter which engine, or which other run on the same folder, finished what.
"""

from __future__ import annotations

import multiprocessing
import os
import queue as queues
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bench.errors import BenchError, TrainingFailed
from bench.foundation.machine import compute_threads, worker_threads
from bench.records.store import Store
from bench.registry import PLUGINS, load_plugin, metrics
from bench.retraining.ledger import Busy, Ledger, Request
from bench.studies import Study

POLL_SECONDS = 0.5
BUSY_PAUSE_SECONDS = 1.0
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one request: ``failure`` holds the reason where it failed."""

    index: int
    failure: str | None = None


@dataclass(frozen=True)
class Engine:
    """What a worker needs to build its own ledger."""

    study: Study
    root: Path
    device: str
    metric_names: tuple[str, ...]
    size_limit_mib: float
    plugins: tuple[str, ...] = field(default_factory=lambda: tuple(PLUGINS))

    def ledger(self, **hooks: Any) -> Ledger:
        """The ledger of this run's results folder."""
        note = hooks.pop("note", lambda text: None)
        chosen = [metrics.get(name) for name in self.metric_names]
        return Ledger(
            self.study,
            Store(self.root, note=note),
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


class Inline(Executor):
    """One request after another, in this process."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def fulfil(self, requests: Sequence[Request], on_step: OnStep) -> Iterator[Outcome]:
        """A model that another process is training is left for last: they share the work."""
        pending = deque(enumerate(requests))
        busy_in_a_row = 0
        while pending:
            index, request = pending.popleft()
            try:
                self.ledger.fulfil(request, lambda step, index=index: on_step(index, step), wait=False)  # type: ignore[misc]
            except Busy:
                pending.append((index, request))
                busy_in_a_row += 1
                if busy_in_a_row >= len(pending):
                    time.sleep(BUSY_PAUSE_SECONDS)
                continue
            except BenchError as error:
                yield Outcome(index, str(error))
            else:
                yield Outcome(index)
            busy_in_a_row = 0


class LocalWorkers(Executor):
    """N processes on this machine, the processors shared out among them."""

    def __init__(self, engine: Engine, workers: int) -> None:
        self.engine = replace(engine, study=replace(engine.study))  # leaves cached data behind
        self.workers = workers

    def fulfil(self, requests: Sequence[Request], on_step: OnStep) -> Iterator[Outcome]:
        """Every worker takes the next request when it is free."""
        context = multiprocessing.get_context("spawn")
        steps, stop = context.Queue(), context.Event()
        threads = worker_threads(self.workers)
        pool = ProcessPoolExecutor(
            self.workers, context, initializer=_start_worker, initargs=(self.engine, self.workers, threads, steps, stop)
        )
        with pool:
            try:
                futures = {pool.submit(_fulfil, index, request): index for index, request in enumerate(requests)}
                yield from _collect(futures, steps, on_step)
            except BaseException:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _collect(futures: dict[Future[Outcome], int], steps: Any, on_step: OnStep) -> Iterator[Outcome]:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        while True:
            try:
                on_step(*steps.get_nowait())
            except queues.Empty:
                break
        for future in done:
            try:
                yield future.result()
            except BrokenProcessPool:
                raise TrainingFailed(
                    "A worker process died (out of memory, or killed). What it had finished is kept: "
                    "run the same command again, with fewer --workers if memory was short."
                ) from None


_worker: dict[str, Any] = {}


def _start_worker(engine: Engine, workers: int, threads: int, steps: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; workers leave a checkpoint on ``stop``
    parent = os.getppid()

    def follow_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()
    for path in engine.plugins:
        load_plugin(Path(path))
    context = compute_threads(threads)
    context.__enter__()
    _worker.update(ledger=engine.ledger(workers=workers, should_stop=stop.is_set), steps=steps, threads=context)


def _fulfil(index: int, request: Request) -> Outcome:
    ledger, steps = _worker["ledger"], _worker["steps"]
    reported = time.monotonic()

    def on_step(step: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > POLL_SECONDS:
            reported = time.monotonic()
            steps.put((index, step))

    try:
        ledger.fulfil(request, on_step)
    except BenchError as error:
        return Outcome(index, str(error))
    return Outcome(index)
