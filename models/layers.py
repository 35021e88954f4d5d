"""The linear layers and convolutions of LITv2 on maps whose channels come last, each computed as is fastest at its shape.

They keep the parameters and results of `torch.nn.Linear`, `torch.nn.Conv2d` and of deformable convolution (Dai et al.,
arXiv 1703.06211).

Shape letters: B batch, H and W map, C channels, h and w map after a strided convolution, k kernel = stride.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_ONEDNN = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
LARGE = 2**25  # multiply-accumulates from which oneDNN's product pays: a call of it takes 13 us more than one of MKL's
SMALL_MAP = 2  # side up to which oneDNN's weight gradient of a padded 3x3 convolution falls back to a slow loop
PIECE = 2**19  # numbers: 2 MB in float32


def num_pieces(size: int) -> int:
    """In how many pieces to compute so many numbers that only the next layer reads, for them to stay in a cache."""
    return -(-size // PIECE)


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """Whether there is no gradient, no compiler and no other device that would rather have a layer in one piece."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As torch.nn.functional.linear, but by oneDNN where it runs on a CPU without gradient, compiled or not.

    PyTorch takes MKL's matrix product there, which at LITv2-S's shapes on an AMD EPYC is 1.0 to 1.25 times slower and for
    which the bias is written first. Repacking the weights once would make LITv2-S 1.06 times as fast again, but they would
    then be kept twice or be lost to exporters.
    """
    # Asked first, for an exporter would take the size of its example for a limit of the batch.
    if not torch.compiler.is_exporting() and x.numel() * weight.shape[0] >= LARGE and is_for_onednn(x, weight):
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    return F.linear(x, weight, bias)


def is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether these are plain float32 tensors on a CPU, for which nobody wants gradients, another precision or a graph."""
    if not HAS_ONEDNN or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    is_plain = type(weight) in (Tensor, nn.Parameter)  # and not, say, quantised
    return is_plain and x.device.type == "cpu" and x.dtype is weight.dtype is torch.float32 and x.ndim > 1


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features). Returns (..., out_features)."""
        return linear(x, self.weight, self.bias)


class DepthwiseConv(nn.Conv2d):
    """3x3 convolution of each channel by itself, padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C). Returns the same shape."""
        bias = cast(Tensor, self.bias)
        height, width = x.shape[1:3]
        if height == width == 1:  # the other eight weights meet padding only
            return x * self.weight[:, 0, 1, 1] + bias
        if min(height, width) <= SMALL_MAP and x.device.type == "cpu" and torch.is_grad_enabled():
            return cast(Tensor, _SmallMapConv.apply(x, self.weight, bias))
        return depthwise(x, self.weight, bias)


class _SmallMapConv(torch.autograd.Function):
    """Depthwise convolution whose weight gradient is nine products: 5 times as fast as oneDNN's on 64 maps of 2x2x256."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], _output: Tensor) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        height, width = x.shape[1:3]
        taps = []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                seen = x[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
                made = grad[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
                taps.append((seen * made).sum((0, 1, 2)))
        grad_weight = torch.stack(taps, 1).view_as(weight)
        return depthwise(grad, weight.flip(2, 3).to(grad.dtype), None), grad_weight, grad.sum((0, 1, 2))


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: (B, H, W, C). weight: (C, 1, 3, 3). Returns the same shape as x."""
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(weight))  # channels last in memory: no copy
    return out.permute(0, 2, 3, 1)  # (B, H, W, C)


class PatchConv(nn.Conv2d):
    """Convolution whose stride is its kernel: a matrix product over patches, 1.1 to 2.2 times as fast as convolving.

    Rows and columns that fill no patch are left out, as by any convolution without padding.
    """

    def __init__(self, in_dim: int, out_dim: int, patch_size: int) -> None:
        super().__init__(in_dim, out_dim, kernel_size=patch_size, stride=patch_size)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """x: what `patches` takes. Returns (B, h, w, out_dim)."""
        return project(self.patches(x), self.weight, self.bias)

    def patches(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C). Returns what each output is a product of, (B, h, w, k * k, C)."""
        size, (batch, height, width, dim) = self.patch_size, x.shape
        rows, columns = height // size, width // size
        x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, dim)
        return x.transpose(2, 3).reshape(batch, rows, columns, size * size, dim)


class ImagePatchConv(PatchConv):
    """The same of an image, whose channels come first."""

    def patches(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W). Returns (B, h, w, k * k, C)."""
        size, (batch, dim, height, width) = self.patch_size, x.shape
        rows, columns = height // size, width // size
        x = x[:, :, : rows * size, : columns * size].reshape(batch, dim, rows, size, columns, size)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows, columns, size * size, dim)


class DeformConv(PatchConv):
    """2x2 stride-2 deformable convolution; its offsets, (y, x) pairs, come from a convolution that starts at zero."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, patch_size=2)
        self.conv_offset = PatchConv(in_dim, 2 * 2 * 2, patch_size=2)
        self.reset_offset()

    def reset_offset(self) -> None:
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(cast(Tensor, self.conv_offset.bias))

    def patches(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C). Returns (B, h, w, 4, C)."""
        return sample_patches(x, self.conv_offset(x))


def sample_patches(x: Tensor, offsets: Tensor) -> Tensor:
    """Patches of 2x2 pixels, each read where its offset points, between pixels by bilinear interpolation; zero outside.

    Rows of channels are gathered, which vectorises: 1.4 to 1.7 times as fast as torchvision's deform_conv2d on a CPU, a
    training step twice to three times.

    x: (B, H, W, C). offsets: (B, h, w, 8), a (y, x) pair for each pixel of a patch. Returns (B, h, w, 4, C).
    """
    batch, height, width, dim = x.shape
    rows, columns = offsets.shape[1:3]
    precise = torch.promote_types(offsets.dtype, torch.float32)  # bfloat16 cannot count to a map's side
    offset = offsets.to(precise).reshape(batch, rows, columns, 2, 2, 2)
    y_near, y_weight = _neighbours(offset[..., 0], _grid(rows, x).view(rows, 1, 2, 1), height)
    x_near, x_weight = _neighbours(offset[..., 1], _grid(columns, x).view(columns, 1, 2), width)
    image = torch.arange(0, batch * height * width, height * width, device=x.device).view(-1, 1, 1, 1, 1)
    pixels = x.reshape(-1, dim)
    sampled: Tensor | None = None
    for i in (0, 1):
        for j in (0, 1):
            index = image + y_near[i] * width + x_near[j]
            weight = (y_weight[i] * x_weight[j]).to(x.dtype).reshape(-1, 1)
            part = pixels.index_select(0, index.reshape(-1)) * weight
            sampled = part if sampled is None else sampled + part
    return cast(Tensor, sampled).view(batch, rows, columns, 4, dim)


def _grid(count: int, like: Tensor) -> Tensor:
    """Positions of the pixels of 2-pixel patches along one axis: (count, 2)."""
    return torch.arange(2 * count, device=like.device, dtype=torch.float32).view(count, 2)


def _neighbours(offset: Tensor, grid: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two pixels beside each position along one axis, and their shares in it: none for a pixel off the map."""
    position = offset + grid
    first = position.floor()
    share = position - first
    second = first + 1
    shares = (1 - share) * (first >= 0) * (first < side), share * (second >= 0) * (second < side)
    # Whole numbers first: not-a-number becomes some pixel then, with a share that is none either.
    return (first.long().clamp(0, side - 1), second.long().clamp(0, side - 1)), shares


def project(patches: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """patches: (B, h, w, k * k, C). weight: of the convolution, (out_dim, C, k, k). Returns (B, h, w, out_dim)."""
    if patches.numel() < weight.numel():  # bring the smaller one into the other's order
        return linear(patches.transpose(-1, -2).flatten(-2), weight.flatten(1), bias)
    return linear(patches.flatten(-2), weight.permute(0, 2, 3, 1).flatten(1), bias)
