"""This machine's CPU, networks run by OpenVINO (https://docs.openvino.ai)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search.latency.protocol import Run
from search.latency.target import ConversionError, PairedTarget, Prepared, check_parity


@dataclass
class OpenVinoTarget(PairedTarget):
    """Networks converted from their torch.export program, for which no other package is needed."""

    name = "openvino"
    backend = "openvino, CPU"
    packages = ("torch", "torchvision", "timm", "openvino")
    extra = "openvino"
    dtypes = ("float32", "bfloat16")

    def prepare(self, model: nn.Module, x: Tensor) -> Prepared:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": self.num_threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.dtype],  # else it takes bf16 by itself
        }
        try:
            with torch.no_grad():
                program = torch.export.export(model, (x,))
            converted = openvino.convert_model(program)
            compiled = core.compile_model(converted, "CPU", settings)
        except Exception as error:
            raise ConversionError(f"OpenVINO cannot take this model: {error}") from error
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != settings["INFERENCE_PRECISION_HINT"]:
            raise ConversionError(f"OpenVINO computes in {precision} on this processor, not in latency.dtype={self.dtype}")
        inputs = x.numpy()
        output = torch.from_numpy(compiled(inputs)[0])
        parity = check_parity(self.name, model, x, output, self.dtype)

        def load() -> Run:
            request = core.compile_model(converted, "CPU", settings).create_infer_request()
            request.set_input_tensor(openvino.Tensor(inputs.copy()))
            return lambda: request.infer()

        return Prepared(load, parity)
