"""The gold-standard test of data attribution for text-to-image models: remove, retrain, measure.

What a plugin may import lies here: ``bench`` (the names below), ``bench.contracts``, ``bench.registry``,
``bench.studies`` and ``bench.errors``, and the tools of ``bench.foundation.seeds``, ``bench.attribution`` and
``bench.pretrained``. The rest are the rooms of the harness; each may import those above it in this list, never one
below:

    foundation → records → data → diffusion → pretrained → attribution → retraining → report → experiments → authoring

A name is loaded when it is first used, so that ``import bench`` costs nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING

# Before torch is imported: a spinning OpenMP thread beside another busy one slows torch up to a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Before CUDA begins: streams that do not wait for each other, and matrix products that are the same each time.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

if TYPE_CHECKING:
    from bench.contracts import AttributionContext, Method, Metric
    from bench.diffusion.observations import Observation
    from bench.diffusion.queries import Query
    from bench.errors import BenchError
    from bench.experiments.leave_k_out import Run, RunReport
    from bench.experiments.localized import Localized
    from bench.experiments.reference import Reference
    from bench.foundation.progress import Progress
    from bench.registry import methods, metrics, register_method, register_metric
    from bench.studies import Study, study

__all__ = [
    "AttributionContext",
    "BenchError",
    "Localized",
    "Method",
    "Metric",
    "Observation",
    "Progress",
    "Query",
    "Reference",
    "Run",
    "RunReport",
    "Study",
    "methods",
    "metrics",
    "register_method",
    "register_metric",
    "study",
]

_HOMES = {
    "bench.contracts": ("AttributionContext", "Method", "Metric"),
    "bench.diffusion.observations": ("Observation",),
    "bench.diffusion.queries": ("Query",),
    "bench.errors": ("BenchError",),
    "bench.experiments.leave_k_out": ("Run", "RunReport"),
    "bench.experiments.localized": ("Localized",),
    "bench.experiments.reference": ("Reference",),
    "bench.foundation.progress": ("Progress",),
    "bench.registry": ("methods", "metrics", "register_method", "register_metric"),
    "bench.studies": ("Study", "study"),
}


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it; the version of the distribution."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("attribution-bench")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
