"""Peak memory of featurizing at the size of the MSCOCO study: a U-Net of 57 million weights, projection 4,096.

Usage: python -m benchmarks.memory [--images N] [--dimension N]

The weights are random, the text states too (77 × 1,024, as Stable Diffusion 2's); gradients are those of the key and
value matrices of cross-attention (7,077,888 weights). The projection matrix would need 116 GB in single precision.
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

import bench  # noqa: F401 - sets the thread environment before torch is imported
from bench.attribution.influence import Rows, keyed_rows, projected_gradients
from bench.attribution.projection import Projection
from bench.diffusion.model import DiffusionModel, ModelConfig
from bench.diffusion.selections import select_weights
from bench.foundation.machine import available_threads, compute_threads, describe, peak_memory_mib
from bench.foundation.seeds import normal

TOKENS, TEXT_DIM = 77, 1024


def mscoco_model() -> DiffusionModel:
    """The U-Net of the MSCOCO study with random weights."""
    config = ModelConfig(
        sample_size=16, latent_channels=4, block_channels=(128, 256, 256, 256),
        cross_attention=(True, True, True, False), layers_per_block=2, attention_heads=8, norm_groups=32,
        mid_block="UNetMidBlock2DCrossAttn", preconditioned=False,
    )  # fmt: skip
    model = DiffusionModel(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.unet = UNet2DConditionModel(**config.unet_arguments(TEXT_DIM)).eval()
    model.unet.set_attn_processor(AttnProcessor())
    return model


def main() -> None:
    """Featurize a few images and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--dimension", type=int, default=4096)
    parser.add_argument("--weights", default="cross-attn-kv")
    given = parser.parse_args()
    model = mscoco_model()
    sizes = {name: weight.numel() for name, weight in select_weights(model.unet, given.weights).items()}
    total = sum(weight.numel() for weight in model.unet.parameters())
    print(f"{total} weights, {sum(sizes.values())} selected in {len(sizes)} tensors, projection {given.dimension}")

    def rows_of(image: int) -> Rows:
        latent, state = normal(model.latent_shape, "latent", image), normal((TOKENS, TEXT_DIM), "state", image)
        return keyed_rows(model, latent, state, given.draws, image)

    started = time.perf_counter()
    with compute_threads(available_threads()):
        projection = Projection(sizes, given.dimension, 0)
        features = projected_gradients(
            model, "loss", given.weights, projection, rows_of, given.images, group=given.draws
        )
    seconds = time.perf_counter() - started
    print(f"{tuple(features.shape)} features in {seconds:.0f} s; peak memory {peak_memory_mib():.0f} MiB; {describe()}")


if __name__ == "__main__":
    main()
