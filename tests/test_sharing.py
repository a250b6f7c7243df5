"""What several U-Nets share is computed once, and the losses keep their bits."""

import copy

import pytest
import torch

from bench.diffusion.losses import training_set_losses
from bench.diffusion.selections import WEIGHT_SELECTIONS, select_weights
from bench.diffusion.sharing import common_modules, shared_beginning


def changed(unet, selection):
    """A copy with other weights where ``selection`` says."""
    other = copy.deepcopy(unet)
    for weight in select_weights(other, selection).values():
        weight.data *= 1.5
    return other


def one_run(model, data):
    latents = data.latents[:3, 0]
    return lambda unet: model.losses(
        latents, data.states_of(torch.arange(3)), torch.tensor([3, 5, 7]), latents, unet=unet
    )


@pytest.mark.parametrize("selection", WEIGHT_SELECTIONS)
def test_losses_of_several_unets_keep_their_bits(model, data, tiny, selection):
    unets = [model.unet, changed(model.unet, selection), changed(changed(model.unet, selection), "attn")]
    ids = tiny.dataset.ids
    together = training_set_losses(model, unets, data, ids, [50, 700], seed=0)
    for unet, losses in zip(unets, together, strict=True):
        assert torch.equal(training_set_losses(model, [unet], data, ids, [50, 700], seed=0)[0], losses)
    assert not torch.equal(together[0], together[1])


def test_only_layers_before_the_first_moved_weight_are_shared(model, data):
    names = common_modules(model.unet, [changed(model.unet, "cross-attn-kv")], one_run(model, data))
    assert {"conv_in", "time_embedding", "down_blocks.0", "down_blocks.1.resnets.0"} <= set(names)
    assert any(name.endswith("attn1") for name in names)
    assert not any(name.startswith(("up_blocks", "conv_out")) or ".ff" in name for name in names)
    assert common_modules(model.unet, [changed(model.unet, "all")], one_run(model, data)) in ([], ["time_proj"])
    assert common_modules(model.unet, [copy.deepcopy(model.unet)], one_run(model, data)) == [""]


def test_models_are_as_before_after_sharing(model, data):
    other, run = changed(model.unet, "cross-attn-kv"), one_run(model, data)
    before = run(other)
    with shared_beginning([model.unet, other], run):
        run(model.unet)
        assert torch.equal(run(other), before)
        assert "forward" in vars(other.get_submodule("conv_in"))
    assert "forward" not in vars(other.get_submodule("conv_in"))
    assert torch.equal(run(other), before)
    assert torch.equal(run(copy.deepcopy(other)), before)


def test_the_same_unet_twice_is_fine(model, data):
    with shared_beginning([model.unet, model.unet], one_run(model, data)):
        one_run(model, data)(model.unet)
