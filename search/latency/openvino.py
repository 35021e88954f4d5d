"""latency=openvino: OpenVINO on this machine's CPU, from a torch.export program (https://docs.openvino.ai)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from search.latency.local import local_target
from search.latency.protocol import Run
from search.latency.runtime import PYTORCH, ConversionError, Converted, Runtime, check_parity
from search.latency.target import PairedTarget, TargetSettings

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def openvino_target(**settings: Any) -> PairedTarget:
    """Build the target. settings: the fields of `TargetSettings`."""
    return local_target(RUNTIME, TargetSettings(**settings))


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Converted:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],  # else OpenVINO chooses bf16 by itself
    }
    try:
        with torch.no_grad():
            program = torch.export.export(model, (x,))
        converted = openvino.convert_model(program)
        compiled = core.compile_model(converted, "CPU", settings)
    except Exception as error:  # whatever torch.export or OpenVINO raises
        raise ConversionError(f"OpenVINO cannot take this model: {error}") from error
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != PRECISIONS[dtype]:
        raise ConversionError(f"OpenVINO computes in {precision} on this processor, not in latency.dtype={dtype}")
    inputs = x.numpy()
    output = torch.from_numpy(compiled(inputs)[0])

    def load() -> Run:
        request = core.compile_model(converted, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(inputs.copy()))
        return lambda: request.infer()

    return Converted(load, check_parity(RUNTIME.name, model, x, output, dtype))


RUNTIME = Runtime(
    "openvino",
    backend="openvino, CPU",
    convert=convert,
    dtypes=("float32", "bfloat16"),
    packages=(*PYTORCH, "openvino"),
    extra="openvino",
)
