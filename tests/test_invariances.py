"""What must change nothing: batch size, order, threads, workers, other queries, interruption."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import bench.diffusion.losses
from bench.data.dataset import Dataset
from bench.diffusion.losses import query_losses
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import synthesize
from bench.diffusion.training import DrawStream, TrainingData, TrainingJob, TrainingRun, train_together
from bench.foundation.machine import compute_threads
from methods.nda import Nda
from methods.ours import Ours
from methods.ours_ekfac import OursEkfac
from methods.pixel import Pixel
from methods.random_images import Random

CPU = torch.device("cpu")
SETTINGS = {"num_fisher_draws": 256, "num_gradient_draws": 256, "timestep_stride": 250, "step_size": 0.1}
METHODS = [Ours(**SETTINGS), OursEkfac(**SETTINGS, query_rise=0.0), Nda(), Pixel(), Random()]


def trained(study, data, job, threads=2):
    with compute_threads(threads):
        run = TrainingRun(study.model, data, study.recipe, job, device=CPU)
        for _ in train_together([run]):
            pass
    return run.trained_state()


def assert_equal_states(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_scores_do_not_depend_on_the_batch_size(context, queries, batch_size, monkeypatch):
    method = METHODS[0]
    reference = method.scores(context, queries)
    original = bench.diffusion.losses.training_set_losses

    def other_batches(*args, **kwargs):
        return original(*args, **kwargs, batch_size=batch_size)

    monkeypatch.setattr("bench.attribution.unlearning.training_set_losses", other_batches)
    torch.testing.assert_close(method.scores(context, queries), reference, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_scores_do_not_depend_on_which_queries_are_asked_together(context, queries, method):
    together = method.scores(context, queries)
    alone = torch.cat([method.scores(context, [query]) for query in reversed(queries)]).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-6)


def test_a_query_does_not_depend_on_which_are_asked_together(tiny, model):
    specs = tiny.queries(3)
    with compute_threads(2):
        together = synthesize(model, tiny.sampler, specs)
        alone = [synthesize(model, tiny.sampler, [spec])[0] for spec in specs]
    assert [query.digest for query in together] == [query.digest for query in alone]
    assert all(torch.equal(one.latent, other.latent) for one, other in zip(together, alone, strict=True))


def test_noise_does_not_depend_on_the_last_bits_of_the_latent(context, queries):
    near = [replace(query, latent=query.latent + 1e-6) for query in queries]
    assert {query.digest for query in near}.isdisjoint(query.digest for query in queries)
    for query, other in zip(queries, near, strict=True):
        losses = [query_losses(context.model, each, range(0, 1000, 50), seed=0) for each in (query, other)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)
    for method in (Ours(**SETTINGS), Nda()):
        scores = [method.scores(context, each) for each in (queries, near)]
        torch.testing.assert_close(*scores, rtol=1e-2, atol=1e-4)


def test_pixel_scores_follow_the_images_when_they_are_reordered(context, queries):
    order = np.random.default_rng(0).permutation(len(context.dataset))
    old = context.dataset
    shuffled = Dataset(
        old.name, *(tuple(column[i] for i in order) for column in (old.ids, old.captions, old.concepts, old.styles)),
        old.images[order],
    )  # fmt: skip
    other = replace(context, dataset=shuffled, data=TrainingData.of(shuffled, context.model))
    method = Pixel()
    torch.testing.assert_close(method.scores(other, queries), method.scores(context, queries)[:, order])
    timesteps, unets = [100, 600], [context.model.unet]
    one = bench.diffusion.losses.training_set_losses(context.model, unets, context.data, old.ids, timesteps, seed=0)
    two = bench.diffusion.losses.training_set_losses(context.model, unets, other.data, shuffled.ids, timesteps, seed=0)
    torch.testing.assert_close(two, one[:, order], rtol=1e-4, atol=1e-6)


def test_methods_leave_global_random_state_alone(context, queries):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for method in METHODS:
        method.scores(context, queries)
    DiffusionModel(context.model.config, seed=5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_a_model_does_not_depend_on_the_number_of_threads(tiny, data):
    job = TrainingJob((1, 2, 3), 0)
    assert_equal_states(trained(tiny, data, job, threads=1), trained(tiny, data, job, threads=2))


def test_training_together_equals_training_alone(tiny, data):
    jobs = [TrainingJob((), 0), TrainingJob((4,), 0)]
    runs = [TrainingRun(tiny.model, data, tiny.recipe, job, device=CPU) for job in jobs]
    for _ in train_together(runs):
        pass
    for run, job in zip(runs, jobs, strict=True):
        assert_equal_states(run.trained_state(), trained(tiny, data, job))


def test_a_training_resumed_from_a_checkpoint_has_the_same_bits(tiny, data):
    job = TrainingJob((0, 9), 3)
    first = TrainingRun(tiny.model, data, tiny.recipe, job, device=CPU)
    for _ in range(5):
        first.advance()
    second = TrainingRun(tiny.model, data, tiny.recipe, job, device=CPU)
    second.restore({name: value.clone() for name, value in first.checkpoint().items()})
    for _ in train_together([second]):
        pass
    assert_equal_states(second.trained_state(), trained(tiny, data, job))


def test_paired_draws_differ_only_where_an_image_was_removed(tiny, model):
    count, removed = len(tiny.dataset), (1, 5, 7, 30)
    every = DrawStream(TrainingJob((), 0), count, model, tiny.recipe)
    fewer = DrawStream(TrainingJob(removed, 0), count, model, tiny.recipe)
    redirected = 0
    for step in range(40):
        one, two = every.at(step), fewer.at(step)
        gone = np.isin(one.images.numpy(), removed)
        redirected += gone.sum()
        assert np.array_equal(one.images.numpy()[~gone], two.images.numpy()[~gone])
        assert not np.isin(two.images.numpy(), removed).any()
        for name in ("timesteps", "mirrored", "captionless", "noise"):
            assert torch.equal(getattr(one, name), getattr(two, name))
    assert redirected > 0


def test_redirected_draws_are_uniform_over_kept_images(tiny, model):
    removed = tuple(range(40))
    stream = DrawStream(TrainingJob(removed, 0), 50, model, replace(tiny.recipe, batch_size=1000, num_shards=1))
    counts = np.bincount(np.concatenate([stream.at(step).images.numpy() for step in range(10)]), minlength=50)
    assert counts[:40].sum() == 0
    assert abs(counts[40:] / 1000 - 1).max() < 0.12
