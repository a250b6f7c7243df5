"""What a data set is to the rest: ids, captions, images by index, and a digest. It need not lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class DataSource(Protocol):
    """N images with captions, the images fetched by index when they are wanted."""

    @property
    def ids(self) -> tuple[str, ...]:
        """N stable, unique strings."""
        ...

    @property
    def captions(self) -> tuple[str, ...]:
        """N texts."""
        ...

    @property
    def more_captions(self) -> tuple[tuple[str, ...], ...]:
        """The further captions of each image; () where each has one."""
        ...

    @property
    def digest(self) -> str:
        """Of all of it: equal digests mean equal ids, captions and images."""
        ...

    def __len__(self) -> int: ...

    def pixels(
        self, indices: Sequence[int] | None = None, *, flipped: bool = False
    ) -> Float[Tensor, "images channels height width"]:
        """Images in [−1, 1], mirrored left to right where ``flipped``; all of them where ``indices`` is None."""
        ...
