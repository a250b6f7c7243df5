"""DDPM losses with keyed noise (law 2): of the whole training set at strided timesteps, and of one query.

The noise of an image's loss is keyed by (purpose, study seed, image id, mirrored, timestep), so that a loss does not
depend on batch size, order, shard or device, and the models that are compared see the same noise. The loss of an image
with several captions is the mean over all of them, with a noise for each (arXiv 2406.09408, section 5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.sharing import shared_beginning
from bench.diffusion.training import TrainingData
from bench.foundation import seeds
from bench.foundation.machine import parallel

FORWARD_BATCH = 160


def strided_timesteps(model: DiffusionModel, stride: int) -> range:
    """Every ``stride``-th timestep of the schedule, from half a stride on."""
    return range(stride // 2, model.config.num_timesteps, stride)


@torch.inference_mode()
def training_set_losses(
    model: DiffusionModel,
    unets: Sequence[nn.Module],
    data: TrainingData,
    ids: Sequence[str],
    timesteps: Sequence[int],
    *,
    seed: int,
    batch_size: int = FORWARD_BATCH,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, "unets images 2 timesteps"]:
    """L_t(z, θ) of every image as it is and mirrored, under each of several sets of weights.

    Args:
        model: whose noise schedule and device serve.
        unets: U-Nets to compare; they see the same noise, and what they have in common is computed once.
        data: the training set, ids: of its images.
        timesteps: of the loss.
        seed: of the study.
        batch_size: examples a forward pass; it changes the speed alone.
        progress: called with the number of images done and in all.
    """
    per_image = 2 * len(timesteps)
    shape = (len(unets), -1, 2, len(timesteps))
    chunks = torch.arange(len(ids)).split(max(1, batch_size // per_image))
    result = torch.empty(len(unets), len(ids), 2, len(timesteps))
    times = torch.tensor(timesteps)
    done = 0

    def of_caption(number: int, chunk: Tensor) -> Tensor:
        """Losses with caption ``number``: U-Nets × images × 2 × timesteps."""
        noise = torch.stack([image_noise(model, ids[i], timesteps, seed, number) for i in chunk.tolist()])
        latents = data.latents[chunk].unsqueeze(2).expand_as(noise)
        states = data.states_at(data.caption_rows(chunk, torch.full_like(chunk, number)))
        inputs = (
            latents.flatten(0, 2).to(model.device),
            states.repeat_interleave(per_image, 0).to(model.device),
            times.repeat(2 * len(chunk)).to(model.device),
            noise.flatten(0, 2).to(model.device),
        )
        return torch.stack([model.losses(*inputs, unet=unet).cpu() for unet in unets]).view(shape)

    def work(chunk: Tensor) -> None:
        nonlocal done
        with torch.inference_mode():
            counts, found = data.num_captions(chunk), of_caption(0, chunk)
            for number in range(1, int(counts.max())):
                having = counts > number
                found[:, having] += of_caption(number, chunk[having])
            result[:, chunk] = found / counts.view(1, -1, 1, 1)
        done += len(chunk)
        progress(done, len(ids))

    def probe(unet: nn.Module) -> None:
        nothing = torch.zeros(1, *model.latent_shape, device=model.device)
        state = data.states_at(torch.tensor([0])).to(model.device)
        model.losses(nothing, state, times[:1].to(model.device), nothing, unet=unet)

    with shared_beginning(unets, probe):
        parallel(work, chunks)
    return result.clone()


@torch.inference_mode()
def image_loss_maps(
    model: DiffusionModel,
    unet: nn.Module,
    data: TrainingData,
    images: Sequence[int],
    ids: Sequence[str],
    timesteps: Sequence[int],
    *,
    seed: int,
) -> Float[Tensor, "images 2 rows columns"]:
    """The loss of each latent cell of some training images, as they are and mirrored, with ``unet``'s weights.

    A mean over channels, ``timesteps`` and captions, with the noise of ``training_set_losses``: the mean over cells is
    its mean.

    Args:
        model: whose noise schedule and device serve.
        unet: the weights.
        data: the training set, ids: of all its images.
        images: which of them, as indices.
        timesteps: of the loss.
        seed: of the study.
    """
    times = torch.tensor(timesteps).repeat(2)

    def of_caption(index: Tensor, number: int) -> Tensor:
        noise = image_noise(model, ids[int(index)], timesteps, seed, number)
        latents = data.latents[int(index)].unsqueeze(1).expand_as(noise)
        states = data.states_at(data.caption_rows(index, torch.tensor([number]))).expand(len(times), -1, -1)
        inputs = (latents.flatten(0, 1), states, times, noise.flatten(0, 1))
        errors = model.errors(*(part.to(model.device) for part in inputs), unet=unet)
        cells: Tensor = errors.double().mean(1).unflatten(0, (2, len(timesteps)))
        return cells.mean(1)

    maps = []
    for index in torch.as_tensor(images).split(1):
        found = [of_caption(index, number) for number in range(int(data.num_captions(index)))]
        maps.append(torch.stack(found).mean(0).float().cpu())
    return torch.stack(maps)


def image_noise(
    model: DiffusionModel, image_id: str, timesteps: Sequence[int], seed: int, caption: int = 0
) -> Float[Tensor, "2 timesteps channels rows columns"]:
    """The noise of an image's losses with its caption number ``caption``, as it is and mirrored, at each timestep."""
    more = (caption,) if caption else ()
    keys = [(mirrored, timestep, *more) for mirrored in (False, True) for timestep in timesteps]
    noise = [seeds.normal(model.latent_shape, "image-loss", seed, image_id, *key) for key in keys]
    return torch.stack(noise).view(2, len(timesteps), *model.latent_shape)


@torch.no_grad()
def query_losses(
    model: DiffusionModel, query: Query, timesteps: Sequence[int], *, seed: int
) -> Float[Tensor, " timesteps"]:
    """L_t(ẑ, θ) of the whole image at each of ``timesteps``, with noise keyed by (seed, query, timestep)."""
    return torch.cat([errors.flatten(1).mean(1) for errors in _query_errors(model, query, timesteps, seed)]).cpu()


@torch.no_grad()
def query_loss_map(
    model: DiffusionModel, query: Query, timesteps: Sequence[int], *, seed: int
) -> Float[Tensor, "rows columns"]:
    """The loss of each latent cell of the whole image, a mean over channels and ``timesteps``, with the same noise.

    Its mean over cells is the mean of ``query_losses``.
    """
    maps = [errors.double().mean(1).cpu() for errors in _query_errors(model, query, timesteps, seed)]
    return torch.cat(maps).mean(0).float()


def _query_errors(
    model: DiffusionModel, query: Query, timesteps: Sequence[int], seed: int
) -> Iterator[Float[Tensor, "some channels rows columns"]]:
    """(ε − ε_θ)² at some of ``timesteps`` after the others."""
    inputs = query_loss_inputs(model, query, timesteps, seed)
    for part in torch.arange(len(timesteps)).split(FORWARD_BATCH):
        yield model.errors(*(each[part] for each in inputs))


def query_loss_inputs(
    model: DiffusionModel, query: Query, timesteps: Sequence[int], seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, text states, timesteps and noises of the loss of ``query`` at ``timesteps``, on the model's device."""
    noise = torch.stack([seeds.normal(model.latent_shape, "query-loss", seed, query.noise_key, t) for t in timesteps])
    state = model.text_encoder.encode([query.prompt]).to(model.device).expand(len(timesteps), -1, -1)
    latents = query.latent.to(model.device).expand(len(timesteps), -1, -1, -1)
    return latents, state, torch.tensor(timesteps).to(model.device), noise.to(model.device)
