"""Every latency target of this machine passes the contract, and has behaviour of its own."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from models.architecture import Architecture, StageSpec
from models.deploy import autotune
from models.litv2 import build
from search.latency.base import Calibration, Latency
from search.latency.cpu import RUNTIME as CPU
from search.latency.cpu import cpu_target
from search.latency.cpu_compiled import compiled_cpu_target
from search.latency.cuda import cuda_target
from search.latency.executorch import executorch_target
from search.latency.machine import keep_to
from search.latency.onnxruntime import onnxruntime_target
from search.latency.openvino import openvino_target
from search.latency.protocol import Run
from search.latency.runtime import ConversionError, Form
from search.latency.target import Network, PairedTarget
from tests.contracts.latency_target import *  # noqa: F403
from tests.contracts.latency_target import LARGE, SMALL
from tests.support.commands import ROOT
from tests.support.networks import enliven

SETTINGS: dict[str, Any] = {
    "img_size": 32, "in_chans": 1, "num_classes": 10, "batch_size": 1, "num_threads": 1, "dtype": "float32",
    "prepared": True, "tolerance": 0.05, "max_seconds": 2.0, "calibration_seconds": 0.5,
}  # fmt: skip
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
needs_executorch = pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def int8_target(**settings: Any) -> PairedTarget:
    return onnxruntime_target(**{**settings, "dtype": "int8"})


TARGETS = [
    cpu_target,
    onnxruntime_target,
    int8_target,
    pytest.param(openvino_target, marks=pytest.mark.slow),
    pytest.param(compiled_cpu_target, marks=[pytest.mark.slow, needs_compiler]),
    pytest.param(executorch_target, marks=needs_executorch),
    pytest.param(cuda_target, marks=needs_gpu),
    pytest.param(partial(cuda_target, cuda_graph=True), marks=needs_gpu),
]
CONVERTED = [
    onnxruntime_target,
    openvino_target,
    pytest.param(executorch_target, marks=needs_executorch),
    pytest.param(compiled_cpu_target, marks=[pytest.mark.slow, needs_compiler]),
]


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> PairedTarget:
    target: PairedTarget = request.param(**SETTINGS)
    return target


def with_live_offsets(architecture: Architecture) -> nn.Module:
    return enliven(build(architecture, in_chans=1, num_classes=10)).eval()


def network_of(architecture: Architecture) -> Network:
    return Network(partial(build, architecture, in_chans=1, num_classes=10), (1, 32, 32))


@pytest.mark.parametrize("make", CONVERTED)
def test_converted_network_computes_the_same(make: Any) -> None:
    architecture = dataclasses.replace(LARGE, downsample="dtm")
    ready = make(**SETTINGS).make_ready(Network(partial(with_live_offsets, architecture), (1, 32, 32)))
    assert ready.loaded.parity is not None
    assert ready.loaded.parity <= 1e-4
    assert ready.prepare_seconds > 0


@pytest.mark.parametrize("make", [onnxruntime_target, openvino_target])
def test_int8_network_computes_the_same_as_rounded_in_pytorch(make: Any) -> None:
    architecture = dataclasses.replace(LARGE, downsample="dtm")
    target = make(**{**SETTINGS, "dtype": "int8"})
    parity = target.make_ready(Network(partial(with_live_offsets, architecture), (1, 32, 32))).loaded.parity
    assert parity is not None
    assert parity < 0.05


def test_other_models_are_quantised_with_their_convolutions() -> None:
    ready = {
        dtype: onnxruntime_target(**{**SETTINGS, "dtype": dtype}).make_ready(CONVOLUTIONS) for dtype in ("float32", "int8")
    }
    assert ready["float32"].loaded.parity < 1e-4 < ready["int8"].loaded.parity < 0.1
    assert ready["int8"].loaded.file_bytes < 0.4 * ready["float32"].loaded.file_bytes


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 64, 3),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


CONVOLUTIONS = Network(convolutions, (1, 32, 32))


def test_network_is_measured_at_the_image_size_that_it_has() -> None:
    shapes: list[tuple[int, ...]] = []
    plain = cpu_target(**SETTINGS)

    def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Any:
        shapes.append(tuple(x.shape))
        return plain.runtime.convert(model, x, dtype, num_threads)

    target = PairedTarget(plain.settings, dataclasses.replace(plain.runtime, convert=convert), plain.host)
    for size in (None, 16, 64):
        target.make_ready(target._network(dataclasses.replace(SMALL, img_size=size)))
    assert shapes == [(1, 1, 32, 32), (1, 1, 16, 16), (1, 1, 64, 64)]


class Reversed(nn.Module):
    """No runtime takes it: what it does depends on its input's values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(-1) if x.sum().item() > 0 else x


@pytest.mark.parametrize("make", CONVERTED)
def test_model_that_cannot_be_converted_is_a_failure(make: Any) -> None:
    with pytest.raises(ConversionError, match="cannot take this model"):
        make(**SETTINGS).make_ready(Network(Reversed, (1, 8, 8)))


@pytest.fixture
def cpu() -> PairedTarget:
    return cpu_target(**SETTINGS)


def test_uses_the_threads_it_names(cpu: PairedTarget) -> None:
    torch.set_num_threads(2)
    cpu.calibrate(LARGE)
    assert torch.get_num_threads() == 1
    assert cpu.host.processor.timer(1).scatter()
    if hasattr(os, "sched_setaffinity"):
        assert len(os.sched_getaffinity(0)) == 1


@pytest.mark.parametrize("prepared", [True, False])
def test_networks_are_measured_as_deployed_or_as_trained(prepared: bool) -> None:
    target = cpu_target(**{**SETTINGS, "prepared": prepared})
    modules = target._model(network_of(SMALL)).modules()
    assert any(isinstance(module, nn.BatchNorm2d) for module in modules) != prepared


def test_bfloat16_is_measured() -> None:
    target = cpu_target(**{**SETTINGS, "dtype": "bfloat16"})
    calibration = target.calibrate(SMALL)
    assert target.measure(SMALL, calibration).repetitions > 1
    assert calibration.kernels is None


def test_kernels_that_were_chosen_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    target = cpu_target(**SETTINGS)
    calibration = target.calibrate(SMALL)
    first = target.measure(LARGE, calibration)
    assert calibration.kernels
    assert first.kernels
    monkeypatch.setattr(autotune, "time_layers", None)  # timing a layer would call it
    known = Calibration.from_dict(calibration.with_kernels_of(first).to_dict())
    again = cpu_target(**SETTINGS).measure(LARGE, known)
    assert again.kernels == first.kernels
    assert Latency.from_summary(again.summary()).kernels == first.kernels


def test_kernels_are_chosen_for_another_runtime_of_the_same_host() -> None:
    target = onnxruntime_target(**SETTINGS)
    assert target.calibrate(SMALL).kernels is None
    assert not target.make_ready(network_of(SMALL)).kernels
    assert target.make_ready(network_of(SMALL), Form(CPU, "float32")).kernels


def test_study_whose_kernels_were_not_chosen_goes_on_without() -> None:
    target = cpu_target(**SETTINGS)
    old = dataclasses.replace(target.calibrate(SMALL), kernels=None)
    assert "kernels" not in old.to_dict()
    assert "kernels" not in target.measure(LARGE, old).summary()


def test_networks_as_they_are_trained_have_no_kernels() -> None:
    assert cpu_target(**{**SETTINGS, "prepared": False}).calibrate(SMALL).kernels is None


class Seeing(nn.Identity):
    """Keeps the shapes of its inputs."""

    shapes: ClassVar[set[torch.Size]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.add(x.shape)
        return x


def test_networks_get_batches_of_the_requested_size() -> None:
    cpu_target(**{**SETTINGS, "batch_size": 8}).make_ready(Network(Seeing, (1, 32, 32)))
    assert Seeing.shapes == {(8, 1, 32, 32)}


def test_peak_memory_includes_the_weights(cpu: PairedTarget) -> None:
    wide = Architecture(256, (StageSpec(1, 1, 1.0, 8),) * 4, patch_size=2, downsample="conv")
    model = build(wide, in_chans=1, num_classes=10)
    weights = sum(p.numel() for p in model.parameters()) * 4
    peak = cpu.make_ready(Network(lambda: model, (1, 32, 32))).loaded.peak_bytes
    if peak is None:
        pytest.skip("this system does not report the peak memory of a process")
    assert 0.9 * weights < peak < 4 * weights


def test_small_networks_are_loaded_several_times_and_large_ones_once(cpu: PairedTarget) -> None:
    large = Network(lambda: nn.Linear(8000, 8000), (1, 1, 8000))  # 256 MB
    assert len(cpu.make_ready(network_of(SMALL)).loaded.copies) == 4
    assert len(cpu.make_ready(large).loaded.copies) == 1


def test_anything_that_runs_here_is_timed(cpu: PairedTarget) -> None:
    loads: list[Run] = []

    def load() -> Run:
        loads.append(partial(sum, range(10_000)))
        return loads[-1]

    (latency,) = cpu.time([cpu.ready(load)], cpu.calibrate(SMALL))
    assert len(loads) == 4
    assert latency.repetitions > 1
    assert latency.prepare_seconds == 0


def test_several_networks_are_timed_in_turn(cpu: PairedTarget) -> None:
    calibration = cpu.calibrate(SMALL)
    small, large = cpu.time([cpu.make_ready(network_of(architecture)) for architecture in (SMALL, LARGE)], calibration)
    assert small.high_ms < large.low_ms


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("num_threads", -1),
        ("tolerance", 0.0),
        ("max_seconds", -3.0),
        ("dtype", "float64"),
        ("prepared", 2),
        ("cores", [999]),
        ("cores", 3),
    ],
)
def test_invalid_settings_name_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"latency\.{name}=\[?{value}"):
        cpu_target(**{**SETTINGS, name: value})


def test_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="latency=cuda needs an NVIDIA GPU"):
        cuda_target(**SETTINGS)


def test_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="latency=cpu_compiled needs a C\\+\\+ compiler"):
        compiled_cpu_target(**SETTINGS)


def test_runs_on_the_given_cores() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot pin a process")
    before = os.sched_getaffinity(0)
    try:
        target = cpu_target(**SETTINGS, cores=[max(before)])
        fingerprint = target.fingerprint()
        target.calibrate(SMALL)
        assert os.sched_getaffinity(0) == {max(before)}
        assert target.fingerprint() == fingerprint  # also once it is pinned
        assert fingerprint["pinned"] == str(max(before))
        assert fingerprint["cores"] == len(before)
    finally:
        keep_to(sorted(before))


@pytest.mark.parametrize(("cuda_graph", "backend"), [(False, "torch eager"), (True, "torch eager, CUDA graph")])
def test_gpu_is_named_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch, cuda_graph: bool, backend: str) -> None:
    gpu = SimpleNamespace(name="GPU", multi_processor_count=132, total_memory=2**36)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    target = cuda_target(**SETTINGS, cuda_graph=cuda_graph)
    fingerprint = target.fingerprint()
    assert {key: fingerprint[key] for key in ("target", "device", "cores", "memory_mib", "backend")} == {
        "target": "cuda", "device": "GPU", "cores": 132, "memory_mib": 2**16, "backend": backend,
    }  # fmt: skip
    assert not target.runtime.runs_files


@pytest.mark.slow
@needs_compiler
def test_compiling_a_network_leaves_the_others_compiled() -> None:
    target = compiled_cpu_target(**SETTINGS)
    first = target.make_ready(network_of(SMALL))
    target.make_ready(network_of(LARGE))
    graphs = counters["stats"]["unique_graphs"]
    first.loaded.copies[0]()
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@needs_compiler
def test_compiled_network_has_one_copy_and_no_peak_memory() -> None:
    target = compiled_cpu_target(**SETTINGS)
    ready = target.make_ready(network_of(SMALL))
    assert len(ready.loaded.copies) == 1
    (latency,) = target.time([ready], target.calibrate(SMALL))
    assert latency.peak_bytes is None


def test_slower_machine_is_noticed(cpu: PairedTarget) -> None:
    calibration = cpu.calibrate(SMALL)
    faster = dataclasses.replace(calibration, estimate=calibration.estimate.scaled(0.1))
    latency = cpu.measure(LARGE, faster)
    assert latency.slowdown > 3
    assert "its calibrated latency" in latency.warning


def test_documented_runtime_is_measured() -> None:
    text = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Runtime(" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    target: PairedTarget = names["exported_target"](**SETTINGS)
    latency = target.measure(LARGE, target.calibrate(SMALL))
    assert latency.parity is not None
    assert target.fingerprint()["target"] == "exported"
