"""Convolutions of LITv2 whose stride is their kernel, plain and deformable, on maps whose channels come last.

Each is a matrix product of patches. Parameters and results are those of `torch.nn.Conv2d` and of deformable convolution
("Deformable Convolutional Networks", Sec. 2.1, arXiv 1703.06211).

Shape letters: B batch, H and W map, C channels, k kernel = stride, h = H // k and w = W // k map after the convolution.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn


@register_notrace_module  # with its subclasses: torch.fx does not know the size of the map
class PatchConv(nn.Conv2d):
    """Convolution whose stride is its kernel, as a matrix product of patches, which is faster than convolving.

    Rows and columns that fill no patch are left out, as by any convolution without padding.

    Args:
        in_dim: Number of channels of the input.
        out_dim: Number of channels of the output.
        patch_size: Kernel and stride, in pixels.
    """

    def __init__(self, in_dim: int, out_dim: int, patch_size: int) -> None:
        super().__init__(in_dim, out_dim, kernel_size=patch_size, stride=patch_size)
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a map.

        Args:
            x: Map as `patches` takes it.

        Returns:
            (B, h, w, out_dim).
        """
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (out_dim, k, k, C) -> (out_dim, k * k * C)
        return F.linear(self.patches(x).flatten(-2), weight, self.bias)

    def patches(self, x: Tensor) -> Tensor:
        """Cut a map into patches.

        Args:
            x: Map, (B, H, W, C).

        Returns:
            Pixels of each patch, (B, h, w, k * k, C).
        """
        size, (batch, height, width, dim) = self.patch_size, x.shape
        rows, columns = height // size, width // size
        x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, dim)
        x = x.transpose(2, 3)  # (B, h, w, k, k, C)
        return x.reshape(batch, rows, columns, size * size, dim)


class ImagePatchConv(PatchConv):
    """`PatchConv` of an image, whose channels come first."""

    def patches(self, x: Tensor) -> Tensor:
        """Cut an image into patches.

        Args:
            x: Image, (B, C, H, W).

        Returns:
            Pixels of each patch, (B, h, w, k * k, C).
        """
        size, (batch, dim, height, width) = self.patch_size, x.shape
        rows, columns = height // size, width // size
        x = x[:, :, : rows * size, : columns * size].reshape(batch, dim, rows, size, columns, size)
        x = x.permute(0, 2, 4, 3, 5, 1)  # (B, h, w, k, k, C)
        return x.reshape(batch, rows, columns, size * size, dim)


class DeformConv(PatchConv):
    """2x2 stride-2 deformable convolution; its offsets come from a convolution that starts at zero.

    Args:
        in_dim: Number of channels of the input.
        out_dim: Number of channels of the output.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, patch_size=2)
        self.conv_offset = PatchConv(in_dim, 2 * 2 * 2, patch_size=2)  # a (y, x) pair for each pixel of a patch
        self.reset_offset()

    def reset_offset(self) -> None:
        """Set the offsets to zero, where the layer is a plain convolution."""
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(cast(Tensor, self.conv_offset.bias))

    def patches(self, x: Tensor) -> Tensor:
        """Sample the patches of a map at their offsets.

        Args:
            x: Map, (B, H, W, C).

        Returns:
            Pixels of each patch, (B, h, w, 4, C).
        """
        return sample_patches(x, self.conv_offset(x))


def sample_patches(x: Tensor, offsets: Tensor) -> Tensor:
    """Read the pixels of 2x2 patches where their offsets point, by bilinear interpolation; zero outside of the map.

    Rows of channels are gathered, which vectorises, unlike torchvision's deform_conv2d on a CPU.

    Args:
        x: Map, (B, H, W, C).
        offsets: (B, h, w, 8), a (y, x) pair for each pixel of a patch, as in `torchvision.ops.deform_conv2d`.

    Returns:
        Pixels of each patch, (B, h, w, 4, C).
    """
    batch, height, width, dim = x.shape
    rows, columns = offsets.shape[1:3]
    precise = torch.promote_types(offsets.dtype, torch.float32)  # bfloat16 cannot count to a map's side
    offset = offsets.to(precise).reshape(batch, rows, columns, 2, 2, 2)  # (B, h, w, 2, 2, (y, x))
    y_near, y_weight = _neighbours(offset[..., 0], _grid(rows, x).view(rows, 1, 2, 1), height)
    x_near, x_weight = _neighbours(offset[..., 1], _grid(columns, x).view(columns, 1, 2), width)
    image = torch.arange(0, batch * height * width, height * width, device=x.device).view(-1, 1, 1, 1, 1)
    pixels = x.reshape(-1, dim)
    sampled: Tensor | None = None
    for i in (0, 1):
        for j in (0, 1):
            index = image + y_near[i] * width + x_near[j]  # (B, h, w, 2, 2)
            weight = (y_weight[i] * x_weight[j]).to(x.dtype).reshape(-1, 1)
            corner = pixels.index_select(0, index.reshape(-1)) * weight  # (B * h * w * 4, C)
            sampled = corner if sampled is None else sampled + corner
    return cast(Tensor, sampled).view(batch, rows, columns, 4, dim)


def _grid(count: int, like: Tensor) -> Tensor:
    """Positions of the pixels of `count` 2-pixel patches along one axis, (count, 2)."""
    return torch.arange(2 * count, device=like.device, dtype=torch.float32).view(count, 2)


def _neighbours(offset: Tensor, grid: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two pixels beside each position along one axis, and their weights: zero for a pixel off the map."""
    position = offset + grid
    first = position.floor()
    fraction = position - first
    second = first + 1
    weights = (1 - fraction) * (first >= 0) * (first < side), fraction * (second >= 0) * (second < side)
    # Converted before clamping: not-a-number becomes some pixel then, with a weight that is not a number either.
    return (first.long().clamp(0, side - 1), second.long().clamp(0, side - 1)), weights
