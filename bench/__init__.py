"""The gold-standard test of data attribution for text-to-image models.

The stages, in the order of the experiment, are the modules

    dataset → model, training → queries → scoring → selection → retraining → evaluation → results, figures

and ``pipeline`` puts them together. ``from bench import …`` gives the names below; the rest is internal.
"""

import os

# Before torch is imported: a spinning OpenMP thread beside another busy one slows torch up to a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

from bench.contracts import AttributionContext, Method, Metric, Observation
from bench.errors import BenchError
from bench.pipeline import Report, Run
from bench.progress import Progress
from bench.queries import Query
from bench.reference import Reference
from bench.registry import methods, metrics, register_method, register_metric
from bench.study import Study, study

__all__ = [
    "AttributionContext",
    "BenchError",
    "Method",
    "Metric",
    "Observation",
    "Progress",
    "Query",
    "Reference",
    "Report",
    "Run",
    "Study",
    "methods",
    "metrics",
    "register_method",
    "register_metric",
    "study",
]
