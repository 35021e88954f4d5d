"""Networks in 8-bit integers: post-training quantisation with static scales, and the same by fake quantisation in PyTorch.

Quantised are the linear layers and the patch convolutions, which `models.deploy` computes as linear layers: they have nearly
all weights. Inputs become unsigned 8-bit numbers with one scale per tensor, from images that the network is calibrated with
before the file is written. Weights become signed ones with a scale for each output. Products are summed in 32 bits. All else
stays in float32: norms, activations, the products of attention, and the depthwise convolutions. On an AMD EPYC with AVX-512
VNNI, one thread, ONNX Runtime ran LITv2-S at 224 pixels 2.0 times as fast as in float32, and 1.4 times with the depthwise
convolutions quantised too.

`Int8Network` computes in float32 what such a file computes in integers: a search scores networks by it.
`FakeQuantisedLayers` does so in a training (quantisation-aware training). `models.deploy.onnx_int8` writes the file, with
the same scales.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, Sec. 2 and 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.deploy.kernels import writing_onnx

FLOAT32, INT8 = "float32", "int8"  # as configurations name them
NUM_CALIBRATION_IMAGES = 256
LARGEST_BATCH, SIDE_OF_LARGEST_BATCH = 64, 112  # images, pixels: larger images are computed fewer at a time
LEVELS = 255  # steps of an input, which is stored as 0 to 255
LARGEST_WEIGHT = 127  # as it is stored: symmetric around zero, so that no term of a product depends on the input alone
MAX_CHANGED = 0.01  # share of images whose class rounding may change before layers stay in float32
SMALLEST_SCALE = 1e-12  # of weights or inputs that are all zero


@dataclass(frozen=True)
class InputRange:
    """The numbers that the input of a linear layer takes, zero included.

    Attributes:
        low: The lowest, at most 0.
        high: The highest, at least 0.
    """

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Distance between two numbers that the rounded input can take."""
        return max((self.high - self.low) / LEVELS, SMALLEST_SCALE)

    @property
    def zero_point(self) -> int:
        """The stored number that stands for zero."""
        return round(-self.low / self.scale)

    @property
    def is_finite(self) -> bool:
        """False if the network has diverged."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def joined(self, other: InputRange | None) -> InputRange:
        """Return the range of all numbers of both."""
        return self if other is None else InputRange(min(self.low, other.low), max(self.high, other.high))

    @classmethod
    def of(cls, x: Tensor) -> InputRange:
        """Return the range of a tensor of any shape."""
        low, high = torch.aminmax(x.detach())
        return cls(min(float(low), 0.0), max(float(high), 0.0))


def weight_scales(weight: Tensor) -> Tensor:
    """Return the scale of each output of a weight, (out_features, in_features): (out_features,)."""
    return (weight.detach().abs().amax(1) / LARGEST_WEIGHT).clamp(min=SMALLEST_SCALE)


def fake_quantised_linear(x: Tensor, weight: Tensor, bias: Tensor | None, input_range: InputRange) -> Tensor:
    """Compute a linear layer whose input and weight are rounded to 8 bits.

    Gradients pass the rounding unchanged, except to inputs outside of their range (arXiv 1308.3432, Sec. 4).

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        input_range: The numbers that the input may take; others become the nearest of them.

    Returns:
        (..., out_features).
    """
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    x = torch.fake_quantize_per_tensor_affine(x, input_range.scale, input_range.zero_point, 0, LEVELS)
    weight = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -LARGEST_WEIGHT, LARGEST_WEIGHT)
    return F.linear(x, weight, bias)


def calibration_batches(images: Tensor) -> Sequence[Tensor]:
    """Split images to calibrate with, (N, C, H, W), into batches that need about the same memory whatever their size."""
    area = (images.shape[-1] / SIDE_OF_LARGEST_BATCH) ** 2
    return torch.split(images, max(1, min(LARGEST_BATCH, int(LARGEST_BATCH / area))))


class LinearCalls(TorchFunctionMode, ABC):
    """While it is active, each linear layer that a network calls is computed by `linear`, with its number in that run."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    @abstractmethod
    def linear(self, index: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute the linear layer of that number; arguments and result as in `fake_quantised_linear`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        index, self.num_calls = self.num_calls, self.num_calls + 1
        return self.linear(index, *args, **(kwargs or {}))


class Calibration(LinearCalls):
    """Collects the input ranges of linear layers, which compute in float32.

    Args:
        ranges: The ranges of earlier runs by layer number, which are extended.
    """

    def __init__(self, ranges: dict[int, InputRange]) -> None:
        super().__init__()
        self.ranges = ranges

    def linear(self, index: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self.ranges[index] = InputRange.of(x).joined(self.ranges.get(index))
        return F.linear(x, weight, bias)


class FakeQuantisedLayers(LinearCalls):
    """Computes linear layers by fake quantisation.

    Args:
        ranges: The input range of each layer, by number; None for a layer that stays in float32. None instead of all takes
            the range of each batch, for a training.
    """

    def __init__(self, ranges: Sequence[InputRange | None] | None = None) -> None:
        super().__init__()
        self.ranges = ranges

    def linear(self, index: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        input_range = InputRange.of(x) if self.ranges is None else self.ranges[index]
        if input_range is None or not input_range.is_finite:  # of a network that has diverged, the loss or outputs say so
            return F.linear(x, weight, bias)
        return fake_quantised_linear(x, weight, bias, input_range)


class Int8Network(nn.Module):
    """A network for inference whose linear layers compute what they do in an int8 file.

    Args:
        network: In evaluation mode, prepared (`models.deploy.prepare`) or not.
        ranges: The input range of each linear layer, in the order in which the network calls them; None for a layer that
            stays in float32.
    """

    def __init__(self, network: nn.Module, ranges: Sequence[InputRange | None]) -> None:
        super().__init__()
        self.network = network
        self.ranges = tuple(ranges)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs for images, (B, C, H, W)."""
        with writing_onnx(), FakeQuantisedLayers(self.ranges):  # the form that an ONNX file has calls the layers of the file
            return cast(Tensor, self.network(x))


@torch.no_grad()
def calibrated(network: nn.Module, batches: Iterable[Tensor]) -> Int8Network:
    """Return a network in 8-bit integers.

    Args:
        network: In evaluation mode; it is used, not copied.
        batches: Images to calibrate with, each (B, C, H, W).
    """
    ranges: dict[int, InputRange] = {}
    for images in batches:
        with writing_onnx(), Calibration(ranges):
            network(images)
    return Int8Network(network, [ranges[index] for index in range(len(ranges))])


@torch.no_grad()
def without_sensitive_layers(
    rounded: Int8Network, batches: Sequence[Tensor], max_changed: float = MAX_CHANGED
) -> Int8Network:
    """Return a network whose most sensitive layers stay in float32, as few as keep the classes of images.

    A layer is the more sensitive, the further outputs for the first batch move when it alone is quantised.

    Args:
        rounded: The network with all layers rounded.
        batches: Images, each (B, C, H, W).
        max_changed: Largest share of these images whose class may change by rounding.
    """
    plain = _outputs(rounded.network, batches)

    def changed(network: Int8Network) -> float:
        return float((_outputs(network, batches).argmax(1) != plain.argmax(1)).double().mean())

    if changed(rounded) <= max_changed:
        return rounded
    numbers = range(len(rounded.ranges))
    first = batches[:1]
    single = [Int8Network(rounded.network, [r if i == n else None for i, r in enumerate(rounded.ranges)]) for n in numbers]
    errors = [float((_outputs(network, first) - plain[: len(first[0])]).square().mean()) for network in single]
    most_sensitive = sorted(numbers, key=errors.__getitem__, reverse=True)

    def without(count: int) -> Int8Network:
        left = set(most_sensitive[:count])
        return Int8Network(rounded.network, [None if n in left else rounded.ranges[n] for n in numbers])

    low, high = 1, len(most_sensitive)  # bisection: with all layers in float32 no class changes
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if changed(without(middle)) <= max_changed else (middle + 1, high)
    return without(low)


def float_layers(network: Int8Network, x: Tensor) -> list[str]:
    """Return the names of the linear layers that stay in float32.

    Args:
        network: The network.
        x: Example of the input.
    """
    names: list[str] = []
    with torch.no_grad(), writing_onnx(), LayerNames(network.network, names):
        network.network(x)
    return [name for name, input_range in zip(names, network.ranges, strict=True) if input_range is None]


class LayerNames(LinearCalls):
    """Collects the names of linear layers, in the order in which they are called."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self._name_of = {
            parameter.untyped_storage().data_ptr(): name.removesuffix(".weight")
            for name, parameter in network.named_parameters()
        }

    def linear(self, index: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self.names.append(self._name_of[weight.untyped_storage().data_ptr()])  # also of a part of a weight
        return F.linear(x, weight, bias)


def _outputs(network: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Outputs for all images, (images, classes)."""
    return torch.cat([network(images) for images in batches])
