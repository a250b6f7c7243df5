"""Settings checked against the annotations of the dataclass that takes them: what a command line gives is any JSON."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from bench.errors import InvalidInput

LARGEST = 10_000_000
"""Of whole numbers: beyond it nothing ends."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}


class Unfit(Exception):
    """A value does not fit its annotation."""


def fitted(who: str, cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` as ``cls`` annotates them: 1 is 1.0 where a float is wanted, a list is a tuple.

    Args:
        who: for messages, such as "method 'ours'".
        cls: a dataclass.
        settings: by name, all of them fields of ``cls``.
    """
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # a plugin's annotation that cannot be evaluated promises nothing
        hints = {}
    found = {}
    for name, value in settings.items():
        try:
            found[name] = _fitted(value, hints.get(name, Any))
        except Unfit as unfit:
            raise InvalidInput(f"The setting {name} = {_shown(value)} of {who}: {unfit}.") from unfit
    return found


def _fitted(value: Any, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return _fitted(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _first(value, arguments)
    if origin is Literal:
        if any(type(value) is type(one) and value == one for one in arguments):
            return value
        raise Unfit(f"one of {', '.join(map(str, arguments))} is expected")
    if origin is tuple or kind is tuple:
        return _tuple(value, arguments)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= 2**1000 else math.inf
    if kind in WORDS and type(value) is not kind:
        raise Unfit(f"{WORDS[kind]} is expected")
    if type(value) is float and not math.isfinite(value):
        raise Unfit("a finite number is expected")
    if type(value) is int and abs(value) > LARGEST:
        raise Unfit(f"at most {LARGEST} is expected")
    if isinstance(value, list | dict):
        raise Unfit("a number, a text, true, false or null is expected")
    return value


def _tuple(value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise Unfit("a list is expected, such as [1,2]")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_fitted(each, arguments[0]) for each in value)
    if arguments and len(arguments) != len(value):
        raise Unfit(f"a list of {len(arguments)} is expected")
    return tuple(_fitted(each, kind) for each, kind in zip(value, arguments or (Any,) * len(value), strict=True))


def _first(value: Any, kinds: tuple[Any, ...]) -> Any:
    reasons = []
    for kind in sorted(kinds, key=lambda kind: type(value) is not kind):
        try:
            return _fitted(value, kind)
        except Unfit as unfit:
            reasons.append(str(unfit))
    raise Unfit(", or ".join(reasons))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
