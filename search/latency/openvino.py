"""latency=openvino: OpenVINO on this machine's CPU, from a torch.export program (https://docs.openvino.ai).

With `latency.dtype=int8` it reads the ONNX file that ONNX Runtime would run, whose scales it keeps: an int8 network has one
accuracy, whatever runs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from search.latency.local import local_target
from search.latency.onnxruntime import file_of
from search.latency.protocol import Run
from search.latency.runtime import PYTORCH, ConversionError, Converted, Runtime, check_parity
from search.latency.target import PairedTarget, TargetSettings

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # int8: of what is not in integers


def openvino_target(**settings: Any) -> PairedTarget:
    """Build the target. settings: the fields of `TargetSettings`."""
    return local_target(RUNTIME, TargetSettings(**settings))


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Converted:
    import openvino

    core = openvino.Core()
    reference = model
    try:
        if dtype == "int8":
            content, reference = file_of(model, x, dtype)
            converted = core.read_model(content)
        else:
            with torch.no_grad():
                program = torch.export.export(model, (x,))
            converted = openvino.convert_model(program)
        compiled = open_model(core, converted, dtype, num_threads)
    except Exception as error:  # whatever torch.export or OpenVINO raises
        raise ConversionError(f"OpenVINO cannot take this model: {error}") from error
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if precision != PRECISIONS[dtype]:
        raise ConversionError(f"OpenVINO computes in {precision} on this processor, not in latency.dtype={dtype}")
    inputs = x.numpy()
    output = torch.from_numpy(compiled(inputs)[0])

    def load() -> Run:
        request = open_model(core, converted, dtype, num_threads).create_infer_request()
        request.set_input_tensor(openvino.Tensor(inputs.copy()))
        return lambda: request.infer()

    return Converted(load, check_parity(RUNTIME.name, reference, x, output, dtype))


def open_model(core: Any, model: Any, dtype: str, num_threads: int) -> Any:
    """Compile a model for the CPU.

    Args:
        core: An `openvino.Core`.
        model: An `openvino.Model`, or the path of a file.
        dtype: Key of `PRECISIONS`.
        num_threads: Threads of its runs.

    Returns:
        An `openvino.CompiledModel`.
    """
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],  # else OpenVINO chooses bf16 by itself
    }
    return core.compile_model(model, "CPU", settings)


RUNTIME = Runtime(
    "openvino",
    backend="openvino, CPU",
    convert=convert,
    dtypes=("float32", "bfloat16", "int8"),
    packages=(*PYTORCH, "openvino"),
    extra="openvino",
)
