"""Prepared models compute the same, and can be compiled; test_onnx.py exports them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn

from models.architecture import Architecture
from models.deploy import prepare
from models.hilo import HiLo
from models.litv2 import LITv2, build
from tests.support.networks import NETWORKS, enliven


@pytest.fixture(autouse=True)
def _reset_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> LITv2:
    architecture: Architecture = request.param
    return enliven(build(architecture, num_classes=5)).eval()


@torch.no_grad()
@pytest.mark.parametrize("img_size", [32, 70])
def test_same_outputs(model: LITv2, img_size: int) -> None:
    x = torch.randn(2, 3, img_size, img_size)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)
    torch.testing.assert_close(prepare(model)(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(x), expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_nothing_is_left_to_train_or_to_fold(model: LITv2) -> None:
    prepared = prepare(model.train())
    assert not prepared.training
    assert model.training
    assert not any(p.requires_grad for p in prepared.parameters())
    assert not any(isinstance(module, nn.BatchNorm2d) or type(module) is HiLo for module in prepared.modules())


@torch.no_grad()
def test_prepared_twice_is_prepared_once(model: LITv2) -> None:
    once = prepare(model)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(prepare(once)(x), once(x))


@torch.no_grad()
def test_layer_without_biases() -> None:
    layer = HiLo(16, 4, window_size=2, alpha=0.5, qkv_bias=False).eval()
    for side in (2, 5):
        x = torch.randn(2, side, side, 16)
        torch.testing.assert_close(prepare(layer)(x), layer(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_any_model_is_taken(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(prepare(model)(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_inference_compiles_in_one_graph(model: LITv2) -> None:
    x = torch.randn(2, 3, 70, 70)
    expected = model(x)
    for form, backend in ((model, "eager"), (prepare(model), "aot_eager")):
        compiled = torch.compile(form, backend=backend, fullgraph=True)  # raises where the graph would break
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)


def test_training_is_one_graph(model: LITv2) -> None:
    assert_same_step(model, "eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
def test_training_compiles() -> None:
    assert_same_step(enliven(build(NETWORKS[0], num_classes=5)), "inductor")


def assert_same_step(model: LITv2, backend: str) -> None:
    """Assert that a compiled training step, of a single graph, has the gradients of the model."""
    model.train().double()
    x = torch.randn(2, 3, 32, 32).double()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    gradients = []
    for function in (model, compiled):
        model.zero_grad()
        function(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)
