"""Claims: locks between processes that hold on network file systems too, where ``flock`` may be local or missing.

A claim is a file that says who holds it. It is made with ``O_CREAT | O_EXCL``, which one process alone can do; its
owner's heartbeat is its time of modification. It is dropped where its owner is dead: on the owner's own machine as
soon as the process is gone, elsewhere when three heartbeats in a row were missed. Nobody compares clocks: a watcher
sees whether the time of modification changes while three intervals pass on its own clock.

What ends a claim, its release or its takeover, is itself exclusive: whoever ends the claim with token T first makes
the file ``NAME.T.end``. So two watchers cannot take over one claim, and an owner that was thought dead and wakes up
does not release its successor's. A takeover is a rename of the new claim over the old one.

An owner that was asleep for three intervals, as a suspended virtual machine is, may have been replaced meanwhile:
``Claim.is_held`` tells, and is asked before anything is written.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from bench.errors import InvalidInput

HOST, HEARTBEAT = "BENCH_HOST", "BENCH_HEARTBEAT"
"""Environment variables: this machine's name in claims, and the seconds between two heartbeats."""
USUAL_HEARTBEAT = 10.0
MISSED = 3
"""So many heartbeats in a row are missed by the dead."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.25


class Held(TimeoutError):
    """Somebody else holds the claim."""


def heartbeat() -> float:
    """Seconds between two heartbeats of this process."""
    given = os.environ.get(HEARTBEAT, "")
    try:
        seconds = float(given or USUAL_HEARTBEAT)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise InvalidInput(f"{HEARTBEAT}={given}: seconds between 0.01 and 3600 are expected.")
    return seconds


def here() -> str:
    """This machine, as processes see each other: its name, its start, and the space that process numbers belong to."""
    return f"{os.environ.get(HOST) or socket.gethostname()} {_started()}"


@cache
def _started() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_alive(pid: int, began: str) -> bool:
    """Whether the process ``pid`` of this machine still runs, and is the one that began then."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return _began(pid) in ("", began) or not began


def _began(pid: int) -> str:
    """When the process began, "" where that is not known or it has ended and waits for its parent."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if state == "Z" else others[18]


@dataclass(frozen=True)
class Owner:
    """What a claim file says.

    Attributes:
        token: different for each claim.
        host, pid, began: the process; ``host`` is that of ``here``.
        interval: seconds between its heartbeats.
        mark: what the owner wrote down when it began.
        deaths: how many owners before it died in a row at this mark.
        beat: the file's time of modification.
    """

    token: str
    host: str = ""
    pid: int = 0
    began: str = ""
    interval: float = USUAL_HEARTBEAT
    mark: str = ""
    deaths: int = 0
    beat: int = field(default=0, compare=False)

    @classmethod
    def of(cls, path: Path) -> Owner | None:
        """Who holds ``path``; None where nobody does."""
        try:
            with path.open("rb") as file:  # opened anew: a network file system looks at the server then
                content, facts = file.read(), os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        try:
            return cls(**json.loads(content), beat=facts.st_mtime_ns)
        except (ValueError, TypeError):  # its writer died, or has not written yet
            return cls(f"unwritten-{facts.st_ino}", interval=heartbeat(), beat=facts.st_mtime_ns)

    def is_dead(self, path: Path) -> bool:
        """Whether whoever holds ``path`` has gone."""
        if self.host == here():
            return not _is_alive(self.pid, self.began)
        state, now = (self.token, self.beat), time.monotonic()
        before, since = _seen.get(path, (None, now))
        if before != state:
            _seen[path] = state, now
            return False
        return now - since > MISSED * self.interval

    def __str__(self) -> str:
        return f"{self.host.partition(' ')[0] or 'unknown'}, process {self.pid}"


_seen: dict[Path, tuple[tuple[str, int], float]] = {}
"""When this process first saw a claim in its present state."""


class Claim:
    """One claim on ``path``.

    Args:
        path: of the file.
        mark: how far the work has come; deaths are counted while it stays the same.

    Attributes:
        taken_from: the dead owner before this one, or None.
        deaths: how many owners in a row died at this mark.
    """

    def __init__(self, path: Path, mark: str = "") -> None:
        self.path, self.mark = path, mark
        self.token = secrets.token_hex(8)
        self.taken_from: Owner | None = None
        self.deaths = 0

    def acquire(self, timeout: float = -1.0) -> None:
        """Hold it, at the latest after ``timeout`` seconds (for ever where negative); raises Held otherwise."""
        began, pause = time.monotonic(), FIRST_PAUSE
        while not _made(self.path, self._content()):
            owner = Owner.of(self.path)
            if owner is not None and owner.is_dead(self.path) and self._takes_over(owner):
                break
            if 0 <= timeout <= time.monotonic() - began:
                raise Held(f"{self.path} is held by {owner or 'another process'}")
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        _keep_alive(self)

    def release(self) -> None:
        """Let it go, unless it was taken over."""
        _beating.pop(self.token, None)
        end = self._end(self.token)
        if _made(end, self._content()):
            if self.is_held():
                self.path.unlink(missing_ok=True)
            end.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether nobody has taken it over."""
        owner = Owner.of(self.path)
        return owner is not None and owner.token == self.token

    def beat(self) -> None:
        """Say that its owner is alive."""
        if self.is_held():
            with suppress(FileNotFoundError):
                os.utime(self.path)

    def _takes_over(self, owner: Owner) -> bool:
        """Whether it now stands in place of the dead ``owner``'s; another watcher may have been first."""
        end = self._end(owner.token)
        if not _made(end, self._content()):
            other = Owner.of(end)
            if other is not None and other.is_dead(end):
                end.unlink(missing_ok=True)
            return False
        try:
            now = Owner.of(self.path)
            if now is None or now.token != owner.token:
                return False
            self.deaths = owner.deaths + 1 if owner.mark == self.mark else 1
            self.taken_from = owner
            mine = self.path.with_name(f".{self.path.name}.{self.token}")
            _made(mine, self._content())
            mine.replace(self.path)
            return True
        finally:
            end.unlink(missing_ok=True)

    def _end(self, token: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{token}.end")

    def _content(self) -> bytes:
        facts: Mapping[str, Any] = {
            "token": self.token, "host": here(), "pid": os.getpid(), "began": _began(os.getpid()),
            "interval": heartbeat(), "mark": self.mark, "deaths": self.deaths,
        }  # fmt: skip
        return json.dumps(facts).encode()


def _made(path: Path, content: bytes) -> bool:
    """Whether the file was not there and now is."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, content)
    finally:
        os.close(handle)
    return True


_beating: dict[str, Claim] = {}
_hearts: set[int] = set()
"""Processes in which a thread beats: a forked one needs its own."""


def _keep_alive(claim: Claim) -> None:
    """Beat for ``claim`` until it is released."""
    if os.getpid() not in _hearts:
        _hearts.clear()
        _hearts.add(os.getpid())
        _beating.clear()
        threading.Thread(target=_beat, name="heartbeat of claims", daemon=True).start()
    _beating[claim.token] = claim


def _beat() -> None:
    interval = heartbeat()
    while True:
        time.sleep(interval)
        with suppress(InvalidInput):  # whoever asks for it next says so; the heart goes on as it was
            interval = heartbeat()
        for claim in list(_beating.values()):
            with suppress(OSError):  # the file system is away for a moment: the next beat tries again
                claim.beat()
