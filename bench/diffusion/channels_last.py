"""The U-Net's forward and backward pass with channels innermost in memory: same weights and function, rounding apart.

``ChannelsLastUNet`` computes what ``bench.diffusion.fast_unet`` computes, for any number of attention heads, and is
faster where convolutions take most of the time (16×16 pixels). It differs in this:

- Every picture lies as batch × rows × columns × channels, which convolutions read without reordering and which is
  also how attention wants its tokens; a 1×1 convolution is a product.
- Group norms are made of column sums and one multiply-add, as torch's own are slow in this layout; a whole residual
  block is one step of autograd.
- Upsampling and the convolution after it are one transposed convolution of 4×4, 4/9 of the multiplications: with
  nearest neighbours two of three rows of the 3×3 kernel fall on the same pixel.
- Heads are computed as channels × tokens, where the products of narrow heads run three times as fast.
- The time projections of all residual blocks are one product; so are the keys and values that all layers make of the
  prompt.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, cast

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bench.diffusion.fast_unet import FastUNet, covers, walked

Tokens = Float[Tensor, "batch _places _channels"]
Picture = Float[Tensor, "batch _channels _rows _columns"]
FOLDED = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""Which rows of a 3×3 kernel fall on each row of the 4×4 kernel of the transposed convolution."""


class Norm(NamedTuple):
    """A group norm of given inputs: y = scale · x + shift for each picture and channel; all are batch × channels."""

    mean: Tensor
    rstd: Tensor
    scale: Tensor
    shift: Tensor


@cache
def averages(channels: int, groups: int, places: int) -> Float[Tensor, "channels channels"]:
    """The matrix that takes column sums over ``places`` to their group's mean, for each channel of the group."""
    width = channels // groups
    return torch.eye(groups).repeat_interleave(width, 0).repeat_interleave(width, 1) / (width * places)


def normed(inputs: Tokens, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tokens, Norm]:
    """The group norm of ``inputs``, and what its gradient needs."""
    _, places, channels = inputs.shape
    average = averages(channels, groups, places)
    mean = inputs.sum(1) @ average
    rstd = (inputs.square().sum(1) @ average).addcmul_(mean, mean, value=-1).add_(eps).rsqrt_()
    scale = rstd * weight
    shift = torch.addcmul(bias, mean, scale, value=-1)
    return torch.addcmul(shift[:, None], inputs, scale[:, None]), Norm(mean, rstd, scale, shift)


def norm_gradient(
    gradient: Tokens, inputs: Tokens, weight: Tensor, norm: Norm, groups: int
) -> tuple[Tokens, Tensor, Tensor]:
    """Gradients of the group norm's inputs, weight and bias."""
    _, places, channels = inputs.shape
    average = weight[:, None] * averages(channels, groups, places)
    total = gradient.sum(1)
    dotted = (gradient * inputs).sum(1).addcmul_(total, norm.mean, value=-1).mul_(norm.rstd)
    slope = (dotted @ average).mul_(norm.rstd)
    offset = (total @ average).addcmul_(slope, norm.mean, value=-1).mul_(norm.rstd)
    slope.mul_(norm.rstd)
    result = (gradient * norm.scale[:, None]).addcmul_(inputs, slope[:, None], value=-1).sub_(offset[:, None])
    return result, dotted.sum(0), total.sum(0)


class GroupNorm(torch.autograd.Function):
    """A group norm of tokens."""

    @staticmethod
    def forward(ctx: Any, inputs: Tokens, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tokens:
        """The normed tokens."""
        result, norm = normed(inputs, weight, bias, groups, eps)
        ctx.save_for_backward(inputs, weight, *norm)
        ctx.groups = groups
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, weight and bias."""
        inputs, weight, *norm = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        return (*norm_gradient(gradient, inputs, weight, Norm(*norm), ctx.groups), None, None)


class Residual(torch.autograd.Function):
    """A ResnetBlock2D: norm, SiLU, convolution, time, norm, SiLU, convolution, and the shortcut."""

    @staticmethod
    def forward(ctx: Any, inputs: Picture, time: Tensor, groups: int, eps: float, *weights: Any) -> Picture:
        """``time`` is batch × channels, the first convolution's bias included; ``weights`` as in ``_residual``."""
        weight1, bias1, kernel1, weight2, bias2, kernel2, bias, shortcut = weights
        before1, norm1 = normed(_tokens(inputs), weight1, bias1, groups, eps)
        active1 = functional.silu(before1)
        middle = _convolved(_picture(active1, inputs), kernel1)
        tokens = _tokens(middle).add_(time[:, None])
        before2, norm2 = normed(tokens, weight2, bias2, groups, eps)
        active2 = functional.silu(before2)
        result = _convolved(_picture(active2, middle), kernel2, bias)
        if shortcut is None:
            _tokens(result).add_(_tokens(inputs))
        else:
            _tokens(result).flatten(0, 1).addmm_(_tokens(inputs).flatten(0, 1), shortcut.flatten(1).t())
        ctx.save_for_backward(
            inputs, before1, active1, middle, before2, active2, weight1, kernel1, weight2, kernel2, shortcut,
            *norm1, *norm2,
        )  # fmt: skip
        ctx.groups = groups
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all that ``forward`` was given but the two settings."""
        inputs, before1, active1, middle, before2, active2, *weights = ctx.saved_tensors[:11]
        weight1, kernel1, weight2, kernel2, shortcut = weights
        norm1, norm2 = Norm(*ctx.saved_tensors[11:15]), Norm(*ctx.saved_tensors[15:])
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        rows = _tokens(gradient).flatten(0, 1)
        to_active, to_kernel2 = _convolution_gradient(gradient, _picture(active2, middle), kernel2)
        to_before = torch.ops.aten.silu_backward(_tokens(to_active), before2)
        to_middle, to_weight2, to_bias2 = norm_gradient(to_before, _tokens(middle), weight2, norm2, ctx.groups)
        to_active, to_kernel1 = _convolution_gradient(_picture(to_middle, middle), _picture(active1, inputs), kernel1)
        to_before = torch.ops.aten.silu_backward(_tokens(to_active), before1)
        result, to_weight1, to_bias1 = norm_gradient(to_before, _tokens(inputs), weight1, norm1, ctx.groups)
        to_shortcut = None
        if shortcut is None:
            result.add_(_tokens(gradient))
        else:
            result.flatten(0, 1).addmm_(rows, shortcut.flatten(1))
            to_shortcut = (rows.t() @ _tokens(inputs).flatten(0, 1)).view_as(shortcut)
        return (
            _picture(result, inputs), to_middle.sum(1), None, None,
            to_weight1, to_bias1, to_kernel1, to_weight2, to_bias2, to_kernel2, rows.sum(0), to_shortcut,
        )  # fmt: skip


class Attention(torch.autograd.Function):
    """softmax(Q Kᵀ / sqrt(d)) V of every head, computed as channels × tokens."""

    @staticmethod
    def forward(ctx: Any, queries: Tokens, others: Tokens, heads: int) -> Tokens:
        """Queries, batch × places × width, and keys and values side by side, batch × tokens × 2 width."""
        batch, places, width = queries.shape
        depth = width // heads
        query = queries.transpose(1, 2).contiguous().view(batch * heads, depth, places)
        pair = others.unflatten(2, (2, width)).permute(2, 0, 3, 1).contiguous()
        key, value = (each.view(batch * heads, depth, -1) for each in pair)
        scores = torch.baddbmm(query.new_empty(()), query.transpose(1, 2), key, beta=0, alpha=depth**-0.5)
        shares = scores.softmax(-1)
        ctx.save_for_backward(query, key, value, shares)
        mixed = torch.bmm(value, shares.transpose(1, 2))
        return mixed.view(batch, width, places).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of queries and of keys and values."""
        query, key, value, shares = ctx.saved_tensors
        batch, places, width = gradients[0].shape
        alpha, tokens = query.shape[1] ** -0.5, key.shape[2]
        gradient = gradients[0].transpose(1, 2).contiguous().view_as(query)
        to_shares = torch.bmm(gradient.transpose(1, 2), value)
        to_scores = torch.ops.aten._softmax_backward_data(to_shares, shares, -1, shares.dtype)
        none, pair = query.new_empty(()), query.new_empty(2, *key.shape)
        to_query = torch.baddbmm(none, key, to_scores.transpose(1, 2), beta=0, alpha=alpha)
        torch.baddbmm(none, query, to_scores, beta=0, alpha=alpha, out=pair[0])
        torch.bmm(gradient, shares, out=pair[1])
        to_others = pair.view(2, batch, width, tokens).permute(1, 3, 0, 2).reshape(batch, tokens, 2 * width)
        return to_query.view(batch, width, places).transpose(1, 2).contiguous(), to_others, None


class Geglu(torch.autograd.Function):
    """a b (1 + erf b) = sqrt(2) a · GELU(sqrt(2) b), of inputs (a, b) side by side."""

    @staticmethod
    def forward(ctx: Any, inputs: Tokens) -> Tokens:
        """a b (1 + erf b): batch × tokens × 2 width to batch × tokens × width."""
        value, gate = inputs.chunk(2, -1)
        error = gate.erf()
        ctx.save_for_backward(inputs, error)
        product = value * gate
        return product.addcmul_(product, error)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Gradient of inputs."""
        inputs, error = ctx.saved_tensors
        value, gate = inputs.chunk(2, -1)
        result = torch.empty_like(inputs)
        to_value, to_gate = result.chunk(2, -1)
        product = gradients[0] * gate
        torch.addcmul(product, product, error, out=to_value)
        torch.mul(gradients[0], value, out=product)
        bell = gate.square().neg_().exp_().mul_(gate)
        torch.addcmul(product, product, error, out=to_gate).addcmul_(product, bell, value=2 / torch.pi**0.5)
        return result


class ChannelsLastUNet(FastUNet):
    """The same with channels innermost."""

    def predicted(self, noisy: Picture, embedded: Tensor, states: Tensor) -> Picture:
        """The prediction, given the activated time embedding, batch × dim."""
        unet = self.unet
        blocks = [*unet.down_blocks, *unet.up_blocks]
        times = _times([resnet for block in blocks for resnet in block.resnets], embedded)
        prompts = _prompts([layer for block in blocks for layer in _layers(block)], states)
        hidden = walked(
            unet,
            unet.conv_in(noisy.contiguous(memory_format=torch.channels_last)),
            residual=lambda resnet, hidden: _residual(resnet, hidden, times),
            attended=lambda block, number, hidden: _attended(block, number, hidden, prompts),
            upsampled=_upsampled,
        )
        tokens = functional.silu(_group_norm(unet.conv_norm_out, _tokens(hidden)), inplace=True)
        return cast(Tensor, unet.conv_out(_picture(tokens, hidden)))


def channels_last_forward(unet: UNet2DConditionModel) -> nn.Module:
    """``unet`` with this forward pass where it is covered, otherwise ``unet`` itself."""
    return ChannelsLastUNet(unet) if covers(unet) else unet


def _tokens(picture: Picture) -> Tokens:
    """A view of a picture whose channels are innermost."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)


def _picture(tokens: Tokens, like: Picture) -> Picture:
    """A view of tokens with the rows and columns of ``like``."""
    return tokens.view(len(tokens), *like.shape[2:], -1).permute(0, 3, 1, 2)


def _convolved(picture: Picture, kernel: Tensor, bias: Tensor | None = None) -> Picture:
    """The 3×3 convolution."""
    return functional.conv2d(picture, kernel, bias, padding=1).contiguous(memory_format=torch.channels_last)


def _convolution_gradient(gradient: Picture, inputs: Picture, kernel: Tensor) -> tuple[Picture, Tensor]:
    """Gradients of the inputs and of the kernel of a 3×3 convolution."""
    ones, none = [1, 1], [0, 0]
    results = torch.ops.aten.convolution_backward(
        gradient, inputs, kernel, None, ones, ones, ones, False, none, 1, [True, True, False]
    )
    return results[0].contiguous(memory_format=torch.channels_last), results[1]


def _upsampled(convolution: Any, hidden: Picture) -> Picture:
    """The 3×3 convolution of ``hidden`` at twice its size (nearest neighbours), as one transposed convolution."""
    folded = FOLDED.to(hidden.dtype)
    kernel = torch.matmul(torch.matmul(folded, convolution.weight), folded.t()).transpose(0, 1)
    made = functional.conv_transpose2d(hidden, kernel, stride=2, padding=1)
    return made.add_(convolution.bias[:, None, None])


def _times(resnets: list[Any], embedded: Float[Tensor, "batch dim"]) -> dict[int, Tensor]:
    """What each residual block adds for the time and as its first convolution's bias, by the block's id."""
    layers = [resnet.time_emb_proj for resnet in resnets]
    bias = torch.cat([resnet.time_emb_proj.bias + resnet.conv1.bias for resnet in resnets])
    made = functional.linear(embedded, torch.cat([layer.weight for layer in layers]), bias)
    parts = made.split([len(layer.bias) for layer in layers], 1)
    return {id(resnet): part for resnet, part in zip(resnets, parts, strict=True)}


def _layers(block: Any) -> list[Any]:
    """All transformer layers of a block."""
    return [layer for model in getattr(block, "attentions", []) for layer in model.transformer_blocks]


def _prompts(layers: list[Any], states: Float[Tensor, "batch tokens dim"]) -> dict[int, Tensor]:
    """Keys and values, side by side, that each layer makes of the prompt, by the layer's id."""
    if not layers:
        return {}
    weights = [weight for layer in layers for weight in (layer.attn2.to_k.weight, layer.attn2.to_v.weight)]
    parts = functional.linear(states, torch.cat(weights)).split([2 * len(weight) for weight in weights[::2]], 2)
    return {id(layer): part for layer, part in zip(layers, parts, strict=True)}


def _group_norm(norm: Any, tokens: Tokens) -> Tokens:
    """A GroupNorm."""
    return cast(Tensor, GroupNorm.apply(tokens, norm.weight, norm.bias, norm.num_groups, norm.eps))  # type: ignore[no-untyped-call]


def _residual(block: Any, hidden: Picture, times: dict[int, Tensor]) -> Picture:
    """A ResnetBlock2D."""
    norm1, norm2, bias, shortcut = block.norm1, block.norm2, block.conv2.bias, None
    if block.conv_shortcut is not None:
        bias, shortcut = bias + block.conv_shortcut.bias, block.conv_shortcut.weight
    result = Residual.apply(  # type: ignore[no-untyped-call]
        hidden, times[id(block)], norm1.num_groups, norm1.eps, norm1.weight, norm1.bias, block.conv1.weight,
        norm2.weight, norm2.bias, block.conv2.weight, bias, shortcut,
    )  # fmt: skip
    return cast(Tensor, result)


def _attended(block: Any, number: int, hidden: Picture, prompts: dict[int, Tensor]) -> Picture:
    """The block's Transformer2DModel ``number``, where it has any."""
    attentions = getattr(block, "attentions", None)
    if attentions is None:
        return hidden
    model = attentions[number]
    tokens = _group_norm(model.norm, _tokens(hidden))
    tokens = functional.linear(tokens, model.proj_in.weight.flatten(1), model.proj_in.bias)
    for layer in model.transformer_blocks:
        own, given = layer.attn1, layer.attn2
        weights = torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight])
        width = len(own.to_q.weight)
        made = functional.linear(layer.norm1(tokens), weights).split([width, 2 * width], 2)
        tokens = own.to_out[0](_heads(made[0], made[1], own.heads)).add_(tokens)
        queries = given.to_q(layer.norm2(tokens))
        tokens = given.to_out[0](_heads(queries, prompts[id(layer)], given.heads)).add_(tokens)
        tokens = _fed_forward(layer.ff.net[0].proj, layer.ff.net[2], layer.norm3(tokens)).add_(tokens)
    result = functional.linear(tokens, model.proj_out.weight.flatten(1), model.proj_out.bias)
    return _picture(result.add_(_tokens(hidden)), hidden)


def _fed_forward(first: Any, second: Any, tokens: Tokens) -> Tokens:
    """``second`` of a · GELU(b) of (a, b) = ``first``; constant factors of the activation go into the weights."""
    half = 0.5**0.5
    scale = torch.ones_like(first.bias)
    scale[len(scale) // 2 :] = half
    made = functional.linear(tokens, first.weight * scale[:, None], first.bias * scale)
    gated = Geglu.apply(made)  # type: ignore[no-untyped-call]
    return functional.linear(gated, second.weight * half, second.bias)


def _heads(queries: Tokens, others: Tokens, heads: int) -> Tokens:
    """Attention of queries to keys and values side by side."""
    return cast(Tensor, Attention.apply(queries, others, heads))  # type: ignore[no-untyped-call]
