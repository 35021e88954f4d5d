"""Kernels that make inference on a CPU faster, chosen by the size of a layer (docs/speed.md) or by `models.deploy.autotune`.

The only module that uses a private operator of torch, the matrix product of oneDNN. Where the installed torch does not have
it with the expected signature, the public form takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

ONEDNN_SCHEMA = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
)
LARGE_PRODUCT = 2**25  # multiply-accumulates from which oneDNN's product pays: a call takes 13 us more than one of MKL's
CHUNK_SIZE = 2**19  # numbers: 2 MB in float32


@dataclass(frozen=True)
class Kernel:
    """How a prepared layer is computed on a CPU; None chooses by the size of the layer.

    Attributes:
        onednn: Whether the matrix product of a linear layer is oneDNN's instead of PyTorch's default.
        chunks: Number of chunks of hidden channels, or of images, that are computed one after the other.
        fused: Whether projections of the same tokens are one product.
    """

    onednn: bool | None = None
    chunks: int | None = None
    fused: bool = True

    def __str__(self) -> str:
        """The name under which a choice is stored, such as "4 chunks"."""
        product = {None: "", True: "oneDNN", False: "default"}[self.onednn]
        chunks = f"{self.chunks} chunks" if self.chunks is not None and self.chunks > 1 else ""
        return ", ".join(part for part in (chunks, product, "" if self.fused else "apart") if part) or "whole"


BY_SIZE = Kernel()


def _find_onednn_linear() -> Callable[..., Tensor] | None:
    """torch's private operator for oneDNN's product, or None where it is missing or has another signature."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or ONEDNN_SCHEMA not in [str(getattr(operator, name)._schema) for name in operator.overloads()]:
        return None
    return cast(Callable[..., Tensor], operator)


ONEDNN_LINEAR = _find_onednn_linear()

if ONEDNN_LINEAR is not None and ONEDNN_LINEAR not in flop_registry:

    @register_flop_formula(ONEDNN_LINEAR)
    def _linear_flops(input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
        return int(2 * math.prod(input_shape) * weight_shape[0])


_writes_onnx = False  # during `writing_onnx`


@contextmanager
def writing_onnx() -> Iterator[None]:
    """While this context is active, models take the form that an ONNX file is to have, as in `torch.onnx.export`."""
    global _writes_onnx
    before, _writes_onnx = _writes_onnx, True
    try:
        yield
    finally:
        _writes_onnx = before


def writes_onnx() -> bool:
    """True while an ONNX file is written, by `torch.onnx.export` or by `models.deploy.onnx.record_onnx`."""
    is_traced = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    # torch.onnx is asked last: that takes 2 us, and more in the middle of a network.
    return _writes_onnx or (is_traced and torch.onnx.is_in_onnx_export())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, onednn: bool | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear`, by oneDNN where that is faster: large products without gradient on a CPU.

    PyTorch takes MKL's product there, compiled or not, which at LITv2-S's shapes on an AMD EPYC is 1.0 to 1.25 times slower
    and for which the bias is written first. Repacking the weights once would make LITv2-S 1.06 times as fast again, but they
    would then be stored twice or be lost to exporters.

    Args:
        x: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        onednn: Whether to compute it by oneDNN, where that can; None: if the product is large.

    Returns:
        (..., out_features).
    """
    if onednn is False:
        return F.linear(x, weight, bias)
    # Asked before the size, for an exporter would take that of its example for a limit of the batch.
    if _writes_onnx or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    if (onednn or x.numel() * weight.shape[0] >= LARGE_PRODUCT) and _takes_onednn(x, weight):
        assert ONEDNN_LINEAR is not None
        return ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """True for plain float32 tensors on a CPU, of which no gradient, no other precision and no graph is asked."""
    if ONEDNN_LINEAR is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    is_plain = type(weight) in (Tensor, nn.Parameter)  # and not, say, quantised
    return is_plain and x.device.type == "cpu" and x.dtype is weight.dtype is torch.float32 and x.ndim > 1


class FastLinear(nn.Linear):
    """`torch.nn.Linear` computed by `linear`.

    Attributes:
        kernel: Kernel that computes the layer.
    """

    kernel = BY_SIZE

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return linear(x, self.weight, self.bias, self.kernel.onednn)

    def kernels(self, x: Tensor) -> list[Kernel]:
        """Return the kernels that an input may be computed by, PyTorch's default first."""
        return [Kernel(onednn=value) for value in ((False, True) if _takes_onednn(x, self.weight) else (False,))]

    def describe(self) -> str:
        """Return the layer's part of the key under which kernels are shared."""
        return f"linear to {self.out_features}{'' if self.bias is None else ' with bias'}"


def num_chunks(size: int) -> int:
    """Number of chunks in which to compute `size` numbers that only the next layer reads: a chunk stays in the cache."""
    return -(-size // CHUNK_SIZE)


def runs_eagerly_on_cpu(x: Tensor) -> bool:
    """True for eager inference on a CPU, the only place where computing a layer in chunks is faster."""
    is_traced = _writes_onnx or torch.compiler.is_compiling()
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not is_traced
