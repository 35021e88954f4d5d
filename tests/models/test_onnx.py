"""A recorded ONNX file is the exported one to ONNX Runtime, and a network that cannot be recorded is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models.architecture import Architecture
from models.deploy import prepare
from models.deploy.int8 import calibrated
from models.deploy.onnx import NoOnnxForm, OnnxVersions, export_onnx, record_onnx
from models.deploy.onnx_int8 import quantise_onnx
from models.layers import DeformConv
from models.litv2 import LITv2, build
from tests.support.networks import NETWORKS, enliven


@dataclass(frozen=True)
class Files:
    """A network with both of its files. expected: its outputs for x."""

    model: LITv2
    x: Tensor
    expected: Tensor
    exported: Path
    recorded: Path


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda architecture: architecture.key)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Maps of 48 to 3 tokens a side: some are padded to whole windows, others are not."""
    folder = tmp_path_factory.mktemp("files")
    model = network(request.param)
    x, form = torch.randn(1, 3, 96, 96), prepare(model)
    export_onnx(form, torch.cat([x, x]), folder / "exported.onnx", any_batch=True)  # as search.export does
    (folder / "recorded.onnx").write_bytes(record_onnx(form, x))
    with torch.no_grad():
        return Files(model, x, model(x), folder / "exported.onnx", folder / "recorded.onnx")


def network(architecture: Architecture) -> LITv2:
    return enliven(build(architecture, num_classes=5)).eval()


def run(content: bytes | Path, x: Tensor, optimised: Path | None = None) -> Tensor:
    """Run a file in ONNX Runtime, which leaves the graph that it makes of it under `optimised`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a graph with fused layouts is for this machine alone, as it says
    options.optimized_model_filepath = str(optimised or "")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_file_for_an_older_runtime_computes_the_same(tmp_path: Path, architecture: Architecture) -> None:
    model, x, file = network(replace(architecture, downsample="dtm")), torch.randn(2, 3, 32, 32), tmp_path / "old.onnx"
    rounded = calibrated(prepare(model), [x])
    export_onnx(rounded.network, x, file, any_batch=True, versions=OnnxVersions(opset=18, ir_version=8))
    written = onnx.load(file)
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", 18)]
    assert written.ir_version == 8
    with torch.no_grad():
        torch.testing.assert_close(run(file, x), model(x), rtol=1e-4, atol=1e-5)
        int8 = run(quantise_onnx(file.read_bytes(), rounded.ranges), x)
        torch.testing.assert_close(int8, rounded(x), rtol=0, atol=0.05 * float(rounded(x).abs().max()))


def test_both_files_compute_what_the_network_does(files: Files) -> None:
    exported, recorded = run(files.exported, files.x), run(files.recorded, files.x)
    torch.testing.assert_close(exported, files.expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(recorded, exported, rtol=0, atol=1e-6)


def test_onnx_runtime_makes_the_same_graph_of_both_files(files: Files, tmp_path: Path) -> None:
    counts = []
    for file in (files.exported, files.recorded):
        run(file, files.x, tmp_path / file.name)
        nodes = onnx.load(tmp_path / file.name).graph.node
        counts.append(Counter((node.domain, node.op_type) for node in nodes))
    exported, recorded = counts
    assert recorded.total() > 100
    assert not recorded - exported
    # Deformable token merging numbers the images, which a recorded file has as a constant.
    num_deformable = sum(isinstance(module, DeformConv) for module in files.model.modules())
    assert (exported - recorded).total() <= 8 * num_deformable


def test_recorded_file_is_valid_and_keeps_no_idle_operator(files: Files) -> None:
    model = onnx.load(files.recorded)
    onnx.checker.check_model(model, full_check=True)
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    assert all(set(node.output) & read for node in model.graph.node)


def test_exported_graph_has_no_consecutive_transposes(files: Files) -> None:
    nodes = onnx.load(files.exported).graph.node
    producers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == "Transpose":
            producer = producers.get(node.input[0])
            while producer is not None and producer.op_type == "Reshape":
                producer = producers.get(producer.input[0])
            assert producer is None or producer.op_type != "Transpose", f"{node.name} transposes {producer.name}"


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("architecture", NETWORKS, ids=lambda architecture: architecture.key)
def test_networks_of_any_size_are_recorded(architecture: Architecture, num_classes: int) -> None:
    model = enliven(build(architecture, in_chans=1, num_classes=num_classes)).eval()
    for form, side, batch in itertools.product((model, prepare(model)), (32, 70), (1, 3)):
        x = torch.randn(batch, 1, side, side)
        with torch.no_grad():
            torch.testing.assert_close(run(record_onnx(form, x), x), model(x), rtol=1e-4, atol=1e-5)


def test_recording_leaves_the_network_as_it_is() -> None:
    model, x = prepare(network(NETWORKS[0])), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        first, second = record_onnx(model, x), record_onnx(model, x)
        assert torch.equal(model(x), before)
    assert first == second


class Unlisted(nn.Module):
    """Calls a function that the table does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


class Branching(nn.Module):
    """Depends on the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Copying(nn.Module):
    """Leaves torch on its way."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(x.numpy() * 2)


class InPlace(nn.Module):
    """Changes a tensor that has a name in the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).add_(x)


class Constant(nn.Module):
    """Does not look at its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(3)


class OtherArguments(nn.Module):
    """Calls a function of the table with arguments that it lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (1, 1), mode="reflect")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Unlisted(), "cumsum is not in the table"),
        (Branching(), "is not in the table"),
        (Copying(), "numpy is not in the table"),
        (InPlace(), "add_ is not in the table"),
        (Constant(), "does not depend on the input"),
        (OtherArguments(), "pad with mode=reflect"),
        (nn.Dropout(), "dropout in training mode"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_recorded_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(NoOnnxForm, match=message):
        record_onnx(model, torch.rand(2, 4))


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x * 3


class WithGradientOfItsOwn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = Tripled.apply(x)
        return x + result


def test_function_with_a_gradient_of_its_own_is_recorded() -> None:
    x = torch.rand(2, 4)
    torch.testing.assert_close(run(record_onnx(WithGradientOfItsOwn(), x), x), 4 * x)
