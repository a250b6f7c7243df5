"""How rows call what chose the removed images: a method, its variant, and its settings, each a column of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.foundation.texts import parsed

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What a method, a variant or a metric may be called: it stands in paths and in tables."""
RESERVED = ("all", "top_images", "regenerations")
"""What commands and figures are called."""
OLD_LABEL = re.compile(r"(?P<method>[^:\[]+)(?::(?P<variant>[^\[]+))?(?:\[(?P<settings>.*)\])?")


@dataclass(frozen=True)
class MethodName:
    """A method as rows name it.

    Attributes:
        method: its registered name, or what stands for no method ("nothing removed").
        variant: one of the method's named settings, "" for the method itself.
        settings: what else differs from the settings tuned for the study, as JSON with sorted keys; "" where nothing.
    """

    method: str
    variant: str = ""
    settings: str = ""

    @classmethod
    def of(cls, method: str, variant: str = "", settings: Mapping[str, Any] | None = None) -> MethodName:
        """With ``settings`` by name."""
        return cls(method, variant, json.dumps(settings, sort_keys=True) if settings else "")

    @classmethod
    def of_old_label(cls, label: str) -> MethodName:
        """Of rows written before 2026-11-25, which had one column, such as "ours:all[alpha=0.1]"."""
        found = OLD_LABEL.fullmatch(label)
        if found is None:
            return cls(label)
        settings = found["settings"] or ""
        parts: dict[str, Any] = {}
        for part in filter(None, settings.split(", ")):
            key, equals, value = part.partition("=")
            parts[key] = parsed(value) if equals else True
        return cls.of(found["method"], found["variant"] or "", parts)

    @property
    def label(self) -> str:
        """For people: ``name``, ``name:variant`` or ``name[setting=value]``."""
        head = f"{self.method}:{self.variant}" if self.variant else self.method
        return f"{head}[{self.given}]" if self.given else head

    @property
    def given(self) -> str:
        """``settings`` for people: ``setting=value``, divided by commas."""
        given = json.loads(self.settings) if self.settings else {}
        return ", ".join(key if value is True else f"{key}={value}" for key, value in given.items())

    @property
    def plain(self) -> bool:
        """Whether it is a method as tuned: no variant, no other settings."""
        return not (self.variant or self.settings)
