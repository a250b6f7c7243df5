"""``bench new-method``: a method to begin with, and its test."""

from __future__ import annotations

import keyword
from pathlib import Path

from bench.errors import InvalidInput
from bench.records.names import NAME, RESERVED
from bench.records.store import write_whole
from bench.registry import methods

METHOD = '''"""{title}: say the idea in one line.

    τ(ẑ, z_i) = max over flips of − | b(x̂) − b(x_i) |,   b = mean + contrast · spread of an image's pixels

Reference: the paper, its section or equation. Replace the formula and the code below by yours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from bench import AttributionContext, Method, Query, register_method
from torch import Tensor


@register_method
@dataclass(frozen=True, kw_only=True)
class {title}(Method):
    """Fields are settings: give each a type and a default, and say here what it means."""

    name: ClassVar[str] = "{name}"
    summary: ClassVar[str] = "closeness of mean brightness"
    self_rank: ClassVar[str] = "many images share a brightness"

    contrast: float = 0.0

    def scores(self, context: AttributionContext, queries: Sequence[Query]) -> Tensor:
        """Queries × images, higher = more influential."""
        made = context.model.autoencoder.decode(torch.stack([query.latent for query in queries]))
        sides = [self.brightness(context.dataset.pixels(flipped=flipped)) for flipped in (False, True)]
        return torch.maximum(*(-(self.brightness(made)[:, None] - side).abs() for side in sides))

    def brightness(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3)) + self.contrast * images.std((1, 2, 3))
'''

TEST = '''"""The contract suite on {name}: `pytest {file}`."""

from pathlib import Path

import pytest
from bench import methods, study
from bench.authoring.checking import check
from bench.registry import load_plugin

load_plugin(Path(__file__).with_name("{name}.py"))
FINDINGS = check(methods.create("{name}"), study("small"))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: finding.check)
def test_keeps_its_promises(finding):
    assert finding.status != "broken", finding.message
'''


def write_method(name: str, folder: Path) -> tuple[Path, Path]:
    """Write ``name``.py and test_``name``.py into ``folder``; raises InvalidInput where that cannot be."""
    is_module = name.isidentifier() and not keyword.iskeyword(name)
    if not NAME.fullmatch(name) or name in RESERVED or not is_module:
        raise InvalidInput(f"'{name}' cannot name a method: use lower-case letters, digits and _, such as my_method.")
    if name in methods.names():
        raise InvalidInput(f"The method name '{name}' is taken; `bench list methods` shows all. Choose another.")
    title = "".join(word.capitalize() for word in name.split("_"))
    source, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (source, test):
        if path.exists():
            raise InvalidInput(f"{path} exists already and is not overwritten; give another name or --folder.")
    write_whole(source, METHOD.format(name=name, title=title).encode())
    write_whole(test, TEST.format(name=name, file=test.name).encode())
    return source, test
