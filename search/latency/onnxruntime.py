"""This machine's CPU, networks run by ONNX Runtime from an ONNX file (https://onnxruntime.ai)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.deploy.onnx import export_onnx
from search.latency.onnx_session import open_session
from search.latency.protocol import Run
from search.latency.target import ConversionError, PairedTarget, Prepared, check_parity


@dataclass
class OnnxRuntimeTarget(PairedTarget):
    """Networks exported to ONNX, all of ONNX Runtime's graph optimisations on, CPU provider."""

    name = "onnxruntime"
    backend = "onnxruntime, CPUExecutionProvider"
    packages = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
    extra = "onnx"

    def prepare(self, model: nn.Module, x: Tensor) -> Prepared:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            try:
                export_onnx(model, x, path)
                content = path.read_bytes()
                session = open_session(content, self.num_threads)
            except Exception as error:
                raise ConversionError(f"ONNX Runtime cannot take this model: {error}") from error
        name = session.get_inputs()[0].name
        output = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        parity = check_parity(self.name, model, x, output, self.dtype)

        def load() -> Run:
            copied = open_session(content, self.num_threads)
            feed = {name: x.numpy().copy()}
            return lambda: copied.run(None, feed)

        return Prepared(load, parity)
