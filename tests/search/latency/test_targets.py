"""Every latency target keeps the contract, and its own promises."""

from __future__ import annotations

import dataclasses
import os
import shutil
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from models.architecture import Architecture, StageSpec
from models.litv2 import build
from search.latency.base import Calibration
from search.latency.cpu import CpuTarget
from search.latency.cpu_compiled import CompiledCpuTarget
from search.latency.cuda import CudaTarget
from search.latency.machine import Usage, keep_to, pin
from search.latency.onnxruntime import OnnxRuntimeTarget
from search.latency.openvino import OpenVinoTarget
from search.latency.target import ConversionError, Network, PairedTarget, check_parity, disturbance, require
from tests.contracts.latency_target import *  # noqa: F403
from tests.contracts.latency_target import LARGE, SMALL
from tests.support.networks import enliven

SETTINGS: dict[str, Any] = {
    "img_size": 32, "in_chans": 1, "num_classes": 10, "batch_size": 1, "num_threads": 1, "dtype": "float32",
    "prepared": True, "tolerance": 0.05, "max_seconds": 2.0, "calibration_seconds": 0.5,
}  # fmt: skip
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
TARGETS = [
    CpuTarget,
    OnnxRuntimeTarget,
    pytest.param(OpenVinoTarget, marks=pytest.mark.slow),
    pytest.param(CompiledCpuTarget, marks=[pytest.mark.slow, needs_compiler]),
    pytest.param(CudaTarget, marks=needs_gpu),
    pytest.param(partial(CudaTarget, cuda_graph=True), marks=needs_gpu),
]
CONVERTED = [OnnxRuntimeTarget, OpenVinoTarget, pytest.param(CompiledCpuTarget, marks=[pytest.mark.slow, needs_compiler])]


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> PairedTarget:
    made: PairedTarget = request.param(**SETTINGS)
    return made


def with_live_offsets(architecture: Architecture) -> nn.Module:
    return enliven(build(architecture, in_chans=1, num_classes=10)).eval()


@pytest.mark.parametrize("make", CONVERTED)
def test_converted_network_computes_the_same(make: Any) -> None:
    architecture = dataclasses.replace(LARGE, downsample="dtm")
    ready = make(**SETTINGS).make_ready(Network(partial(with_live_offsets, architecture), (1, 32, 32)))
    assert ready.parity is not None
    assert ready.parity <= 1e-4
    assert ready.prepare_seconds > 0


class Reversed(nn.Module):
    """No runtime takes it: what it does depends on its input's values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1) if x.sum().item() > 0 else x


@pytest.mark.parametrize("make", CONVERTED)
def test_model_that_cannot_be_converted_is_a_failure(make: Any) -> None:
    with pytest.raises(ConversionError, match="cannot take this model"):
        make(**SETTINGS).make_ready(Network(Reversed, (1, 8, 8)))


def test_wrong_outputs_are_never_timed() -> None:
    model, x = nn.Linear(4, 4), torch.rand(2, 4)
    right = model(x).detach()
    assert check_parity("onnxruntime", model, x, right, "float32") < 1e-6
    with pytest.raises(ConversionError, match="outputs differ by"):
        check_parity("onnxruntime", model, x, right * 1.001, "float32")
    with pytest.raises(ConversionError, match="outputs differ by nan"):
        check_parity("onnxruntime", model, x, right * float("nan"), "float32")


@pytest.fixture(scope="module")
def cpu() -> CpuTarget:
    return CpuTarget(**SETTINGS)


def test_uses_the_threads_it_names(cpu: CpuTarget) -> None:
    torch.set_num_threads(2)
    cpu.calibrate(LARGE)
    assert torch.get_num_threads() == 1
    assert cpu.timer().scatter()
    if hasattr(os, "sched_setaffinity"):
        assert len(os.sched_getaffinity(0)) == 1


def test_networks_are_measured_as_deployed_or_as_trained(cpu: CpuTarget) -> None:
    for prepared in (True, False):
        target = dataclasses.replace(cpu, prepared=prepared)
        modules = target._model(target._network(SMALL)).modules()
        assert any(isinstance(one, nn.BatchNorm2d) for one in modules) != prepared


def test_bfloat16_is_measured(cpu: CpuTarget) -> None:
    half = dataclasses.replace(cpu, dtype="bfloat16")
    assert half.measure(SMALL, half.calibrate(SMALL)).repetitions > 1


class Seeing(nn.Identity):
    """Keeps the shapes of its inputs."""

    shapes: ClassVar[set[torch.Size]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.add(x.shape)
        return x


def test_networks_get_batches_of_the_size_asked_for(cpu: CpuTarget) -> None:
    dataclasses.replace(cpu, batch_size=8).make_ready(Network(Seeing, (1, 32, 32)))
    assert Seeing.shapes == {(8, 1, 32, 32)}


def test_peak_memory_holds_the_weights(cpu: CpuTarget) -> None:
    wide = Architecture(256, (StageSpec(1, 1, 1.0, 8),) * 4, patch_size=2, downsample="conv")
    model = build(wide, in_chans=1, num_classes=10)
    weights = sum(p.numel() for p in model.parameters()) * 4
    peak = cpu.make_ready(Network(lambda: model, (1, 32, 32))).peak_bytes
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert 0.9 * weights < peak < 4 * weights


def test_several_networks_are_timed_in_turn(cpu: CpuTarget) -> None:
    calibration = cpu.calibrate(SMALL)
    networks = [Network(partial(build, a, in_chans=1, num_classes=10), (1, 32, 32)) for a in (SMALL, LARGE)]
    first, second = cpu.time([cpu.make_ready(network) for network in networks], calibration)
    assert first.high_ms < second.low_ms


def test_pins_itself_and_comes_back() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system pins nothing")
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one core")
    try:
        pin(sorted(before), 1)
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_usage_sees_this_process_and_not_as_others() -> None:
    before = Usage(all_seconds=10.0, own_seconds=5.0)
    assert Usage(14.0, 7.0).others_since(before, 2.0) == pytest.approx(1.0)
    assert Usage(12.0, 7.0).others_since(before, 2.0) == 0.0


def test_disturbance_says_what_to_do() -> None:
    assert disturbance(1.1, 0.0, 1, 2) == ""
    assert "latency.num_threads=1" in disturbance(9.0, 1.0, 2, 2)
    assert "2.0 times" in disturbance(2.0, 1.5, 1, 2)
    assert disturbance(1.1, 0.1, 2, 2) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("num_threads", -1),
        ("tolerance", 0.0),
        ("max_seconds", -3.0),
        ("dtype", "float64"),
        ("tolerance", 0.01),
        ("cores", [999]),
        ("cores", 3),
    ],
)
def test_impossible_settings_name_the_value(cpu: CpuTarget, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"latency\.{name}=\[?{value}"):
        dataclasses.replace(cpu, **{name: value})


def test_missing_extra_is_named() -> None:
    with pytest.raises(ValueError, match=r"latency=openvino needs the package no-such-package.*hilo-nas\[openvino\]"):
        require("no-such-package", "openvino", "openvino")


def test_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="latency=cuda needs an NVIDIA GPU"):
        CudaTarget(**SETTINGS)


def test_keeps_to_the_cores_it_is_given() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system pins nothing")
    before = os.sched_getaffinity(0)
    try:
        target = CpuTarget(**SETTINGS, cores=[max(before)])
        first = target.fingerprint()
        target.calibrate(SMALL)
        assert os.sched_getaffinity(0) == {max(before)}
        assert target.fingerprint() == first  # also once it is pinned
        assert first["cores"] == len(before)
    finally:
        keep_to(sorted(before))


@pytest.mark.slow
@needs_compiler
def test_compiling_a_network_leaves_the_others_compiled() -> None:
    target = CompiledCpuTarget(**SETTINGS)
    first = target.make_ready(Network(partial(build, SMALL, in_chans=1, num_classes=10), (1, 32, 32)))
    target.make_ready(Network(partial(build, LARGE, in_chans=1, num_classes=10), (1, 32, 32)))
    graphs = counters["stats"]["unique_graphs"]
    first.copies[0]()
    assert counters["stats"]["unique_graphs"] == graphs


def test_head_of_zeros_is_compared_too() -> None:
    model, x = nn.Linear(4, 4), torch.rand(2, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert check_parity("onnxruntime", model, x, torch.zeros(2, 4), "float32") == 0


def test_slower_machine_is_noticed(cpu: CpuTarget) -> None:
    calibration = cpu.calibrate(SMALL)
    faster = Calibration.from_dict({**calibration.to_dict(), "anchor_ms": calibration.anchor_ms / 10})
    latency = cpu.measure(LARGE, faster)
    assert latency.slowdown > 3
    assert "when calibrated" in latency.warning
