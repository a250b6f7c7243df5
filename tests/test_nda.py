"""NDA: brute force, invariances, and what the optimal score must do."""

import math
from dataclasses import replace

import pytest
import torch

import methods.nda
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.diffusion.training import TrainingData
from bench.errors import InvalidInput
from methods.nda import Nda, patches

SMALL = {"timesteps": (100, 400), "patch_size": 3, "coarse_size": 2, "coarse_share": 0.25}


def query_from(context, index, flipped=0):
    """A training image as the query."""
    latent = context.data.latents[index, flipped].clone()
    return Query("t", context.dataset.captions[index], 0, torch.zeros_like(latent), latent, Sampler(num_steps=5))


def with_images(context, latents, size):
    """The context with other images, of ``size`` × ``size``."""
    model = DiffusionModel(replace(context.model.config, sample_size=size))
    data = TrainingData(latents, context.data.states, torch.zeros(len(latents), dtype=torch.int64))
    whole, count = context.dataset, len(latents)
    columns = {name: getattr(whole, name)[:count] for name in ("ids", "captions", "concepts", "styles", "images")}
    return replace(context, dataset=replace(whole, parts={}, **columns), data=data, model=model)


def patch_at(image, row, column, cell, size, outside):
    """The patch around a position, one cell after another, and the share of each cell that is outside."""
    first = (cell * size - 1) // 2
    values, marks = [], []
    for i in range(size):
        for j in range(size):
            value, mark = 0.0, 0.0
            for di in range(cell):
                for dj in range(cell):
                    r, c = row - first + i * cell + di, column - first + j * cell + dj
                    inside = 0 <= r < image.shape[-2] and 0 <= c < image.shape[-1]
                    value += float(image[0, r, c]) / cell if inside else 0.0
                    mark += 0.0 if inside else outside / cell
            values.append(value)
            marks.append(mark)
    return values + marks


def by_brute_force(context, query, method):
    """τ by loops over positions, images and flips."""
    latents, size, tau = context.data.latents, context.model.config.sample_size, None
    positions = [(r, c) for r in range(size) for c in range(size)]
    for timestep in method.timesteps:
        alpha = float(context.model.alphas_cumprod[timestep])
        noise = methods.nda.seeds.normal(context.model.latent_shape, "nda", context.seed, query.noise_key, timestep)
        noisy = math.sqrt(alpha) * query.latent + math.sqrt(1 - alpha) * noise
        for cell, patch, share in ((1, method.patch_size, 1 - method.coarse_share), (2, method.coarse_size, 0.25)):
            total = torch.zeros(len(latents), 2, dtype=torch.float64)
            for u in positions:
                asked = patch_at(noisy, *u, cell, patch, method.border)
                logits = torch.zeros(len(latents), 2, len(positions), dtype=torch.float64)
                for i in range(len(latents)):
                    for flip in range(2):
                        for p, v in enumerate(positions):
                            known = patch_at(math.sqrt(alpha) * latents[i, flip], *v, cell, patch, method.border)
                            distance = sum((a - b) ** 2 for a, b in zip(asked, known, strict=True))
                            logits[i, flip, p] = -distance / (2 * (1 - alpha))
                total += logits.flatten().softmax(0).view_as(logits).sum(2) / len(positions)
            part = share * total / len(method.timesteps)
            tau = part if tau is None else tau + part
    return tau.amax(1)


def test_scores_equal_brute_force_loops(context):
    images = torch.rand(3, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small = with_images(context, torch.cat([images, images.flip(-1)], 1), 4)
    query = query_from(small, 1)
    method = Nda(**SMALL)
    expected = by_brute_force(small, query, method).float()
    torch.testing.assert_close(method.scores(small, [query])[0], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("flipped", [0, 1])
def test_a_training_image_ranks_itself_first_however_it_is_flipped(context, flipped):
    indices = (3, 33, 60)
    scores = Nda().scores(context, [query_from(context, index, flipped) for index in indices])
    assert scores.argmax(1).tolist() == list(indices)


def test_the_weights_of_all_images_and_flips_sum_to_one(context, queries):
    for cell, size in ((1, 7), (2, 5)):
        weights = Nda().weights(context, queries[0], 300, cell, size)
        assert float(weights.sum()) == pytest.approx(1)
        assert bool((weights >= 0).all())


def test_scores_are_the_larger_of_the_two_flips(context, queries):
    method = Nda(timesteps=(300,), coarse_share=0.0)
    weights = method.weights(context, queries[0], 300, 1, 7)
    torch.testing.assert_close(method.scores(context, queries[:1])[0], weights.amax(1).float())
    assert not torch.equal(weights[:, 0], weights[:, 1])


@pytest.mark.parametrize("at_once", [1, 3 * 196**2, 10**9])
def test_chunks_change_nothing(context, queries, monkeypatch, at_once):
    reference = Nda().scores(context, queries[:1])
    monkeypatch.setattr(methods.nda, "LOGITS_AT_ONCE", at_once)
    torch.testing.assert_close(Nda().scores(context, queries[:1]), reference, rtol=1e-3, atol=1e-9)


def test_scores_follow_the_images_and_the_queries_when_reordered(context, queries):
    order = torch.randperm(len(context.data), generator=torch.Generator().manual_seed(0))
    reference = Nda().scores(context, queries)
    data = TrainingData(context.data.latents[order], context.data.states, context.data.caption_of[order])
    other = Nda().scores(replace(context, data=data), queries[::-1]).flip(0)
    torch.testing.assert_close(other, reference[:, order], rtol=1e-3, atol=1e-9)


def test_the_coarse_projection_is_orthonormal():
    # A patch of 2n × 2n pixels that is constant on 2×2 cells keeps its norm; the projection never adds to a norm.
    image = torch.rand(1, 1, 3, 3).repeat_interleave(2, 2).repeat_interleave(2, 3)
    middle = patches(image, 2, 3)[0, :, 2 * 6 + 2]
    assert float(middle.square().sum()) == pytest.approx(float(image.square().sum()), rel=1e-5)


def test_timesteps_outside_the_schedule_are_refused(context, queries):
    with pytest.raises(InvalidInput, match="timesteps"):
        Nda(timesteps=(1000,)).scores(context, queries)
    with pytest.raises(InvalidInput, match="share"):
        Nda(coarse_share=1.5)
