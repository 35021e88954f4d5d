"""Kernels of prepared layers all compute the same; the fastest one is chosen, and chosen again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.architecture import Architecture, StageSpec
from models.deploy import autotune as tuning
from models.deploy import prepare
from models.deploy.autotune import Layer, autotune, inputs_of
from models.deploy.fused import FusedConvFFN
from models.deploy.kernels import BY_SIZE, ONEDNN_LINEAR, FastLinear, Kernel
from models.deploy.onnx import record_onnx
from models.hilo import HiLo
from models.litv2 import ConvFFN, build
from tests.support.networks import NETWORKS, enliven


def feed_forward(dim: int) -> FusedConvFFN:
    layer = prepare(ConvFFN(dim, 4 * dim))
    assert isinstance(layer, FusedConvFFN)
    return layer


ATTENTION = [HiLo(48, 6, 2, 0.5), HiLo(48, 6, 2, 0.0), HiLo(48, 6, 4, 1.0), HiLo(48, 6, 1, 1.0)]
EXAMPLES = [
    pytest.param(feed_forward(48), torch.randn(4, 16, 16, 48), id="feed-forward"),
    *(pytest.param(prepare(layer), torch.randn(4, 28, 28, 48), id=f"attention-{n}") for n, layer in enumerate(ATTENTION)),
    pytest.param(prepare(nn.Linear(64, 96)), torch.randn(3, 5, 64), id="linear"),
]


@torch.no_grad()
@pytest.mark.parametrize(("layer", "x"), EXAMPLES)
def test_every_kernel_computes_the_same(layer: Layer, x: Tensor) -> None:
    plain, *others = layer.kernels(x)
    layer.kernel = plain
    expected = layer(x)
    for kernel in others:
        layer.kernel = kernel
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert len({str(kernel) for kernel in layer.kernels(x)}) == 1 + len(others)
    assert others or (isinstance(layer, FastLinear) and ONEDNN_LINEAR is None)


@torch.no_grad()
def test_what_may_be_large_has_chunks_to_choose_from() -> None:
    layer = feed_forward(8)
    assert {kernel.chunks for kernel in layer.kernels(torch.randn(8, 32, 32, 8))} == {1, 2, 4}
    assert layer.kernels(torch.randn(1, 4, 4, 8)) == [Kernel(chunks=1)]


@torch.no_grad()
@pytest.mark.parametrize("architecture", NETWORKS)
def test_outputs_stay(architecture: Architecture) -> None:
    model, x = enliven(build(architecture, num_classes=5)).eval(), torch.randn(2, 3, 70, 70)
    torch.testing.assert_close(prepare(model, x)(x), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_layer_is_chosen_for(architecture: Architecture) -> None:
    model, x = prepare(build(architecture)), torch.randn(1, 3, 32, 32)
    chosen = autotune(model, x)
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    assert all(layer.kernel in layer.kernels(x) for layer, x in inputs_of_chosen(model, x).items())
    assert 0 < len(chosen) <= len(layers)
    assert any(name.startswith("feed-forward") for name in chosen)
    assert any(name.startswith("HiLo") for name in chosen)


def inputs_of_chosen(model: nn.Module, x: Tensor) -> dict[Layer, Tensor]:
    chosen = {layer: layer.kernel for layer in model.modules() if isinstance(layer, Layer)}
    with torch.no_grad():
        inputs, _ = inputs_of(partial(model, x), list(chosen))
    for layer, kernel in chosen.items():
        layer.kernel = kernel
    return inputs


def test_known_choices_are_taken_without_timing(architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 3, 32, 32)
    chosen = autotune(prepare(build(architecture)), x)
    monkeypatch.setattr(tuning, "time_layers", None)  # not called
    assert autotune(prepare(build(architecture)), x, chosen) == chosen
    assert autotune(prepare(build(architecture)), x, {**chosen, "another layer": "MKL"}) == chosen


def test_choice_that_does_not_exist_here_is_made_anew(architecture: Architecture) -> None:
    x = torch.randn(1, 3, 32, 32)
    chosen = autotune(prepare(build(architecture)), x)
    again = autotune(prepare(build(architecture)), x, dict.fromkeys(chosen, "GPU"))
    assert set(again) == set(chosen)
    assert "GPU" not in again.values()


def test_layers_that_are_alike_share_a_choice() -> None:
    stages = (StageSpec(3), StageSpec(2), StageSpec(1), StageSpec(1))
    chosen = autotune(prepare(build(Architecture(8, stages, patch_size=4))), torch.randn(1, 3, 64, 64))
    deeper = autotune(prepare(build(Architecture(8, (StageSpec(6), *stages[1:]), patch_size=4))), torch.randn(1, 3, 64, 64))
    assert set(deeper) == set(chosen)


class Times:
    """Seconds that layers take by their kernels, noisy and on a machine that slows down; takes the place of a clock."""

    def __init__(self, seconds: dict[Kernel, float], noise: float = 0.02, seed: int = 0) -> None:
        self.seconds, self.noise, self.rng = seconds, noise, np.random.default_rng(seed)
        self.num_passes = 0

    def __call__(self, run: Callable[[], Any], layers: Sequence[Layer]) -> dict[Layer, float]:
        run()
        self.num_passes += 1
        slow = 1 + self.num_passes / 100
        return {
            layer: slow * self.seconds[layer.kernel] * np.exp(self.noise * self.rng.standard_normal()) for layer in layers
        }


@torch.no_grad()
@pytest.mark.parametrize("best", [0.7, 0.9, 0.97, 1.0, 1.2])
def test_kernel_that_is_clearly_faster_is_chosen(best: float, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = feed_forward(48), torch.randn(4, 16, 16, 48)
    plain, *others = layer.kernels(x)
    monkeypatch.setattr(tuning, "time_layers", Times({plain: 1.0, **dict.fromkeys(others, 1.3), others[-1]: best}))
    tuning.choose_kernels({layer: x}, partial(layer, x), num_passes=40, known={})
    assert layer.kernel == (others[-1] if best < tuning.MAX_RATIO else plain)


@torch.no_grad()
def test_noise_alone_rarely_replaces_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = feed_forward(48), torch.randn(4, 16, 16, 48)
    plain, *others = layer.kernels(x)
    chosen = []
    for seed in range(60):
        times = Times({plain: 1.0, **dict.fromkeys(others, 1.02)}, noise=0.05, seed=seed)
        monkeypatch.setattr(tuning, "time_layers", times)
        tuning.choose_kernels({layer: x}, partial(layer, x), num_passes=0, known={})
        chosen.append(layer.kernel)
    assert chosen.count(plain) > 50


def test_layer_that_the_example_does_not_reach_is_computed_by_its_size(architecture: Architecture) -> None:
    model = prepare(build(architecture))

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.used = model, prepare(nn.Linear(4, 8))

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    part = Part()
    assert list(autotune(part, torch.randn(2, 4))) == ["linear to 8 with bias, input 2x4"]
    assert {module.kernel for module in model.modules() if isinstance(module, Layer)} == {BY_SIZE}


def test_kernels_are_left_as_they_were_if_the_model_fails(architecture: Architecture) -> None:
    model = prepare(build(architecture))
    with pytest.raises(RuntimeError):
        autotune(model, torch.randn(1, 5, 32, 32))
    assert {module.kernel for module in model.modules() if isinstance(module, Layer)} == {BY_SIZE}


@torch.no_grad()
def test_tuned_model_exports_like_any_other(architecture: Architecture) -> None:
    model, x = build(architecture).eval(), torch.randn(2, 3, 32, 32)
    tuned = prepare(model, x)
    program = torch.export.export(tuned, (x,)).module()
    torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
    assert record_onnx(tuned, x) == record_onnx(prepare(model), x)


@torch.no_grad()
def test_number_of_passes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = feed_forward(48), torch.randn(4, 16, 16, 48)
    kernels = layer.kernels(x)
    for num_passes, most in ((60, 60), (0, 6 * len(kernels)), (10**6, 41 * len(kernels))):
        times = Times(dict.fromkeys(kernels, 1.0))
        monkeypatch.setattr(tuning, "time_layers", times)
        tuning.choose_kernels({layer: x}, partial(layer, x), num_passes, known={})
        assert 6 * len(kernels) <= times.num_passes <= most


def test_layers_are_timed_where_they_are(architecture: Architecture) -> None:
    model, x = prepare(build(architecture)), torch.randn(1, 3, 32, 32)
    layers = [module for module in model.modules() if isinstance(module, FusedConvFFN)]
    with torch.no_grad():
        seconds = tuning.time_layers(partial(model, x), layers)
    assert set(seconds) == set(layers)
    assert all(value > 0 for value in seconds.values())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_kernel_has_a_name_for_each_choice() -> None:
    kernel = Kernel(onednn=True, chunks=4, fused=False)
    assert str(kernel) == "4 chunks, oneDNN, apart"
    assert str(replace(kernel, onednn=False, fused=True)) == "4 chunks, default"
    assert str(Kernel(chunks=1)) == "whole"
