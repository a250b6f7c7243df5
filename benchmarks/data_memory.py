"""Does a worker's memory grow with the number of training images? Two workers train on synthetic images from disk.

Images are 3×32×32 and made by index, never all in memory. Each worker opens the encoded data, trains a few steps and
tells its own memory: RssAnon (what no other process shares) and its peak resident memory, which counts pages of the
mapped file that it has touched and that the system can drop.

Usage: python -m benchmarks.data_memory [--images 1000 100000]
"""

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.diffusion.training import TrainingData, TrainingJob, TrainingRun
from bench.foundation import seeds
from bench.foundation.machine import compute_threads
from bench.studies import study

STEPS = 20
WORKERS = 2
CONFIG = ModelConfig(
    sample_size=32, latent_channels=3, block_channels=(8, 8), cross_attention=(False, True), norm_groups=4
)


@dataclass(frozen=True)
class Synthetic:
    """Noise for images, made by index."""

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    digest: str = "synthetic"
    more_captions: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def pixels(self, indices: Sequence[int] | None = None, *, flipped: bool = False) -> Tensor:
        """Images in [−1, 1]."""
        chosen = range(len(self)) if indices is None else indices
        made = torch.stack([seeds.normal((3, 32, 32), "synthetic", index) for index in chosen]).clamp(-1, 1)
        return made.flip(-1) if flipped else made


def work(place: str, queue: "multiprocessing.Queue[tuple[float, float]]") -> None:
    """Train on the encoded data in ``place`` and tell this process's memory in MiB."""
    source = Synthetic((), ())
    recipe = replace(study("tiny").recipe, num_steps=STEPS, num_shards=1)
    with compute_threads(1):
        data = TrainingData.kept(Path(place), source, DiffusionModel(CONFIG))
        run = TrainingRun(CONFIG, data, recipe, TrainingJob((), 0), device=torch.device("cpu"))
        while not run.finished:
            run.advance()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put((int(status["RssAnon"].split()[0]) / 1024, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 100_000])
    for count in parser.parse_args().images:
        with tempfile.TemporaryDirectory() as folder:
            captions = tuple(f"a photo of a {('bag', 'coat', 'dress')[index % 3]}" for index in range(count))
            source = Synthetic(tuple(f"{index:07d}" for index in range(count)), captions)
            place = Path(folder) / "encoded"
            TrainingData.kept(place, source, DiffusionModel(CONFIG))
            context = multiprocessing.get_context("spawn")
            queue: multiprocessing.Queue[tuple[float, float]] = context.Queue()
            workers = [context.Process(target=work, args=(str(place), queue)) for _ in range(WORKERS)]
            for worker in workers:
                worker.start()
            for own, peak in [queue.get() for _ in workers]:
                size = sum(path.stat().st_size for path in place.iterdir()) / 2**20
                print(
                    f"{count:,} images, {size:.0f} MiB on disk: own memory {own:.0f} MiB, peak resident {peak:.0f} MiB"
                )
            for worker in workers:
                worker.join()


if __name__ == "__main__":
    main()
