"""Networks in 8-bit integers: an int8 file and its counterpart in PyTorch compute the same, by the formula of the paper."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architecture import Architecture, StageSpec
from models.deploy import prepare
from models.deploy.int8 import (
    FakeQuantisedLayers,
    InputRange,
    Int8Network,
    calibrated,
    fake_quantised_linear,
    float_layers,
    without_sensitive_layers,
)
from models.deploy.onnx import NoOnnxForm, export_onnx, record_onnx
from models.deploy.onnx_int8 import quantise_onnx
from models.litv2 import LITv2, build
from tests.support.networks import NETWORKS, enliven

SAME_STEPS = 0.5  # of the effect of rounding: what remains where a number between two steps is rounded to the other one


@pytest.fixture(params=NETWORKS, ids=lambda architecture: architecture.key)
def network(request: pytest.FixtureRequest) -> LITv2:
    return make_network(request.param)


def make_network(architecture: Architecture) -> LITv2:
    torch.manual_seed(8)  # of weights whose gradients and classes show what the tests look for
    return enliven(build(architecture, num_classes=5)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def run(content: bytes, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("is_prepared", [True, False])
def test_file_computes_what_the_network_computes_in_pytorch(network: LITv2, images: Tensor, is_prepared: bool) -> None:
    form = prepare(network) if is_prepared else network
    rounded = calibrated(form, [images])
    with torch.no_grad():
        expected, plain = rounded(images), network(images)
    outputs = run(quantise_onnx(record_onnx(form, images), rounded.ranges), images)
    assert 1e-4 < relative(expected, plain) < 0.1
    assert relative(outputs, expected) < SAME_STEPS * relative(outputs, plain)


def test_exported_file_takes_any_number_of_images(images: Tensor, tmp_path: Path) -> None:
    network, file = make_network(NETWORKS[0]), tmp_path / "model.onnx"
    form = prepare(network)
    rounded = calibrated(form, [images])
    export_onnx(form, images, file, any_batch=True)
    content = quantise_onnx(file.read_bytes(), rounded.ranges)
    for batch in (images[:1], torch.cat([images, images.flip(0), images])):
        with torch.no_grad():
            expected, plain = rounded(batch), network(batch)
        outputs = run(content, batch)
        assert relative(outputs, expected) < SAME_STEPS * relative(outputs, plain)


def test_layer_that_reads_a_part_of_a_weight_is_rounded_too(tmp_path: Path) -> None:
    """As on a map of one window, whose Lo-Fi branch needs no queries; the exporter leaves a Slice of the weight."""
    stages = (StageSpec(1), StageSpec(1), StageSpec(1), StageSpec(1, 2, 0.5, 4))
    images, file = torch.randn(2, 3, 16, 16), tmp_path / "model.onnx"
    form = prepare(make_network(Architecture(32, stages, patch_size=1, downsample="conv")))
    rounded = calibrated(form, [images])
    export_onnx(form, images, file, any_batch=True)
    assert "Slice" in {node.op_type for node in onnx.load(file).graph.node}
    content = quantise_onnx(file.read_bytes(), rounded.ranges)
    assert "Slice" not in {node.op_type for node in onnx.load_from_string(content).graph.node}
    with torch.no_grad():
        assert relative(run(content, images), rounded(images)) < 0.5 * relative(rounded(images), form(images))


def test_every_weight_of_a_linear_layer_is_stored_in_8_bits(network: LITv2, images: Tensor) -> None:
    form = prepare(network)
    rounded = calibrated(form, [images])
    model = onnx.load_from_string(quantise_onnx(record_onnx(form, images), rounded.ranges))
    onnx.checker.check_model(model, full_check=True)
    stored = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    matrices = [tensor for tensor in stored if len(tensor.dims) == 2]
    assert len(matrices) == len(rounded.ranges) > 10
    in_8_bits = sum(int(np.prod(tensor.dims)) for tensor in matrices)
    assert in_8_bits > 0.85 * sum(parameter.numel() for parameter in form.parameters())


def test_layers_compute_in_integers_in_onnx_runtime(images: Tensor, tmp_path: Path) -> None:
    form = prepare(make_network(NETWORKS[1]))
    rounded = calibrated(form, [images])
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        quantise_onnx(record_onnx(form, images), rounded.ranges), options, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert sum(kinds.count(kind) for kind in ("MatMulIntegerToFloat", "QGemm")) == len(rounded.ranges)


def test_layer_is_rounded_by_the_formula() -> None:
    torch.manual_seed(0)
    x, weight, bias = 3 * torch.randn(50, 16) + 1, torch.randn(8, 16), torch.randn(8)
    input_range = InputRange(-2.0, 5.0)
    stored_x = np.clip(np.rint(x.numpy() / np.float32(input_range.scale)) + input_range.zero_point, 0, 255).astype(np.int64)
    scales = np.abs(weight.numpy()).max(1) / 127
    stored_weight = np.rint(weight.numpy() / scales[:, None]).astype(np.int64)
    sums = (stored_x - input_range.zero_point) @ stored_weight.T  # whole numbers, as in a file
    expected = sums * input_range.scale * scales + bias.numpy()
    np.testing.assert_allclose(fake_quantised_linear(x, weight, bias, input_range).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_zero_stays_zero() -> None:
    """Padding and what ReLU leaves must not change."""
    for low, high in ((-1.0, 3.0), (0.0, 7.3), (-2.2, 0.0), (0.0, 0.0)):
        input_range = InputRange.of(torch.tensor([low, high]))
        rounded = fake_quantised_linear(torch.zeros(1, 4), torch.randn(2, 4), None, input_range)
        assert (rounded == 0).all()
    assert InputRange.of(torch.tensor([2.0, 3.0])) == InputRange(0.0, 3.0)


def test_calibration_covers_all_batches(network: LITv2, images: Tensor) -> None:
    form = prepare(network)
    apart, together = calibrated(form, images.split(1)).ranges, calibrated(form, [images]).ranges
    assert len(apart) == len(together)
    for first, second in zip(apart, together, strict=True):
        assert first is not None
        assert second is not None
        assert (first.low, first.high) == pytest.approx((second.low, second.high), rel=1e-4, abs=1e-5)


def test_layer_without_a_range_stays_in_float32(images: Tensor) -> None:
    form = prepare(make_network(NETWORKS[0]))
    rounded = calibrated(form, [images])
    first_only = Int8Network(form, [rounded.ranges[0], *[None] * (len(rounded.ranges) - 1)])
    none = Int8Network(form, [None] * len(rounded.ranges))
    with torch.no_grad():
        plain = form(images)
        assert relative(none(images), plain) < 1e-5
        assert relative(none(images), plain) < relative(first_only(images), plain) < relative(rounded(images), plain)
        content = quantise_onnx(record_onnx(form, images), first_only.ranges)
        assert relative(run(content, images), first_only(images)) < 1e-4


def test_file_of_another_network_is_refused(images: Tensor) -> None:
    small, other = (prepare(make_network(architecture)) for architecture in NETWORKS[:2])
    with pytest.raises(NoOnnxForm, match="linear layers"):
        quantise_onnx(record_onnx(small, images), calibrated(other, [images]).ranges)


def test_training_goes_on_through_the_rounding(network: LITv2, images: Tensor) -> None:
    plain, labels = copy.deepcopy(network), torch.tensor([0, 1])
    with FakeQuantisedLayers():
        quantised_loss = F.cross_entropy(network(images), labels)
    quantised_loss.backward()
    loss = F.cross_entropy(plain(images), labels)
    loss.backward()
    assert quantised_loss.item() != loss.item()
    for (name, parameter), expected in zip(network.named_parameters(), plain.parameters(), strict=True):
        if expected.grad is None:
            assert parameter.grad is None, name
        elif expected.grad.norm() > 1e-4:
            assert parameter.grad is not None, name
            assert F.cosine_similarity(parameter.grad.flatten(), expected.grad.flatten(), 0) > 0.9, name


def test_diverged_network_shows_it_in_its_outputs(images: Tensor) -> None:
    network = make_network(NETWORKS[0])
    network.patch_embed.proj.weight.data.fill_(float("nan"))
    for form in (network, prepare(network)):
        with torch.no_grad(), FakeQuantisedLayers():
            assert form(images).isnan().all()
        assert calibrated(form, [images])(images).isnan().all()


def test_most_sensitive_layers_stay_in_float32() -> None:
    form = prepare(make_network(NETWORKS[1]))
    batches = torch.split(torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(1)), 32)
    with torch.no_grad():
        form.head.bias -= form(torch.cat(batches)).mean(0)  # type: ignore[union-attr,operator]  # else all have one class
    fine = calibrated(form, batches)
    ranges = [r for r in fine.ranges if r is not None]
    for number in (5, 11):
        ranges[number] = InputRange(2000 * ranges[number].low, 2000 * ranges[number].high)
    network = Int8Network(form, ranges)

    def share_changed(other: nn.Module) -> float:
        with torch.no_grad():
            classes = [torch.cat([each(batch) for batch in batches]).argmax(1) for each in (form, other)]
        return float((classes[0] != classes[1]).double().mean())

    limit = share_changed(fine) + 0.05
    assert share_changed(network) > limit
    relaxed = without_sensitive_layers(network, batches, limit)
    assert share_changed(relaxed) <= limit
    in_float32 = [number for number, input_range in enumerate(relaxed.ranges) if input_range is None]
    assert set(in_float32) <= {5, 11}
    names = float_layers(relaxed, batches[0])
    assert len(names) == len(in_float32) > 0
    assert set(names) <= {name for name, _ in form.named_modules()}
    assert without_sensitive_layers(network, batches, 1.0) is network
