"""The border to plugins: whatever a plugin raises becomes one PluginFailed, whatever it returns is checked.

``guard`` puts the functions that a class defines behind it, so no caller can go around it. What the user can mend is a
BenchError and passes as it is; an interrupt passes too.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import numbers
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import BenchError, PluginFailed

Check = Callable[[Any, tuple[Any, ...]], Any]
"""Takes what was returned, and the arguments; gives what is passed on, or raises Odd."""
GUARDED = "__guarded__"
"""Marks a function that is behind the border already."""
ADVICE = {
    MemoryError: "There is not enough memory: do it in smaller parts.",
    torch.cuda.OutOfMemoryError: "The device is full: do it in smaller parts, or --device cpu.",
    ImportError: "Install what it needs; `unavailable` should say that it is missing.",
    SystemExit: "A plugin must not end the program: raise bench.errors.Unavailable instead.",
    RecursionError: "It calls itself without end.",
}


class Odd(Exception):
    """What a plugin returned is not what it promised."""


class NotFinite(Odd):
    """It is of the right kind, and holds NaN or infinity."""


def guard(cls: type, base: type, failure: type[PluginFailed], checks: Mapping[str, Check]) -> None:
    """Put those functions of ``checks`` that ``cls`` has from elsewhere than ``base`` behind the border.

    Args:
        cls: the class of a plugin.
        base: what it derives from; its name is used in messages.
        failure: to raise.
        checks: by the function's name, what it must return.
    """
    for name, check in checks.items():
        owner = next(each for each in cls.__mro__ if name in each.__dict__)
        function = owner.__dict__[name]
        if owner is not base and not hasattr(function, GUARDED) and hasattr(function, "__get__"):
            setattr(cls, name, _guarded(function, base.__name__, failure, check))


def _guarded(function: Any, kind: str, failure: type[PluginFailed], check: Check) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(self: Any, *arguments: Any, **named: Any) -> Any:
        bound = function.__get__(self, type(self))

        def checked(value: Any) -> Any:
            given = inspect.signature(bound).bind(*arguments, **named)
            return check(value, tuple(given.arguments.values()))

        who = f"{kind} '{getattr(self, 'name', type(self).__name__)}'"
        return called(lambda: bound(*arguments, **named), who, failure, checked, file=_file(function))

    setattr(guarded, GUARDED, True)
    return guarded


def called(
    call: Callable[[], Any],
    who: str,
    failure: type[PluginFailed],
    check: Callable[[Any], Any],
    *,
    file: str,
) -> Any:
    """What ``call`` returns, checked; ``failure`` where it raises, or returns something else.

    Args:
        call: into the plugin.
        who: for messages, such as "Method 'x'".
        failure: to raise.
        check: gives what is passed on, or raises Odd.
        file: of the plugin, whose line is named.
    """
    try:
        value = call()
    except BenchError:
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        advice = next((f" {text}" for kind, text in ADVICE.items() if isinstance(error, kind)), "")
        raise failure(f"{who} raised {type(error).__name__}: {error}.{_place(error, file)}{advice}") from error
    try:
        return check(value)
    except Odd as odd:
        raise failure(f"{who} returned {odd}") from odd


def _file(function: Any) -> str:
    """Where ``function`` was written; "" where that is not known, as of a partial function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_filename if code else ""


def _place(error: BaseException, file: str) -> str:
    """Where ``error`` was raised: the innermost line of ``file``, else the innermost line."""
    found, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame.f_code
        if frame.co_filename == file or found is None or found[0] != file:
            found = (frame.co_filename, trace.tb_lineno, frame.co_name)
        trace = trace.tb_next
    return f" ({Path(found[0]).name}, line {found[1]}, in {found[2]}.)" if found and found[0] != __file__ else ""


def text_or_none(value: Any, given: tuple[Any, ...]) -> str:
    """A text; None counts as ""."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Odd(f"{kind_of(value)}; expected a text, '' where there is nothing to say.")
    return value


def nothing(value: Any, given: tuple[Any, ...]) -> None:
    """Whatever it returns is not used."""


def json_texts(value: Any, given: tuple[Any, ...]) -> dict[str, Any]:
    """A dict that JSON can hold."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise Odd(f"{kind_of(value)}; expected a dict of texts.")
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Odd(
            f"a dict that is no JSON ({error}): it may hold numbers, texts, booleans, or lists of these, so that a "
            "result can name what produced it. Keep tensors and models out of it."
        ) from error
    return dict(value)


def number(value: Any, given: tuple[Any, ...]) -> float:
    """A real number; NaN and infinity are its own to explain."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise Odd(f"{kind_of(value)}; expected a float.")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def score_matrix(value: Any, given: tuple[Any, ...]) -> Tensor:
    """Scores, queries × images, finite; the arguments are context and queries."""
    context, queries = given[0], given[1]
    if not isinstance(value, Tensor):
        hint = " torch.as_tensor makes one of it." if isinstance(value, np.ndarray | list | tuple) else ""
        raise Odd(f"{kind_of(value)}; expected a torch.Tensor, queries × images.{hint}")
    expected = (len(queries), len(context.dataset))
    if tuple(value.shape) != expected:
        hint = " It is transposed." if tuple(value.shape) == expected[::-1] else ""
        raise Odd(f"scores of shape {tuple(value.shape)}; expected queries × images = {expected}.{hint}")
    if value.is_complex() or value.dtype == torch.bool or value.is_quantized:
        raise Odd(f"scores of dtype {value.dtype}; expected real numbers, such as torch.float32.")
    if value.is_sparse or value.device.type == "meta":
        raise Odd(f"scores of layout {value.layout} on {value.device}; expected a dense tensor that has values.")
    plain = value.detach().to("cpu", torch.float32)
    bad = int((~torch.isfinite(plain)).sum())
    if bad:
        raise NotFinite(f"{bad} scores that are NaN or infinite.")
    return plain


def score_maps(value: Any, given: tuple[Any, ...]) -> Tensor:
    """Maps, images × rows × columns of the latent, finite; the arguments are context, query and images."""
    query, images = given[1], given[2]
    expected = (len(images), *query.latent.shape[1:])
    if not isinstance(value, Tensor) or tuple(value.shape) != expected:
        found = f"a tensor of {tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
        raise Odd(f"{found}; expected maps, images × rows × columns = {expected}.")
    plain = value.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(plain).all()):
        raise NotFinite("maps with numbers that are NaN or infinite.")
    return plain


def observed(value: Any, given: tuple[Any, ...]) -> list[Tensor]:
    """A finite tensor for each query; the arguments are model, queries and seed."""
    queries = given[1]
    if not isinstance(value, list | tuple) or len(value) != len(queries):
        got = f"{len(value)} of them" if isinstance(value, list | tuple) else kind_of(value)
        raise Odd(f"{got}; expected a list of {len(queries)} tensors, one for each query.")
    for query, tensor in zip(queries, value, strict=True):
        if not isinstance(tensor, Tensor):
            raise Odd(f"{kind_of(tensor)} for query {query.id}; expected a torch.Tensor.")
        if tensor.is_sparse or tensor.is_quantized or tensor.device.type == "meta":
            raise Odd(f"a tensor of layout {tensor.layout} on {tensor.device}; expected a dense one that has values.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NotFinite(f"numbers that are NaN or infinite for query {query.id}.")
    return [tensor.detach() for tensor in value]


def kind_of(value: Any) -> str:
    """The type of ``value``, with its module where that is not Python's own."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def module_file(cls: type) -> str:
    """The file that defines ``cls``, "" where there is none."""
    return str(getattr(sys.modules.get(cls.__module__), "__file__", None) or "")
