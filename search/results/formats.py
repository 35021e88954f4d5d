"""The kinds of files that a trained network is deployed as: how each is written, loaded and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.architecture import Architecture
from models.deploy import prepare
from models.deploy.onnx import export_onnx
from models.litv2 import LITv2, build
from search.files import replacing
from search.latency.onnx_session import open_session
from search.results import architecture_file
from search.training.files import write_weights

ARCHITECTURE = "architecture.yaml"  # beside the files
Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        file: its name.
        write: takes a network, an example input, the path, and the metadata of its weights, for files that can have some.
        load: takes the path and a number of threads.
        use: how to run it, for people.
        runs_code: whether loading a file may run code that is in it.
    """

    file: str
    write: Callable[[LITv2, Tensor, Path, Mapping[str, str]], None]
    load: Callable[[Path, int], Compute]
    use: str
    runs_code: bool = False


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
    with torch.no_grad():
        program = torch.export.export(prepare(network), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with replacing(path) as new:
        torch.export.save(program, new)


def load_exported(path: Path, num_threads: int) -> Compute:
    """Load a program of torch.export, which can run code."""
    return without_gradient(torch.export.load(path).module())


def write_onnx(network: LITv2, x: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the file that searches measure with ONNX Runtime: `models.deploy.onnx` says why the recorded one is the same."""
    with replacing(path) as new:
        export_onnx(prepare(network), x, new, any_batch=True)
        model = onnx.load(new)
        onnx.helper.set_model_props(model, dict(metadata))  # InferenceSession.get_modelmeta().custom_metadata_map
        onnx.save(model, new)


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
    "onnx": Format("model.onnx", write_onnx, load_onnx, 'onnxruntime.InferenceSession(FILE).run(None, {"x": images})'),
}
