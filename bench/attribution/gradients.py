"""Gradients of the DDPM loss: of single examples (for Fisher matrices and influence), and of a query.

Per-sample gradients come from one batched backward pass: hooks note each layer's input a and the gradient g at its
output, from which the gradient of sample b is, for the layers that a U-Net is made of,

    Linear      G_b = Σ_t g_bt ⊗ a_bt          (t runs over tokens)
    Conv2d      G_b = Σ_p g_bp ⊗ patch(a)_bp    (p runs over positions)
    GroupNorm, LayerNorm   G_b = Σ_p g_bp · â_bp, with â the normalised input

and the sums of g alone for biases. The examples of a batch are independent, so this equals a loop over them. Rows that
belong together (noisy copies of one image) are summed in the same products, as if they were further tokens or
positions: their own gradients are never made. Autograd is asked for the gradients at the outputs alone, not for those
of the weights, which would cost a third more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from bench.diffusion.selections import select_weights

Gradients = dict[str, Tensor]


def differentiable_copy(unet: nn.Module, selection: str) -> nn.Module:
    """A copy of ``unet`` with shared-nothing weights, of which only the selected ones ask for gradients."""
    duplicate = copy.deepcopy(unet).requires_grad_(False)
    for weight in select_weights(duplicate, selection).values():
        weight.requires_grad_(True)
    return duplicate


def per_sample_gradients(
    unet: nn.Module, losses: Callable[[], Float[Tensor, " batch"]], *, group: int = 1
) -> Gradients:
    """Gradient of each example's loss with respect to each parameter of ``unet`` that asks for one.

    Args:
        unet: made of Linear, Conv2d, GroupNorm and LayerNorm layers, each used once.
        losses: runs ``unet`` once on a batch and returns one loss for each example.
        group: so many consecutive examples make a sample; its gradient is the sum of theirs.

    Returns:
        For each parameter name a tensor of shape samples × the parameter's shape, samples = batch / group.
    """
    gradients: Gradients = {}
    for name, (module, inputs, outputs) in _backward(unet, losses).items():
        parts = zip(("weight", "bias"), _layer_gradients(module, inputs, outputs[0], group), strict=True)
        for part, gradient in parts:
            parameter = getattr(module, part, None)
            if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
                gradients[f"{name}.{part}"] = gradient
    return gradients


def kronecker_sums(unet: nn.Module, losses: Callable[[], Float[Tensor, " batch"]]) -> Gradients:
    """Σ a aᵀ and Σ g gᵀ over the examples and positions of a batch, for each Linear and Conv2d layer that moves.

    Args:
        unet: as for ``per_sample_gradients``.
        losses: as there.

    Returns:
        ``<layer>.inputs`` and ``<layer>.outputs``, square matrices in float64. Where the layer has a bias, a ends with
        a 1, so that g ⊗ a is the gradient of the matrix [weight, bias].
    """
    sums: Gradients = {}
    for name, (module, inputs, outputs) in _backward(unet, losses).items():
        if isinstance(module, nn.Linear):
            rows, slopes = inputs.reshape(-1, inputs.shape[-1]), outputs[0].reshape(-1, outputs[0].shape[-1])
        elif isinstance(module, nn.Conv2d):
            assert not isinstance(module.padding, str)
            geometry = (module.kernel_size, module.dilation, module.padding, module.stride)
            rows = functional.unfold(inputs, *geometry).transpose(1, 2).flatten(0, 1)
            slopes = outputs[0].flatten(2).transpose(1, 2).flatten(0, 1)
        else:
            continue
        if module.bias is not None:
            rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        for part, values in (("inputs", rows.double()), ("outputs", slopes.double())):
            sums[f"{name}.{part}"] = values.T @ values
    return sums


Notes = dict[str, tuple[nn.Module, Tensor, list[Tensor]]]


def _backward(unet: nn.Module, losses: Callable[[], Float[Tensor, " batch"]]) -> Notes:
    """Each layer's input and the gradient at its output; autograd computes none of the weights'."""
    wanted = [weight for weight in unet.parameters() if weight.requires_grad]
    with _noted(unet) as notes:
        try:
            unet.requires_grad_(False)
            losses().sum().backward()
        finally:
            for weight in wanted:
                weight.requires_grad_(True)
    return notes


@contextmanager
def _noted(unet: nn.Module) -> Iterator[Notes]:
    """Hook every layer with parameters to note its input and the gradient at its output."""
    notes: Notes = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if name in notes:
                raise NotImplementedError(f"Layer {name} is used twice in one pass: its gradients would be lost.")
            outputs: list[Tensor] = []
            if not output.requires_grad:
                output.requires_grad_(True)
            output.register_hook(outputs.append)
            notes[name] = (module, inputs[0].detach(), outputs)

        return note

    layers = [
        (name, module)
        for name, module in unet.named_modules()
        if any(weight.requires_grad for weight in module.parameters(recurse=False))
    ]
    handles = [module.register_forward_hook(hook(name)) for name, module in layers]
    try:
        yield notes
    finally:
        for handle in handles:
            handle.remove()


def _convolution_gradients(
    module: nn.Conv2d, inputs: Tensor, outputs: Tensor, samples: int
) -> Float[Tensor, "samples out in rows columns"]:
    """One convolution with a group of channels for each sample: no patch is written (seven times as fast)."""
    assert not isinstance(module.padding, str)
    if module.groups != 1:
        raise NotImplementedError("Per-sample gradients of a grouped convolution are not written yet.")
    inputs, outputs = (part.unflatten(0, (samples, -1)).transpose(0, 1).flatten(1, 2) for part in (inputs, outputs))
    size = (samples * module.out_channels, *module.weight.shape[1:])
    geometry = (module.stride, module.padding, module.dilation)
    gradients: Tensor = conv2d_weight(inputs, size, outputs, *geometry, groups=samples)
    return gradients.view(samples, *module.weight.shape)


def _layer_gradients(module: nn.Module, inputs: Tensor, outputs: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Gradients of a layer's weight and bias for each sample, from its input and the gradient at its output."""
    samples = len(inputs) // group
    if isinstance(module, nn.Linear):
        tokens_in = inputs.reshape(samples, -1, inputs.shape[-1])
        tokens_out = outputs.reshape(samples, -1, outputs.shape[-1])
        return tokens_out.transpose(1, 2) @ tokens_in, tokens_out.sum(1)
    if isinstance(module, nn.Conv2d):
        each = outputs.flatten(2).sum(2).unflatten(0, (samples, group)).sum(1)
        return _convolution_gradients(module, inputs, outputs, samples), each
    if isinstance(module, nn.GroupNorm):
        normalised = functional.group_norm(inputs, module.num_groups, eps=module.eps)
        each, alone = (outputs * normalised).flatten(2).sum(2), outputs.flatten(2).sum(2)
    elif isinstance(module, nn.LayerNorm):
        normalised = functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        each, alone = (outputs * normalised).flatten(1, -2).sum(1), outputs.flatten(1, -2).sum(1)
    else:
        raise NotImplementedError(f"Per-sample gradients of a {type(module).__name__} layer are not written yet.")
    return each.unflatten(0, (samples, group)).sum(1), alone.unflatten(0, (samples, group)).sum(1)
