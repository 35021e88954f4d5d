"""HiLo and LITv2 equal the implementations from the paper's formulas in benchmarks/plain.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.plain import PlainHiLo, PlainLITv2
from models.architecture import Architecture, StageSpec
from models.deploy import prepare
from models.hilo import HiLo
from models.litv2 import build
from tests.support.networks import NETWORKS, enliven

LAYERS = [  # side of the map, dim, heads, window size, alpha
    (14, 24, 12, 2, 0.9), (14, 24, 12, 2, 0.5), (9, 12, 3, 4, 0.34), (7, 16, 4, 1, 1.0), (4, 16, 4, 4, 0.5),
    (1, 8, 2, 1, 1.0), (2, 8, 2, 2, 1.0), (5, 8, 2, 2, 0.0), (1, 8, 2, 2, 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("side", "dim", "heads", "window", "alpha"), LAYERS)
def test_hilo(side: int, dim: int, heads: int, window: int, alpha: float) -> None:
    torch.manual_seed(0)
    ours, plain = HiLo(dim, heads, window, alpha), PlainHiLo(dim, heads, window, alpha)
    plain.load_state_dict(ours.state_dict())
    assert_same_gradients(ours, plain, torch.randn(2, side, side, dim))


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("img_size", [32, 70])
def test_litv2(architecture: Architecture, img_size: int) -> None:
    ours = enliven(build(architecture, num_classes=5))
    plain = PlainLITv2(architecture, num_classes=5)
    plain.load_state_dict(ours.state_dict())
    assert_same_gradients(ours.train(), plain.train(), torch.randn(3, 3, img_size, img_size))
    ours, plain = ours.float(), plain.float()
    with torch.inference_mode():
        x = torch.randn(2, 3, img_size, img_size)
        torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


def test_large_map() -> None:
    architecture = Architecture(
        32, (StageSpec(1, 0), StageSpec(1, 2, 0.5, 2), StageSpec(1, 4, 0.5, 4), StageSpec(1, 1, 1.0, 8))
    )
    ours, plain = enliven(build(architecture)).eval(), PlainLITv2(architecture).eval()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 320, 288)
    with torch.inference_mode():
        expected = plain(x)
        for form in (ours, prepare(ours)):  # prepared, its layers are computed in chunks
            torch.testing.assert_close(form(x), expected, rtol=1e-5, atol=1e-5)


def assert_same_gradients(ours: nn.Module, plain: nn.Module, x: torch.Tensor) -> None:
    """Assert equal outputs and gradients in float64; for a parameter without gradient the plain gradient has to be zero."""
    results = []
    for module in (ours.double(), plain.double()):
        inputs = x.double().requires_grad_()
        out = module(inputs)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append((out, inputs.grad, dict(module.named_parameters())))
    (out, grad, parameters), (expected_out, expected_grad, expected_parameters) = results
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(grad, expected_grad)
    assert parameters.keys() == expected_parameters.keys()
    for name, parameter in parameters.items():
        expected = expected_parameters[name].grad
        assert expected is not None
        actual = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")
