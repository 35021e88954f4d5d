"""Networks in 8-bit integers: which tensors an int8 file rounds, to which numbers, and the same computed in PyTorch.

Rounded are the linear layers and the patch convolutions, which `models.deploy` computes as linear layers: they have nearly
all weights. Their inputs become unsigned 8-bit numbers with one scale per tensor, from images that the network is calibrated
with before the file is written. Their weights become signed ones with a scale for each output. Sums are exact, in 32 bits.
All else stays in float32: norms, activations, the products of attention, and the depthwise convolutions. On an AMD EPYC with
AVX-512 VNNI, one thread, ONNX Runtime ran LITv2-S at 224 pixels 2.0 times as fast as in float32, and 1.4 times with the
depthwise convolutions rounded too.

`Int8Network` computes in float32 what such a file computes in integers: a search scores networks by it, and a training goes
on with it (`RoundedLayers`). `models.deploy.onnx_int8` writes the file, with the same scales.

Quantisation: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv 1712.05877, Sec. 2 and 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.deploy.kernels import writing_onnx

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


def rounded_linear(x: Tensor, weight: Tensor, bias: Tensor | None, of_input: InputRange) -> Tensor:
    """Compute a linear layer whose input and weight are rounded to 8 bits.

    Gradients pass the rounding unchanged, except to inputs outside of their range (arXiv 1308.3432, Sec. 4).

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        of_input: The numbers that the input may take; others become the nearest of them.

    Returns:
        (..., out_features).
    """
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    x = torch.fake_quantize_per_tensor_affine(x, of_input.scale, of_input.zero_point, 0, LEVELS)
    weight = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -LARGEST_WEIGHT, LARGEST_WEIGHT)
    return F.linear(x, weight, bias)


class LinearCalls(TorchFunctionMode, ABC):
    """While it is active, each linear layer that a network calls is computed by `linear`, with its number in that run."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    @abstractmethod
    def linear(self, index: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute the linear layer of that number; arguments and result as in `rounded_linear`."""

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
    """Collects the ranges of inputs of linear layers, which are computed as ever.

    Args:
        ranges: Those of earlier runs, by number, which are extended.
    """

    def __init__(self, ranges: dict[int, InputRange]) -> None:
        super().__init__()
        self.ranges = ranges

    def linear(self, index: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        self.ranges[index] = InputRange.of(x).joined(self.ranges.get(index))
        return F.linear(x, weight, bias)


class RoundedLayers(LinearCalls):
    """Rounds linear layers: for a training, each by the range of the input that it has just got; or by known ranges.

    Args:
        ranges: Of each layer's input, by number; None for a layer that stays in float32. None for those of each batch.
    """

    def __init__(self, ranges: Sequence[InputRange | None] | None = None) -> None:
        super().__init__()
        self.ranges = ranges

    def linear(self, index: int, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        of_input = InputRange.of(x) if self.ranges is None else self.ranges[index]
        return F.linear(x, weight, bias) if of_input is None else rounded_linear(x, weight, bias, of_input)


class Int8Network(nn.Module):
    """A network for inference whose linear layers compute what they do in an int8 file.

    Args:
        network: In evaluation mode, prepared (`models.deploy.prepare`) or not.
        ranges: Of the input of each linear layer, in the order in which the network calls them; None for a layer that stays
            in float32.
    """

    def __init__(self, network: nn.Module, ranges: Sequence[InputRange | None]) -> None:
        super().__init__()
        self.network = network
        self.ranges = tuple(ranges)

    def forward(self, x: Tensor) -> Tensor:
        """Compute outputs for images, (B, C, H, W)."""
        with writing_onnx(), RoundedLayers(self.ranges):  # the form that an ONNX file has calls the layers of the file
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
    """Return a network whose most sensitive layers stay in float32, no more of them than needed.

    A layer is the more sensitive, the further outputs move when it alone is rounded.

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
    alone = [Int8Network(rounded.network, [r if i == n else None for i, r in enumerate(rounded.ranges)]) for n in numbers]
    errors = [float((_outputs(network, batches) - plain).square().mean()) for network in alone]
    ranges, network = list(rounded.ranges), rounded
    for number in sorted(numbers, key=errors.__getitem__, reverse=True):
        ranges[number] = None
        network = Int8Network(rounded.network, ranges)
        if changed(network) <= max_changed:
            break
    return network


def float_layers(network: Int8Network, x: Tensor) -> list[str]:
    """Return the names of the linear layers that stay in float32.

    Args:
        network: The network.
        x: Example of the input.
    """
    names: list[str] = []
    with torch.no_grad(), writing_onnx(), LayerNames(network.network, names):
        network.network(x)
    return [name for name, of_input in zip(names, network.ranges, strict=True) if of_input is None]


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
