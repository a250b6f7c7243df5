"""A results folder opened for one study: the stages' results, each made on first use and kept.

``Workspace`` is the object behind every command; the pipeline, the tuning and the contact sheet are a few calls on it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.contracts import AttributionContext, Method, Metric
from bench.diffusion.autoencoder import Autoencoder
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query, QuerySpec, load_queries, save_queries, synthesize
from bench.diffusion.training import Training, TrainingJob
from bench.errors import DamagedArtifact, InvalidInput, ResultsFolderError, TrainingFailed, Unavailable
from bench.experiments.evaluation import evaluation_seed
from bench.experiments.scoring import Scores, is_scored, score
from bench.experiments.selection import top_k
from bench.experiments.trial import vet
from bench.foundation.machine import device_of
from bench.foundation.progress import Progress
from bench.records import folder
from bench.records.selections import count, packed, selected
from bench.records.store import Artifacts, Store, folder_error
from bench.retraining import plans
from bench.retraining.crews import Elsewhere, crew
from bench.retraining.executors import Engine, Executor, executor
from bench.retraining.ledger import Ledger, Request
from bench.studies import Study

ENSEMBLE_SEED = 2000
"""Seeds of the models of an ensemble count from the study's plus this."""


class Workspace:
    """One study in one results folder.

    Args:
        study: to work on.
        root: the results folder; made where it is missing, refused where it belongs to another study or version.
        device: "cpu", "cuda", ….
        workers: processes that train side by side.
        metrics: whose observations are kept of every model.
        progress: told what happens.
        size_limit_mib: of the kept models.
        retry_failed: whether trainings that were set aside as failed are tried again.
        crew: who trains: "local", or one of ``bench.retraining.crews`` with its options.

    Attributes:
        rejected: methods that failed before anything was trained, with what they raised.
    """

    def __init__(
        self,
        study: Study,
        root: Path,
        *,
        metrics: Sequence[Metric],
        device: str = "cpu",
        workers: int = 1,
        progress: Progress | None = None,
        size_limit_mib: float = 1024.0,
        retry_failed: bool = False,
        crew: str = "local",
        crew_options: Mapping[str, str] | None = None,
    ) -> None:
        self.study, self.metrics = study, tuple(metrics)
        self.progress = progress or Progress()
        self.device, self.workers, self.retry_failed = device_of(device), workers, retry_failed
        self.crew, self.crew_options = crew, crew_options or {}
        self.rejected: dict[Method, BaseException] = {}
        self._score_seconds: dict[tuple[Method, str], float] = {}
        self.store = Store(root, note=self.progress.say, study=study.digest)
        self.engine = Engine(study, root, device, tuple(metric.name for metric in metrics), size_limit_mib)
        self._open(root)
        if why := study.recipe.ignored(self.device):
            self.progress.say(why)

    def _open(self, root: Path) -> None:
        """Claim ``root`` for this version of the study."""
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise folder_error(root, error) from error
        self.store.clean()
        with self.store.lock("study"):
            record = self.store.record(folder.STUDY, check=_lacks("name", "digest", "parts"))
            if record is None:
                parts = {"name": self.study.name, "digest": self.study.digest, "parts": self.study.parts}
                self.store.write_record((folder.STUDY,), parts)
            elif record["digest"] != self.study.digest:
                raise ResultsFolderError(self._mismatch(root, record))

    def _mismatch(self, root: Path, record: dict[str, object]) -> str:
        theirs, ours = record["parts"], self.study.parts
        assert isinstance(theirs, dict)
        differing = [name for name in ours if _plain(theirs.get(name)) != _plain(ours[name])]
        return (
            f"The results folder {root} holds study '{record['name']}' version {record['digest']}; this is study "
            f"'{self.study.name}' version {self.study.digest}. They differ in: {', '.join(differing)}. Values of "
            "different versions are never mixed: give another folder with --results."
        )

    @cached_property
    def ledger(self) -> Ledger:
        """All trained models."""
        return self.engine.ledger(note=self.progress.say, on_encode=partial(self.progress.advance, "encode the data"))

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The index of every training image, by its id."""
        return {image: index for index, image in enumerate(self.study.dataset.ids)}

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """Of the study's model, without its weights."""
        return DiffusionModel(self.study.model).autoencoder

    def executor(self, workers: int) -> Executor:
        """This process, ``workers`` local processes, or a crew of as many elsewhere."""
        if self.crew != "local":
            return Elsewhere(self.ledger, crew(self.crew, self.engine, workers, self.progress.say, self.crew_options))
        return executor("inline" if workers <= 1 else "local", self.engine, self.ledger, workers)

    def fulfil(self, requests: Sequence[Request]) -> dict[TrainingJob, str]:
        """Train and observe what is missing; returns the reasons of those that failed."""
        due = [request for request in requests if self.ledger.is_due(request)]
        failures = (
            {} if self.retry_failed else {each.job: why for each in due if (why := self.ledger.set_aside(each.job))}
        )
        missing = [request for request in due if request.job not in failures]
        progress, steps = self.progress, self.study.recipe.num_steps
        done = {i: 0 for i, request in enumerate(missing) if not self.ledger.is_trained(request.job)}
        if done and self.study.untrainable:
            raise InvalidInput(self.study.untrainable)
        here = len(missing) - len(done)
        again = sum(bool(self.ledger.observed(missing[index].job)[1]) for index in done)
        progress.say(
            f"{len(requests)} models: {len(requests) - len(due)} cached, {here} to observe, "
            f"{len(done)} to train"
            + (f", {len(failures)} set aside as failed (--retry-failed tries them again)" if failures else "")
            + (f" ({again} of them again: their weights were deleted before all was observed)" if again else "")
        )
        observed = 0

        def on_step(index: int, step: int) -> None:
            if index in done:
                done[index] = step
                progress.advance("retrain", sum(done.values()), steps * len(done))

        plan = plans.write(self.store, self.engine, missing) if missing else None
        for outcome in self.executor(min(self.workers, len(missing))).fulfil(missing, on_step):
            on_step(outcome.index, steps)
            if outcome.index not in done:
                observed += 1
                progress.advance("observe", observed, here)
            if outcome.failure:
                failures[missing[outcome.index].job] = outcome.failure
                progress.say(f"failed: {outcome.failure}")
        if plan is not None:
            plans.discard(plan)
        return failures

    def train(self, jobs: Sequence[TrainingJob]) -> None:
        """Train the models of ``jobs`` that are missing; raises TrainingFailed where the first, θ0, fails."""
        requests = [Request(job) for job in dict.fromkeys(jobs)]
        failed = self.fulfil(requests) if any(map(self.ledger.is_due, requests)) else {}
        if jobs[0] in failed:
            raise TrainingFailed(failed[jobs[0]])

    def original_job(self, seed: int = 0) -> TrainingJob:
        """Nothing removed; ``seed`` counts from the study's."""
        return TrainingJob((), self.study.seed + seed)

    @cached_property
    def original(self) -> DiffusionModel:
        """θ0, trained on first use."""
        total = self.study.recipe.num_steps
        return self.ledger.model(
            self.original_job(), lambda step: self.progress.advance("train the original model", step, total)
        )

    def ensemble(self, count: int) -> list[DiffusionModel]:
        """θ0 and ``count`` − 1 models trained on all of D with other seeds, which no comparison uses."""
        total = self.study.recipe.num_steps
        models = [self.original]
        for index in range(1, count):
            label = f"train model {index + 1} of {count}"
            job = self.original_job(ENSEMBLE_SEED + index)
            models.append(self.ledger.model(job, partial(self.progress.advance, label, total=total)))
        return models

    def queries(self, specs: Sequence[QuerySpec]) -> list[Query]:
        """The queries of ``specs``, where the folder does not have them released ones or synthesized by θ0."""
        kept = load_queries(self.store)
        if any(spec.id not in kept for spec in specs):
            model = self.original
            with self.store.lock("queries"):
                kept = load_queries(self.store)
                missing = [spec for spec in specs if spec.id not in kept]
                if missing:
                    released, sampler = self.study.released, self.study.sampler
                    found = [query for spec in missing if released and (query := released.query(spec, sampler))]
                    given = {query.id for query in found}
                    made = synthesize(model, sampler, [spec for spec in missing if spec.id not in given])
                    kept |= {query.id: query for query in [*found, *made]}
                    save_queries(self.store, kept)
        return [kept[spec.id] for spec in specs]

    def images(self, queries: Sequence[Query]) -> list[torch.Tensor]:
        """The pictures of ``queries``, channels × height × width in [−1, 1]."""
        return list(self.autoencoder.decode(torch.stack([query.latent for query in queries])))

    def scores(self, method: Method, queries: Sequence[Query]) -> Scores:
        """The scores of ``method``, computed for the queries that it has not scored yet."""
        advance = partial(self.progress.advance, f"score with {method.name}")
        artifacts = Artifacts(self.store)
        return score(method, queries, self.store, artifacts, lambda: self.context(advance, artifacts))

    def context(
        self, progress: Callable[[int, int], None] = lambda done, total: None, artifacts: Artifacts | None = None
    ) -> AttributionContext:
        """What a method may see of this study."""
        study = self.study
        jobs = {"original": self.original_job(), "judge": TrainingJob((), evaluation_seed(study))}
        if study.fine_tuning:
            jobs = {}  # ``Training`` begins at random weights: it cannot do a fine-tuning again
        known = partial(Training, study.model, self.ledger.data, study.dataset.ids, study.recipe)
        return AttributionContext(
            dataset=study.dataset,
            data=self.ledger.data.as_read_by(self.original, study.dataset.captions),
            model=self.original,
            seed=study.seed,
            cached=artifacts or Artifacts(self.store),
            ensemble=self.ensemble,
            progress=progress,
            trainings={role: known(job) for role, job in jobs.items()},
            fisher=study.released.fisher if study.released else None,
        )

    def selections(
        self, method: Method, queries: Sequence[Query], budgets: Sequence[int]
    ) -> dict[tuple[str, int], tuple[int, ...]]:
        """The top K of every query and budget, as indices; from the folder's records where it has them."""
        tops: dict[str, tuple[int, ...]] = {}
        for query in queries:
            record = self._selection(method, query)
            tops[query.id] = record.get("rows", ())
            self._score_seconds[method, query.digest] = float(record["score_seconds"])
        short = [query for query in queries if len(tops[query.id]) < max(budgets)]
        if short:
            scored = self.scores(method, short)
            for query, row, seconds in zip(short, scored.matrix, scored.seconds, strict=True):
                chosen = top_k(row, self.study.dataset.ids, max(budgets))
                self.keep_selection(method, query, [self.study.dataset.ids[index] for index in chosen], seconds)
                tops[query.id] = chosen
        return {(query.id, k): tops[query.id][:k] for query in queries for k in budgets}

    def keep_selection(self, method: Method, query: Query, ids: Sequence[str], seconds: float) -> None:
        """Keep the ids that ``method`` ranks first for ``query``, and what scoring took."""
        record = {
            "method": method.name,
            "settings": method.settings(),
            "query": query.id,
            "prompt": query.prompt,
            "score_seconds": round(seconds, 3),
            **packed(ids),
        }
        self.store.write_record(self._selection_parts(method, query), record)
        self._score_seconds[method, query.digest] = record["score_seconds"]

    def vet(self, methods: Sequence[Method]) -> None:
        """Try ``methods`` before anything is trained; what they raise is kept in ``rejected``."""
        for method in methods:
            try:
                vet(method, self.study)
            except ResultsFolderError:
                raise
            except (Exception, SystemExit) as error:
                self.rejected[method] = error

    def require(self, method: Method, *, ahead: bool = False) -> None:
        """Raise what ``method`` raised when it was tried, or Unavailable where it lacks something.

        Where ``ahead``, it is asked what it lacks, and fetches nothing.
        """
        if method in self.rejected:
            raise self.rejected[method]
        if not ahead:
            method.prepare()
        elif why := method.unavailable():
            raise Unavailable(why)

    def keep_failure(self, name: str, error: BaseException) -> str:
        """Keep why ``name``, a method or metric, failed, with the traceback; returns where."""
        return keep_failure(self.store, name, error)

    def is_scored(self, method: Method, query: Query) -> bool:
        """Whether the scores of ``query`` are kept."""
        return is_scored(self.store, method, query)

    def score_seconds(self, method: Method, query: Query) -> float:
        """What scoring ``query`` took."""
        if (method, query.digest) not in self._score_seconds:
            self._score_seconds[method, query.digest] = float(self._selection(method, query)["score_seconds"])
        return self._score_seconds[method, query.digest]

    def usual_score_seconds(self, method: Method) -> float:
        """Median of what scoring other queries took; NaN where none has been scored."""
        paths = folder.selections(self.store.root, method=method.name, method_digest=method.digest)
        check = self._bad_selection
        records = [self.store.record(*path.relative_to(self.store.root).parts, check=check) for path in paths]
        return median([float(each["score_seconds"]) for each in records if each] or [float("nan")])

    def is_selected(self, method: Method, query: Query, k: int) -> bool:
        """Whether the top ``k`` are known without scoring."""
        return count(self._selection(method, query)) >= k or is_scored(self.store, method, query)

    def _selection(self, method: Method, query: Query) -> dict[str, Any]:
        """The record of the top images; an empty one where there is none yet."""
        record: dict[str, Any] | None = self.store.record(
            *self._selection_parts(method, query), check=self._bad_selection
        )
        return record or {"ids": [], "score_seconds": float("nan")}

    def _bad_selection(self, record: Any) -> str:
        """What is wrong with the record of a selection, "" where nothing is: a file without a seal may say anything."""
        if why := _lacks("ids", "score_seconds")(record):
            return why
        try:
            ids = selected(record)
        except DamagedArtifact as error:
            return str(error)
        found = tuple(map(self.row_of.get, ids))
        if len(set(found)) != len(ids) or None in found:
            return "it does not name training images, each once"
        record["rows"] = found  # looked up once
        return ""

    def _selection_parts(self, method: Method, query: Query) -> tuple[str, ...]:
        return folder.selection(method.name, method.digest, query.digest)


def keep_failure(store: Store, name: str, error: BaseException) -> str:
    """Keep in ``store`` why ``name`` failed, with the traceback; returns where."""
    record = {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    place = folder.failure(name)
    store.write_record(place, record)
    return "/".join(place)


def _lacks(*keys: str) -> Callable[[Any], str]:
    """Says which of ``keys`` a record lacks."""

    def check(record: Any) -> str:
        missing = [key for key in keys if not isinstance(record, dict) or key not in record]
        return f"it has no {', '.join(missing)}" if missing else ""

    return check


def _plain(value: object) -> object:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
