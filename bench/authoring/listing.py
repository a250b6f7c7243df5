"""What there is: a table of the studies, methods and metrics, each with what it is, what it needs, whether it runs."""

from __future__ import annotations

from collections.abc import Callable

from bench.errors import BenchError
from bench.registry import methods, metrics
from bench.report.shown import Table
from bench.studies import STUDIES


def listing(kind: str) -> Table:
    """Head and lines of the table of ``kind``: "studies", "methods" or "metrics"."""
    if kind == "studies":
        return ("name", "what it is"), [(name, make().description) for name, make in STUDIES.items()]
    if kind == "methods":
        head: tuple[str, ...] = ("name", "what it is", "needs", "here")
        return head, [_line(name, _method, len(head)) for name in methods.names()]
    head = ("name", "what it is", "here")
    return head, [_line(name, _metric, len(head)) for name in metrics.names()]


def _line(name: str, cells: Callable[[str], tuple[str, ...]], columns: int) -> tuple[str, ...]:
    """A line of the table; of a plugin that is broken, why."""
    try:
        return cells(name)
    except BenchError as error:
        return name, *[""] * (columns - 2), f"broken: {error}"


def _method(name: str) -> tuple[str, ...]:
    method = methods.create(name)
    variant = name.partition(":")[2]
    settings = ", ".join(f"{key}={value}" for key, value in method.variants[variant].items()) if variant else ""
    return name, settings or method.summary, method.needs or "nothing more", _here(method.unavailable())


def _metric(name: str) -> tuple[str, ...]:
    metric = metrics.create(name)
    direction = "higher" if metric.higher_is_better else "lower"
    return metric.name, f"{metric.summary}; {direction} is better", _here(metric.unavailable())


def _here(why: str) -> str:
    """Whether it can be used on this machine."""
    return f"no: {why}" if why else "yes"
