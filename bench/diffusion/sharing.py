"""Run several U-Nets on the same inputs, and what they have in common once: all before the first weight that differs.

Unlearning moves few weights, such as K and V of cross-attention; the layers that come before the first of them give
every unlearned model the same activations. Nothing is approximated.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def shared_beginning(unets: Sequence[nn.Module], probe: Callable[[nn.Module], object]) -> Iterator[None]:
    """Within the context, the other ``unets`` take the first layers' outputs from the last run of ``unets[0]``.

    So run the first one first, then the others, on the same inputs and in the same thread; threads keep apart.

    Args:
        unets: of one architecture.
        probe: runs a U-Net once, on any input, to see the order of its layers.
    """
    first, others = unets[0], {id(unet): unet for unet in unets[1:] if unet is not unets[0]}
    names = common_modules(first, list(others.values()), probe) if others else []
    kept = threading.local()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: setattr(kept, name, output)

    handles = [first.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    replaced = [(unet.get_submodule(name), name) for unet in others.values() for name in names]
    for module, name in replaced:
        module.forward = lambda *_, name=name, **__: getattr(kept, name)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, _ in replaced:
            del module.forward


def common_modules(first: nn.Module, others: Sequence[nn.Module], probe: Callable[[nn.Module], object]) -> list[str]:
    """The largest modules of ``first`` that have run to their end before any weight that differs in ``others``."""
    weights = [dict(other.named_parameters()) for other in others]
    owners = {
        name.rpartition(".")[0]
        for name, weight in first.named_parameters()
        if not all(torch.equal(weight, other[name]) for other in weights)
    }
    events: list[tuple[str, bool]] = []
    handles = []
    for name, module in first.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: events.append((name, False))))
        handles.append(module.register_forward_hook(lambda *_, name=name: events.append((name, True))))
    probe(first)
    for handle in handles:
        handle.remove()
    runs = Counter(name for name, ended in events if ended)
    done: set[str] = set()
    for name, ended in events:
        if name in owners or (ended and any(owner.startswith(f"{name}.") or not name for owner in owners)):
            break
        if ended and runs[name] == 1:
            done.add(name)
    return [name for name in sorted(done) if not any(part in done for part in _ancestors(name))]


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return ["", *(".".join(parts[:count]) for count in range(1, len(parts)))] if name else []
