"""EfficientNet-Lite0 (Tan & Le, 2019, arXiv 1905.11946; the Lite variant has no squeeze-and-excitation and ReLU6).

Written here in plain PyTorch, so that the weights that ship in a package can be used without a model library. Layers
are padded as TensorFlow does ("same"): at stride 2 the odd pixel goes to the right and to the bottom.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))  # fmt: skip
"""Of each stage: expansion, channels, blocks, stride of the first block, kernel."""
STEM, HEAD = 32, 1280
NORM_EPS = 1e-3


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has ceil(size / stride) rows and columns."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d rows columns"]:
        """Pad, then convolve."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in images.shape[-2:])
        padded = functional.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2))
        return functional.conv2d(padded, self.weight, None, self.stride, groups=self.groups)


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self.expand_conv, self.bn0 = SameConv(inputs, inner, 1), nn.BatchNorm2d(inner, NORM_EPS)
        self.depthwise_conv, self.bn1 = SameConv(inner, inner, kernel, stride, inner), nn.BatchNorm2d(inner, NORM_EPS)
        self.project_conv, self.bn2 = SameConv(inner, outputs, 1), nn.BatchNorm2d(outputs, NORM_EPS)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d rows columns"]:
        """With a skip connection where the shapes allow it."""
        inner = functional.relu6(self.bn0(self.expand_conv(images))) if self.expands else images
        inner = functional.relu6(self.bn1(self.depthwise_conv(inner)))
        output: Tensor = self.bn2(self.project_conv(inner))
        return output + images if self.skips else output


class EfficientNetLite0(nn.Module):
    """Images to the 1,280 features before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, STEM, 3, 2), nn.BatchNorm2d(STEM, NORM_EPS)
        blocks, inputs = [], STEM
        for expansion, outputs, repeats, stride, kernel in STAGES:
            for index in range(repeats):
                blocks.append(Block(inputs, outputs, expansion, stride if index == 0 else 1, kernel))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = SameConv(inputs, HEAD, 1), nn.BatchNorm2d(HEAD, NORM_EPS)

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 1280"]:
        """Mean over positions of the last layer."""
        inner = self.blocks(functional.relu6(self.bn0(self.conv_stem(images))))
        return torch.mean(functional.relu6(self.bn1(self.conv_head(inner))), (2, 3))
