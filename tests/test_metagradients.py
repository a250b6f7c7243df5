"""Derivatives through a training: finite differences in float64, the trainer's own steps, what a removal does."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bench.attribution.metagradients import Replayed, State, Steps, WithWeights, _state, replayed
from bench.diffusion.losses import query_loss_inputs
from bench.diffusion.training import Training, TrainingJob
from bench.errors import InvalidInput, MethodFailed, Unavailable
from methods.magic import Magic

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def training(tiny, data):
    """Five steps of eight draws from eighty images; some gradients are clipped."""
    recipe = replace(tiny.recipe, num_steps=5, batch_size=8, warmup=0.4, gradient_clip=0.4, weight_decay=0.1)
    return Training(tiny.model, data, tiny.dataset.ids, recipe, TrainingJob((), 0))


def with_progress(*_):
    """Nobody is told."""


def outcome(steps, weights, query_inputs):
    """A function of the trained weights: a query's mean loss."""
    latents, states, timesteps, noise = query_inputs
    return steps.model.losses(
        latents.to(steps.dtype), states.to(steps.dtype), timesteps, noise.to(steps.dtype),
        unet=WithWeights(steps.model.unet, weights),
    ).mean()  # fmt: skip


def inputs_of(steps, training):
    draws = steps.draws.at(1000)
    rows = training.data.caption_of[draws.images]
    return training.data.latents[draws.images, 0], training.data.states[rows], draws.timesteps, draws.noise


def trained(steps, weights_of_images=None, weights_of_others=None):
    """All states of a training in which images have these weights, and the others of their draws those."""
    states = [steps.start()]
    for step in range(steps.recipe.num_steps):
        images = steps.draws.at(step).images
        shares = [None if each is None else each[images] for each in (weights_of_images, weights_of_others)]
        states.append(steps.forward(states[-1], step, *shares))
    return states


def derivatives(steps, training, states, asked):
    """D of every image, by the reverse pass over these states."""
    average = states[-1].average.clone().requires_grad_(True)
    slope = torch.autograd.grad(outcome(steps, average, asked), average)[0]
    nothing = torch.zeros_like(slope)
    adjoints, found = [State(nothing, slope, nothing, nothing)], torch.zeros(len(training.ids)).double()
    for step in reversed(range(steps.recipe.num_steps)):
        adjoints, each = steps.backward(states[step], states[step + 1], step, adjoints)
        found.index_add_(0, steps.draws.at(step).images, each[0, 0])
    return found


def test_derivatives_equal_finite_differences_in_float64(training):
    steps = Steps(training, CPU, torch.float64)
    asked = inputs_of(steps, training)
    found = derivatives(steps, training, trained(steps), asked)
    drawn = torch.cat([steps.draws.at(step).images for step in range(5)])
    states = trained(steps)
    norms = [float((after.first - 0.9 * state.first).norm() / 0.1) for state, after in pairwise(states)]
    assert min(norms) < 0.399 < max(norms)  # clipped and not
    for image in (*drawn[[0, 9, 17, 25, 39]].tolist(), next(i for i in range(80) if i not in drawn)):
        values = []
        for sign in (1, -1):
            weights = torch.ones(80).double()
            weights[image] += sign * 1e-7  # the second step bends sharply: moments near AdamW's ε
            values.append(float(outcome(steps, trained(steps, weights)[-1].average, asked)))
        assert float(found[image]) == pytest.approx((values[0] - values[1]) / 2e-7, rel=1e-4, abs=2e-9)
    counted = drawn[:32].unique()  # the last step has a learning rate of zero
    assert found.nonzero().flatten().tolist() == counted.tolist()


def test_the_steps_are_the_trainers(training):
    steps, run = Steps(training, CPU), training.run(CPU)
    states = trained(steps)
    for state in states[1:]:
        run.advance()
        for name, ours, theirs in zip(State._fields, state, _state(run), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2 * float(theirs.abs().max()), msg=name)
    assert float((states[-1].average - run.average).norm()) < 1e-3 * float((run.average - states[0].average).norm())


def test_a_replay_of_the_trainer_gives_the_derivatives_of_its_steps(training):
    exact = Steps(training, CPU, torch.float64)
    asked = inputs_of(exact, training)
    expected = derivatives(exact, training, trained(exact), asked)
    replay, steps = replayed(training, CPU, with_progress), Steps(training, CPU)
    assert isinstance(replay, Replayed)
    assert len(replay.kept) == 2
    average = replay.run.average.clone().requires_grad_(True)
    slope = torch.autograd.grad(outcome(steps, average, asked), average)[0]
    found = replay.derivatives(steps, [slope, -2 * slope], with_progress)
    assert float((found[0, 0] - expected).norm() / expected.norm()) < 5e-2
    torch.testing.assert_close(found[1], -2 * found[0], rtol=1e-2, atol=1e-3 * float(found.abs().max()))


def test_scores_follow_ids(context, queries, training):
    known = replace(context, trainings={"judge": training})
    scores = Magic(timestep_stride=100).scores(known, queries)
    assert scores.shape == (2, 80)
    assert (scores.std(1) > 0).all()
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    dataset = replace(context.dataset, ids=tuple(context.dataset.ids[i] for i in order))
    reordered = Magic(timestep_stride=100).scores(replace(known, dataset=dataset), queries)
    torch.testing.assert_close(reordered, scores[:, order])


def test_a_score_is_the_rise_of_the_loss_when_an_images_draws_go_to_others(context, queries, training):
    scores = Magic(timestep_stride=100).scores(replace(context, trainings={"judge": training}), queries[:1])[0]
    steps, step = Steps(training, CPU, torch.float64), 1e-7
    inputs = query_loss_inputs(context.model, queries[0], range(0, 1000, 100), context.seed)
    for image in (int(scores.argmax()), int(scores.argmin())):
        values = []
        for sign in (1, -1):
            lost = torch.zeros(80).double()
            lost[image] = sign * step
            values.append(float(outcome(steps, trained(steps, 1 - lost, lost)[-1].average, inputs)))
        assert float(scores[image]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.05)


def test_scores_predict_single_retrainings_where_training_is_smooth(context, queries, tiny, data):
    recipe = replace(tiny.recipe, num_steps=20, batch_size=16, epsilon=1e-3)
    training = Training(tiny.model, data, tiny.dataset.ids, recipe, TrainingJob((), 0))
    inputs = query_loss_inputs(context.model, queries[0], range(0, 1000, 100), context.seed)

    def loss(removed):
        run = replace(training, job=TrainingJob(tuple(removed), 0)).run(CPU)
        while not run.finished:
            run.advance()
        with torch.no_grad():
            unet = WithWeights(context.model.unet, run.average)
            return float(context.model.losses(*inputs, unet=unet).double().mean())

    scores = Magic(timestep_stride=100).scores(replace(context, trainings={"judge": training}), queries[:1])[0]
    sets = torch.randperm(80, generator=torch.Generator().manual_seed(0)).split(8)
    predicted = torch.tensor([float(scores[removed].sum()) for removed in sets])
    measured = torch.tensor([loss(removed.tolist()) for removed in sets]) - loss([])
    assert float(torch.corrcoef(torch.stack([predicted, measured]))[0, 1]) > 0.9


def test_the_others_are_those_that_a_removal_trains_on(training):
    draws = Steps(training, CPU).draws
    removed = int(draws.at(0).images[3])
    without = Steps(replace(training, job=TrainingJob((removed,), 0)), CPU).draws
    for step in range(5):
        own, trained_on = draws.at(step), without.at(step)
        others = draws.without_own(step, own)
        gone = (own.images == removed) & (others.images != removed)
        assert torch.equal(
            torch.where(gone, others.images, own.images)[own.images != removed],
            trained_on.images[own.images != removed],
        )
        assert torch.equal(others.images[gone], trained_on.images[gone])
        assert torch.equal(others.noise, own.noise)
    assert int((draws.at(0).images == removed).sum()) > 0


def test_what_it_cannot_do_is_refused(context, queries, training):
    with pytest.raises(Unavailable, match="is not known"):
        Magic().scores(context, queries)
    with pytest.raises(MethodFailed, match="replayed training ended"):
        Magic(training="original").scores(replace(context, trainings={"original": training}), queries)
    with pytest.raises(InvalidInput, match="judge or original"):
        Magic(training="mine")
    with pytest.raises(InvalidInput, match="timestep_stride"):
        Magic(timestep_stride=0)
