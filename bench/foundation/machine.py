"""The machine: thread layout, devices, and the description that every published value carries.

Layout on a CPU, found by measurement (``benchmarks/README.md``): torch's own parallelism is off and Python threads
run whole half-batches side by side. It is faster for small models (no barrier after every operation), and a
model's bits do not depend on how many threads or worker processes trained it.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import resource
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from bench.errors import InvalidInput

T = TypeVar("T")
R = TypeVar("R")
_active = threading.local()
LARGE_BLOCK = 2**28
"""Bytes: larger tensors are asked of the system, and go back to it."""
CONTAINER_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says what processor time a container has (cgroup v2, https://docs.kernel.org/admin-guide/cgroup-v2.html)."""


def available_threads() -> int:
    """Processors that this process may use: those it may run on, or fewer where its container has a share of them.

    A Linux container (``docker run --cpus``) says so as microseconds of processor time in so many, or "max".
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CONTAINER_QUOTA.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


@contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Within the context, ``parallel`` runs on ``count`` threads, each with torch's own parallelism off."""
    _keep_freed_memory()
    before, pool_before = torch.get_num_threads(), getattr(_active, "pool", None)
    torch.set_num_threads(1)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        _active.pool = pool if count > 1 else None
        try:
            yield
        finally:
            _active.pool = pool_before
            torch.set_num_threads(before)


def active_threads() -> int:
    """How many threads ``parallel`` runs on here."""
    pool: ThreadPoolExecutor | None = getattr(_active, "pool", None)
    return 1 if pool is None else pool._max_workers


def worker_threads(workers: int) -> int:
    """Threads of each of ``workers`` processes that share this machine."""
    return max(1, available_threads() // workers)


def machine_kind(device: torch.device) -> str:
    """The part of a machine's description that times and rounding depend on."""
    machine = describe(device)
    return f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}"


def parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]``, on the threads of ``compute_threads`` where there are any."""
    pool: ThreadPoolExecutor | None = getattr(_active, "pool", None)
    return list(map(function, items)) if pool is None else list(pool.map(function, items))


def device_of(name: str) -> torch.device:
    """The torch device ``name`` ("cpu", "cuda", "cuda:1"), checked to be there."""
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise InvalidInput(f"--device {name}: not a device that torch knows; try cpu or cuda.") from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidInput(f"--device {name}: models are trained on cpu or cuda.")
    if device.type == "cpu" and device.index:
        raise InvalidInput(f"--device {name}: there is one cpu; use --device cpu.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"--device {name}: torch {torch.__version__} sees no GPU here; use --device cpu.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise InvalidInput(f"--device {name}: there are {torch.cuda.device_count()} GPUs here, counted from 0.")
    return device


def compute_exactly() -> None:
    """Have a GPU round products to float32, not to TensorFloat-32, and take the same kernels each time."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def peak_memory_mib() -> float:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 / (1024 if sys.platform == "darwin" else 1)


def describe(device: torch.device | None = None) -> dict[str, str | int]:
    """What a manifest says of the machine and of the versions."""
    packages = ("torch", "diffusers", "numpy", "scipy", "pandas", "pyarrow", "safetensors")
    name = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else _processor()
    return {
        "processor": name,
        "threads": available_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def command_line() -> str:
    """This process's command for records that others read, without the folders of this machine.

    A path below the working folder is told from there, any other absolute path by its last part.
    """
    return shlex.join([Path(sys.argv[0]).name, *map(_without_folders, sys.argv[1:])])


def _without_folders(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    path, here = Path(value), Path.cwd()
    if not path.is_absolute():
        return argument
    return f"{option}{equals}{path.relative_to(here) if path.is_relative_to(here) else path.name}"


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next tensor: else each step faults thousands of pages in anew.

    Not what is larger than LARGE_BLOCK: freed blocks of that size, with small ones between them, fit no later one, so
    that the heap grows with each (by 0.4 GiB a block of half a GiB, measured on 2026-11-27).
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, LARGE_BLOCK)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - a kernel file, not a path of ours
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
