"""The functions of torch that LITv2 calls, as ONNX operators.

Each function here has the name of one in torch, such as `torch.nn.functional.linear` or `Tensor.reshape`. It takes the graph
that is written, the result that torch computed, and the arguments that torch's function got. It adds operators to the graph
and returns the name of the result, or the names where torch returns several tensors.

They are the operators that `torch.onnx.export` writes for the functions of prepared networks, without those that depend on
constants alone: torch has computed these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.deploy.onnx_graph import NoOnnxForm, OnnxGraph, onnx_type

Number = int | float
Operator = Callable[..., str | list[str]]


# Layers.
def linear(graph: OnnxGraph, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str:
    if x.ndim == 2:
        return graph.add("Gemm", x, weight, *([] if bias is None else [bias]), transB=1)
    transposed = graph.add("Transpose", weight, perm=[1, 0]) if graph.computes(weight) else graph.constant(weight.t())
    product = graph.add("MatMul", x, transposed)
    return product if bias is None else graph.add("Add", product, bias)


def layer_norm(
    graph: OnnxGraph,
    result: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
) -> str:
    return graph.add("LayerNormalization", x, weight, bias, axis=-len(normalized_shape), epsilon=eps)


def batch_norm(
    graph: OnnxGraph,
    result: Tensor,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> str:
    if training:
        raise NoOnnxForm("batch_norm in training mode")
    return graph.add("BatchNormalization", x, weight, bias, running_mean, running_var, epsilon=eps)


def gelu(graph: OnnxGraph, result: Tensor, x: Tensor, approximate: str = "none") -> str:
    return graph.add("Gelu", x, approximate=approximate)


def conv2d(
    graph: OnnxGraph,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> str:
    inputs = [x, weight] if bias is None else [x, weight, bias]
    pads = _pair(padding) * 2
    return graph.add("Conv", *inputs, strides=_pair(stride), pads=pads, dilations=_pair(dilation), group=groups)


def dropout(
    graph: OnnxGraph, result: Tensor, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> str:
    if training:
        raise NoOnnxForm("dropout in training mode")
    return graph.name(x)


def softmax(graph: OnnxGraph, result: Tensor, x: Tensor, dim: int) -> str:
    return graph.add("Softmax", x, axis=dim)


def scaled_dot_product_attention(graph: OnnxGraph, result: Tensor, q: Tensor, k: Tensor, v: Tensor) -> str:
    """Of networks that are not prepared; `models.deploy.fused.fused_attend` has no such function in an ONNX file."""
    transposed = transpose(graph, result, k, -2, -1)
    scaled = graph.add("Mul", q, graph.scalar(q.shape[-1] ** -0.5, q.dtype))
    return graph.add("MatMul", graph.add("Softmax", graph.add("MatMul", scaled, transposed), axis=-1), v)


# Shapes.
def reshape(graph: OnnxGraph, result: Tensor, x: Tensor, *shape: Any) -> str:
    """Of several in a row the last is written alone, and none that changes nothing, as in files of torch.onnx.export."""
    name = graph.name(x)
    source = graph.input_of("Reshape", name) or name
    if graph.shape(source) == result.shape:
        return source
    sizes = graph.ints(-1, *result.shape[1:])
    return graph.add("Reshape", source, sizes, **({"allowzero": 1} if source == name else {}))


def squeeze(graph: OnnxGraph, result: Tensor, x: Tensor, dim: int) -> str:
    return graph.name(x) if x.shape == result.shape else graph.add("Squeeze", x, graph.ints(dim % x.ndim))


def unsqueeze(graph: OnnxGraph, result: Tensor, x: Tensor, dim: int) -> str:
    return graph.add("Unsqueeze", x, graph.ints(dim % result.ndim))


def expand(graph: OnnxGraph, result: Tensor, x: Tensor, *sizes: int) -> str:
    return graph.add("Expand", x, graph.ints(*(1 if size == -1 else size for size in sizes)))  # ONNX keeps a size by 1


def permute(graph: OnnxGraph, result: Tensor, x: Tensor, *dims: Any) -> str:
    order = dims if isinstance(dims[0], int) else dims[0]
    return graph.add("Transpose", x, perm=[dim % x.ndim for dim in order])


def transpose(graph: OnnxGraph, result: Tensor, x: Tensor, dim0: int, dim1: int) -> str:
    order = list(range(x.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return graph.add("Transpose", x, perm=order)


def pad(
    graph: OnnxGraph, result: Tensor, x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> str:
    if mode != "constant":
        raise NoOnnxForm(f"pad with mode={mode}")
    widths = [*pad, *[0] * (2 * x.ndim - len(pad))]  # a pair for each axis, from the last one
    return graph.add("Pad", x, graph.ints(*widths[-2::-2], *widths[-1::-2]), graph.scalar(value or 0.0, x.dtype))


def cat(graph: OnnxGraph, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> str:
    return graph.add("Concat", *tensors, axis=dim)


def split(graph: OnnxGraph, result: Sequence[Tensor], x: Tensor, *sizes: Any, dim: int = 0) -> list[str]:
    """Also `chunk`: the sizes are those of the results. A dim that is not given by name is refused."""
    if len(sizes) != 1:
        raise NoOnnxForm("split or chunk whose dim has no name")
    return graph.add_many("Split", [x, graph.ints(*(part.shape[dim] for part in result))], len(result), axis=dim % x.ndim)


def getitem(graph: OnnxGraph, result: Tensor, x: Tensor, index: Any) -> str:
    items = list(index) if isinstance(index, tuple) else [index]
    if ... in items:
        at = items.index(...)
        items[at : at + 1] = [slice(None)] * (x.ndim - len(items) + 1)
    name, selected = graph.name(x), []
    for axis, item in enumerate(items):
        if isinstance(item, slice):
            start, stop, step = item.indices(x.shape[axis])
            if (start, stop, step) != (0, x.shape[axis], 1):
                name = graph.add("Slice", name, *map(graph.ints, (start, stop, axis, step)))
        elif isinstance(item, int):
            selected.append((axis, item % x.shape[axis]))
        else:
            raise NoOnnxForm(f"an index of type {type(item).__name__}")
    for axis, position in reversed(selected):
        name = graph.add("Gather", name, graph.scalar(position, torch.int64), axis=axis)
    return name


def index_select(graph: OnnxGraph, result: Tensor, x: Tensor, dim: int, index: Tensor) -> str:
    return graph.add("Gather", x, index, axis=dim)


# Arithmetic.
def mean(graph: OnnxGraph, result: Tensor, x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> str:
    axes = [dim] if isinstance(dim, int) else dim
    return graph.add("ReduceMean", x, graph.ints(*axes), keepdims=int(keepdim))


def clamp(graph: OnnxGraph, result: Tensor, x: Tensor, low: Number, high: Number) -> str:
    return graph.add("Clip", x, graph.scalar(low, x.dtype), graph.scalar(high, x.dtype))


def floor(graph: OnnxGraph, result: Tensor, x: Tensor) -> str:
    return graph.add("Floor", x)


def matmul(graph: OnnxGraph, result: Tensor, a: Tensor, b: Tensor) -> str:
    return graph.add("MatMul", a, b)


def cast(graph: OnnxGraph, result: Tensor, x: Tensor, *_: Any) -> str:
    return _as(graph, x, result.dtype)


def arithmetic(operator: str, is_reversed: bool = False) -> Operator:
    """Return the form of an operator whose operands have the type of the result."""

    def write(graph: OnnxGraph, result: Tensor, a: Tensor | Number, b: Tensor | Number) -> str:
        names = [_as(graph, value, result.dtype) for value in (a, b)]
        return graph.add(operator, *(reversed(names) if is_reversed else names))

    return write


def comparison(operator: str) -> Operator:
    """Return the form of an operator whose operands have one type and whose result is a truth value."""

    def write(graph: OnnxGraph, result: Tensor, a: Tensor, b: Tensor | Number) -> str:
        dtype = torch.result_type(a, b)
        return graph.add(operator, _as(graph, a, dtype), _as(graph, b, dtype))

    return write


def _as(graph: OnnxGraph, value: Tensor | Number, dtype: torch.dtype) -> str:
    """Name of a value in the graph, converted to a type."""
    if not isinstance(value, Tensor):
        return graph.scalar(value, dtype)
    if value.dtype == dtype:
        return graph.name(value)
    return graph.add("Cast", value, to=onnx_type(dtype)) if graph.computes(value) else graph.constant(value.to(dtype))


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


OPERATORS: dict[str, Operator] = {
    **{
        operator.__name__: operator
        for operator in (
            linear, layer_norm, batch_norm, gelu, conv2d, dropout, softmax, scaled_dot_product_attention, reshape, squeeze,
            unsqueeze, expand, permute, transpose, pad, cat, split, index_select, mean, clamp, floor, matmul,
        )
    },
    "view": reshape, "flatten": reshape, "chunk": split, "__getitem__": getitem, "to": cast,
    "long": cast, "float": cast, "add": arithmetic("Add"), "sub": arithmetic("Sub"), "mul": arithmetic("Mul"),
    "div": arithmetic("Div"), "__rsub__": arithmetic("Sub", is_reversed=True), "ge": comparison("GreaterOrEqual"),
    "lt": comparison("Less"),
}  # fmt: skip
"""By the name of the function in torch."""
FACTS = {"__get__", "size", "dim", "numel", "is_floating_point"}
"""Functions that return no tensor and do not depend on a tensor's values, such as its shape."""
