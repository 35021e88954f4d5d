"""Convolutions with an implementation of their own equal those of torch and torchvision, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d

from models.layers import DeformConv, ImagePatchConv, PatchConv
from tests.support.gradients import assert_same_gradients, channels_first


@pytest.mark.parametrize(("patch_size", "side", "dims"), [(2, 8, (4, 8)), (2, 7, (4, 8)), (4, 18, (3, 6)), (2, 2, (32, 64))])
def test_patch_convolution(patch_size: int, side: int, dims: tuple[int, int]) -> None:
    layer = PatchConv(*dims, patch_size)
    reference = channels_first(lambda x: F.conv2d(x, layer.weight, layer.bias, stride=patch_size))
    assert_same_gradients(layer, reference, torch.randn(2, side, side, dims[0]))


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_image_patch_convolution(size: tuple[int, int]) -> None:
    layer = ImagePatchConv(3, 6, patch_size=4)
    x = torch.randn(2, 3, *size)
    assert_same_gradients(layer, lambda x: F.conv2d(x, layer.weight, layer.bias, stride=4).permute(0, 2, 3, 1), x)


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("side", [2, 7, 10])
def test_deformable_convolution(side: int, spread: float) -> None:
    layer = DeformConv(6, 12)
    nn.init.normal_(layer.conv_offset.weight, 0, spread)
    nn.init.normal_(layer.conv_offset.bias, 0, spread)
    reference = channels_first(
        lambda x: deform_conv2d(
            x, F.conv2d(x, *layer.conv_offset.parameters(), stride=2), layer.weight, layer.bias, stride=2
        )
    )
    x = torch.randn(2, side, side, 6)
    if spread == 0.0:  # at whole positions the gradient to an offset may be that of either side
        torch.testing.assert_close(layer(x), reference(x))
    else:
        assert_same_gradients(layer, reference, x)


def test_no_position_is_too_far_to_read() -> None:
    layer = DeformConv(2, 4)
    nn.init.constant_(layer.conv_offset.bias, 1e30)
    assert torch.equal(layer(torch.randn(1, 4, 4, 2)), layer.bias.expand(1, 2, 2, 4))


def test_not_a_number_stays_one() -> None:
    layer = DeformConv(2, 4)
    nn.init.constant_(layer.conv_offset.bias, float("nan"))
    assert layer(torch.randn(1, 4, 4, 2)).isnan().all()
