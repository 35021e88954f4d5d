"""The kinds of files that a trained network is deployed as: how each is written, loaded and run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.architecture import Architecture
from models.deploy import prepare
from models.deploy.int8 import Int8Network
from models.deploy.onnx import export_onnx
from models.deploy.onnx_int8 import quantise_onnx
from models.litv2 import LITv2, build
from search.files import replacing, write_bytes
from search.latency.onnx_session import open_session
from search.latency.openvino import open_model
from search.results import architecture_file
from search.training.files import write_weights

ARCHITECTURE = "architecture.yaml"  # beside the files
TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant
RUN_ONNX = 'onnxruntime.InferenceSession(FILE).run(None, {"x": images})'
RUN_OPENVINO = 'openvino.Core().compile_model(FILE, "CPU")(images)'
Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        file: its name.
        write: takes a network, examples of its input, the path, and the metadata of its weights, for files that can have
            some. The network is a LITv2, or for int8 an `Int8Network`.
        load: takes the path and a number of threads.
        use: how to run it, for people.
        runs_code: whether loading a file may run code that is in it.
        dtype: that the file computes in, "float32" or "int8".
        package: that writing and running it needs, if not every installation has it, and the extra that installs it.
    """

    file: str
    write: Callable[[Any, Tensor, Path, Mapping[str, str]], None]
    load: Callable[[Path, int], Compute]
    use: str
    runs_code: bool = False
    dtype: str = "float32"
    package: str = ""


def network_with(architecture: Architecture, state: Mapping[str, Tensor]) -> LITv2:
    """Build a network in evaluation mode; channels and classes are those of the weights."""
    in_chans = state["patch_embed.proj.weight"].shape[1]
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    network = build(architecture, in_chans=in_chans, num_classes=num_classes)
    network.load_state_dict(state)
    return network.eval()


def write_safetensors(network: LITv2, x: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    write_weights(network, metadata, path)


def load_weights(path: Path, num_threads: int) -> Compute:
    """Load weights into PyTorch, prepared for inference. The architecture is read from beside them."""
    architecture, _ = architecture_file.read(path.parent / ARCHITECTURE)
    return without_gradient(prepare(network_with(architecture, load_file(path))))


def write_exported(network: LITv2, x: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    any_batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        program = torch.export.export(prepare(network), (x[:TRACED_BATCH],), dynamic_shapes=any_batch)
    with replacing(path) as new:
        torch.export.save(program, new)


def load_exported(path: Path, num_threads: int) -> Compute:
    """Load a program of torch.export, which can run code."""
    return without_gradient(torch.export.load(path).module())


def write_onnx(network: LITv2, x: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the file that searches measure with ONNX Runtime: `models.deploy.onnx` says why the recorded one is the same."""
    write_bytes(path, described(onnx_content(prepare(network), x), metadata))


def write_onnx_int8(network: Int8Network, x: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file in 8-bit integers, as `models.deploy.onnx_int8` describes it."""
    write_bytes(path, described(quantise_onnx(onnx_content(network.network, x), network.ranges), metadata))


def write_openvino(network: LITv2, x: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write OpenVINO's two files, of the graph (.xml) and of the weights (.bin)."""
    save_openvino(onnx_content(prepare(network), x), path, metadata)


def write_openvino_int8(network: Int8Network, x: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write OpenVINO's two files in 8-bit integers, with the scales of the ONNX file."""
    save_openvino(quantise_onnx(onnx_content(network.network, x), network.ranges), path, metadata)


def onnx_content(prepared: nn.Module, x: Tensor) -> bytes:
    """The ONNX file of a prepared network, for any number of images."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_onnx(prepared, x[:TRACED_BATCH], file, any_batch=True)
        return file.read_bytes()


def described(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Put metadata into an ONNX file; `InferenceSession.get_modelmeta().custom_metadata_map` has them."""
    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, dict(metadata))
    for node in model.graph.node:  # where in this project each operator comes from: half of a small file
        del node.metadata_props[:]
    return bytes(model.SerializeToString())


def save_openvino(content: bytes, path: Path, metadata: Mapping[str, str]) -> None:
    """Write OpenVINO's files of an ONNX file."""
    import openvino

    model = openvino.Core().read_model(content)
    for key, value in metadata.items():
        model.set_rt_info(value, [key])
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.xml"
        openvino.save_model(model, saved, compress_to_fp16=False)
        write_bytes(path.with_suffix(".bin"), saved.with_suffix(".bin").read_bytes())
        write_bytes(path, saved.read_bytes())


def load_openvino(path: Path, num_threads: int) -> Compute:
    import openvino

    compiled = open_model(openvino.Core(), path, "float32", num_threads)  # or in integers, as the file says
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def load_onnx(path: Path, num_threads: int) -> Compute:
    session = open_session(path.read_bytes(), num_threads)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


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
    "onnx_int8": Format("model.int8.onnx", write_onnx_int8, load_onnx, RUN_ONNX, dtype="int8"),
    "openvino": Format("model.xml", write_openvino, load_openvino, RUN_OPENVINO, package="openvino"),
    "openvino_int8": Format(
        "model.int8.xml", write_openvino_int8, load_openvino, RUN_OPENVINO, dtype="int8", package="openvino"
    ),
}
