"""Featurizing for ``trak``: this engine against traker 0.3.2, same model, weights, draws and projection size.

Usage: pip install 'attribution-bench[trak]', then
    python -m benchmarks.featurizing [--batch N] [--images N] [--rounds N]

Both take the projected gradient of the loss averaged over ten draws for each image, with respect to all weights. traker
runs its functional gradient computer and the projector that it has for a CPU on one batch, with torch's own threads;
this engine runs on more images, as it makes its own batches. The two take turns; the ratio of the median seconds an
image is printed. traker's projector costs about the same for any batch, so the seconds of its gradients alone are
printed too: no batch makes it faster than that.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.attribution.influence import Rows, keyed_rows, projected_gradients
from bench.attribution.projection import Projection
from bench.attribution.traker import traker
from bench.diffusion.model import DiffusionModel
from bench.diffusion.selections import select_weights
from bench.diffusion.training import TrainingData
from bench.foundation.machine import available_threads, compute_threads, describe, peak_memory_mib
from bench.studies import study

DRAWS = 10


def main() -> None:
    """Take turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="fashion")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dimension", type=int, default=1024)
    given = parser.parse_args()
    the_study = study(given.study)
    model = DiffusionModel(the_study.model)
    nn.init.normal_(model.unet.conv_out.weight, std=0.1)  # an untrained model's last layer is zero
    data = TrainingData.of(the_study.dataset, model)

    def rows_of(image: int) -> Rows:
        state = data.states[data.caption_of[image]]
        return keyed_rows(model, data.latents[image, 0], state, DRAWS, 0, "image", the_study.dataset.ids[image])

    sizes = {name: weight.numel() for name, weight in select_weights(model.unet, "all").items()}
    print(f"{DRAWS} draws an image, {sum(sizes.values())} weights, projection {given.dimension}")
    batch = [torch.stack(column) for column in zip(*(rows_of(i) for i in range(given.batch)), strict=True)]
    theirs, gradients, ours = [], [], []
    for turn in range(given.rounds):
        torch.set_num_threads(available_threads())
        with tempfile.TemporaryDirectory() as folder:
            peer = traker(model, given.batch, folder, dimension=given.dimension)
            gradients.append(
                timed(lambda peer=peer: peer.gradient_computer.compute_per_sample_grad(batch)) / given.batch
            )
            theirs.append(timed(lambda peer=peer: peer.featurize(batch, num_samples=given.batch)) / given.batch)

        def featurize(turn: int = turn) -> None:
            projection = Projection(sizes, given.dimension, turn)
            projected_gradients(model, "loss", "all", projection, rows_of, given.images, group=DRAWS)

        with compute_threads(available_threads()):
            ours.append(timed(featurize) / given.images)
        print(
            f"seconds an image: traker {theirs[-1]:.3f} (gradients {gradients[-1]:.3f}), this engine {ours[-1]:.3f}, "
            f"ratio {theirs[-1] / ours[-1]:.1f}", flush=True,
        )  # fmt: skip
    ratios = [statistics.median(other) / statistics.median(ours) for other in (theirs, gradients)]
    print(f"ratio of medians {ratios[0]:.1f}, to traker's gradients alone {ratios[1]:.1f}")
    print(f"peak memory {peak_memory_mib():.0f} MiB; {describe()}")


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
