"""The kinds of files that a trained network is deployed as: how each is written, loaded and run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.deploy import prepare
from search.files import replacing, write_bytes
from search.latency.executorch import file_of as executorch_file
from search.latency.executorch import open_file as open_executorch_file
from search.latency.onnx_session import first_output, open_session
from search.latency.openvino import open_model
from search.results import architecture_file
from search.results.deployable import TRACED_BATCH, Deployable
from search.results.trained import network_with
from search.training.files import write_weights

ARCHITECTURE = "architecture.yaml"  # beside the files
RUN_ONNX = 'onnxruntime.InferenceSession(FILE).run(None, {"x": images})'
RUN_EXECUTORCH = 'executorch.runtime.Runtime.get().load_program(FILE).load_method("forward").execute([image])'
RUN_OPENVINO = 'openvino.Core().compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)'
RUN_OPENVINO_BFLOAT16 = RUN_OPENVINO.replace("f32", "bf16")
Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        file: its name.
        write: takes the network in float32 or, for int8, in integers, and the path.
        load: takes the path and a number of threads.
        use: how to run it, for people.
        runs_code: whether loading a file may run code that is in it.
        dtype: what the file computes in: "float32", "int8", or "float16" and "bfloat16" on devices that have them.
        package: that writing and running it needs, if not every installation has it, and the extra that installs it.
    """

    file: str
    write: Callable[[Deployable, Path], None]
    load: Callable[[Path, int], Compute]
    use: str
    runs_code: bool = False
    dtype: str = "float32"
    package: str = ""


def write_safetensors(deployable: Deployable, path: Path) -> None:
    write_weights(deployable.network, deployable.trained.metadata, path)


def load_weights(path: Path, num_threads: int) -> Compute:
    """Load weights into PyTorch, prepared for inference. The architecture is read from beside them."""
    architecture, _ = architecture_file.read(path.parent / ARCHITECTURE)
    return without_gradient(prepare(network_with(architecture, load_file(path))))


def write_exported(deployable: Deployable, path: Path) -> None:
    x, any_batch = deployable.examples[:TRACED_BATCH], ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(prepare(deployable.network), (x,), dynamic_shapes=any_batch)
    with replacing(path) as new:
        torch.export.save(program, new)


def load_exported(path: Path, num_threads: int) -> Compute:
    """Load a program of torch.export, which can run code."""
    return without_gradient(torch.export.load(path).module())


def write_onnx(deployable: Deployable, path: Path) -> None:
    """Write the file that searches measure with ONNX Runtime: `models.deploy.onnx` says why the recorded one is the same."""
    write_onnx_model(onnx.load_from_string(deployable.onnx), deployable, path)


def write_onnx_float16(deployable: Deployable, path: Path) -> None:
    """Write weights and operators in float16; inputs and outputs stay in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load_from_string(deployable.onnx), keep_io_types=True)
    write_onnx_model(model, deployable, path)


def write_onnx_model(model: onnx.ModelProto, deployable: Deployable, path: Path) -> None:
    """Write a model with facts about the network, which `get_modelmeta().custom_metadata_map` has."""
    onnx.helper.set_model_props(model, dict(deployable.trained.metadata))
    write_bytes(path, bytes(model.SerializeToString()))


def write_openvino(deployable: Deployable, path: Path, compress_to_fp16: bool = False) -> None:
    """Write OpenVINO's two files, of the graph (.xml) and of the weights (.bin), with the scales of the ONNX file."""
    import openvino

    model = openvino.Core().read_model(deployable.onnx)
    for key, value in deployable.trained.metadata.items():
        model.set_rt_info(value, [key])
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.xml"
        openvino.save_model(model, saved, compress_to_fp16=compress_to_fp16)
        write_bytes(path.with_suffix(".bin"), saved.with_suffix(".bin").read_bytes())
        write_bytes(path, saved.read_bytes())


def load_openvino(path: Path, num_threads: int, dtype: str = "float32") -> Compute:
    import openvino

    compiled = open_model(openvino.Core(), path, dtype, num_threads)  # weights are as the file has them
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def write_executorch(deployable: Deployable, path: Path) -> None:
    """Write a file that takes one image at a time, as an app on a phone does."""
    write_bytes(path, executorch_file(prepare(deployable.network), deployable.examples[:1]))


def load_executorch(path: Path, num_threads: int) -> Compute:
    run = open_executorch_file(path.read_bytes(), num_threads)
    return lambda x: torch.cat([run(x[index : index + 1]) for index in range(len(x))])


def load_onnx(path: Path, num_threads: int) -> Compute:
    session = open_session(path.read_bytes(), num_threads)
    return lambda x: torch.from_numpy(first_output(session, x.numpy()))


def without_gradient(module: nn.Module) -> Compute:
    def compute(x: Tensor) -> Tensor:
        with torch.inference_mode():
            output: Tensor = module(x)
            return output

    return compute


FORMATS = {
    "safetensors": Format("model.safetensors", write_safetensors, load_weights, "search.results.formats.load_weights"),
    "torch_export": Format(
        "model.pt2", write_exported, load_exported, "torch.export.load(FILE).module()(images)", runs_code=True
    ),
    "onnx": Format("model.onnx", write_onnx, load_onnx, RUN_ONNX),
    "onnx_float16": Format("model.float16.onnx", write_onnx_float16, load_onnx, RUN_ONNX, dtype="float16"),
    "onnx_int8": Format("model.int8.onnx", write_onnx, load_onnx, RUN_ONNX, dtype="int8"),
    "openvino": Format("model.xml", write_openvino, load_openvino, RUN_OPENVINO, package="openvino"),
    "openvino_float16": Format(
        "model.float16.xml",
        partial(write_openvino, compress_to_fp16=True),
        load_openvino,
        RUN_OPENVINO,
        dtype="float16",
        package="openvino",
    ),
    "openvino_bfloat16": Format(
        "model.bfloat16.xml",
        partial(write_openvino, compress_to_fp16=True),
        partial(load_openvino, dtype="bfloat16"),
        RUN_OPENVINO_BFLOAT16,
        dtype="bfloat16",
        package="openvino",
    ),
    "openvino_int8": Format("model.int8.xml", write_openvino, load_openvino, RUN_OPENVINO, dtype="int8", package="openvino"),
    "executorch": Format("model.pte", write_executorch, load_executorch, RUN_EXECUTORCH, package="executorch"),
}
