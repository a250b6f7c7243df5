"""An image and its mirror image, two scores, become one."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from bench.errors import InvalidInput


def check_flips(method: str, flips: str) -> None:
    """Raise InvalidInput where ``flips``, a setting of ``method``, is neither "max" nor "mean"."""
    if flips not in ("max", "mean"):
        raise InvalidInput(f"{method}: flips='{flips}'; expected max or mean.")


def over_sides(sides: Float[Tensor, "*shape 2"], flips: str) -> Float[Tensor, "*shape"]:
    """The larger of an image's two sides, or their mean."""
    return sides.amax(-1) if flips == "max" else sides.mean(-1)
