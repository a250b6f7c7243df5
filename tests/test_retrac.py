"""Unit gradients at checkpoints: autograd, the training's own weights, what a length must not change."""

from dataclasses import replace

import pytest
import torch

from bench.attribution.gradients import differentiable_copy
from bench.attribution.influence import keyed_rows
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.diffusion.selections import select_weights
from bench.diffusion.training import Training, TrainingJob
from bench.errors import InvalidInput, Unavailable
from methods.retrac import Retrac

CPU = torch.device("cpu")
FEW = Retrac(num_checkpoints=2, num_timesteps=2, num_query_noises=3, weights="attn")


@pytest.fixture
def known(context, tiny, data):
    training = Training(tiny.model, data, tiny.dataset.ids, tiny.recipe, TrainingJob((), 0))
    return replace(context, trainings={"original": training})


def unit(model, rows):
    unet = differentiable_copy(model.unet, "attn")
    model.losses(*rows, unet=unet).sum().backward()
    flat = torch.cat([weight.grad.double().flatten() for weight in select_weights(unet, "attn").values()])
    return flat / flat.norm()


def test_scores_are_learning_rates_times_cosines_by_autograd(known, queries):
    scores = FEW.scores(known, queries)
    training = known.trainings["original"]
    rates = [training.recipe.learning_rate_at(step) for step in (5, 11)]
    (early, first), (late, second) = FEW.checkpoints(known)
    assert (first, second) == pytest.approx((rates[0] / sum(rates), rates[1] / sum(rates)))
    assert first > second  # a cosine to zero
    for image in (3, 50):
        sides = []
        for side in (0, 1):
            value = 0.0
            for model, share in ((early, first), (late, second)):
                for number, timestep in enumerate((250, 750)):
                    state = known.data.states_of(torch.tensor([image]))[0]
                    key = (0, "retrac", known.dataset.ids[image], bool(side), number)
                    one = keyed_rows(model, known.data.latents[image, side], state, 1, *key, timestep=timestep)
                    asked = model.text_encoder.encode([queries[0].prompt])[0]
                    other = (0, "retrac-query", queries[0].noise_key, number)
                    two = keyed_rows(model, queries[0].latent, asked, 3, *other, timestep=timestep)
                    value += share * float(unit(model, one) @ unit(model, two)) / 2
            sides.append(value)
        assert float(scores[0, image]) == pytest.approx(max(sides), rel=1e-3, abs=1e-5)


def test_checkpoints_are_the_trainings_own_weights(known):
    run = known.trainings["original"].run(CPU)
    for (model, _), step in zip(FEW.checkpoints(known), (6, 12), strict=True):
        while run.step < step:
            run.advance()
        weights = torch.cat([weight.detach().flatten() for weight in model.unet.parameters()])
        assert torch.equal(weights, run.weights.detach())


def test_a_training_image_ranks_itself_high_when_it_is_the_query(known):
    latent = known.data.latents[33, 0]
    query = Query("t", known.dataset.captions[33], 0, torch.zeros_like(latent), latent, Sampler(num_steps=5))
    scores = replace(FEW, num_timesteps=5, weights="all").scores(known, [query])[0]
    assert int((scores > scores[33]).sum()) < 8  # of 80, under a model of twelve steps


def test_what_it_cannot_do_is_refused(context, queries):
    with pytest.raises(Unavailable, match="checkpoints"):
        FEW.scores(context, queries)
    with pytest.raises(InvalidInput, match="1 or more"):
        Retrac(num_checkpoints=0)
    with pytest.raises(InvalidInput, match="flips"):
        Retrac(flips="min")
