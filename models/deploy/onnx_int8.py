"""An ONNX file whose linear layers compute in 8-bit integers, in the form that runtimes recognise.

Each input and each weight is written in 8 bits and read back (QuantizeLinear, DequantizeLinear: "QDQ"). ONNX Runtime and
OpenVINO replace a layer that reads such tensors by one of integers. Which tensors are rounded, and how, is in
`models.deploy.int8`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from models.deploy.int8 import LARGEST_WEIGHT, InputRange, weight_scales
from models.deploy.onnx_graph import NoOnnxForm


def quantise_onnx(content: bytes, ranges: Sequence[InputRange | None]) -> bytes:
    """Return the content of an int8 file.

    Args:
        content: A file of `models.deploy.onnx`, in float32.
        ranges: Of the inputs of its linear layers, as in `models.deploy.int8.Int8Network`.

    Raises:
        NoOnnxForm: If the file has another number of linear layers.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    constants = fold_constants(graph)
    layers = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants]
    if len(layers) != len(ranges):
        raise NoOnnxForm(f"the ONNX file has {len(layers)} linear layers, and the network calls {len(ranges)}")
    writer = Int8Writer(constants)
    range_of = {node.name: input_range for node, input_range in zip(layers, ranges, strict=True)}
    for node in graph.node:
        writer.add(node, range_of.get(node.name))
    read = {name for node in writer.nodes for name in node.input}
    constants_read = [tensor for tensor in [*graph.initializer, *writer.constants] if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(writer.nodes)
    graph.initializer.extend(constants_read)
    return bytes(model.SerializeToString())


def fold_constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Replace operators whose inputs are constants by their outputs, such as the part of a weight that a layer reads.

    Returns:
        The constants of the graph, by name.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.input and all(name in constants for name in node.input if name):
            inputs = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
            outputs = ReferenceEvaluator(node).run(None, inputs)
            constants |= {
                name: numpy_helper.from_array(value, name) for name, value in zip(node.output, outputs, strict=True)
            }
        else:
            nodes.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants.values())
    return constants


class Int8Writer:
    """The operators and constants of an int8 file, in the order in which they are added.

    Args:
        constants: Of the file in float32, by name.
    """

    def __init__(self, constants: dict[str, TensorProto]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._given = constants
        self._inputs: dict[tuple[str, InputRange], str] = {}  # several layers may read the same

    def add(self, node: NodeProto, input_range: InputRange | None) -> None:
        """Add an operator; a linear layer with the range of its input is rounded."""
        if input_range is not None:
            weight, scales = self._weight(node)
            bias = self._bias(node, scales * np.float32(input_range.scale))
            inputs = [self._input(node.input[0], input_range), weight, *bias]
            del node.input[:]
            node.input.extend(inputs)
        self.nodes.append(node)

    def _input(self, name: str, input_range: InputRange) -> str:
        """Round an input. Returns the name of the rounded one."""
        if (name, input_range) not in self._inputs:
            label = f"int8_{len(self._inputs)}"
            scale = self._constant(f"{label}_scale", np.float32(input_range.scale))
            zero = self._constant(f"{label}_zero_point", np.uint8(input_range.zero_point))
            self._operator("QuantizeLinear", [name, scale, zero], f"{label}_stored")
            self._operator("DequantizeLinear", [f"{label}_stored", scale, zero], label)
            self._inputs[name, input_range] = label
        return self._inputs[name, input_range]

    def _weight(self, node: NodeProto) -> tuple[str, NDArray[np.float32]]:
        """Store a weight in 8 bits. Returns the name of what is read back, and its scales, (out_features,)."""
        values = torch.from_numpy(numpy_helper.to_array(self._given[node.input[1]]).copy())
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        matrix = values if is_transposed else values.t()  # (out_features, in_features)
        scales = weight_scales(matrix)
        stored = torch.round(matrix / scales[:, None]).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT).to(torch.int8)
        label, of_outputs = f"{node.name}_weight", scales.numpy()
        names = [
            self._constant(f"{label}_stored", (stored if is_transposed else stored.t().contiguous()).numpy()),
            self._constant(f"{label}_scale", of_outputs),
            self._constant(f"{label}_zero_point", np.zeros(len(of_outputs), np.int8)),
        ]
        self._operator("DequantizeLinear", names, label, axis=0 if is_transposed else 1)
        return label, of_outputs

    def _bias(self, node: NodeProto, scales: NDArray[np.float32]) -> list[str]:
        """Store the bias of an operator that has one as the 32-bit integers that its products are."""
        if len(node.input) <= 2:
            return []
        values = numpy_helper.to_array(self._given[node.input[2]])
        label = f"{node.name}_bias"
        names = [
            self._constant(f"{label}_stored", np.rint(values / scales).astype(np.int32)),
            self._constant(f"{label}_scale", scales),
            self._constant(f"{label}_zero_point", np.zeros(len(scales), np.int32)),
        ]
        self._operator("DequantizeLinear", names, label, axis=0)
        return [label]

    def _operator(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], f"{kind}_{output}", **attributes))

    def _constant(self, name: str, values: NDArray[np.generic] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name
