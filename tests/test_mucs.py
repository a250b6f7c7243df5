"""Mirrored unlearning and skew: closed forms, limits, what is shared."""

from dataclasses import replace

import pytest
import torch

from bench.attribution.shared_noise import null_losses, shared_noise_losses
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.errors import InvalidInput, UnknownName
from bench.foundation import seeds
from methods.mucs import Mucs, skew

FEW = Mucs(num_noises=6, batch_size=16, max_steps=8, learning_rate=3e-3)


@pytest.mark.parametrize("preconditioned", [True, False])
def test_the_null_loss_is_that_of_an_untrained_model(context, tiny, preconditioned):
    model = DiffusionModel(replace(tiny.model, preconditioned=preconditioned))
    timesteps = [50, 400, 800, 990]
    with torch.no_grad():
        measured = shared_noise_losses(replace(context, model=model), model.unet, timesteps)
    known = null_losses(model, context.data)[timesteps]
    shares = measured.mean((0, 1)) / known
    assert shares.tolist() == pytest.approx([1] * 4, abs=0.25)  # one noise of 196 pixels each: SD 0.1


def test_skew_is_signed_bounded_and_free_of_scale():
    before = torch.tensor([[[1.0, 3.0], [2.0, 2.0]]])
    after = torch.tensor([[[3.0, 1.0], [6.0, 2.0]]])
    torch.testing.assert_close(skew(before, after), torch.tensor([[0.0, 0.25]]), atol=2e-4, rtol=0)
    torch.testing.assert_close(skew(7 * before, 7 * after), torch.tensor([[0.0, 0.25]]), atol=2e-4, rtol=0)
    assert float(skew(before, 1e9 * after).max()) <= 1


def test_without_a_step_nothing_is_forgotten(context, queries):
    assert torch.count_nonzero(replace(FEW, max_steps=0).scores(context, queries)) == 0


def test_scores_are_the_larger_skew_of_losses_at_noises_that_all_images_share(context, queries):
    timesteps = [100, 280, 460, 639, 819, 999]
    unlearned = FEW.unlearn(context, queries[0], null_losses(context.model, context.data))
    scores = FEW.scores(context, queries)
    null = null_losses(context.model, context.data)[timesteps]
    noise = torch.stack([
        seeds.normal(context.model.latent_shape, "shared-noise", 0, number, t) for number, t in enumerate(timesteps)
    ])  # fmt: skip
    for image in (0, 41):
        sides = []
        for side in (0, 1):
            state = context.data.states_of(torch.tensor([image])).expand(6, -1, -1)
            inputs = (context.data.latents[image, side].expand_as(noise), state, torch.tensor(timesteps), noise)
            with torch.no_grad():
                old, new = (context.model.losses(*inputs, unet=u) / null for u in (context.model.unet, unlearned))
            sides.append(float(((new - old) / (new + old + 1e-3)).mean()))
        assert float(scores[0, image]) == pytest.approx(max(sides), rel=1e-3, abs=1e-6)


def test_the_query_is_raised_to_the_null_loss_and_no_further(context, queries):
    null = null_losses(context.model, context.data)
    timesteps = torch.arange(0, 1000, 10)
    noise = seeds.normal((100, *context.model.latent_shape), "test")
    state = context.model.text_encoder.encode([queries[0].prompt]).expand(100, -1, -1)
    inputs = (queries[0].latent.expand_as(noise), state, timesteps, noise)

    def raised(method):
        unet = method.unlearn(context, queries[0], null)
        with torch.no_grad():
            losses = context.model.losses(*inputs, unet=unet) / null[timesteps]
        return float(losses.clamp(max=1).mean()), float(losses.mean())

    start, _ = raised(replace(FEW, max_steps=0))
    short, _ = raised(FEW)
    strong = replace(FEW, ascent_weight=5.0, tolerance=0.2)
    far, further = (raised(replace(strong, max_steps=steps)) for steps in (100, 200))
    assert start < short < far[0] <= 1
    assert far == further  # it stopped
    kept = [replace(FEW, max_steps=60, ascent_weight=weight) for weight in (0.0, 1.0)]
    assert raised(kept[0])[0] < raised(kept[1])[0]  # the sign: without ascent the query is learnt like the rest


def test_a_training_image_ranks_itself_high_when_it_is_the_query(context):
    latent = context.data.latents[33, 0]
    query = Query("t", context.dataset.captions[33], 0, torch.zeros_like(latent), latent, Sampler(num_steps=5))
    scores = replace(FEW, max_steps=30, num_noises=20, ascent_weight=1.0).scores(context, [query])[0]
    assert int((scores > scores[33]).sum()) < 8  # of 80, under a model of twelve steps


def test_settings_out_of_range_are_refused(context, queries):
    with pytest.raises(UnknownName):
        Mucs(weights="mlp")
    for wrong in ({"flips": "min"}, {"tolerance": 1.0}, {"batch_size": 0}, {"ascent_weight": -1.0}):
        with pytest.raises(InvalidInput):
            Mucs(**wrong)
    with pytest.raises(InvalidInput, match="an earlier start"):
        Mucs(timestep_start=950).scores(context, queries)
