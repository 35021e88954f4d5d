"""A model as an ONNX file, for runtimes other than PyTorch: `export_onnx` for any model, `record_onnx` for many LITv2.

`export_onnx` is PyTorch's own exporter, and the reference. It traces, decomposes, translates and optimises a network, for
several seconds, where timing takes three. `record_onnx` runs the network once and writes an operator for each function that
it calls (models/deploy/onnx_operators.py), in the hundredth part of the time. The definition of the network stays the only
one, and no graph of an earlier network is needed.

A search measures recorded files, and `search.export` writes files for any number of images with `export_onnx`. They are the
same to ONNX Runtime: it makes graphs with the same operators of both, whose outputs are equal to the last bit. Only
deformable token merging differs: it numbers the images, which the exported file does by a few more operators and a recorded
file by a constant. tests/models/test_onnx.py compares graphs and outputs, `python -m benchmarks.conversion` also latencies.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.deploy.kernels import writing_onnx
from models.deploy.onnx_graph import IR_VERSION, NoOnnxForm, OnnxGraph, OnnxVersions
from models.deploy.onnx_operators import FACTS, OPERATORS

__all__ = ["NoOnnxForm", "OnnxVersions", "export_onnx", "record_onnx"]
NEWEST = OnnxVersions()


def export_onnx(model: nn.Module, x: Tensor, path: Path, any_batch: bool = False, versions: OnnxVersions = NEWEST) -> None:
    """Write a model as an ONNX file with its weights inside.

    Args:
        model: Model in evaluation mode.
        x: Example of the input, (B, C, H, W); the file takes inputs of this shape.
        path: File to write.
        any_batch: Whether the file takes any number of images.
        versions: Of the file.

    Raises:
        Exception: Whatever `torch.onnx.export` raises for a model that has no ONNX form.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, inside the exporter
        warnings.simplefilter("ignore", FutureWarning)
        with torch.no_grad():
            shapes = ({0: torch.export.Dim("batch")},) if any_batch else None
            torch.onnx.export(
                model,
                (x,),
                path,
                dynamo=True,
                opset_version=versions.opset,
                external_data=False,
                verbose=False,
                dynamic_shapes=shapes,
            )
    if versions.ir_version != IR_VERSION:
        exported = onnx.load(path)
        exported.ir_version = versions.ir_version
        onnx.save(exported, path)


def record_onnx(model: nn.Module, x: Tensor) -> bytes:
    """Return the content of an ONNX file, with the weights inside, from one run of a model.

    The model runs on an input of other numbers than x. Should it take a number that depends on the input for a constant, a
    comparison of outputs for x shows it.

    Args:
        model: Model in evaluation mode, prepared (`models.deploy.prepare`) or not.
        x: Example of the input, (B, C, H, W) on a CPU. The file is for inputs of this shape, although the batch has no size
            in it: the model may have computed something from the size.

    Raises:
        NoOnnxForm: If the model calls a function that is not in the table of operators, or depends on values of its input.
    """
    example = torch.zeros_like(x)
    graph = OnnxGraph(example)
    with torch.no_grad(), writing_onnx(), Recorder(graph):
        output = model(example)
    return graph.to_bytes(output)


class Recorder(TorchFunctionMode):
    """While it is active, functions of torch that are called on what a graph computes are written to the graph.

    Args:
        graph: The graph, which knows its input.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(self.graph.computes(tensor) for tensor in tensors_in([*args, *kwargs.values()])):
            self.write(func.__name__, result, args, kwargs)
        return result

    def write(self, name: str, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Write a function of torch to the graph.

        Args:
            name: Its name.
            result: What it returned.
            args: Its arguments.
            kwargs: Its arguments by name.

        Raises:
            NoOnnxForm: If it is not in the table, or has arguments that the table does not provide for.
        """
        results = list(tensors_in([result]))
        if not results and name in FACTS:
            return
        if name not in OPERATORS or not results:
            raise NoOnnxForm(f"torch's function {name} is not in the table of operators (models/deploy/onnx_operators.py)")
        try:
            names = OPERATORS[name](self.graph, result, *args, **kwargs)
        except TypeError as error:
            raise NoOnnxForm(f"torch's function {name} has arguments that the table of operators lacks: {error}") from error
        for tensor, value in zip(results, [names] if isinstance(names, str) else names, strict=True):
            self.graph.bind(tensor, value)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among values, and in lists and tuples of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
