"""Shape annotations are checked in tests only; the tiny study and its trained model are shared."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads weights

from jaxtyping import install_import_hook

install_import_hook(["bench", "methods", "metrics"], "beartype.beartype")

from dataclasses import replace

import pytest
import torch
from together import STEPS

from bench.contracts import AttributionContext
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import QuerySpec, synthesize
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun, train_together
from bench.foundation.machine import compute_threads
from bench.registry import methods, metrics
from bench.studies import study

CPU = torch.device("cpu")
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""Of torch in each process: two processes of two threads on two cores would wait for each other."""


@pytest.fixture(autouse=True)
def threads():
    """The project's thread layout, in every test."""
    with compute_threads(THREADS):
        yield


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone after it; a file asks for it with ``usefixtures``."""
    for registry in (methods, metrics):
        registry.names()  # loads what comes along
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr("bench.registry.PLUGINS", [])


@pytest.fixture(scope="session")
def tiny():
    """A study small enough to be retrained in a second."""
    whole = study("tiny")
    return replace(whole, per_concept=8, recipe=replace(whole.recipe, num_steps=12), budgets=(3, 8, 20))


@pytest.fixture(scope="session")
def recipe(tiny):
    """Of so few steps that one by one and together can be compared."""
    return replace(tiny.recipe, num_steps=STEPS, batch_size=8)


@pytest.fixture(scope="session")
def data(tiny):
    return TrainingData.of(tiny.dataset, DiffusionModel(tiny.model))


@pytest.fixture(scope="session")
def model(tiny, data):
    """θ0 of the tiny study."""
    with compute_threads(THREADS):
        run = TrainingRun(tiny.model, data, tiny.recipe, TrainingJob((), 0), device=CPU)
        for _ in train_together([run]):
            pass
    return DiffusionModel(tiny.model).load(run.trained_state())


@pytest.fixture(scope="session")
def queries(tiny, model):
    specs = [QuerySpec("q00", "a photo of a bag", 0), QuerySpec("q01", "a photo of trousers", 1)]
    return synthesize(model, tiny.sampler, specs)


@pytest.fixture
def context(tiny, data, model):
    """What a method sees, with a cache that lives as long as the test."""
    kept = {}

    def cached(key, build):
        if key not in kept:
            kept[key] = {name: value.cpu() for name, value in build().items()}
        return kept[key]

    return AttributionContext(
        dataset=tiny.dataset,
        data=data,
        model=model,
        seed=tiny.seed,
        cached=cached,
        ensemble=lambda count: [model] * count,
        progress=lambda done, total: None,
    )
