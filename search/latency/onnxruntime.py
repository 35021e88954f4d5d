"""latency=onnxruntime: ONNX Runtime on this machine's CPU, from an ONNX file (https://onnxruntime.ai). The default.

All of ONNX Runtime's graph optimisations are on. LITv2 is recorded, which takes a fraction of the time of timing it; other
models are exported by PyTorch. See `models.deploy.onnx` for why the two files run alike. With `latency.dtype=int8` the file
computes in 8-bit integers (int8_file.py).
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.deploy.onnx import NoOnnxForm, export_onnx, record_onnx
from models.litv2 import LITv2
from search.latency.int8_file import int8_file
from search.latency.local import local_target
from search.latency.onnx_session import open_session
from search.latency.protocol import Run
from search.latency.runtime import PYTORCH, ConversionError, Converted, Runtime, check_parity
from search.latency.target import PairedTarget, TargetSettings

log = logging.getLogger(__name__)


def onnxruntime_target(**settings: Any) -> PairedTarget:
    """Build the target. settings: the fields of `TargetSettings`."""
    return local_target(RUNTIME, TargetSettings(**settings))


def onnx_file(model: nn.Module, x: Tensor) -> bytes:
    """Convert a model in evaluation mode.

    Args:
        model: The network.
        x: An input; the file takes inputs of its shape.

    Returns:
        The content of the ONNX file.

    Raises:
        ConversionError: If the model has no ONNX form.
    """
    if isinstance(model, LITv2):
        try:
            return record_onnx(model, x)
        except NoOnnxForm as error:
            log.info("%s: torch.onnx.export converts this network instead, which takes seconds", error)
    return exported_file(model, x)


def file_of(model: nn.Module, x: Tensor, dtype: str) -> tuple[bytes, nn.Module]:
    """Convert a model to an ONNX file of a dtype.

    Args:
        model: The network, in evaluation mode.
        x: An input; the file takes inputs of its shape.
        dtype: "float32" or "int8".

    Returns:
        The content of the file, and what its outputs are compared with.

    Raises:
        ConversionError: If the model has no such form.
    """
    content = onnx_file(model, x)
    return (content, model) if dtype == "float32" else int8_file(content, model, x)


def exported_file(model: nn.Module, x: Tensor) -> bytes:
    """Convert any model by `torch.onnx.export`; arguments, result and errors as in `onnx_file`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            export_onnx(model, x, path)
        except Exception as error:  # whatever the exporter raises
            raise ConversionError(f"the ONNX exporter cannot take this model: {error}") from error
        return path.read_bytes()


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Converted:
    content, reference = file_of(model, x, dtype)
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

    return Converted(load, check_parity(RUNTIME.name, reference, x, output, dtype), len(content))


RUNTIME = Runtime(
    "onnxruntime",
    backend="onnxruntime, CPUExecutionProvider",
    convert=convert,
    dtypes=("float32", "int8"),
    packages=(*PYTORCH, "onnx", "onnxscript", "onnxruntime"),
)
