"""ONNX files that compute in 8-bit integers, to be timed: their latency does not depend on the images of the calibration.

LITv2 gets the form of `models.deploy.int8`. Other models are quantised by ONNX Runtime's own tool as it proposes for
convolutional networks, their convolutions included.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor, nn

from models.deploy.int8 import calibrated
from models.deploy.onnx import NoOnnxForm
from models.deploy.onnx_int8 import quantise_onnx
from models.litv2 import LITv2
from search.latency.runtime import ConversionError

LAYERS = ["Conv", "MatMul", "Gemm"]


def int8_file(content: bytes, model: nn.Module, x: Tensor) -> tuple[bytes, nn.Module]:
    """Turn the ONNX file of a model into one in 8-bit integers.

    Args:
        content: The file in float32.
        model: The model, in evaluation mode.
        x: Images to calibrate with, (B, C, H, W).

    Returns:
        The content of the file, and what computes the same in PyTorch; for models other than LITv2 the model itself.

    Raises:
        ConversionError: If the model has no such form.
    """
    if not isinstance(model, LITv2):
        return quantised_by_onnxruntime(content, x), model
    network = calibrated(model, [x])
    try:
        return quantise_onnx(content, network.ranges), network
    except NoOnnxForm as error:
        raise ConversionError(f"no int8 file of this model: {error}") from error


def quantised_by_onnxruntime(content: bytes, x: Tensor) -> bytes:
    """Quantise any ONNX file statically, with a scale per channel of weights. Arguments and errors as in `int8_file`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    model = onnx.load_from_string(content)
    name = model.graph.input[0].name

    class Images(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self.batches = iter([{name: x.numpy()}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        logging.getLogger().disabled = True  # it warns of a missing step of preparation that the exporter has done
        try:
            quantize_static(
                model,
                file,
                Images(),
                per_channel=True,
                op_types_to_quantize=LAYERS,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        except Exception as error:  # whatever it raises
            raise ConversionError(f"ONNX Runtime cannot quantise this model: {error}") from error
        finally:
            logging.getLogger().disabled = False
        return file.read_bytes()
