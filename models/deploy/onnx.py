"""A model as an ONNX file, for runtimes other than PyTorch. Needs the packages onnx and onnxscript."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


def export_onnx(model: nn.Module, x: Tensor, path: Path, any_batch: bool = False) -> None:
    """Write a model as an ONNX file with its weights inside.

    Args:
        model: Model in evaluation mode.
        x: Example of the input, (B, C, H, W); the file takes inputs of this shape.
        path: File to write.
        any_batch: Whether the file takes any number of images.

    Raises:
        Exception: Whatever `torch.onnx.export` raises for a model that has no ONNX form.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, inside the exporter
        warnings.simplefilter("ignore", FutureWarning)
        with torch.no_grad():
            shapes = ({0: torch.export.Dim("batch")},) if any_batch else None
            torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes)
