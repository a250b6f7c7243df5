"""Projections, gradient features, kernels and the methods made of them, against closed forms and brute force."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import bench.attribution.influence
from bench import methods as registry
from bench.attribution.gradients import differentiable_copy, per_sample_gradients
from bench.attribution.influence import OUTPUTS, DualKernel, Kernel, gram_matrix, keyed_rows, projected_gradients
from bench.attribution.projection import Projection
from bench.contracts import AttributionContext
from bench.data.dataset import Dataset
from bench.diffusion.model import DiffusionModel
from bench.diffusion.queries import Query
from bench.diffusion.selections import select_weights
from bench.diffusion.training import TrainingData
from bench.errors import InvalidInput, MethodFailed, UnknownName
from methods.d_trak import DTrak
from methods.das import Das, output_change
from methods.journey_trak import JourneyTrak
from methods.trak import Trak

FEW = {"projection_dim": 64, "num_timesteps": 2, "num_query_draws": 4}
METHODS = [Trak(**FEW), JourneyTrak(**FEW), DTrak(**FEW), Das(**FEW)]
names = {"ids": lambda method: method.name}


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_of_image(model, data, index, count=3):
    return keyed_rows(model, data.latents[index, 0], data.states_of(torch.tensor([index]))[0], count, 0, "test", index)


def gradient_by_autograd(model, output, rows, selection):
    """The mean gradient of f over rows, one row at a time."""
    unet = differentiable_copy(model.unet, selection)
    for index in range(len(rows.timesteps)):
        one = type(rows)(*(column[index : index + 1] for column in rows))
        (OUTPUTS[output](model, unet, one).sum() / len(rows.timesteps)).backward()
    return {name: weight.grad for name, weight in select_weights(unet, selection).items()}


# The projection


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_projections_keep_inner_products_to_the_error_of_johnson_and_lindenstrauss(kind):
    vectors, dimension = torch.nn.functional.normalize(gaussian(40, 3000), dim=1), 512
    vectors[20:] = torch.nn.functional.normalize(vectors[:20] + 0.5 * vectors[20:], dim=1)
    projected = Projection({"w": 3000}, dimension, 7, kind=kind)({"w": vectors})
    exact, found = vectors @ vectors.T, projected @ projected.T
    error = (found - exact)[torch.triu_indices(40, 40, 1).unbind()]
    assert float(error.std()) == pytest.approx(dimension**-0.5, rel=0.25)
    assert abs(float(error.mean())) < 0.2 * dimension**-0.5


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_projections_depend_neither_on_what_is_kept_nor_on_the_batch(kind, monkeypatch):
    gradients = {"a": gaussian(5, 30, 7), "b": gaussian(5, 13, seed=1)}
    sizes = {"a": 210, "b": 13}
    monkeypatch.setattr("bench.attribution.projection.CHUNK_ENTRIES", 1000)
    kept = Projection(sizes, 11, 3, kind=kind)
    drawn = Projection(sizes, 11, 3, kind=kind, kept_bytes=0)
    assert len(kept._chunks) == 4
    together = kept(gradients)
    assert torch.equal(drawn(gradients), together)
    apart = torch.cat([kept({name: g[i : i + 1] for name, g in gradients.items()}) for i in range(5)])
    torch.testing.assert_close(apart, together)
    assert not torch.allclose(Projection(sizes, 11, 4, kind=kind)(gradients), together)


def test_signs_are_balanced_and_independent():
    matrix = Projection({"w": 500}, 333, 0)({"w": torch.eye(500)}) * 333**0.5
    assert set(matrix.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(matrix.mean())) < 4 / (500 * 333) ** 0.5
    assert float((matrix.T @ matrix - 500 * torch.eye(333)).std()) == pytest.approx(500**0.5, rel=0.05)


@pytest.mark.parametrize("dimension", [0, -3])
def test_a_projection_to_nothing_is_refused(dimension):
    with pytest.raises(InvalidInput, match="1 dimension or more"):
        Trak(projection_dim=dimension)


def test_settings_out_of_range_are_refused():
    with pytest.raises(InvalidInput, match="rademacher"):
        Trak(projection="sparse")
    with pytest.raises(UnknownName):
        Das(weights="cross-attention")
    with pytest.raises(InvalidInput, match="regularization"):
        DTrak(regularization=-1.0)
    with pytest.raises(InvalidInput, match="1 or more"):
        Trak(num_models=0)
    with pytest.raises(InvalidInput, match="flips"):
        Trak(flips="min")
    with pytest.raises(InvalidInput, match="timestep"):
        JourneyTrak(timestep=-1)


# Features


@pytest.mark.parametrize("output", OUTPUTS)
def test_grouped_gradients_equal_a_loop_of_backward_passes(model, data, output):
    rows = [rows_of_image(model, data, index) for index in (0, 7, 31)]
    joined = bench.attribution.influence._joined(rows, model.device)
    unet = differentiable_copy(model.unet, "all")
    grouped = per_sample_gradients(unet, lambda: OUTPUTS[output](model, unet, joined), group=3)
    for index, part in enumerate(rows):
        for name, gradient in gradient_by_autograd(model, output, part, "all").items():
            torch.testing.assert_close(grouped[name][index] / 3, gradient, rtol=2e-3, atol=2e-6)


def test_features_are_projected_mean_gradients(model, data):
    sizes = {name: weight.numel() for name, weight in select_weights(model.unet, "attn").items()}
    projection = Projection(sizes, 32, 0)
    features = projected_gradients(
        model, "loss", "attn", projection, lambda index: rows_of_image(model, data, index), 4, group=3
    )
    for index in range(4):
        gradient = gradient_by_autograd(model, "loss", rows_of_image(model, data, index), "attn")
        expected = projection({name: value[None] for name, value in gradient.items()})[0]
        torch.testing.assert_close(features[index], expected, rtol=2e-3, atol=1e-5)


def test_draws_are_stratified_and_keyed(model, data):
    rows = rows_of_image(model, data, 3, count=10)
    assert [int(t) // 100 for t in rows.timesteps] == list(range(10))
    assert torch.equal(rows.noise, rows_of_image(model, data, 3, count=10).noise)
    assert not torch.equal(rows.noise, rows_of_image(model, data, 4, count=10).noise)


def test_features_that_are_zero_or_not_finite_are_refused(context, queries, tiny):
    blank = DiffusionModel(tiny.model)  # the last layer of an untrained model is zero: no other weight has a gradient
    silent = replace(context, model=blank, ensemble=lambda count: [blank])
    with pytest.raises(MethodFailed, match="all zero"):
        Trak(**FEW, weights="cross-attn-kv").scores(silent, queries)
    broken = DiffusionModel(tiny.model)
    torch.nn.init.constant_(broken.unet.conv_out.weight, float("nan"))
    with pytest.raises(MethodFailed, match="diverged"):
        Trak(**FEW).scores(replace(context, model=broken, ensemble=lambda count: [broken]), queries)


@pytest.mark.parametrize("method", METHODS, **names)
def test_a_singular_kernel_is_refused_before_anything_is_computed(context, queries, method):
    def never(key, build):
        raise AssertionError

    singular = replace(method, projection_dim=len(context.dataset), regularization=0.0)
    with pytest.raises(InvalidInput, match=r"singular.*give a projection_dim below 80"):
        singular.scores(replace(context, cached=never), queries)


def test_a_kernel_that_turns_out_singular_is_refused():
    gram = gram_matrix(torch.ones(6, 2, 3), torch.device("cpu"))
    with pytest.raises(MethodFailed, match="singular"):
        Kernel(gram, 0.0, 12)


# The kernel, against leaving one out of a linear model


def ridge(images=30, dimension=5, ridge_weight=0.7):
    """Ridge regression of one target: its inputs, its residuals, what each left-out row changes, λ as we state it."""
    inputs, targets, asked = (
        gaussian(images, dimension).double(),
        gaussian(images, seed=1).double(),
        gaussian(8, dimension, seed=2),
    )
    asked = asked.double()

    def fit(rows):
        x, y = inputs[rows], targets[rows]
        return torch.linalg.solve(x.T @ x + ridge_weight * torch.eye(dimension).double(), x.T @ y)

    every = torch.arange(images)
    weights = fit(every)
    moved = torch.stack([fit(every[every != index]) - weights for index in range(images)])
    share = ridge_weight / (inputs.T @ inputs).diagonal().mean()
    return inputs, inputs @ weights - targets, asked, moved, float(share), weights


def test_das_equals_leaving_one_out_of_a_linear_model():
    inputs, residuals, asked, moved, share, _ = ridge()
    features = inputs[:, None]
    kernel = Kernel(gram_matrix(features, torch.device("cpu")), share, len(inputs))
    found = output_change(kernel, asked, features, residuals[:, None])
    torch.testing.assert_close(found[..., 0], (asked @ moved.T).square())


def test_the_kernel_equals_the_first_order_rise_of_the_loss_when_one_is_left_out():
    inputs, residuals, asked, moved, share, weights = ridge(images=300)
    targets = asked @ weights + torch.tensor([2.0, -2.0] * 4).double()
    asked_losses = 2 * (asked @ weights - targets)[:, None] * asked
    losses = 2 * residuals[:, None] * inputs
    kernel = Kernel(gram_matrix(inputs[:, None], torch.device("cpu")), share, len(inputs))
    scores = kernel.products(asked_losses, losses[:, None])[..., 0] / 2  # the curvature of the squared error is 2 xxᵀ
    leverage = (kernel.solve(inputs) * inputs).sum(1)
    torch.testing.assert_close(scores / (1 - leverage), asked_losses @ moved.T)
    rise = (asked @ (weights + moved).T - targets[:, None]) ** 2 - (asked @ weights - targets)[:, None] ** 2
    for score, change in zip(scores, rise, strict=True):
        assert np.corrcoef(score, change)[0, 1] > 0.97  # the sign: without an image of high score, the loss is higher


def test_the_regularization_is_a_share_of_the_eigenvalues_that_can_differ_from_zero():
    features = gaussian(4, 1, 3)
    wide = torch.cat([features, torch.zeros(4, 1, 20)], -1)  # a projection wider than the training set
    narrow, padded = (Kernel(gram_matrix(part, torch.device("cpu")), 0.5, 3) for part in (features, wide))
    torch.testing.assert_close(padded.products(wide[:, 0], wide), narrow.products(features[:, 0], features))


def test_both_sides_of_an_image_share_its_weight_in_the_kernel():
    features = gaussian(7, 1, 4)
    torch.testing.assert_close(
        gram_matrix(features.expand(7, 2, 4), torch.device("cpu")), gram_matrix(features, torch.device("cpu"))
    )


# The methods


@pytest.mark.parametrize("method", METHODS, **names)
def test_scores_have_the_shape_of_the_contract_and_do_not_depend_on_other_queries(context, queries, method):
    scores = method.scores(context, queries)
    assert scores.shape == (len(queries), len(context.dataset))
    assert torch.isfinite(scores).all()
    assert (scores.std(1) > 0).all()
    alone = torch.cat([method.scores(context, [query]) for query in reversed(queries)]).flip(0)
    torch.testing.assert_close(alone, scores, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS, **names)
def test_scores_depend_neither_on_batches_nor_on_the_order_of_images(context, queries, method, monkeypatch):
    scores = method.scores(context, queries)
    order = np.random.default_rng(0).permutation(len(context.dataset))
    old = context.dataset
    shuffled = Dataset(
        old.name, *(tuple(column[i] for i in order) for column in (old.ids, old.captions, old.concepts, old.styles)),
        old.images[order],
    )  # fmt: skip
    monkeypatch.setattr("bench.attribution.influence.POSITIONS_AT_ONCE", 14 * 14 * 30)
    monkeypatch.setattr("bench.attribution.influence.GRADIENT_BYTES", 2**22)
    other = AttributionContext(
        dataset=shuffled, data=TrainingData.of(shuffled, context.model), model=context.model, seed=context.seed,
        cached=lambda key, build: build(), ensemble=context.ensemble, progress=context.progress,
    )  # fmt: skip
    torch.testing.assert_close(
        method.scores(other, queries), scores[:, order], rtol=2e-3, atol=1e-5 * float(scores.abs().max())
    )


def as_query(context, index, sampler):
    """A training image and its true latent, given as a query."""
    shape = context.model.latent_shape
    latent = context.data.latents[index, 0].clone()
    return Query(f"t{index}", context.dataset.captions[index], 0, gaussian(*shape, seed=index), latent, sampler)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("cls", "worst"), [(Trak, 1), pytest.param(DTrak, 1, marks=SLOW), pytest.param(Das, 4, marks=SLOW)]
)
def test_a_training_image_ranks_itself_first_or_second_or_the_method_says_why_not(context, tiny, cls, worst):
    method = cls(projection_dim=512, num_timesteps=30, num_query_draws=60)
    indices = [0, 13, 26, 39]
    scores = method.scores(context, [as_query(context, index, tiny.sampler) for index in indices])
    ranks = [int((row > row[index]).sum()) for row, index in zip(scores, indices, strict=True)]
    assert max(ranks) <= worst, ranks  # of 80
    assert worst == 1 or method.self_rank


def test_trak_and_journey_trak_share_the_features_of_the_training_set(context, queries):
    built = []

    def cached(key, build):
        built.append(key)
        return context.cached(key, build)

    watched = replace(context, cached=cached)
    for method in METHODS:
        method.scores(watched, queries)
    trak, journey, d_trak, das, losses = built
    assert trak == journey
    assert len({trak, d_trak, das, losses}) == 4


def test_an_ensemble_is_averaged_and_each_model_has_a_projection_of_its_own(context, queries, tiny, model):
    other = DiffusionModel(tiny.model).load(model.state())
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(1.1)
    both = replace(context, ensemble=lambda count: [model, other][:count])
    method = Trak(**FEW, flips="mean")
    alone = method.scores(both, queries)
    together = replace(method, num_models=2).scores(both, queries)
    second = method.member_scores(both, 1, other, queries).mean(-1).float()
    torch.testing.assert_close(together, (alone + second) / 2, rtol=1e-4, atol=1e-6)
    one, two = (method.projection_of(both, member, model) for member in (0, 1))
    assert not torch.equal(one._kept[0], two._kept[0])


def test_the_step_near_a_timestep_is_on_the_trajectory(model, queries):
    query = queries[0]
    steps = []
    final = query.sampler.run(model, query.noise[None], [query.prompt], steps.append)
    assert [step.timestep for step in steps] == [800, 600, 400, 200, 0]
    assert torch.equal(steps[0].noisy, query.noise[None])
    torch.testing.assert_close(final[0], query.latent)
    near = query.sampler.step_near(model, query.noise[None], [query.prompt], 430)
    assert near.timestep == 400
    assert torch.equal(near.predicted, steps[2].predicted)
    alpha = model.alphas_cumprod[400]
    implied = (near.noisy - (1 - alpha).sqrt() * near_noise(model, query, near)) / alpha.sqrt()
    torch.testing.assert_close(near.predicted, implied.clamp(-1, 1), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def near_noise(model, query, step):
    """The guided prediction at a step."""
    states = model.text_encoder.encode([query.prompt, ""])
    times = torch.tensor([step.timestep] * 2)
    with_prompt, without = model.predict_noise(step.noisy.expand(2, -1, -1, -1), times, states).chunk(2)
    return without + query.sampler.guidance * (with_prompt - without)


def test_the_queries_of_journey_trak_are_noised_copies_of_the_predicted_image(context, queries):
    query = queries[0]
    rows = JourneyTrak(timestep=430).query_rows(context, query)
    step = query.sampler.step_near(context.model, query.noise[None], [query.prompt], 430)
    assert rows.timesteps.tolist() == [400] * 20
    assert torch.equal(rows.latents, step.predicted.expand_as(rows.latents))
    assert not torch.equal(rows.noise[0], rows.noise[1])
    with pytest.raises(InvalidInput, match="the schedule ends at 999"):
        JourneyTrak(**FEW, timestep=1000).scores(context, queries)


def test_journey_trak_says_why_a_training_image_need_not_find_itself():
    assert JourneyTrak.self_rank


def test_all_four_are_registered():
    assert {"trak", "journey_trak", "d_trak", "das"} <= set(registry.names())


def test_the_exact_kernel_among_images_is_the_one_among_weights():
    """Woodbury's identity, where there are more weights than rows; solve too, which ``das`` needs."""
    features, asked = gaussian(12, 2, 60), gaussian(3, 60, seed=1)
    among_weights = Kernel(gram_matrix(features, torch.device("cpu")), 0.1, 24)
    among_images = DualKernel(features, 0.1, torch.device("cpu"))
    torch.testing.assert_close(among_images.products(asked, features), among_weights.products(asked, features))
    torch.testing.assert_close(among_images.solve(asked), among_weights.solve(asked))


@pytest.mark.parametrize("weights", ["all", "cross-attn-kv"])
def test_without_a_projection_scores_are_those_of_the_exact_gradients(context, queries, weights):
    """By the singular values of all gradients, where images are fewer than weights and where they are more."""
    method = Trak(projection="exact", num_timesteps=2, num_query_draws=4, weights=weights, flips="mean")
    training = method.training_features(context, 0, context.model, "loss")
    features = training["features"].double()
    asked = method.query_features(context, 0, context.model, queries).double()
    assert ("gram" in training) == (features.shape[-1] <= 2 * len(features))
    rows = features.flatten(0, 1) / math.sqrt(features.shape[1])
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    added = 0.1 * sizes.square().sum() / min(rows.shape[1], 2 * len(features))
    inside = asked @ directions.T
    solved = (inside / (sizes.square() + added)) @ directions + (asked - inside @ directions) / added
    expected = torch.einsum("qd,isd->qis", solved, features).mean(-1)
    torch.testing.assert_close(method.scores(context, queries).double(), expected, rtol=1e-3, atol=1e-7)


def test_the_exact_kernel_is_refused_where_it_does_not_fit(context, queries, monkeypatch):
    with pytest.raises(InvalidInput, match="regularization above 0"):
        Trak(projection="exact", regularization=0.0).scores(context, queries)
    monkeypatch.setattr("bench.attribution.dimensions.EXACT_BYTES", 1000)
    with pytest.raises(InvalidInput, match="bench projection --method trak"):
        Trak(projection="exact").scores(context, queries)
