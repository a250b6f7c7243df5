"""The plan of a run: which requests are to be fulfilled, written into the results folder for workers elsewhere.

A plan names the study, the metrics and the plugins, and for each request the removed images, the seed and the queries;
so a worker needs the results folder alone, and of a user's own study its file, where the plan says it lies or where the
worker is told. It lies in ``work/`` while something of it is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.diffusion.queries import Query, load_queries
from bench.diffusion.training import TrainingJob
from bench.errors import InvalidInput, ResultsFolderError, UnknownName, reason_of
from bench.foundation.digests import digest_of
from bench.records import folder
from bench.records.selections import packed, selected
from bench.records.store import Store
from bench.registry import load_plugin
from bench.retraining.executors import Engine
from bench.retraining.ledger import Request
from bench.studies import Study, study
from bench.study_file import file_of


def write(store: Store, engine: Engine, requests: Sequence[Request]) -> Path:
    """Write the plan of ``requests``; returns its file."""
    ids, own = engine.study.dataset.ids, file_of(engine.study.name)
    record = {
        "study": engine.study.name,
        **({"study_file": str(own)} if own else {}),
        "seed": engine.study.seed,
        "stack": engine.study.recipe.stack,
        "digest": engine.study.digest,
        "metrics": list(engine.metric_names),
        "plugins": [str(Path(path).resolve()) for path in engine.plugins],
        "size_limit_mib": engine.size_limit_mib,
        "requests": [
            {
                "seed": request.job.seed,
                "queries": [[query.id, query.image_digest] for query in request.queries],
                "controls": [[query.id, query.image_digest] for query in request.controls],
                **packed([ids[index] for index in request.job.removed]),
            }
            for request in requests
        ],
    }
    parts = folder.plan(digest_of(record))
    store.write_record(parts, record)
    return store.path(*parts)


def discard(path: Path) -> None:
    """Nothing of the plan is due any more."""
    with suppress(FileNotFoundError):  # another worker was first
        path.unlink()


def read(path: Path, root: Path, device: str, own: Study | None = None) -> tuple[Engine, list[Request]] | None:
    """The plan in the file ``path`` of the results folder ``root``: what ledgers are made of, and its requests.

    None where it has gone: it was done meanwhile. Raises ResultsFolderError where it belongs to another version of the
    study or of the program, or names queries that the folder does not have.

    Args:
        path: of the plan.
        root: of the results folder.
        device: to train on.
        own: the study, where it is a user's own and its file lies elsewhere on this machine.
    """
    store = Store(root)
    record = store.record(*path.relative_to(root).parts)
    if record is None:
        return None
    for plugin in record["plugins"]:
        load_plugin(Path(plugin))
    named = own if own and own.name == record["study"] else _study(path, record)
    chosen = replace(named, seed=record["seed"], recipe=replace(named.recipe, stack=record["stack"]))
    if chosen.digest != record["digest"]:
        raise ResultsFolderError(
            f"The plan {path} is for version {record['digest']} of study '{chosen.name}', and this machine has version "
            f"{chosen.digest}: install the version of bench that wrote the plan, here or there"
            + (", and use the same study file and the same data." if file_of(chosen.name) else ".")
        )
    engine = Engine(chosen, root, device, tuple(record["metrics"]), float(record["size_limit_mib"]))
    place = {image: index for index, image in enumerate(chosen.dataset.ids)}
    kept = load_queries(store)

    def query(name: str, digest: str) -> Query:
        if name not in kept or kept[name].image_digest != digest:
            raise ResultsFolderError(f"The plan {path} asks for query {name} ({digest}), which {root} does not have.")
        return kept[name]

    def request(each: dict[str, Any]) -> Request:
        job = TrainingJob(tuple(place[image] for image in selected(each)), each["seed"])
        return Request(job, *(tuple(query(*one) for one in each[part]) for part in ("queries", "controls")))

    try:
        return engine, [request(each) for each in record["requests"]]
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"The plan {path} cannot be read ({reason_of(error)}): run `bench run` again.") from error


def _study(path: Path, record: dict[str, Any]) -> Study:
    """The study that the plan names."""
    file = record.get("study_file", "")
    try:
        found = study(file or record["study"])
    except (InvalidInput, UnknownName) as error:
        raise ResultsFolderError(
            f"The plan {path} is for study '{record['study']}', which cannot be read here ({error}). Where it is one "
            "of your own, give its file: bench work --study FILE.toml."
        ) from error
    if found.name != record["study"]:
        raise ResultsFolderError(f"The plan {path} is for study '{record['study']}'; {file} is now '{found.name}'.")
    return found
