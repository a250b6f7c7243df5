"""What there is: a table of the studies, methods and metrics, each with what it is, what it needs, whether it runs."""

from __future__ import annotations

from bench.contracts import Method, Metric
from bench.registry import methods, metrics
from bench.report.shown import Table
from bench.studies import STUDIES


def listing(kind: str) -> Table:
    """Head and lines of the table of ``kind``: "studies", "methods" or "metrics"."""
    if kind == "studies":
        return ("name", "what it is"), [(name, make().description) for name, make in STUDIES.items()]
    if kind == "methods":
        head = ("name", "what it is", "needs", "here")
        return head, [_method(name, methods.create(name)) for name in methods.names()]
    return ("name", "what it is", "here"), [_metric(metrics.create(name)) for name in metrics.names()]


def _method(name: str, method: Method) -> tuple[str, ...]:
    variant = name.partition(":")[2]
    settings = ", ".join(f"{key}={value}" for key, value in method.variants[variant].items()) if variant else ""
    return name, settings or method.summary, method.needs, _here(method.unavailable())


def _metric(metric: Metric) -> tuple[str, ...]:
    direction = "higher" if metric.higher_is_better else "lower"
    return metric.name, f"{metric.summary}; {direction} is better", _here(metric.unavailable())


def _here(why: str) -> str:
    """Whether it can be used on this machine."""
    return f"no: {why}" if why else "yes"
