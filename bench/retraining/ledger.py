"""Stage 6, leave-K-out retraining: θ_ẑ^-K = A(D \\ D_ẑ^K), through a ledger.

A trained model depends only on (study digest, removed ids, seed): that is its key (law 3). Equal removal sets train
once, whichever method asked. What was observed on a model is kept under the same key, so that the model itself may
be deleted, and a run can go on elsewhere from these small records alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.data.dataset import places_of
from bench.diffusion import graphs
from bench.diffusion.fine_tuning import Start, Tuning
from bench.diffusion.model import DiffusionModel
from bench.diffusion.observations import Observation
from bench.diffusion.pipelines import unet_state
from bench.diffusion.queries import Query
from bench.diffusion.stacking import train_stacked
from bench.diffusion.training import Trainer, TrainingData, TrainingJob, TrainingRun, train_together
from bench.errors import (
    BenchError,
    DamagedArtifact,
    InvalidInput,
    MetricFailed,
    PluginFailed,
    TrainingFailed,
    cause_of,
    reason_of,
)
from bench.foundation import border
from bench.foundation.digests import digest_of
from bench.foundation.machine import active_threads, compute_exactly, machine_kind
from bench.records import folder
from bench.records.claims import Claim, Held
from bench.records.store import Store
from bench.studies import Study

CHECKPOINT_SECONDS = 15.0
TRIES = 3
"""A request whose worker died so many times in a row, without a new checkpoint, is set aside as failed."""
OBSERVED = "observing "
"""Begins the names of the facts that say how many seconds an observation takes for as many queries as threads."""
Steps = Callable[[int], None]


class Busy(Exception):
    """Another process is at work on this model."""


class WorkerDied(TrainingFailed):
    """The process that trained was killed, each time that it was tried."""


@dataclass(frozen=True)
class Request:
    """A model to train and what to observe on it.

    Attributes:
        job: the model.
        queries: for which everything is observed; none where only the model is wanted.
        controls: for which only that is observed which metrics compare with controls.
    """

    job: TrainingJob
    queries: tuple[Query, ...] = ()
    controls: tuple[Query, ...] = ()


class Ledger:
    """All trained models of one study in one results folder.

    Args:
        study: whose models.
        store: of the results folder.
        device: to train on.
        observations: what to keep of each model.
        on_controls: names of those that are made on control queries too.
        size_limit_mib: trained models beyond it are deleted, the oldest first; their observations stay.
        workers: how many processes such as this one train side by side; kept with the times, which depend on it.
        should_stop: asked after each step; True leaves a checkpoint and raises KeyboardInterrupt.
        on_encode: told how much of D is encoded, and how much there is.
        trainer: steps the trainings; by default what the recipe asks for.
        most_deaths: a model that so many processes in a row died of, without a new checkpoint, is not tried
            again; None for no such limit.

    Attributes:
        together: how many models the trainer steps at once, at most.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        *,
        device: torch.device,
        observations: Sequence[Observation],
        on_controls: Collection[str] = (),
        size_limit_mib: float = 1024.0,
        workers: int = 1,
        should_stop: Callable[[], bool] = lambda: False,
        on_encode: Callable[[int, int], None] = lambda done, total: None,
        trainer: Trainer | None = None,
        most_deaths: int | None = None,
    ) -> None:
        self.study, self.store, self.device = study, store, device
        self.observations = {observation.name: observation for observation in observations}
        self.on_controls = frozenset(on_controls)
        self.size_limit_mib = size_limit_mib
        self.workers = workers
        self.should_stop, self.on_encode = should_stop, on_encode
        self.together = study.recipe.stack
        self.trainer = trainer or (train_stacked if study.recipe.stack > 1 else train_together)
        if device.type == "cuda":
            compute_exactly()
            if trainer is None and study.fine_tuning is None and graphs.suit(study.fresh_model(), study.recipe):
                self.trainer, self.together = graphs.Graphs(), graphs.MOST_TOGETHER
        self.most_deaths = most_deaths
        self._data: TrainingData | None = None
        self._seconds: dict[str, str] = {}
        self._spent: dict[str, float] = {}
        self._keys: dict[TrainingJob, str] = {}

    @property
    def data(self) -> TrainingData:
        """D as the model sees it, computed on first use."""
        if self._data is None:
            self._data = self._encoded()
        return self._data

    @property
    def is_encoded(self) -> bool:
        """Whether D is encoded already."""
        known = self._data is not None or self.study.released is not None
        return known or self._encoded_place(self.study.fresh_model()).exists()

    def _encoded_place(self, model: DiffusionModel) -> Path:
        """The folder of D as ``model`` encodes it."""
        digests = [self.study.dataset.digest, model.text_encoder.digest, self.study.parts["autoencoder"]]
        return self.store.path(*folder.encoded(digest_of(digests)))

    def _encoded(self) -> TrainingData:
        """Memory-mapped from the folder's cache, encoded by whoever comes first, made anew where it is damaged."""
        source, model = self.study.dataset, self.study.fresh_model()
        if self.study.released is not None:
            return self.study.released.data(model)
        place = self._encoded_place(model)
        with self.store.lock(place.name):
            try:
                return TrainingData.kept(place, source, model, self.on_encode)
            except DamagedArtifact as error:
                self.store.set_aside(place, str(error))
                return TrainingData.kept(place, source, model, self.on_encode)

    def key(self, job: TrainingJob) -> str:
        """Names the model that ``job`` trains."""
        if job not in self._keys:
            place, quoted = places_of(self.study.dataset.ids), self._quoted
            chosen = np.fromiter(job.removed, np.int64, len(job.removed))
            removed = ",".join(map(quoted.__getitem__, np.sort(place[chosen]).tolist()))
            text = f"[{json.dumps(self.study.digest)},[{removed}],{json.dumps(job.seed)}]"
            self._keys[job] = hashlib.sha256(text.encode()).hexdigest()[:16]  # digest_of, the ids quoted beforehand
        return self._keys[job]

    @cached_property
    def _quoted(self) -> list[str]:
        """The sorted ids as JSON has them."""
        return list(map(json.dumps, sorted(self.study.dataset.ids)))

    def is_trained(self, job: TrainingJob) -> bool:
        """Whether the model's weights are here."""
        return self._model_path(job).exists() or (bool(self.study.given) and job == TrainingJob((), self.study.seed))

    def observed(self, job: TrainingJob) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What is kept of a model: tensors (see ``Query.observed_as``), and facts about its training."""
        return self.store.tensors(*folder.observation(self.key(job))) or ({}, {})

    def missing(self, request: Request) -> list[tuple[Query, Observation]]:
        """What of ``request`` has not been observed yet."""
        kept, _ = self.observed(request.job)
        wanted = [(query, observation) for query in request.queries for observation in self.observations.values()]
        known = {query.digest for query in request.queries}
        wanted += [
            (query, self.observations[name])
            for query in request.controls
            for name in sorted(self.on_controls)
            if query.digest not in known
        ]
        return [(query, one) for query, one in wanted if query.observed_as(one.name) not in kept]

    def is_due(self, request: Request) -> bool:
        """Whether something of ``request`` is still to be trained or observed."""
        return bool(self.missing(request)) if request.queries else not self.is_trained(request.job)

    def model(self, job: TrainingJob, on_step: Steps = lambda step: None, *, wait: bool = True) -> DiffusionModel:
        """The trained model, from disk where it is, else trained now (from its last checkpoint if there is one).

        Raises Busy where another process trains it and ``wait`` is False.
        """
        found = self._load(job)
        if found is None:
            with self._claimed(job, wait=wait) as claim:
                found = self._load(job) or self._train(job, on_step, claim)
        return found

    @contextmanager
    def _claimed(self, job: TrainingJob, *, wait: bool) -> Iterator[Claim]:
        """Be the only one at work on the model of ``job``.

        Raises Busy where another process is and ``wait`` is False, WorkerDied where too many died of it.
        """
        try:
            with self.store.lock(
                f"model-{self.key(job)}", timeout=-1.0 if wait else 0.0, mark=self._mark(job)
            ) as claim:
                if self.most_deaths is not None and claim.deaths >= self.most_deaths:
                    raise WorkerDied(
                        f"Its worker died {claim.deaths} times (the last on {claim.taken_from}): memory may be short."
                    )
                yield claim
        except Held:
            raise Busy(self.key(job)) from None

    def _mark(self, job: TrainingJob) -> str:
        """How far the training of ``job`` has come: differs for each checkpoint."""
        try:
            facts = self.store.path(*folder.checkpoint(self.key(job))).stat()
        except FileNotFoundError:
            return ""
        return f"{facts.st_mtime_ns}"

    def start(self, job: TrainingJob, on_step: Steps = lambda step: None) -> Start:
        """The model of ``job``, trained now where it is missing, as what another training starts from."""
        if not self.is_trained(job):
            self.model(job, on_step)
        return Start(self.key(job), self._model_path(job))

    def fulfil(self, request: Request, on_step: Steps = lambda step: None, *, wait: bool = True) -> None:
        """Train (or find) the model of ``request`` and observe on it what is missing."""
        if self.is_due(request):
            with self._claimed(request.job, wait=wait):
                if self.is_due(request):
                    self._fulfil(request, on_step)

    def _fulfil(self, request: Request, on_step: Steps) -> None:
        model = self.model(request.job, on_step)
        if not request.queries:
            return
        key = self.key(request.job)
        with self.store.lock(f"observations-{key}"):
            kept, facts = self.observed(request.job)
            facts = facts or self._facts(request.job)
            missing = self.missing(request)
            failed: list[BaseException] = []
            for observation in self.observations.values():
                queries = [query for query, wanted in missing if wanted is observation]
                try:
                    kept |= self._observe(observation, model, queries, facts)
                except (Exception, SystemExit) as error:  # its own values are lost, others' are not
                    failed.append(error)
            self.store.write_tensors(folder.observation(key), kept, **facts)
        if failed:
            raise failed[0]

    def _observe(
        self, observation: Observation, model: DiffusionModel, queries: Sequence[Query], facts: dict[str, str]
    ) -> dict[str, Tensor]:
        """What ``observation`` finds for ``queries``, by the names of its records; its time goes to ``facts``."""
        if not queries:
            return {}
        started = time.monotonic()
        seed = self.study.seed
        values = border.called(
            lambda: observation.observe(model, queries, seed),
            f"Observation '{observation.name}'",
            MetricFailed,
            lambda value: border.observed(value, (model, queries, seed)),
            file=border.module_file(type(observation)),
        )
        rounds = -(-len(queries) // active_threads())
        facts[f"{OBSERVED}{observation.name}"] = f"{(time.monotonic() - started) / rounds:.4f}"
        return dict(zip([query.observed_as(observation.name) for query in queries], values, strict=True))

    def keep_failure(self, job: TrainingJob, error: BaseException, *, again: bool = False) -> None:
        """Keep why ``job`` failed, with the traceback, how often it did, and whether it is being tried ``again``."""
        before = self.store.record(*folder.failure(self.key(job))) or {}
        cause = cause_of(error)
        record = {
            "tries": int(before.get("tries", 0)) + 1,
            "set_aside": not isinstance(error, PluginFailed),
            "tried_again": again,
            "type": type(cause).__name__,
            "message": str(cause),
            "traceback": "".join(traceback.format_exception(error)),
            "job": {"removed": sorted(self.study.dataset.ids[index] for index in job.removed), "seed": job.seed},
            "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "machine": machine_kind(self.device),
        }
        self.store.write_record(folder.failure(self.key(job)), record)

    def set_aside(self, job: TrainingJob) -> str:
        """Why ``job`` is not tried again unless that is asked for, "" where it is.

        What fails in a plugin is tried each time: the model is there, and the plugin may have been mended.
        """
        found = self.store.record(*folder.failure(self.key(job))) or {}
        if not found.get("set_aside"):
            return ""
        return f"{found['type']}: {found['message']} (set aside on {found['date']}; --retry-failed tries it again)"

    def failure(self, job: TrainingJob) -> tuple[str, str]:
        """Why ``job`` failed when it was tried last, and the type of the exception; both "" where it did not."""
        found = self.store.record(*folder.failure(self.key(job))) or {}
        if not found or found.get("tried_again"):
            return "", ""
        return f"{found['type']}: {found['message']}", str(found["type"])

    def forget_failure(self, job: TrainingJob) -> None:
        """It succeeded in the end."""
        self._failure_path(job).unlink(missing_ok=True)

    def reason(self, job: TrainingJob, error: BaseException) -> str:
        """Why ``job`` failed, in a line; where it is not the user's to mend, with the place of the traceback."""
        mendable = isinstance(error, BenchError) and not isinstance(error, PluginFailed)
        kept = "" if mendable else f" (traceback in {'/'.join(folder.failure(self.key(job)))})"
        return reason_of(error) + kept

    def _failure_path(self, job: TrainingJob) -> Path:
        return self.store.path(*folder.failure(self.key(job)))

    def _facts(self, job: TrainingJob) -> dict[str, str]:
        found = self.store.tensors(*folder.model(self.key(job)))
        known = found[1] if found else {}  # where the model was deleted meanwhile
        return {
            "seconds": known.get("seconds", self._seconds.get(self.key(job), "nan")),
            "seed": str(job.seed),
            "num_removed": str(len(job.removed)),
            "machine": known.get("machine", machine_kind(self.device)),  # of who trained, not of who observes
            "workers": str(self.workers),
            "threads": str(active_threads()),
        }

    def _model_path(self, job: TrainingJob) -> Path:
        return self.store.path(*folder.model(self.key(job)))

    def _load(self, job: TrainingJob) -> DiffusionModel | None:
        found = self.store.tensors(*folder.model(self.key(job)))
        if found is None and job == TrainingJob((), self.study.seed) and self.study.given:
            found = unet_state(self.study.given), {}
        if found is None:
            return None
        return DiffusionModel(self.study.model, seed=job.seed, device=self.device).load(found[0])

    def prepare(self, jobs: Sequence[TrainingJob], on_step: Steps = lambda step: None) -> None:
        """Train as many of ``jobs`` together as the trainer does at once: those that nobody is at work on.

        What diverges is left untrained, so that whoever needs it meets its failure.
        """
        self._prune()  # none of these themselves, before it was observed
        with ExitStack() as stack:
            runs: dict[TrainingRun, Claim] = {}
            for job in dict.fromkeys(jobs):
                if len(runs) == self.together:
                    break
                with suppress(Busy, WorkerDied):
                    claim = stack.enter_context(self._claimed(job, wait=False))
                    if not self.is_trained(job):
                        runs[self._run(job)] = claim
            if runs:
                first = min(run.step for run in runs)
                self._advance({run: claim for run, claim in runs.items() if run.step == first}, on_step)

    def _run(self, job: TrainingJob) -> TrainingRun:
        """The training of ``job``, from its checkpoint where there is one."""
        if self.study.given:
            raise InvalidInput(self.study.untrainable)
        how = self.study.fine_tuning
        tuning = Tuning.on(how, self.study.dataset) if how else None
        run = TrainingRun(self.study.model, self.data, self.study.recipe, job, device=self.device, tuning=tuning)
        kept = self.store.tensors(*folder.checkpoint(self.key(job)))
        if kept is not None:
            run.restore(kept[0])
        self._spent[self.key(job)] = float(kept[1]["seconds"]) if kept else 0.0
        return run

    def _train(self, job: TrainingJob, on_step: Steps, claim: Claim) -> DiffusionModel:
        run = self._run(job)
        [state] = self._advance({run: claim}, on_step)
        if state is None:
            raise TrainingFailed(f"The loss was not finite at step {run.step - 1}; lower the recipe's learning_rate.")
        self._prune()
        return DiffusionModel(self.study.model, seed=job.seed, device=self.device).load(state)

    def _advance(self, runs: Mapping[TrainingRun, Claim], on_step: Steps) -> list[dict[str, Tensor] | None]:
        """Train ``runs`` together; keeps their models and returns their states, None for those that diverged."""
        began = saved = time.monotonic()
        healthy = set(runs)

        def seconds(run: TrainingRun) -> float:
            """Of one model: its share."""
            return self._spent[self.key(run.job)] + (time.monotonic() - began) / len(runs)

        def save() -> None:
            for run in healthy:
                if run.is_whole and not run.finished:
                    place = folder.checkpoint(self.key(run.job))
                    self.store.write_tensors(place, run.checkpoint(), seconds=f"{seconds(run):.2f}")

        try:
            for losses in self.trainer(list(runs)):
                healthy -= {run for run, loss in zip(runs, losses, strict=True) if not math.isfinite(loss)}
                if not healthy:
                    break
                on_step(min(run.step for run in runs))
                if self.should_stop():
                    raise KeyboardInterrupt
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    for run, claim in runs.items():
                        if not claim.is_held():  # this machine was asleep, and another went on
                            raise Busy(self.key(run.job))
                    save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            save()
            raise
        return [self._kept(run, seconds(run)) if run in healthy else None for run in runs]

    def _kept(self, run: TrainingRun, seconds: float) -> dict[str, Tensor]:
        """The weights of a finished training, kept in place of its checkpoint."""
        key, state = self.key(run.job), run.trained_state()
        self._seconds[key] = f"{seconds:.2f}"
        facts = {"seconds": f"{seconds:.2f}", "seed": str(run.job.seed), "machine": machine_kind(self.device)}
        self.store.write_tensors(folder.model(key), state, **facts)
        self.store.path(*folder.checkpoint(key)).unlink(missing_ok=True)
        return state

    def _prune(self) -> None:
        """Delete the oldest models beyond the size limit; the original and the newest stay."""
        found: list[tuple[float, int, Path]] = []
        for path in folder.models(self.store.root):
            with suppress(FileNotFoundError):  # another process prunes too
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
        found.sort()
        original = self._model_path(TrainingJob((), self.study.seed))
        excess = sum(size for _, size, _ in found) - self.size_limit_mib * 2**20
        for _, size, path in found[:-1]:
            if excess <= 0:
                break
            if path != original:
                excess -= size
                path.unlink(missing_ok=True)
