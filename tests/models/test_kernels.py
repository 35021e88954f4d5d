"""Kernels for inference on a CPU compute the same as the plain layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.complexity import count_macs
from models.deploy import kernels, prepare
from models.deploy.kernels import FastLinear
from models.hilo import HiLo
from models.litv2 import ConvFFN


def test_large_products_are_equal() -> None:
    layer = FastLinear(2048, 2048)
    x = torch.randn(2, 3, 2048)
    assert x.numel() * 2048 < kernels.LARGE_PRODUCT < 8 * x.numel() * 2048
    with torch.no_grad():
        for tokens in (x, x.repeat(8, 1, 1), x.repeat(8, 1, 1).transpose(0, 1)):
            torch.testing.assert_close(layer(tokens), F.linear(tokens, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_large_products_keep_dtype_and_shape() -> None:
    layer = FastLinear(2048, 2048)
    x = torch.randn(16, 2048)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert layer.double()(x.double()).dtype is torch.float64
    assert kernels.linear(torch.randn(8192), torch.randn(8192, 8192), None).shape == (8192,)


@torch.no_grad()
def test_feed_forward_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = ConvFFN(10, 30), torch.randn(2, 6, 5, 10)
    fast = prepare(layer)
    assert torch.equal(fast(x), layer(x))
    monkeypatch.setattr(kernels, "CHUNK_SIZE", 500)
    torch.testing.assert_close(fast(x), layer(x))


@torch.no_grad()
def test_feed_forward_in_chunks_calls_layers_that_were_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = ConvFFN(4, 8), torch.randn(1, 3, 3, 4)
    layer.fc1 = nn.Sequential(layer.fc1, nn.Hardtanh(0, 1))  # type: ignore[assignment]
    fast = prepare(layer)
    monkeypatch.setattr(kernels, "CHUNK_SIZE", 10)
    torch.testing.assert_close(fast(x), layer(x))


@torch.no_grad()
def test_attention_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = HiLo(8, 2, window_size=2, alpha=0.5), torch.randn(5, 3, 4, 8)
    fast = prepare(layer)
    whole = fast(x)
    monkeypatch.setattr(kernels, "CHUNK_SIZE", 200)
    torch.testing.assert_close(fast(x), whole)


@torch.no_grad()
def test_large_products_without_the_private_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = FastLinear(2048, 2048), torch.randn(16, 2048)
    monkeypatch.setattr(kernels, "ONEDNN_SCHEMA", "mkldnn::_linear_pointwise(Tensor X, Tensor W) -> Tensor Y")
    assert kernels._find_onednn_linear() is None
    monkeypatch.setattr(kernels, "ONEDNN_LINEAR", None)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_large_products_are_counted() -> None:
    assert count_macs(FastLinear(2048, 2048), (16, 2048)) == 16 * 2048 * 2048


@torch.no_grad()
def test_large_products_compile_in_one_graph() -> None:
    layer, x = FastLinear(2048, 2048), torch.randn(16, 2048)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
