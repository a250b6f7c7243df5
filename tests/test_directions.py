"""Influence by unprojected gradients: explicit inverses, autograd, closed forms."""

import pytest
import torch

from bench.attribution.ekfac import ekfac_factors
from bench.attribution.fisher import LOSS, PREDICTION, mean_over_draws
from bench.attribution.gradients import differentiable_copy, per_sample_gradients
from bench.attribution.influence import image_rows
from bench.attribution.unlearning import query_gradient
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput, UnknownName
from bench.foundation import seeds
from methods.datainf import DataInf
from methods.ekfac_influence import EkfacInfluence

KV = {"weights": "cross-attn-kv", "num_timesteps": 2, "num_query_draws": 64}
METHODS = [DataInf(**KV), EkfacInfluence(**KV, num_ggn_draws=256)]
names = {"ids": lambda method: method.name}


def mean_gradients(context, selection, draws):
    """The gradient of every side of every image, by autograd, row by row: {parameter: sides × shape}."""
    rows_of, unet = image_rows(context, context.model, draws), differentiable_copy(context.model.unet, selection)
    gradients = []
    for sample in range(2 * len(context.dataset)):
        unet.zero_grad()
        context.model.losses(*rows_of(sample), unet=unet).mean().backward()
        gradients.append({name: weight.grad.clone() for name, weight in select_weights(unet, selection).items()})
    return {name: torch.stack([each[name] for each in gradients]).double() for name in gradients[0]}


def test_datainf_is_the_mean_of_explicit_inverses_layer_by_layer(context, queries):
    method = DataInf(**KV)
    asked = [query_gradient(context, context.model.unet, query, method.weights, 64, 0) for query in queries]
    every = mean_gradients(context, method.weights, 2)
    directions = method.directions(context, asked)
    for name, gradients in every.items():
        flat = gradients.flatten(1)
        added = method.damping * flat.square().sum(1).mean() / flat.shape[1]
        inverses = [torch.linalg.inv(torch.outer(g, g) + added * torch.eye(len(g)).double()) for g in flat[::8]]
        # every eighth image's inverse is made explicitly; all of them by the solution along and across its gradient
        for g, inverse in zip(flat[::8], inverses, strict=True):
            v = asked[0][name].flatten()
            along = (v @ g) / g.square().sum() * g
            torch.testing.assert_close(inverse @ v, along / (added + g.square().sum()) + (v - along) / added)
        for slope, direction in zip(asked, directions, strict=True):
            v = slope[name].flatten()
            along = (flat @ v / flat.square().sum(1))[:, None] * flat
            solved = along / (added + flat.square().sum(1))[:, None] + (v - along) / added
            torch.testing.assert_close(
                direction[name].flatten(), solved.mean(0), rtol=1e-2, atol=1e-3 * float(v.norm())
            )


@pytest.mark.parametrize("method", METHODS, **names)
def test_scores_are_inner_products_with_the_larger_of_both_sides(context, queries, method):
    scores = method.scores(context, queries)
    asked = [query_gradient(context, context.model.unet, query, method.weights, 64, 0) for query in queries]
    every = mean_gradients(context, method.weights, 2)
    for row, direction in zip(scores, method.directions(context, asked), strict=True):
        products = sum(gradients.flatten(1) @ direction[name].flatten() for name, gradients in every.items())
        sides = products.view(-1, 2)
        torch.testing.assert_close(row.double(), sides.amax(1), rtol=2e-3, atol=2e-3 * float(sides.std()))
        assert bool((sides[:, 1] > sides[:, 0]).any())


@pytest.mark.parametrize("output", [LOSS, PREDICTION])
def test_the_gauss_newton_matrix_of_the_last_bias_is_known(context, output):
    # ∂ε_θ/∂bias = √ᾱ_t in every element, so G = (2 / E) · E · ᾱ_t: what the mean over timesteps of ᾱ says.
    def squares(unet, losses):
        return {"bias": per_sample_gradients(unet, losses)["conv_out.bias"].double().square().sum(0)}

    draws = 1024
    found = float(mean_over_draws(context, "all", draws, squares, output)["bias"])
    timesteps = []
    for first in range(0, draws, 128):
        stream = seeds.generator("fisher", context.seed, first)
        stream.integers(0, len(context.data), 128), stream.integers(0, 2, 128)
        timesteps.extend(stream.integers(0, 1000, 128).tolist())
    known = float(2 * context.model.alphas_cumprod[timesteps].double().mean())
    assert (found == pytest.approx(known, rel=0.15)) == (output == PREDICTION)


def test_factors_of_both_kinds_are_kept_apart(context):
    _, fisher = ekfac_factors(context, "cross-attn-kv", 64)
    _, gauss_newton = ekfac_factors(context, "cross-attn-kv", 64, PREDICTION)
    assert set(fisher) == set(gauss_newton)
    assert not any(torch.equal(fisher[name], gauss_newton[name]) for name in fisher if fisher[name].any())


@pytest.mark.parametrize("method", METHODS, **names)
def test_a_training_image_ranks_itself_high_when_it_is_the_query(context, method):
    latent = context.data.latents[33, 0]
    query = Query("t", context.dataset.captions[33], 0, torch.zeros_like(latent), latent, Sampler(num_steps=5))
    scores = method.scores(context, [query])[0]
    assert int((scores > scores[33]).sum()) < 4  # of 80, under a model of twelve steps


def test_settings_out_of_range_are_refused():
    with pytest.raises(UnknownName):
        DataInf(weights="kv")
    with pytest.raises(InvalidInput, match="flips"):
        DataInf(flips="min")
    with pytest.raises(InvalidInput, match="above 0"):
        EkfacInfluence(damping=0.0)
    with pytest.raises(InvalidInput, match="num_ggn_draws"):
        EkfacInfluence(num_ggn_draws=0)
