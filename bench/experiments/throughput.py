"""How fast models are trained and observed: from the records of finished ones, else measured with the same layout.

A layout is W worker processes of T threads each. It matters: two one-thread workers train two models in about the time
in which one process with two threads trains one and a half, so a time holds for its machine and layout alone.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.diffusion.queries import Query
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
from bench.experiments.workspace import Workspace
from bench.foundation import seeds
from bench.foundation.machine import compute_threads, machine_kind, worker_threads
from bench.records import folder
from bench.registry import load_plugin
from bench.retraining.executors import Engine
from bench.retraining.ledger import OBSERVED, Ledger

PROBE_STEPS = 4
PROBE_SECONDS = 2.0
PROBE_IMAGES, LARGE = 64, 8192
"""Of a data set of more than the second number that is not encoded yet, so many are encoded to measure with."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What one machine kind does with one layout.

    Attributes:
        machine: its kind.
        workers, threads: the layout; 0 where the records do not say it.
        training_seconds: wall time of one model while all workers are busy.
        observing_seconds: wall time of each observation, for as many queries as a worker has threads.
        start_seconds: until the workers are ready.
        source: where the times come from.
    """

    machine: str
    workers: int
    threads: int
    training_seconds: float
    observing_seconds: Mapping[str, float]
    start_seconds: float
    source: str

    @property
    def layout(self) -> str:
        """In words."""
        if not self.workers:
            return "layout not recorded"
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        return f"{workers} of {self.threads} thread{'s' if self.threads > 1 else ''}"

    def observing(self, name: str, queries: int) -> float:
        """Seconds that one worker needs to observe ``name`` for ``queries``; 0 where that was never measured."""
        return math.ceil(queries / max(1, self.threads)) * self.observing_seconds.get(name, 0.0)


def recorded(workspace: Workspace) -> list[Throughput]:
    """The median times of the finished models in the folder, for each machine kind and layout."""
    groups: dict[tuple[str, int, int], list[dict[str, str]]] = {}
    for path in folder.observations(workspace.store.root):
        found = workspace.store.tensors(*path.relative_to(workspace.store.root).parts)
        if found and found[1]["seconds"] != "nan":
            facts = found[1]
            key = (facts["machine"], int(facts.get("workers", 0)), int(facts.get("threads", 0)))
            groups.setdefault(key, []).append(facts)
    return [_median(*key, records) for key, records in groups.items()]


def _median(machine: str, workers: int, threads: int, records: list[dict[str, str]]) -> Throughput:
    names = {name for facts in records for name in facts if name.startswith(OBSERVED)}
    return Throughput(
        machine=machine,
        workers=workers,
        threads=threads,
        training_seconds=float(np.median([float(facts["seconds"]) for facts in records])),
        observing_seconds={
            name.removeprefix(OBSERVED): float(np.median([float(facts[name]) for facts in records if name in facts]))
            for name in names
        },
        start_seconds=0.0,
        source=f"median of {len(records)} finished",
    )


def measured(workspace: Workspace, workers: int, threads: int) -> Throughput:
    """A few steps and one observation of each kind, now, with as many processes as will be at work."""
    started = time.perf_counter()
    if workers == 1:
        with compute_threads(threads):
            times = [_probe(workspace.ledger)]
    else:
        times = _probe_workers(workspace.engine, workers)
    ready = min(moment for moment, _, _ in times) - started
    return Throughput(
        machine=machine_kind(workspace.device),
        workers=workers,
        threads=threads if workers == 1 else worker_threads(workers),
        training_seconds=float(np.mean([training for _, training, _ in times])),
        observing_seconds={name: float(np.mean([each[name] for _, _, each in times])) for name in times[0][2]},
        start_seconds=0.0 if workers == 1 else ready,
        source=f"{PROBE_SECONDS:.0f} s of training just now",
    )


def here(workspace: Workspace, workers: int, threads: int, known: list[Throughput]) -> Throughput:
    """The throughput of this machine with this layout: from ``known`` records, else measured."""
    share = threads if workers == 1 else worker_threads(workers)
    kind = machine_kind(workspace.device)
    fitting = [one for one in known if (one.machine, one.workers, one.threads) == (kind, workers, share)]
    return fitting[0] if fitting else measured(workspace, workers, threads)


Times = tuple[float, float, dict[str, float]]
"""When the process was ready, seconds of one training, seconds of each observation for one query."""


def _probe(ledger: Ledger) -> Times:
    study = ledger.study
    data, job = _data(ledger), TrainingJob((), study.seed)
    rows = 1 if study.recipe.stack > 1 else ledger.together  # a stack is filled up
    runs = [TrainingRun(study.model, data, study.recipe, job, device=ledger.device) for _ in range(rows)]
    run, steps = runs[0], ledger.trainer(runs)
    next(steps)
    ready, done = time.perf_counter(), 0
    while not run.finished and (done < PROBE_STEPS or time.perf_counter() - ready < PROBE_SECONDS):
        next(steps)
        done += 1
    training = (time.perf_counter() - ready) / max(1, done) * study.recipe.num_steps / ledger.together
    noise = seeds.normal(run.model.latent_shape, "probe")
    query = Query("probe", study.prompts[0], 0, noise, noise, study.sampler)
    seconds = {}
    for name, observation in ledger.observations.items():
        started = time.perf_counter()
        observation.observe(run.model, [query], study.seed)
        seconds[name] = time.perf_counter() - started
    return ready, training, seconds


def _data(ledger: Ledger) -> TrainingData:
    """D as the model sees it; of a large data set that is not encoded yet its first images, which cost as much each."""
    whole = ledger.study.dataset
    if len(whole) <= LARGE or ledger.is_encoded:
        return ledger.data
    return TrainingData.of(whole.only(range(PROBE_IMAGES)), ledger.study.fresh_model())


def _probe_workers(engine: Engine, workers: int) -> list[Times]:
    """The same in ``workers`` processes at once."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    engine = replace(engine, study=replace(engine.study))  # leaves cached data behind
    with ProcessPoolExecutor(workers, context, initializer=_start_probe, initargs=(engine, barrier)) as pool:
        return [future.result() for future in [pool.submit(_probe_together, workers) for _ in range(workers)]]


_probing: dict[str, Any] = {}


def _start_probe(engine: Engine, barrier: Any) -> None:
    for path in engine.plugins:
        load_plugin(Path(path))
    _probing.update(ledger=engine.ledger(), barrier=barrier)


def _probe_together(workers: int) -> Times:
    with compute_threads(worker_threads(workers)):
        ledger: Ledger = _probing["ledger"]
        _data(ledger)
        _probing["barrier"].wait()
        return _probe(ledger)
