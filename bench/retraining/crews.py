"""Crews: who runs the worker loop elsewhere, and the executor that watches what they do through the ledger's files.

A crew is a few lines around an existing engine (SLURM through submitit, Dask, or workers that people start themselves):
it starts workers and says when they have all ended. It is never asked about a single request: that is what the results
folder tells, so a driver may be stopped and started again, and finds what was done meanwhile.
"""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import EngineStopped, InvalidInput, Unavailable, UnknownName
from bench.foundation.machine import available_threads, worker_threads
from bench.foundation.texts import seconds
from bench.records import folder
from bench.retraining.executors import Engine, Executor, OnStep, Outcome
from bench.retraining.ledger import Ledger, Request
from bench.retraining.worker import Worker

POLL_SECONDS = 1.0
QUEUE_SECONDS = 30.0
"""Between two looks at SLURM's queue: it is there to schedule, not to be asked."""
MAX_ARRAY = 1000
"""Tasks of one job array: one less than SLURM's usual MaxArraySize."""
SECONDS_TO_LEAVE = 90
"""SLURM warns a job so long before it ends it."""


class Crew(ABC):
    """Workers elsewhere.

    Args:
        engine: of the run.
        workers: how many are wanted.
        say: told what happens.
        options: of --engine-set, by name (``check_engine``).
    """

    known: Mapping[str, str] = {}
    """What can be set, with what it means."""

    def __init__(
        self, engine: Engine, workers: int, say: Callable[[str], None], options: Mapping[str, str] | None = None
    ) -> None:
        self.engine, self.workers, self.say = engine, workers, say
        self.options = dict(options or {})

    @abstractmethod
    def start(self, count: int) -> None:
        """Start workers for ``count`` requests; they find them in the folder."""

    @abstractmethod
    def ended(self) -> str:
        """How it came that no worker is there any more, "" while there are some."""

    @abstractmethod
    def leave(self, *, finished: bool) -> None:
        """The driver ends; where not ``finished``, say what becomes of the workers."""

    def number(self, name: str, default: int) -> int:
        """A setting that is a whole number from 1 on."""
        given = self.options.get(name, str(default))
        if not given.isdecimal() or int(given) < 1:
            raise InvalidInput(f"--engine-set {name}={given}: a whole number from 1 on is expected.")
        return int(given)

    def worker(self, threads: int = 0) -> Worker:
        """The task that is sent to the cluster."""
        return Worker(str(self.engine.root.resolve()), self.engine.device, threads)


class External(Crew):
    """Workers that people start themselves: in tmux, by sbatch, on Kubernetes or rented machines."""

    def start(self, count: int) -> None:
        """Say how."""
        self.say(f"{count} models wait for workers: bench work --results {self.engine.root} (on any machine)")

    def ended(self) -> str:
        """Nobody knows: more may come."""
        return ""

    def leave(self, *, finished: bool) -> None:
        """They end by themselves."""


class Dask(Crew):
    """Tasks of a Dask cluster: one that is there, or one of local processes."""

    known: Mapping[str, str] = {
        "scheduler": "address such as tcp://host:8786; a cluster of local processes where none is given",
        "threads": "of each worker",
    }

    def start(self, count: int) -> None:
        """One task a worker; Dask gives the task of a worker that died to another."""
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise Unavailable("--engine dask needs a package: pip install 'attribution-bench[dask]'.") from error
        address, workers, self._local = self.options.get("scheduler"), min(self.workers, count), None
        if address is None:
            self._local = LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=None
            )
        try:
            self._client = Client(self._local or address, timeout=20)
        except (OSError, ValueError) as error:
            raise Unavailable(
                f"--engine-set scheduler={address}: no Dask scheduler answers there ({error})."
            ) from error
        threads = self.number("threads", worker_threads(workers) if address is None else available_threads())
        where = "local processes" if address is None else address
        self.say(f"{workers} workers on Dask ({where})")
        self._futures = [self._client.submit(self.worker(threads), pure=False) for _ in range(workers)]

    def ended(self) -> str:
        """All tasks have ended, or the scheduler has gone."""
        if self._client.status != "running":
            return "the Dask scheduler has gone"
        if not all(future.done() for future in self._futures):
            return ""
        failed = [str(future.exception()) for future in self._futures if future.status == "error"]
        return "all workers on Dask ended" + (f" ({failed[0]})" if failed else "")

    def leave(self, *, finished: bool) -> None:
        """Close the connection; local processes end with it."""
        if not finished and self._local is None:
            self.say("the workers on Dask go on until the models that they are at are done")
        self._client.close()
        if self._local is not None:
            self._local.close()


class Slurm(Crew):
    """A job array of SLURM, through submitit: requeued when it is preempted or its time is over."""

    known: Mapping[str, str] = {
        "partition": "", "account": "", "qos": "", "constraint": "", "gres": "such as gpu:1", "mem": "such as 8GB",
        "time": "of each job, such as 55m or 4h", "cpus": "of each worker", "max_array": "tasks of one array",
        "setup": "a line of shell before the worker starts",
    }  # fmt: skip

    passed = ("partition", "account", "qos", "constraint", "gres", "mem")
    """Options that mean what they mean to sbatch."""

    def start(self, count: int) -> None:
        """Submit min(workers, requests) workers, in arrays of at most ``max_array`` tasks."""
        try:
            import submitit
        except ImportError as error:
            raise Unavailable("--engine slurm needs a package: pip install 'attribution-bench[slurm]'.") from error
        logs = self.engine.root.resolve().joinpath(*folder.logs()) / "%j"
        wanted, self._jobs = min(self.workers, count), []
        try:
            executor = submitit.AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=10**6)
        except RuntimeError as error:
            raise Unavailable(f"--engine slurm: {error} `srun` and `sbatch` are expected on PATH.") from error
        cpus = self.number("cpus", 1)
        executor.update_parameters(**self._settings(cpus, wanted))
        largest = self.number("max_array", MAX_ARRAY)
        try:
            for size in (min(largest, wanted - begun) for begun in range(0, wanted, largest)):
                with executor.batch():
                    self._jobs += [executor.submit(self.worker(cpus)) for _ in range(size)]
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            raise InvalidInput(f"SLURM refused the array: {error}. See --engine-set.") from error
        arrays = ", ".join(sorted({job.job_id.partition("_")[0] for job in self._jobs}))
        self.say(f"{wanted} workers on SLURM: array {arrays}; what they print goes to {logs.parent}")
        self._arrays, self._asked = arrays, time.monotonic()

    def _settings(self, cpus: int, wanted: int) -> dict[str, Any]:
        """What submitit is told."""
        given = {f"slurm_{name}": value for name, value in self.options.items() if name in self.passed}
        setup = {"slurm_setup": [self.options["setup"]]} if "setup" in self.options else {}
        return {
            **given,
            **setup,
            "name": "bench-work",
            "timeout_min": max(1, round(seconds(self.options.get("time", "1h")) / 60)),
            "cpus_per_task": cpus,
            "slurm_array_parallelism": wanted,
            "slurm_signal_delay_s": SECONDS_TO_LEAVE,
            "slurm_additional_parameters": {"requeue": True},
        }

    def ended(self) -> str:
        """Every task has given its result, or none is in the queue any more."""
        if all(job.paths.result_pickle.exists() for job in self._jobs):
            failed = [why for job in self._jobs if (why := _raised(job))]
            return f"all workers of array {self._arrays} ended" + (f" ({failed[0]})" if failed else "")
        if time.monotonic() - self._asked < QUEUE_SECONDS:
            return ""
        self._asked = time.monotonic()
        command = ["squeue", "--noheader", "--format=%i", f"--jobs={self._arrays.replace(' ', '')}"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        gone = (found.returncode == 0 and not found.stdout.strip()) or "Invalid job id" in found.stderr
        return f"array {self._arrays} is not in SLURM's queue any more" if gone else ""

    def leave(self, *, finished: bool) -> None:
        """The array outlives the driver."""
        if not finished:
            self.say(f"array {self._arrays} goes on; the same command finds what it did, `scancel` ends it")


def _raised(job: Any) -> str:
    """The last line of what the task ``job`` raised."""
    error = job.exception()
    return "" if error is None else str(error).strip().splitlines()[-1]


CREWS: Mapping[str, type[Crew]] = {"slurm": Slurm, "dask": Dask, "external": External}
"""By name of --engine; "local" is this machine's own (``bench.retraining.executors``)."""


class Elsewhere(Executor):
    """Has a crew work on the plan, and reads in the folder what became of each request.

    The plan (``bench.retraining.plans``) must be there.

    Args:
        ledger: of this process.
        crew: who works.
    """

    def __init__(self, ledger: Ledger, crew: Crew) -> None:
        self.ledger, self.crew = ledger, crew
        self._known: dict[str, frozenset[tuple[str, int]]] = {}

    def fulfil(self, requests: Sequence[Request], on_step: OnStep) -> Iterator[Outcome]:
        """Each as soon as its files say that it is done or failed."""
        for request in requests:
            self.ledger.forget_failure(request.job)  # what fails now is new
        left = dict(enumerate(requests))
        self.crew.start(len(requests))
        try:
            while left:
                why = self.crew.ended()  # asked first: all that they have written is there
                for outcome in self._news(left):
                    del left[outcome.index]
                    yield outcome
                if left and why:
                    raise EngineStopped(
                        f"{why}, and {len(left)} of {len(requests)} models are not done. The same command goes on."
                    )
                if left:
                    time.sleep(POLL_SECONDS)
        finally:
            self.crew.leave(finished=not left)

    def _news(self, left: Mapping[int, Request]) -> list[Outcome]:
        """What has become of those of ``left`` whose files changed."""
        files = _files(self.ledger.store.root)
        found = []
        for index, request in left.items():
            key = self.ledger.key(request.job)
            if self._known.get(key) == (now := files.get(key, frozenset())):
                continue
            reason, kind = self.ledger.failure(request.job)
            if not self.ledger.is_due(request):
                found.append(Outcome(index))
            elif reason:
                found.append(Outcome(index, reason, kind))
            else:
                self._known[key] = now
        return found


def _files(root: Path) -> dict[str, frozenset[tuple[str, int]]]:
    """By the model's key: the places of its small files, with the times when they were written."""
    found: dict[str, set[tuple[str, int]]] = {}
    for path in [*folder.models(root), *folder.observations(root), *folder.failures(root)]:
        try:
            found.setdefault(path.stem, set()).add((path.parent.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # deleted or set aside meanwhile
            continue
    return {key: frozenset(facts) for key, facts in found.items()}


def crew(name: str, engine: Engine, workers: int, say: Callable[[str], None], options: Mapping[str, str]) -> Crew:
    """The crew of --engine ``name``."""
    return CREWS[name](engine, workers, say, options)


def check_engine(name: str, options: Mapping[str, str]) -> None:
    """Raise UnknownName or InvalidInput where there is no such engine, or it has no such setting."""
    engines = ("local", *CREWS)
    if name not in engines:
        raise UnknownName("engine", name, engines)
    if name == "local" and options:
        raise InvalidInput("--engine-set belongs to --engine slurm or dask; --engine local has --workers alone.")
    for option in options:
        if option not in CREWS[name].known:
            raise UnknownName(f"setting of --engine {name}", option, CREWS[name].known)
