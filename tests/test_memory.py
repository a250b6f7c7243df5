"""Memory of a process at a size of which MSCOCO is thirty times: it must not grow with the number of images."""

import sys

import pytest

from benchmarks import mscoco_memory

IMAGES = 4000
LIMIT = 1536
"""MiB, for any number of images: of libraries, a model, and a block of images. At 118,287 images the steps had 1,092,
384, 703 and 537 MiB (benchmarks/README.md); `pixel` in blocks of half a gigabyte had 2,600, and grew from there on."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_own_memory_is_that_of_a_block(tmp_path):
    own = {step: mscoco_memory.measure(tmp_path, IMAGES, step)[1] for step in mscoco_memory.STEPS}
    assert max(own.values()) < LIMIT, own
