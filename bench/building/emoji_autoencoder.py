"""Train the autoencoder of the `emoji` study: 32 x 32 x 3 pixels to latents of 8 x 8 x 4 and back.

A small `diffusers.AutoencoderKL`, trained on the training split of `emoji.parquet` and its mirror images with
|e| + e^2 a pixel and a light Kullback-Leibler term, which keeps the channels of the latents alike in scale. The
trained weights are a running average. As in Stable Diffusion, `scaling_factor` is 1 / the latents' global standard
deviation; channels are never whitened one by one.

Usage: python -m bench.building.emoji_autoencoder --output DIR
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.building.tensors import write_safetensors
from bench.data.dataset import load_embedded

NUM_STEPS = 1800
BATCH = 16
LEARNING_RATE = 3e-3
WARMUP = 0.03
KL_WEIGHT = 2e-3
EMA_DECAY = 0.995
GRADIENT_CLIP = 1.0
SEED = 0
REPORT_EVERY = 100


def new_autoencoder() -> AutoencoderKL:
    """Return the untrained network: two halvings of the resolution, one residual block at each level."""
    levels = (16, 32, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(levels),
        up_block_types=("UpDecoderBlock2D",) * len(levels),
        block_out_channels=levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def learning_rate_at(step: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    done = (step + 1) / NUM_STEPS
    if done < WARMUP:
        return LEARNING_RATE * done / WARMUP
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def loss_of(autoencoder: AutoencoderKL, images: Tensor, draws: torch.Generator) -> Tensor:
    """Reconstruction error of sampled latents plus the weighted KL divergence from a standard normal."""
    posterior = autoencoder.encode(images).latent_dist
    error = autoencoder.decode(posterior.sample(draws)).sample - images
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl


def train(autoencoder: AutoencoderKL, average: AveragedModel, images: Tensor) -> Iterator[float]:
    """Train in place on `images` [N, 3, 32, 32] in [-1, 1], keep the running average, yield each step's loss."""
    draws = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), betas=(0.9, 0.99), weight_decay=0)
    for step in range(NUM_STEPS):
        batch = images[torch.randint(len(images), (BATCH,), generator=draws)]
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=draws) < 0.5
        loss = loss_of(autoencoder, torch.where(mirrored, batch.flip(-1), batch), draws)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), GRADIENT_CLIP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step)
        optimizer.step()
        average.update_parameters(autoencoder)
        yield loss.item()


@torch.no_grad()
def psnr(autoencoder: AutoencoderKL, images: Tensor) -> float:
    """Peak signal-to-noise ratio of the reconstructions in dB (the range of pixels is 2)."""
    decoded = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return 10 * math.log10(4 / float((decoded - images).square().mean()))


@torch.no_grad()
def save(autoencoder: AutoencoderKL, images: Tensor, output: Path) -> None:
    """Write the weights in float16, and the configuration with the scaling factor of the latents of `images`."""
    deviation = float(autoencoder.encode(images).latent_dist.mean.std())
    autoencoder.register_to_config(scaling_factor=1 / deviation)
    config = {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}
    path = output / "emoji_autoencoder.json"
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: value.half().numpy() for name, value in autoencoder.state_dict().items()}
    metadata = {
        "source": "trained by bench.building.emoji_autoencoder on emoji.parquet",
        "licence": "Apache-2.0 AND CC-BY-4.0 AND MIT",
    }
    write_safetensors(weights, metadata, output / "emoji_autoencoder.safetensors")


def main() -> None:
    """Parse the command line, train, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the two files into")
    output = parser.parse_args().output
    images, unseen = (load_embedded("emoji", split=split).pixels() for split in ("train", "held-out"))
    torch.manual_seed(SEED)
    autoencoder = new_autoencoder()
    average = AveragedModel(autoencoder, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    for step, loss in enumerate(train(autoencoder, average, images), start=1):
        if step % REPORT_EVERY == 0:
            print(f"step {step} of {NUM_STEPS}: loss {loss:.4f}", flush=True)
    trained = average.module
    print(f"PSNR {psnr(trained, images):.1f} dB in training, {psnr(trained, unseen):.1f} dB held out")
    save(trained, images, output)


if __name__ == "__main__":
    main()
