"""Memory of a process at MSCOCO's number of images: prepare and score 118,287 fake images of 3×128×128 pixels.

Images are noise, memory-mapped from a file. Their latents are means over patches (4×16×16), text states have MSCOCO's
size (77×1,024). A small U-Net scores them, so that what grows with the number of images is seen and time is not spent
on weights. Each step runs in a process of its own, which tells the peak of its own memory (RssAnon: what is no page of
a mapped file, read every 20 ms) and its peak resident memory, which counts pages of mapped files that it has touched
and that the system can drop.

Usage: python -m benchmarks.mscoco_memory [--images 118287] [--folder FOLDER] [--step ours]
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from bench.contracts import AttributionContext
from bench.data.dataset import Dataset
from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.diffusion.queries import QuerySpec, synthesize
from bench.diffusion.sampling import Sampler
from bench.diffusion.training import TrainingData
from bench.foundation import seeds
from bench.foundation.machine import compute_threads, describe
from bench.records.store import Artifacts, Store
from bench.registry import methods

IMAGES, PIXELS, ROWS = 118_287, 128, 16
TOKENS, TEXT_DIM, CAPTIONS = 77, 1024, 1000
"""One of so many captions is that of an image: their states are mapped, too, and no process holds them."""
BLOCK = 1024
STEPS = ("prepare", "random", "pixel", "ours")
SETTINGS = {"ours": {"timestep_stride": 1000, "num_fisher_draws": 64, "num_gradient_draws": 64}}
UNET = {
    "sample_size": ROWS, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": [8, 8],
    "norm_num_groups": 4, "cross_attention_dim": TEXT_DIM, "attention_head_dim": 1, "mid_block_type": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
CONFIG = ModelConfig(
    sample_size=ROWS, latent_channels=4, block_channels=(8, 8), cross_attention=(False, True), preconditioned=False,
    unet=json.dumps(UNET),
)  # fmt: skip


class PatchMeans:
    """Means over patches of 8×8 pixels and their mean colour: four channels."""

    latent_range = 0.0
    digest = "patch-means"

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 4 rows columns"]:
        """Latents."""
        means = functional.avg_pool2d(images, PIXELS // ROWS)
        return torch.cat([means, means.mean(1, keepdim=True)], 1)

    def decode(self, latents: Float[Tensor, "batch 4 rows columns"]) -> Float[Tensor, "batch 3 height width"]:
        """Images."""
        return functional.interpolate(latents[:, :3], scale_factor=PIXELS // ROWS).clamp(-1, 1)


class States:
    """A text state for each caption, keyed by it."""

    digest, dim, num_tokens = "states", TEXT_DIM, TOKENS
    learned: ClassVar[dict[str, Tensor]] = {}

    def encode(self, prompts: Sequence[str]) -> Float[Tensor, "prompts tokens dim"]:
        """Noise."""
        return torch.stack([seeds.normal((TOKENS, TEXT_DIM), "state", prompt) for prompt in prompts])


def model() -> DiffusionModel:
    """A small U-Net for these latents and states."""
    made = DiffusionModel(CONFIG)
    made.autoencoder, made.text_encoder = PatchMeans(), States()  # type: ignore[assignment]
    for name, weight in made.unet.named_parameters():
        if not weight.any():  # an untrained branch that ends in zeros hides the prompt from the output
            weight.data = seeds.normal(tuple(weight.shape), "weight", name) / 10
    return made


def dataset(folder: Path, count: int) -> Dataset:
    """The images in ``folder``, written where they are missing: pages of one block of noise, each image shifted."""
    file, shape = folder / "images.u8", (count, PIXELS, PIXELS, 3)
    if not file.exists():
        block = seeds.generator("images").integers(0, 256, (BLOCK, *shape[1:]), np.uint8)
        with file.open("wb") as target:
            for start in range(0, count, BLOCK):
                target.write(np.roll(block, start // BLOCK, axis=2)[: count - start].tobytes())
    captions = tuple(f"caption {index % CAPTIONS}" for index in range(count))
    return Dataset(
        name="noise", ids=tuple(f"{index:012d}" for index in range(count)), captions=captions, concepts=captions,
        styles=("",) * count, images=torch.from_numpy(np.memmap(file, np.uint8, "c", shape=shape)),
        images_digest="noise",
    )  # fmt: skip


def work(step: str, folder: Path, count: int, queue: "multiprocessing.Queue[tuple[float, float, float]]") -> None:
    """Do ``step`` and tell seconds, peak own memory and peak resident memory in MiB."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak[0] = max(peak[0], int(status["RssAnon"].split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    with compute_threads(1):
        made, images = model(), dataset(folder, count)
        data = TrainingData.kept(folder / "encoded", images, made)
        if step != "prepare":
            query = synthesize(made, Sampler(num_steps=5), [QuerySpec("q00", "caption 0", 0)])
            cached = Artifacts(Store(folder / step))
            context = AttributionContext(
                dataset=images, data=data, model=made, seed=0, cached=cached, ensemble=lambda count: [made] * count,
                progress=lambda done, total: None,
            )  # fmt: skip
            scores = methods.create(step, **SETTINGS.get(step, {})).scores(context, query)
            assert scores.shape == (1, count)
            assert scores.std() > 0
    done.set()
    watcher.join()
    seconds = time.perf_counter() - started
    queue.put((seconds, peak[0] / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def measure(folder: Path, count: int, step: str) -> tuple[float, float, float]:
    """Seconds, peak own memory and peak resident memory in MiB of a new process that does ``step``."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[tuple[float, float, float]] = context.Queue()
    process = context.Process(target=work, args=(step, folder, count, queue))
    process.start()
    while process.is_alive() and queue.empty():
        process.join(0.2)
    if queue.empty() and process.exitcode:
        raise RuntimeError(f"the process for {step} ended with {process.exitcode}")
    found = queue.get()
    process.join()
    return found


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--folder", type=Path, help="Where 8 GB of files go, and stay. [default: a temporary one]")
    parser.add_argument("--step", choices=STEPS, action="append", help="Some alone, of a folder with those before.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        for step in given.step or STEPS:
            seconds, own, resident = measure(place, given.images, step)
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 2**20
            print(
                f"{step}: {given.images:,} images, {size:,.0f} MiB on disk, {seconds:.0f} s: own memory {own:.0f} MiB, "
                f"peak resident {resident:.0f} MiB",
                flush=True,
            )
    print(describe())


if __name__ == "__main__":
    main()
