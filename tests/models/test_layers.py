"""Layers with an implementation of their own equal those of torch and torchvision, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from models import kernels
from models.depthwise import DepthwiseConv
from models.kernels import Linear
from models.layers import DeformConv, ImagePatchConv, PatchConv
from models.litv2 import ConvFFN


def assert_alike(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> None:
    """Outputs, and gradients to the input and to every parameter."""
    results = []
    for function in (ours, theirs):
        module.zero_grad()
        inputs = x.clone().requires_grad_()
        out = function(inputs)
        (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
        results.append([out, inputs.grad, *(p.grad for p in module.parameters())])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def channels_first(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 2), (2, 7), (5, 1), (3, 3), (8, 5)])
def test_depthwise_convolution(shape: tuple[int, int]) -> None:
    layer = DepthwiseConv(12)
    x = torch.randn(3, *shape, 12)
    theirs = channels_first(lambda x: F.conv2d(x, layer.weight, layer.bias, padding=1, groups=12))
    assert_alike(layer, theirs, x, layer)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), theirs(x))


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


@pytest.mark.parametrize(("patch_size", "side", "dims"), [(2, 8, (4, 8)), (2, 7, (4, 8)), (4, 18, (3, 6)), (2, 2, (32, 64))])
def test_patch_convolution(patch_size: int, side: int, dims: tuple[int, int]) -> None:
    layer = PatchConv(*dims, patch_size)
    theirs = channels_first(lambda x: F.conv2d(x, layer.weight, layer.bias, stride=patch_size))
    assert_alike(layer, theirs, torch.randn(2, side, side, dims[0]), layer)


@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_image_patch_convolution(size: tuple[int, int]) -> None:
    layer = ImagePatchConv(3, 6, patch_size=4)
    x = torch.randn(2, 3, *size)
    assert_alike(layer, lambda x: F.conv2d(x, layer.weight, layer.bias, stride=4).permute(0, 2, 3, 1), x, layer)


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("side", [2, 7, 10])
def test_deformable_convolution(side: int, spread: float) -> None:
    layer = DeformConv(6, 12)
    nn.init.normal_(layer.conv_offset.weight, 0, spread)
    nn.init.normal_(layer.conv_offset.bias, 0, spread)
    theirs = channels_first(
        lambda x: deform_conv2d(
            x, F.conv2d(x, *layer.conv_offset.parameters(), stride=2), layer.weight, layer.bias, stride=2
        )
    )
    x = torch.randn(2, side, side, 6)
    if spread == 0.0:  # at whole positions the gradient to an offset may be that of either side
        torch.testing.assert_close(layer(x), theirs(x))
    else:
        assert_alike(layer, theirs, x, layer)


def test_no_position_is_too_far_to_read() -> None:
    layer = DeformConv(2, 4)
    nn.init.constant_(layer.conv_offset.bias, 1e30)
    assert torch.equal(layer(torch.randn(1, 4, 4, 2)), layer.bias.expand(1, 2, 2, 4))


def test_not_a_number_stays_one() -> None:
    layer = DeformConv(2, 4)
    nn.init.constant_(layer.conv_offset.bias, float("nan"))
    assert layer(torch.randn(1, 4, 4, 2)).isnan().all()


def test_large_products() -> None:
    layer = Linear(2048, 2048)
    x = torch.randn(2, 3, 2048)
    assert x.numel() * 2048 < kernels.LARGE_PRODUCT < 8 * x.numel() * 2048
    with torch.no_grad():
        for tokens in (x, x.repeat(8, 1, 1), x.repeat(8, 1, 1).transpose(0, 1)):
            torch.testing.assert_close(layer(tokens), F.linear(tokens, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_large_products_keep_to_what_is_asked() -> None:
    layer = Linear(2048, 2048)
    x = torch.randn(16, 2048)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert layer.double()(x.double()).dtype is torch.float64
    assert kernels.linear(torch.randn(8192), torch.randn(8192, 8192), None).shape == (8192,)


def test_feed_forward_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ConvFFN(10, 30)
    x = torch.randn(2, 6, 5, 10)
    whole = layer(x)
    monkeypatch.setattr(kernels, "CHUNK_SIZE", 500)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole)


def test_feed_forward_asks_layers_that_were_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ConvFFN(4, 8)
    layer.fc1 = nn.Sequential(layer.fc1, nn.Hardtanh(0, 1))  # type: ignore[assignment]
    x = torch.randn(1, 3, 3, 4)
    whole = layer(x)
    monkeypatch.setattr(kernels, "CHUNK_SIZE", 10)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole)
