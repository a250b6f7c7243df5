"""The one worker loop: claim requests of the plans in a results folder until nothing is left or time is up.

It needs no driver, no network and no scheduler, only the folder: the same command serves SLURM, tmux, Kubernetes and
rented machines. Any number may run, on any number of machines, and come and go: each request is claimed by one
(``bench.records.claims``), and what a dead one had begun goes on from its checkpoint.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from bench.errors import ResultsFolderError
from bench.foundation.machine import available_threads, compute_threads, device_of
from bench.foundation.progress import Progress
from bench.records import folder
from bench.retraining import plans
from bench.retraining.executors import BUSY_PAUSE_SECONDS, attempt, prepare
from bench.retraining.ledger import TRIES, Busy, Ledger, Request
from bench.studies import Study

_leaving = threading.Event()
"""Whether the job is about to be ended."""


class _Desk:
    """What is to be done in a results folder, as one worker sees it.

    Args:
        root: the folder.
        device: to train on.
        progress: told what happens.
        own: the study, where it is a user's own and its file is not where the plans say.
        hooks: of the ledgers.
    """

    def __init__(self, root: Path, device: str, progress: Progress, own: Study | None, **hooks: Any) -> None:
        self.root, self.device, self.progress, self.own, self.hooks = root, device, progress, own, hooks
        self._opened: dict[Path, tuple[Ledger, list[Request]]] = {}
        self._done: set[tuple[Path, Request]] = set()

    def left(self) -> list[tuple[Path, Ledger, Request]]:
        """What is due and has not failed, with the plan and the ledger that it belongs to."""
        found = []
        for path in folder.plans(self.root):
            if path not in self._opened:
                plan = plans.read(path, self.root, self.device, self.own)
                if plan is None:
                    continue
                engine, requests = plan
                if why := engine.study.recipe.ignored(device_of(self.device)):
                    self.progress.say(why)
                self._opened[path] = engine.ledger(note=self.progress.say, most_deaths=TRIES, **self.hooks), requests
            ledger, requests = self._opened[path]
            due = [each for each in requests if (path, each) not in self._done and ledger.is_due(each)]
            if not due:
                plans.discard(path)
            found += [(path, ledger, each) for each in due if not ledger.failure(each.job)[0]]
        return found

    def put_down(self, path: Path, request: Request) -> None:
        """This worker is through with it."""
        self._done.add((path, request))


def work(
    root: Path,
    *,
    device: str = "cpu",
    seconds: float = math.inf,
    most: int | None = None,
    wait: bool = False,
    progress: Progress | None = None,
    study: Study | None = None,
) -> bool:
    """Fulfil what is due in the results folder ``root``; returns whether nothing is left.

    A request that is being trained elsewhere is waited for: its worker may die.

    Args:
        root: the folder.
        device: to train on.
        seconds: after which it ends, in mid-training with a checkpoint.
        most: so many requests are fulfilled at most; None for no limit.
        wait: whether to wait, until time is up, for a run that has not begun, and for more where nothing is left.
        progress: told what happens.
        study: of a user's own, where its file is not where the plans say.
    """
    shown, deadline, done = progress or Progress(), time.monotonic() + seconds, 0

    def is_late() -> bool:
        return time.monotonic() >= deadline or _leaving.is_set()

    def rest() -> None:
        time.sleep(min(BUSY_PAUSE_SECONDS, max(0.0, deadline - time.monotonic())))

    while not (root / folder.STUDY).exists():
        if not wait:
            raise ResultsFolderError(
                f"{root} is no results folder: it has no {folder.STUDY}. `bench run` makes one; --wait waits for it."
            )
        if is_late():
            return True
        rest()
    desk = _Desk(root, device, shown, study, should_stop=is_late)
    while (left := desk.left()) or (wait and not is_late()):
        is_idle, begin = True, secrets.randbelow(len(left) or 1)
        for path, ledger, request in left[begin:] + left[:begin]:  # each worker begins elsewhere
            if is_late() or done == most:
                return False
            total, name = ledger.study.recipe.num_steps, ledger.key(request.job)
            word = "observed" if ledger.is_trained(request.job) else "trained"
            began = time.monotonic()
            try:
                on_step = partial(shown.advance, name, total=total)

                def on_stacked(index: int, step: int, show: Callable[[int], None] = on_step) -> None:
                    show(step)

                others = (each for plan, _, each in left if plan == path and each is not request)
                prepare(ledger, enumerate(chain([request], others)), on_stacked)
                outcome = attempt(ledger, 0, request, on_step)
            except Busy:
                continue
            except KeyboardInterrupt:
                if is_late():
                    return False
                raise
            is_idle, done = False, done + 1
            desk.put_down(path, request)
            shown.say(f"{name}: {outcome.failure or word} ({time.monotonic() - began:.1f} s)")
        if is_idle:
            rest()
    return True


@dataclass(frozen=True)
class Worker:
    """``work`` as a task of a cluster: it is sent there, so it holds nothing but names.

    Attributes:
        root: the results folder, absolute.
        device: to train on.
        threads: of its own; 0 for as many as it may use.
    """

    root: str
    device: str = "cpu"
    threads: int = 0

    def __call__(self) -> bool:
        """Work until nothing is left."""
        with compute_threads(self.threads or available_threads()):
            return work(Path(self.root), device=self.device, progress=_Printed())

    def checkpoint(self) -> Any:
        """What submitit puts in the queue again when SLURM is about to end the job: the same; the folder knows all."""
        from submitit.helpers import DelayedSubmission

        _leaving.set()  # submitit raises SystemExit next, which is no failure of the training
        return DelayedSubmission(self)


class _Printed(Progress):
    """What happens, a line each, for the log of a job."""

    def say(self, text: str) -> None:
        """One line, at once."""
        print(text, flush=True)
