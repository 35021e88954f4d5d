"""An ONNX graph that is written operator by operator.

Used by `models.deploy.onnx`, which records a network, and by `models.deploy.onnx_operators`, its table of operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from models.architecture import check_int

OPSET = 20  # of the standard operators; the one that torch.onnx.export chooses
IR_VERSION = 10  # of the file format; as torch.onnx.export


@dataclass(frozen=True)
class OnnxVersions:
    """The versions of an ONNX file, which a runtime has to know.

    Args:
        opset: Of the standard operators, 18 to 20; torch exports no older ones.
        ir_version: Of the file format, 8 to 10; these files need nothing newer than 8.

    Raises:
        ValueError: If a version cannot be written; the message names it.
    """

    opset: int = OPSET
    ir_version: int = IR_VERSION

    def __post_init__(self) -> None:
        check_int("opset", self.opset, 18, OPSET)
        check_int("ir_version", self.ir_version, 8, IR_VERSION)


class NoOnnxForm(RuntimeError):
    """A network calls a function of torch that has no operator in the table."""


class OnnxGraph:
    """A graph of one input and one output that grows by operators.

    A tensor of torch that the graph computes is known by its identity; any other tensor becomes a constant. The first axis
    of all that is computed is the batch, which has no size in the graph.

    Args:
        x: Example of the input.
    """

    def __init__(self, x: Tensor) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._producers: dict[str, onnx.NodeProto] = {}
        self._constants: list[onnx.TensorProto] = []
        self._constant_names: dict[Any, str] = {}
        self._names: dict[int, str] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._tensors: list[Tensor] = []  # kept alive, so that no other tensor takes over an identity
        self._input = _value_info("x", x)
        self.bind(x, "x")

    def bind(self, tensor: Tensor, name: str) -> None:
        """Make a tensor known as the value of that name."""
        self._names[id(tensor)] = name
        self._shapes[name] = tensor.shape
        self._tensors.append(tensor)

    def computes(self, tensor: Tensor) -> bool:
        """True for the input and for what depends on it."""
        return id(tensor) in self._names

    def name(self, tensor: Tensor) -> str:
        """Return the name of a tensor in the graph; one that is not computed there is written as a constant."""
        return self._names[id(tensor)] if self.computes(tensor) else self.constant(tensor)

    def shape(self, name: str) -> torch.Size | None:
        """Return the shape of a value; None if no tensor of torch is bound to it."""
        return self._shapes.get(name)

    def input_of(self, operator: str, name: str) -> str | None:
        """Return the first input of the operator that computes a value; None if that is another operator."""
        node = self._producers.get(name)
        return node.input[0] if node is not None and node.op_type == operator else None

    def constant(self, tensor: Tensor) -> str:
        """Write a constant. Returns its name."""
        key = id(tensor)
        if key not in self._constant_names:
            self._tensors.append(tensor)
            self._write_constant(key, tensor.detach().cpu().contiguous().numpy())
        return self._constant_names[key]

    def scalar(self, value: float, dtype: torch.dtype) -> str:
        """Write a number, once. Returns its name."""
        key = (value, dtype)
        if key not in self._constant_names:
            self._write_constant(key, torch.tensor(value, dtype=dtype).numpy())
        return self._constant_names[key]

    def ints(self, *values: int) -> str:
        """Write a list of whole numbers, such as a shape, once. Returns its name."""
        if values not in self._constant_names:
            self._write_constant(values, np.array(values, dtype=np.int64))
        return self._constant_names[values]

    def add(self, operator: str, *inputs: Tensor | str, **attributes: Any) -> str:
        """Add an operator with one output.

        Args:
            operator: Name of the operator in ONNX.
            *inputs: Tensors of torch, or names.
            **attributes: Attributes of the operator.

        Returns:
            The name of its output.
        """
        return self.add_many(operator, inputs, 1, **attributes)[0]

    def add_many(self, operator: str, inputs: Sequence[Tensor | str], count: int, **attributes: Any) -> list[str]:
        """Add an operator with several outputs, like `add`. Returns their names."""
        names = [item if isinstance(item, str) else self.name(item) for item in inputs]
        label = f"{operator}_{len(self._nodes)}"
        outputs = [label.lower() if count == 1 else f"{label.lower()}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(operator, names, outputs, label, **attributes))
        self._producers.update(dict.fromkeys(outputs, self._nodes[-1]))
        return outputs

    def to_bytes(self, output: Tensor) -> bytes:
        """Return the content of an ONNX file.

        Args:
            output: The tensor that the graph is to return.

        Raises:
            NoOnnxForm: If the output does not depend on the input.
        """
        if not self.computes(output):
            raise NoOnnxForm("the output does not depend on the input")
        result = _value_info(self.name(output), output)
        nodes = self._needed(result.name)
        read = {name for node in nodes for name in node.input}
        constants = [constant for constant in self._constants if constant.name in read]
        graph = helper.make_graph(nodes, "network", [self._input], [result], constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="hilo-nas"
        )
        return bytes(model.SerializeToString())

    def _needed(self, output: str) -> list[onnx.NodeProto]:
        """The operators that a value depends on."""
        needed, nodes = {output}, []
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
                nodes.append(node)
        return nodes[::-1]

    def _write_constant(self, key: Any, values: np.ndarray[Any, Any]) -> None:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        self._constant_names[key] = name


def onnx_type(dtype: torch.dtype) -> int:
    """Return the number that ONNX gives a type of torch."""
    return helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)


def _value_info(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx_type(tensor.dtype), ["batch", *tensor.shape[1:]])
