"""latency=onnxruntime: ONNX Runtime on this machine's CPU, from an ONNX file (https://onnxruntime.ai).

All of ONNX Runtime's graph optimisations are on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.deploy.onnx import export_onnx
from search.latency.local import local_target
from search.latency.onnx_session import open_session
from search.latency.protocol import Run
from search.latency.runtime import PYTORCH, ConversionError, Converted, Runtime, check_parity
from search.latency.target import PairedTarget, TargetSettings


def onnxruntime_target(**settings: Any) -> PairedTarget:
    """Build the target. settings: the fields of `TargetSettings`."""
    return local_target(RUNTIME, TargetSettings(**settings))


def onnx_file(model: nn.Module, x: Tensor) -> bytes:
    """Export a model in evaluation mode.

    Args:
        model: The network.
        x: An input; the file takes inputs of its shape.

    Returns:
        The content of the ONNX file.

    Raises:
        ConversionError: If the model has no ONNX form.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            export_onnx(model, x, path)
        except Exception as error:  # whatever the exporter raises
            raise ConversionError(f"the ONNX exporter cannot take this model: {error}") from error
        return path.read_bytes()


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Converted:
    content = onnx_file(model, x)
    try:
        session = open_session(content, num_threads)
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise ConversionError(f"ONNX Runtime cannot take this model: {error}") from error
    name = session.get_inputs()[0].name
    output = torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    def load() -> Run:
        copied = open_session(content, num_threads)
        feed = {name: x.numpy().copy()}
        return lambda: copied.run(None, feed)

    return Converted(load, check_parity(RUNTIME.name, model, x, output, dtype))


RUNTIME = Runtime(
    "onnxruntime",
    backend="onnxruntime, CPUExecutionProvider",
    convert=convert,
    packages=(*PYTORCH, "onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
)
