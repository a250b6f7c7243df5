"""Fisher matrices and unlearning: brute force, closed forms, limits."""

import copy

import pytest
import torch
from torch import nn

import bench.attribution.fisher
import bench.attribution.unlearning
from bench.attribution.ekfac import eigenbases, ekfac_direction, to_eigenbasis
from bench.attribution.fisher import diagonal_fisher, newton_direction
from bench.attribution.gradients import differentiable_copy, kronecker_sums, per_sample_gradients
from bench.attribution.unlearning import moved, query_gradient, query_loss
from bench.diffusion.losses import image_noise, query_losses
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput, MethodFailed
from bench.registry import methods, tuned
from methods.ours import Ours
from methods.ours_ekfac import OursEkfac

FEW = {"num_fisher_draws": 256, "num_gradient_draws": 256, "timestep_stride": 250}


def test_fisher_is_the_mean_of_squared_per_sample_gradients_not_the_square_of_the_mean(context, monkeypatch):
    monkeypatch.setattr(bench.attribution.fisher, "DRAWS_AT_ONCE", 4)
    seen = []
    original = bench.attribution.fisher.per_sample_gradients

    def spy(unet, losses):
        gradients = original(unet, losses)
        seen.append(gradients)
        return gradients

    monkeypatch.setattr(bench.attribution.fisher, "per_sample_gradients", spy)
    fisher = diagonal_fisher(context, "cross-attn-kv", 8)
    for name, diagonal in fisher.items():
        every = torch.cat([gradients[name] for gradients in seen]).double()
        assert diagonal.dtype == torch.float64
        torch.testing.assert_close(diagonal, (every**2).mean(0))
        assert not torch.allclose(diagonal, every.mean(0) ** 2, atol=0)


def test_newton_step_maximises_a_quadratic_in_one_step():
    # L(θ) − ½ (θ − θ0)ᵀ F (θ − θ0) with L = g·θ has its maximum at θ0 + F⁻¹ g.
    stream = torch.Generator().manual_seed(1)
    gradient, fisher = (
        torch.randn(50, generator=stream).double(),
        torch.rand(50, generator=stream).double() + 0.1,
    )
    step = newton_direction(gradient, fisher, 0.0)

    def objective(move):
        return gradient @ move - 0.5 * (fisher * move) @ move

    assert torch.allclose(step, gradient / fisher)
    for _ in range(20):
        other = step + 0.1 * torch.randn(50, generator=stream).double()
        assert objective(step) > objective(other)


def test_damping_adds_a_share_of_the_mean_and_unmoved_weights_stay():
    gradient, fisher = torch.tensor([1.0, 0.0]).double(), torch.tensor([2.0, 0.0]).double()
    assert newton_direction(gradient, fisher, 0.0).tolist() == [0.5, 0.0]
    assert newton_direction(gradient, fisher, 1.0).tolist() == [1 / 3, 0.0]


def test_no_step_gives_scores_of_exactly_zero(context, queries):
    scores = Ours(step_size=0.0, num_fisher_draws=64, num_gradient_draws=64).scores(context, queries)
    assert torch.count_nonzero(scores) == 0


@pytest.mark.parametrize("fisher", ["diagonal", "none"])
def test_unlearning_raises_the_loss_of_the_query(context, queries, fisher):
    step = 0.5 if fisher == "diagonal" else 5.0
    method = Ours(step_size=step, num_fisher_draws=512, num_gradient_draws=512, fisher=fisher)
    unlearned = copy.copy(context.model)
    unlearned.unet = method.unlearn(context, queries[0], method.ascent(context))
    timesteps = range(0, 1000, 20)
    before = query_losses(context.model, queries[0], timesteps, seed=0).mean()
    after = query_losses(unlearned, queries[0], timesteps, seed=0).mean()
    assert after > before


@pytest.mark.parametrize(("limit", "timesteps"), [(1000, [100, 300, 500, 700, 900]), (500, [100, 300])])
def test_a_small_ascent_scores_the_inner_product_of_gradients(context, queries, limit, timesteps):
    # To first order L(z, θ + α g) − L(z, θ) = α ⟨∇L(z, θ), g⟩ with g = ∇L(ẑ, θ): the sign and the orientation of τ.
    step, model = 0.02, context.model
    losses = {"timestep_stride": 200, "timestep_limit": limit, "flips": "mean"}
    method = Ours(step_size=step, fisher="none", num_gradient_draws=256, **losses)
    scores = method.scores(context, queries)
    for row, query in enumerate(queries):
        query_side = query_gradient(context, model.unet, query, "cross-attn-kv", 256, 0)
        for index in (0, 17, 60):
            unet = differentiable_copy(model.unet, "cross-attn-kv")
            noise = image_noise(model, context.dataset.ids[index], timesteps, 0).flatten(0, 1)
            latents = context.data.latents[index].repeat_interleave(len(timesteps), 0)
            states = context.data.states_of(torch.tensor([index])).expand(len(noise), -1, -1)
            model.losses(latents, states, torch.tensor(timesteps * 2), noise, unet=unet).mean().backward()
            product = sum((w.grad * query_side[n]).sum() for n, w in select_weights(unet, "cross-attn-kv").items())
            assert float(scores[row, index]) / step == pytest.approx(float(product), rel=0.05, abs=2e-5)


def query_from(context, index):
    """A training image as the query."""
    latent = context.data.latents[index, 0]
    return Query("t", context.dataset.captions[index], 0, torch.zeros_like(latent), latent, Sampler(num_steps=5))


def small_network():
    """A convolution, a norm, a linear layer without bias on positions and one with bias: every kind of layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(2), nn.Linear(9, 3, bias=False),
        nn.Flatten(1), nn.Linear(12, 2),
    ).double()  # fmt: skip


def losses_of(network, inputs):
    return lambda: network(inputs).square().sum(1)


def ekfac_of(network, inputs):
    """Bases and eigenvalues from one batch."""
    bases = eigenbases(kronecker_sums(network, losses_of(network, inputs)))
    gradients = per_sample_gradients(network, losses_of(network, inputs))
    return bases, {name: part.square().mean(0) for name, part in to_eigenbasis(gradients, bases).items()}, gradients


def test_ekfac_direction_equals_explicit_kronecker_products():
    network, damping = small_network(), 0.1
    inputs = torch.randn(7, 2, 3, 3).double()
    bases, eigenvalues, gradients = ekfac_of(network, inputs)
    slope = {name: gradient.mean(0, keepdim=True) for name, gradient in gradients.items()}
    step = ekfac_direction(slope, bases, eigenvalues, damping)
    assert {name: part.shape[1:] for name, part in step.items()} == {n: p.shape for n, p in network.named_parameters()}
    for layer, parts in {"0": ("weight", "bias"), "4": ("weight",), "6": ("weight", "bias")}.items():
        out = len(bases[f"{layer}.outputs"])

        def vector(tensors, index, out=out, layer=layer, parts=parts):  # rows of [weight, bias] one after another
            columns = [tensors[f"{layer}.{part}"][index].reshape(out, -1) for part in parts]
            return torch.cat(columns, 1).flatten()

        basis = torch.kron(bases[f"{layer}.outputs"], bases[f"{layer}.inputs"])
        samples = torch.stack([vector(gradients, index) for index in range(7)])
        spectrum = (samples @ basis).square().mean(0)
        fisher = basis @ torch.diag(spectrum + damping * spectrum.mean()) @ basis.T
        torch.testing.assert_close(vector(step, 0), torch.linalg.solve(fisher, vector(slope, 0)))
    diagonal = gradients["1.weight"].square().mean(0)
    expected = slope["1.weight"] / (diagonal + damping * diagonal.mean())
    torch.testing.assert_close(step["1.weight"], expected)


def test_kronecker_sums_are_of_inputs_with_a_one_and_of_output_gradients():
    layer = nn.Linear(3, 2).double()
    network, inputs = nn.Sequential(layer), torch.randn(5, 4, 3).double()
    sums = kronecker_sums(network, lambda: network(inputs).square().flatten(1).sum(1))
    with_one = torch.cat([inputs, torch.ones(5, 4, 1).double()], 2).flatten(0, 1)
    slopes = 2 * layer(inputs).detach().flatten(0, 1)
    torch.testing.assert_close(sums["0.inputs"], with_one.T @ with_one)
    torch.testing.assert_close(sums["0.outputs"], slopes.T @ slopes)


def test_ekfac_is_the_exact_fisher_where_inputs_and_output_gradients_are_one_hot():
    # Each draw moves a single weight: the exact Fisher is diagonal, and so are A and S.
    network = nn.Sequential(nn.Linear(4, 3, bias=False).double())
    inputs = torch.eye(4).double().repeat_interleave(3, 0)
    pick = torch.eye(3).double().repeat(4, 1) * torch.arange(1, 13).double()[:, None]

    def losses():
        return (network(inputs) * pick).sum(1)

    bases = eigenbases(kronecker_sums(network, losses))
    gradients = per_sample_gradients(network, losses)
    eigenvalues = {name: part.square().mean(0) for name, part in to_eigenbasis(gradients, bases).items()}
    flat = gradients["0.weight"].flatten(1)
    slope = torch.randn(1, 3, 4).double()
    exact = torch.linalg.solve(flat.T @ flat / 12, slope.flatten())
    step = ekfac_direction({"0.weight": slope}, bases, eigenvalues, 0.0)
    torch.testing.assert_close(step["0.weight"].flatten(), exact)


def test_ekfac_eigenvalues_and_the_diagonal_fisher_have_one_trace(context):
    settings = {"num_fisher_draws": 64, "weights": "all"}
    _, eigenvalues = OursEkfac(**settings).fisher_of(context)
    diagonal = diagonal_fisher(context, "all", 64)
    for layer, values in eigenvalues.items():
        parts = [part for name, part in diagonal.items() if name == layer or name.rpartition(".")[0] == layer]
        torch.testing.assert_close(values.sum(), sum(part.sum() for part in parts), rtol=1e-4, atol=0)
        assert values.dtype == torch.float64


@pytest.mark.parametrize("weights", ["cross-attn-kv", pytest.param("all", marks=pytest.mark.slow)])
def test_ekfac_unlearning_raises_the_loss_of_the_query(context, queries, weights):
    method = OursEkfac(weights=weights, query_rise=0.05, **FEW)
    unlearned = method.unlearn(context, queries[0], method.ascent(context))
    before = query_loss(context, context.model.unet, queries[0])
    assert query_loss(context, unlearned, queries[0]) == pytest.approx(1.05 * before, rel=1e-3)


def test_a_training_image_ranks_itself_high_when_it_is_the_query(context):
    query = query_from(context, 33)
    for method in (Ours(query_rise=0.1, **FEW), OursEkfac(**FEW)):
        scores = method.scores(context, [query])[0]
        assert int((scores > scores[33]).sum()) < 4, method.name  # of 80, under a model of twelve steps


def test_every_method_of_unlearning_without_a_step_scores_exactly_zero(context, queries):
    for method in (Ours(fisher="none", num_steps=2, step_size=0.0, **FEW),
                   OursEkfac(query_rise=0.0, step_size=0.0, **FEW)):  # fmt: skip
        assert torch.count_nonzero(method.scores(context, queries[:1])) == 0


def test_sgd_with_one_step_adds_the_gradient(context, queries):
    method = Ours(**{**FEW, **Ours.variants["sgd-1"], "query_rise": 0.0, "step_size": 0.3})
    gradient = query_gradient(context, context.model.unet, queries[0], "cross-attn-kv", 256, 0)
    unlearned = dict(method.unlearn(context, queries[0], method.ascent(context)).named_parameters())
    for name, weight in context.model.unet.named_parameters():
        expected = weight + 0.3 * gradient[name].float() if name in gradient else weight
        torch.testing.assert_close(unlearned[name], expected, rtol=0, atol=0)


def test_variants_are_settings_and_the_first_is_the_method_itself():
    for study in (None, "fashion", "faces", "tiny"):
        usual = methods.create("ours", study)
        assert methods.create("ours:cross-attn-kv", study) == usual
        for name, own in Ours.variants.items():
            variant = methods.create(f"ours:{name}", study).settings()
            assert variant == usual.settings() | own | rise(study, name)


def rise(study, variant):
    """How far a variant that was tuned itself steps; the rest of it is what makes it an ablation."""
    found = tuned(Ours, study, variant)["settings"] if study else {}
    return {name: found[name] for name in found if name == "query_rise"}


@pytest.mark.parametrize("steps", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_loss_of_the_query_rises_by_the_share_that_is_asked(context, queries, steps):
    method = Ours(query_rise=0.2, num_steps=steps, **FEW)
    unlearned = method.unlearn(context, queries[0], method.ascent(context))
    before = query_loss(context, context.model.unet, queries[0])
    assert query_loss(context, unlearned, queries[0]) == pytest.approx(1.2 * before, rel=2e-3)


def test_newton_steps_on_a_quadratic_follow_the_closed_form(context, queries, monkeypatch):
    # L(θ) = Σ h (θ − c)² / 2 with Fisher h: a step of α F⁻¹∇L / N maps θ − c to (1 + α / N) (θ − c).
    name, count, images = next(iter(select_weights(context.model.unet, "cross-attn-kv"))), 6, len(context.dataset)
    start = dict(context.model.unet.named_parameters())[name].detach()
    curvature = 0.5 + torch.rand(start.shape, generator=torch.Generator().manual_seed(0)).double()
    centre = start.double() - 0.1

    def slope(_context, unet, *_):
        return {name: curvature * (dict(unet.named_parameters())[name].detach().double() - centre)}

    monkeypatch.setattr(bench.attribution.unlearning, "query_gradient", slope)
    method = Ours(step_size=0.2 * images, num_steps=count, damping=0.0)
    monkeypatch.setattr(Ours, "fisher_of", lambda *_: {name: curvature})
    unlearned = dict(method.unlearn(context, queries[0], method.ascent(context)).named_parameters())
    torch.testing.assert_close(
        unlearned[name].double() - centre, 1.2**count * (start.double() - centre), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("method", [Ours, OursEkfac])
def test_a_small_newton_step_scores_the_influence(context, queries, method):
    # To first order τ = (α / N) ∇L(z)ᵀ F⁻¹ ∇L(ẑ): the influence function's inner product, from the explicit direction.
    step, index, timesteps = 2e-6, 60, [100, 300, 500, 700, 900]
    settings = {"num_fisher_draws": 256, "num_gradient_draws": 256, "timestep_stride": 200}
    chosen = method(step_size=step, query_rise=0.0, flips="mean", **settings)
    score = chosen.scores(context, queries[:1])[0, index]
    slope = query_gradient(context, context.model.unet, queries[0], "cross-attn-kv", 256, 0)
    direction = chosen.ascent(context)(slope)
    unet = differentiable_copy(context.model.unet, "cross-attn-kv")
    noise = image_noise(context.model, context.dataset.ids[index], timesteps, 0).flatten(0, 1)
    latents = context.data.latents[index].repeat_interleave(len(timesteps), 0)
    states = context.data.states_of(torch.tensor([index])).expand(len(noise), -1, -1)
    context.model.losses(latents, states, torch.tensor(timesteps * 2), noise, unet=unet).mean().backward()
    product = sum((w.grad * direction[n]).sum() for n, w in select_weights(unet, "cross-attn-kv").items())
    assert float(score) / step == pytest.approx(float(product), rel=0.1, abs=0.02)


def test_moved_leaves_the_original_alone(context):
    unet = context.model.unet
    name = next(iter(select_weights(unet, "cross-attn-kv")))
    before = dict(unet.named_parameters())[name].clone()
    other = moved(unet, {name: torch.ones_like(before).double()}, 2.0)
    assert torch.equal(dict(unet.named_parameters())[name], before)
    torch.testing.assert_close(dict(other.named_parameters())[name], before + 2)


def test_a_direction_without_a_rise_is_refused(context, queries):
    method = Ours(query_rise=0.1, **FEW)
    with pytest.raises(MethodFailed, match="query_rise"):
        method.unlearn(context, queries[0], lambda gradient: {n: torch.zeros_like(g) for n, g in gradient.items()})


def test_a_limit_below_the_first_timestep_is_refused():
    with pytest.raises(InvalidInput, match="timestep_limit=100"):
        Ours(timestep_stride=200, timestep_limit=100)
