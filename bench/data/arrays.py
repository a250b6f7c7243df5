"""Arrays that others published, mapped from their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.errors import InvalidInput


def mapped(place: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array in the ``.npy`` file ``place``, memory-mapped; writing into it does not change the file.

    Raises InvalidInput where it cannot be read without running code, or is of another shape.
    """
    try:
        found: np.ndarray = np.load(place, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{place} cannot be read as an array of numbers ({error}).") from error
    if found.shape != shape:
        raise InvalidInput(f"{place} has the shape {found.shape}; {shape} is expected.")
    return found
