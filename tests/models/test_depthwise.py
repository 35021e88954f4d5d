"""Depthwise convolution equals torch's, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.depthwise import DepthwiseConv, conv_weight_gradient, product_weight_gradient
from tests.support.gradients import assert_same_gradients, channels_first


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 2), (2, 7), (5, 1), (3, 3), (8, 5)])
def test_depthwise_convolution(shape: tuple[int, int]) -> None:
    layer = DepthwiseConv(12)
    x = torch.randn(3, *shape, 12)
    reference = channels_first(lambda x: F.conv2d(x, layer.weight, layer.bias, padding=1, groups=12))
    assert_same_gradients(layer, reference, x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), reference(x))


def test_depthwise_convolution_of_a_small_map_in_mixed_precision() -> None:
    layer, x = DepthwiseConv(12), torch.randn(3, 2, 2, 12)
    layer(x).sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (2, 5), (4, 3)])
def test_weight_gradients_are_equal(shape: tuple[int, int]) -> None:
    x, grad = torch.randn(2, 3, *shape, 12)
    torch.testing.assert_close(product_weight_gradient(x, grad), conv_weight_gradient(x, grad), rtol=1e-4, atol=1e-4)


def test_other_devices_take_their_own_weight_gradient() -> None:
    with torch.device("meta"):
        layer, x = DepthwiseConv(12), torch.randn(3, 2, 2, 12, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(parameter.grad is not None and parameter.grad.shape == parameter.shape for parameter in layer.parameters())
