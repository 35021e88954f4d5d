"""3x3 depthwise convolution of maps whose channels come last.

The forward pass is that of `torch.nn.functional.conv2d`. On small maps the backward pass is another one, `SmallMapConv`.

Shape letters: B batch, H and W map, C channels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

SMALL_MAP = 2  # side up to which oneDNN's weight gradient of a padded 3x3 convolution falls back to a slow loop


@register_notrace_module  # chooses by the size of the map, which torch.fx does not know
class DepthwiseConv(nn.Conv2d):
    """3x3 convolution of each channel by itself, padded with zeros.

    Args:
        dim: Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a map.

        Args:
            x: Map, (B, H, W, C).

        Returns:
            Map of the same shape.
        """
        bias = cast(Tensor, self.bias)
        height, width = x.shape[1:3]
        if height == width == 1:  # the other eight weights meet padding only
            return x * self.weight[:, 0, 1, 1] + bias
        if min(height, width) <= SMALL_MAP and torch.is_grad_enabled():
            return cast(Tensor, SmallMapConv.apply(x, self.weight, bias))
        return depthwise_conv(x, self.weight, bias)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each channel by itself with a 3x3 kernel.

    Args:
        x: Map, (B, H, W, C).
        weight: Kernels, (C, 1, 3, 3).
        bias: (C,), or None.

    Returns:
        Map of the same shape as `x`.
    """
    x = x.permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory: no copy
    return F.conv2d(x, weight, bias, padding=1, groups=len(weight)).permute(0, 2, 3, 1)  # (B, H, W, C)


class SmallMapConv(torch.autograd.Function):
    """`depthwise_conv` whose weight gradient on a CPU is nine elementwise products, one for each weight of the kernel.

    Networks for small images end in maps of 1 or 2 tokens a side. There oneDNN computes the weight gradient of a padded
    convolution in a slow loop: for 64 maps of 2x2x256 it takes 0.91 ms, the nine products take 0.19 ms.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], _output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = depthwise_conv(grad, weight.flip(2, 3).to(grad.dtype), None)
        grad_weight = product_weight_gradient(x, grad) if x.device.type == "cpu" else conv_weight_gradient(x, grad)
        return grad_x, grad_weight, grad.sum((0, 1, 2))


def product_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Compute the weight gradient of `depthwise_conv` by elementwise products.

    Args:
        x: Input, (B, H, W, C).
        grad: Gradient of the output, (B, H, W, C).

    Returns:
        (C, 1, 3, 3).
    """
    height, width = x.shape[1:3]
    taps = []  # gradient of each of the nine weights, (C,)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            inputs = x[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
            outputs = grad[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            taps.append((inputs * outputs).sum((0, 1, 2)))
    return torch.stack(taps, 1).view(-1, 1, 3, 3)


def conv_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Compute the weight gradient of `depthwise_conv` as autograd does; arguments and result as above."""
    x, grad = (tensor.permute(0, 3, 1, 2) for tensor in (x.to(grad.dtype), grad))  # (B, C, H, W)
    dim = x.shape[1]
    return conv2d_weight(x, (dim, 1, 3, 3), grad, padding=1, groups=dim)  # type: ignore[no-any-return, no-untyped-call]
