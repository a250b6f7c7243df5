"""The embedded U-Net's forward pass with fewer passes over memory: same weights, same function, float rounding apart.

``fast_forward`` wraps a diffusers ``UNet2DConditionModel`` and walks its own submodules and parameters. It differs from
diffusers' forward in this: GroupNorm with SiLU and GEGLU keep only their input for the backward pass; Q, K and V are
one product each; 1×1 projections around the transformer are products in the layout that the tokens need; the time
embedding is activated once; sums are taken in place. What it does not cover is left to diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

FREE = {"sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"}
FREE |= {"norm_num_groups", "norm_eps", "down_block_types", "up_block_types", "mid_block_type", "attention_head_dim"}
BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


class GroupNormSilu(torch.autograd.Function):
    """SiLU of a group norm; the backward pass makes the norm's output anew instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """SiLU(group_norm(inputs)), batch × channels × rows × columns, contiguous."""
        batch, channels, rows, columns = inputs.shape
        sizes = (batch, channels, rows * columns, groups)
        normed, mean, scale = torch.native_group_norm(
            inputs, weight, bias, batch, channels, rows * columns, groups, eps
        )
        ctx.save_for_backward(inputs, weight, bias, mean, scale)
        ctx.sizes, ctx.eps = sizes, eps
        return functional.silu(normed, inplace=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, weight and bias."""
        inputs, weight, bias, mean, scale = ctx.saved_tensors
        normed = torch.ops.aten.native_group_norm(inputs, weight, bias, *ctx.sizes, ctx.eps)[0]
        torch.ops.aten.silu_backward.grad_input(gradients[0].contiguous(), normed, grad_input=normed)
        needs = list(ctx.needs_input_grad[:3])
        results = torch.ops.aten.native_group_norm_backward(normed, inputs, mean, scale, weight, *ctx.sizes, needs)
        return (*results, None, None)


class Geglu(torch.autograd.Function):
    """a · GELU(b) of inputs (a, b) side by side; the backward pass writes both gradients into one tensor."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        """Batch × tokens × 2 width to batch × tokens × width."""
        ctx.save_for_backward(inputs)
        value, gate = inputs.chunk(2, -1)
        return functional.gelu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Gradient of inputs."""
        (inputs,) = ctx.saved_tensors
        value, gate = inputs.chunk(2, -1)
        result = torch.empty_like(inputs)
        to_value, to_gate = result.chunk(2, -1)
        torch.mul(gradients[0], functional.gelu(gate), out=to_value)
        torch.ops.aten.gelu_backward.grad_input(gradients[0] * value, gate, grad_input=to_gate)
        return result


class FastUNet(nn.Module):
    """A U-Net called as diffusers' is, ``(noisy, timesteps, states, return_dict=False)``; weights stay ``unet``'s."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet: Any = unet

    def forward(self, noisy: Tensor, timesteps: Tensor, states: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The prediction, batch × channels × rows × columns, in a tuple."""
        unet, depth = self.unet, len(self.unet.up_blocks) - 1
        if return_dict or any(size % 2**depth for size in noisy.shape[2:]):
            return cast(tuple[Tensor], unet(noisy, timesteps, states, return_dict=return_dict))
        embedded = functional.silu(unet.time_embedding(unet.time_proj(timesteps.expand(len(noisy))).to(noisy.dtype)))
        return (self.predicted(noisy, embedded, states),)

    def predicted(self, noisy: Tensor, embedded: Tensor, states: Tensor) -> Tensor:
        """The prediction, given the activated time embedding, batch × dim."""
        unet = self.unet
        hidden = walked(
            unet,
            unet.conv_in(noisy),
            residual=lambda resnet, hidden: _resnet(resnet, hidden, embedded),
            attended=lambda block, number, hidden: _attended(block, number, hidden, states),
            upsampled=lambda conv, hidden: conv(functional.interpolate(hidden, scale_factor=2.0, mode="nearest")),
        )
        return cast(Tensor, unet.conv_out(_norm_silu(unet.conv_norm_out, hidden)))


def walked(
    unet: Any,
    hidden: Tensor,
    *,
    residual: Callable[[Any, Tensor], Tensor],
    attended: Callable[[Any, int, Tensor], Tensor],
    upsampled: Callable[[Any, Tensor], Tensor],
) -> Tensor:
    """What ``hidden`` becomes on the way down and up again, each kind of step computed as the caller does.

    Args:
        unet: of the kind that ``covers`` accepts.
        hidden: after the first convolution.
        residual: of a ResnetBlock2D and its input.
        attended: of a block, the number of its resnet, and that one's output.
        upsampled: of the convolution after upsampling, and the picture before.
    """
    kept = [hidden]
    for block in unet.down_blocks:
        for number, resnet in enumerate(block.resnets):
            hidden = attended(block, number, residual(resnet, hidden))
            kept.append(hidden)
        for downsampler in block.downsamplers or []:
            hidden = downsampler.conv(hidden)
            kept.append(hidden)
    for block in unet.up_blocks:
        for number, resnet in enumerate(block.resnets):
            hidden = attended(block, number, residual(resnet, torch.cat([hidden, kept.pop()], 1)))
        for upsampler in block.upsamplers or []:
            hidden = upsampled(upsampler.conv, hidden)
    return hidden


def fast_forward(unet: UNet2DConditionModel) -> nn.Module:
    """``unet`` with the fast forward pass where it is covered, otherwise ``unet`` itself."""
    return FastUNet(unet) if covers(unet) else unet


def covers(unet: UNet2DConditionModel) -> bool:
    """Whether the fast forward pass equals that of ``unet``: the embedded studies' architecture, on a CPU."""
    config = dict(unet.config)
    fixed = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
    return (
        all(config[each.name] == each.default for each in fixed if each.name not in FREE | {"self"})
        and config["mid_block_type"] is None
        and isinstance(config["attention_head_dim"], int)
        and {*config["down_block_types"], *config["up_block_types"]} <= BLOCKS
        and unet.conv_in.weight.device.type == "cpu"
    )


def _norm_silu(norm: Any, hidden: Tensor) -> Tensor:
    """SiLU after a group norm."""
    settings = norm.weight, norm.bias, norm.num_groups, norm.eps
    result: Tensor = GroupNormSilu.apply(hidden.contiguous(), *settings)  # type: ignore[no-untyped-call]
    return result


def _resnet(block: Any, hidden: Tensor, embedded: Tensor) -> Tensor:
    """A ResnetBlock2D, given the activated time embedding, batch × dim."""
    result = block.conv1(_norm_silu(block.norm1, hidden))
    result.add_(block.time_emb_proj(embedded)[:, :, None, None])
    result = block.conv2(_norm_silu(block.norm2, result))
    added: Tensor = result.add_(hidden if block.conv_shortcut is None else block.conv_shortcut(hidden))
    return added


def _attended(block: Any, number: int, hidden: Tensor, states: Tensor) -> Tensor:
    """The block's Transformer2DModel ``number``, where it has any."""
    attentions = getattr(block, "attentions", None)
    if attentions is None:
        return hidden
    model = attentions[number]
    tokens = model.norm(hidden).flatten(2).transpose(1, 2)
    tokens = functional.linear(tokens, model.proj_in.weight.flatten(1), model.proj_in.bias)
    for layer in model.transformer_blocks:
        normed = layer.norm1(tokens)
        tokens = _attention(layer.attn1, normed, normed).add_(tokens)
        tokens = _attention(layer.attn2, layer.norm2(tokens), states).add_(tokens)
        gated = Geglu.apply(layer.ff.net[0].proj(layer.norm3(tokens)))  # type: ignore[no-untyped-call]
        tokens = layer.ff.net[2](gated).add_(tokens)
    result = functional.linear(tokens, model.proj_out.weight.flatten(1), model.proj_out.bias)
    return hidden + result.transpose(1, 2).reshape(hidden.shape)


def _attention(layer: Any, tokens: Tensor, states: Tensor) -> Tensor:
    """Attention of ``tokens`` (batch × tokens × dim) to ``states``, with its output layer."""
    weights = [layer.to_k.weight, layer.to_v.weight]
    if states is tokens:
        query, key, value = functional.linear(tokens, torch.cat([layer.to_q.weight, *weights])).chunk(3, -1)
    else:
        query = layer.to_q(tokens)
        key, value = functional.linear(states, torch.cat(weights)).chunk(2, -1)
    if layer.heads > 1:
        query, key, value = (_heads_apart(each, layer.heads) for each in (query, key, value))
    scores = torch.bmm(query * layer.scale, key.transpose(1, 2))
    mixed = torch.bmm(scores.softmax(-1), value)
    if layer.heads > 1:
        mixed = mixed.view(len(tokens), layer.heads, *mixed.shape[1:]).transpose(1, 2).flatten(2)
    result: Tensor = layer.to_out[0](mixed)
    return result


def _heads_apart(tokens: Tensor, heads: int) -> Tensor:
    """Batch × tokens × (heads · depth) to (batch · heads) × tokens × depth."""
    batch, places, _ = tokens.shape
    return tokens.reshape(batch, places, heads, -1).transpose(1, 2).flatten(0, 1)
