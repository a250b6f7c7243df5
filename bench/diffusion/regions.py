"""A region of the picture, in which alone a query is attributed: a box in pixels, and the latent cells that it covers.

    L_M(ẑ, θ) = Σ M ⊙ (ε − ε_θ)² / Σ M        M: 1 on the cells of the box, 0 elsewhere

The mean is taken **inside** the box, so that a step size keeps its meaning for a box of any size. A cell counts as soon
as the box touches it. Only the query has a region: training images are scored whole, as they are and mirrored, and
the query is not mirrored. The definition is that of arXiv 2406.09408, section 5.1, which shows it on one image.

A mean under the mask of a box is the mean of what is cut out, and cutting out the whole image changes no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from bench.errors import InvalidInput

Corners = tuple[int, int, int, int]
"""x0, y0, x1, y1; x1 and y1 are excluded."""


@dataclass(frozen=True)
class Region:
    """A box of a picture.

    Raises InvalidInput for a box that is empty or not within the picture.

    Attributes:
        box: x0, y0, x1, y1 in pixels, from the upper left corner; x1 and y1 are excluded.
        picture: width and height of the picture, in pixels.
        latent: columns and rows of its latent.
        name: what people call it, such as the part of the image that lies there; its corners where this is "".
    """

    box: Corners
    picture: tuple[int, int]
    latent: tuple[int, int]
    name: str = ""

    def __post_init__(self) -> None:
        (x0, y0, x1, y1), (width, height) = self.box, self.picture
        size = f"the images have {width} × {height} pixels, so 0,0,{width},{height} is all of one"
        if x0 >= x1 or y0 >= y1:
            raise InvalidInput(f"The box {self.corners} is empty: X0 < X1 and Y0 < Y1 are expected; {size}.")
        if min(x0, y0) < 0 or x1 > width or y1 > height:
            raise InvalidInput(f"The box {self.corners} lies outside the image: {size}.")

    @property
    def corners(self) -> str:
        """As the command line has them: "2,0,14,4"."""
        return ",".join(map(str, self.box))

    @property
    def label(self) -> str:
        """The name, or the corners."""
        return self.name or self.corners

    @property
    def cells(self) -> Corners:
        """The box in latent cells: every cell that it touches."""
        (x0, y0, x1, y1), (width, height), (columns, rows) = self.box, self.picture, self.latent
        return x0 * columns // width, y0 * rows // height, -(-x1 * columns // width), -(-y1 * rows // height)

    @property
    def mask(self) -> Bool[Tensor, "rows columns"]:
        """Which latent cells count."""
        columns, rows = self.latent
        found = torch.zeros(rows, columns, dtype=torch.bool)
        _cut(found, self.cells)[...] = True
        return found

    def holds(self, box: Corners) -> bool:
        """Whether all of ``box``, in pixels, is inside."""
        (x0, y0, x1, y1), (left, top, right, bottom) = self.box, box
        return x0 <= left and y0 <= top and right <= x1 and bottom <= y1

    def of_latent(self, values: Tensor) -> Tensor:
        """What of ``values``, … × rows × columns of latent cells, is inside."""
        return _cut(values, self.cells)

    def of_image(self, pixels: Tensor) -> Tensor:
        """What of ``pixels``, … × height × width, is inside."""
        return _cut(pixels, self.box)


def inside(values: Tensor, region: Region | None) -> Tensor:
    """What of ``values``, … × rows × columns of latent cells, is in ``region``; all of it where that is None."""
    return values if region is None else region.of_latent(values)


def inside_image(pixels: Tensor, region: Region | None) -> Tensor:
    """What of ``pixels``, … × height × width, is in ``region``; all of it where that is None."""
    return pixels if region is None else region.of_image(pixels)


def parsed_corners(text: str) -> Corners | None:
    """The four whole numbers of "X0,Y0,X1,Y1"; None where ``text`` is something else."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        return None
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == 4 else None


def _cut(values: Tensor, corners: Sequence[int]) -> Tensor:
    x0, y0, x1, y1 = corners
    return values[..., y0:y1, x0:x1]
