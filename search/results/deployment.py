"""Deployable files of a network that a study found: written, checked against eager PyTorch, measured, described in a card.

A folder holds the architecture, the files that were asked for, a model card for people and the same facts for programs. Its
latencies are those of the files themselves, timed in turn with the study's anchor network, so that they compare with the
study's own and another measurement with the same anchor can be held against them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.architecture import Architecture
from models.deploy import prepare
from models.deploy.onnx import export_onnx
from models.litv2 import LITv2, build
from search import UserError, one_line
from search.latency.base import Calibration, Latency
from search.latency.onnx_session import open_session
from search.latency.protocol import Run
from search.latency.target import PairedTarget
from search.results import architecture_file
from search.results.card import card

log = logging.getLogger(__name__)
CARD, FACTS, ARCHITECTURE = "README.md", "card.json", "architecture.yaml"
PARITY = 1e-4  # greatest difference of a file's outputs from eager PyTorch's, relative to the greatest output
BATCHES = (1, 3)  # that every file must take, whatever it was traced with
TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant

Compute = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file. write: a network, an example input and the path. load: a path and a number of threads."""

    file: str
    write: Callable[[LITv2, Tensor, Path], None]
    load: Callable[[Path, int], Compute]
    use: str


@dataclass(frozen=True)
class Trained:
    """A network with weights. origin: where they come from, in words. result: what search.train reported of them."""

    network: LITv2
    origin: str
    result: Mapping[str, Any]


def deploy(file: Path, formats: Sequence[str], target: PairedTarget, calibration: Calibration, folder: Path) -> Path:
    """Write an exported network in some formats with a card. file: its YAML, beside which trained weights may lie.

    Returns the folder of the card.
    Raises: UserError if weights cannot be read, a format is unknown or cannot be written, or computes something else.
    """
    architecture, facts = architecture_file.read(file)
    trained = trained_network(file, architecture, facts)
    if trained.network.num_classes == 0 and target.settings.num_classes:
        raise UserError(f"{file.with_suffix('.safetensors')} has no head; train again with search.train arch={file}")
    if trained.network.in_chans != target.settings.in_chans:
        raise UserError(
            f"{file.with_suffix('.safetensors')} is for images of {trained.network.in_chans} channel(s), the study's have "
            f"{target.settings.in_chans}: train on the study's data, or move that file elsewhere"
        )
    folder.mkdir(parents=True, exist_ok=True)
    architecture_file.write(folder / ARCHITECTURE, f"Architecture of the files beside it; from {file}.", architecture, facts)
    in_chans, side = trained.network.in_chans, image_side(facts)
    latencies, parities = {}, {}
    for name in formats:
        path = folder / FORMATS[name].file
        parities[name] = write_checked(trained.network, name, path, (in_chans, side, side))
        latencies[name] = measure(name, path, target, calibration)
        log.info("%s: %.3f ms, outputs within %.0e of PyTorch's", path, latencies[name].latency_ms, parities[name])
    body = {
        "trained": trained.result,
        "weights": trained.origin,
        "device": target.fingerprint(),
        "calibration": calibration.to_dict(),
        "input_shape": [in_chans, side, side],
        "files": {
            name: {"file": FORMATS[name].file, "parity": parities[name], "latency": latencies[name].summary()}
            for name in formats
        },
    }
    (folder / FACTS).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(
        card(file, architecture, facts, body, {name: FORMATS[name].use for name in formats}), encoding="utf-8"
    )
    return folder


def check_runs_files(target: PairedTarget) -> None:
    """Raises: UserError if a target cannot measure deployable files, which run on this machine's processor."""
    if not target.runtime.runs_files:
        raise UserError(f"latency={target.runtime.name}: exported files run on this machine's CPU here; choose latency=cpu")


def trained_network(file: Path, architecture: Architecture, facts: Mapping[str, Any]) -> Trained:
    """The network with the weights that search.train left beside its file, else with random ones."""
    weights, report = file.with_suffix(".safetensors"), file.with_suffix(".result.json")
    if not weights.exists():
        log.warning("there is no %s: the files get random weights; train first with search.train arch=%s", weights, file)
        num_classes = int(facts.get("device", {}).get("num_classes", 1000))
        in_chans = int(str(facts.get("device", {}).get("input_size", "3x")).split("x")[0])
        return Trained(build(architecture, in_chans=in_chans, num_classes=num_classes).eval(), "random, untrained", {})
    try:
        result = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        return Trained(network_with(architecture, load_file(weights)), f"trained by search.train, {weights.name}", result)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{weights} cannot be read ({one_line(error)}); train again with search.train arch={file}"
        ) from error


def network_with(architecture: Architecture, state: Mapping[str, Tensor]) -> LITv2:
    """A network in evaluation mode; channels and classes are those of the weights."""
    in_chans = state["patch_embed.proj.weight"].shape[1]
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    network = build(architecture, in_chans=in_chans, num_classes=num_classes)
    network.load_state_dict(state)
    return network.eval()


def image_side(facts: Mapping[str, Any]) -> int:
    """Of the images that a network was searched for, in pixels."""
    return int(str(facts.get("device", {}).get("input_size", "3x224x224")).split("x")[-1])


def write_checked(network: LITv2, name: str, path: Path, shape: tuple[int, int, int]) -> float:
    """Write a file and run it on batches of several sizes. Returns the greatest relative difference from eager PyTorch.

    Raises: UserError if it cannot be written or computes something else.
    """
    kind = FORMATS[name]
    try:
        kind.write(network, torch.rand(TRACED_BATCH, *shape), path)
        compute = kind.load(path, 1)
        differences = [difference(network, compute, torch.rand(batch, *shape)) for batch in BATCHES]
    except Exception as error:  # whatever an exporter or a runtime raises
        raise UserError(f"format={name}: {path} cannot be made ({one_line(error)}); leave that format out") from error
    if not max(differences) <= PARITY:
        raise UserError(
            f"format={name}: {path} computes something else than PyTorch, by {max(differences):.1e}; leave it out"
        )
    return max(differences)


def difference(network: nn.Module, compute: Compute, x: Tensor) -> float:
    """Greatest difference of outputs, relative to the greatest output."""
    with torch.inference_mode():
        expected = network(x)
    return float((compute(x) - expected).abs().max()) / (float(expected.abs().max()) or 1.0)


def measure(name: str, path: Path, target: PairedTarget, calibration: Calibration) -> Latency:
    """Latency of a file as it is, timed in turn with the anchor."""
    settings = target.settings
    x = torch.rand(settings.batch_size, settings.in_chans, settings.img_size, settings.img_size)

    def load() -> Run:
        return partial(FORMATS[name].load(path, settings.num_threads), x.clone())

    return target.time([target.ready(load)], calibration)[0]


def measure_again(folder: Path, target: PairedTarget) -> dict[str, tuple[Latency, Latency]]:
    """Of each file of a folder: the latency that its card says, and another measurement with the card's calibration.

    Raises: UserError if the folder holds no card, or one of another device.
    """
    body = read_facts(folder)
    if changed := {key for key, value in target.fingerprint().items() if body["device"].get(key) != value}:
        raise UserError(
            f"deployed={folder} was measured otherwise ({', '.join(sorted(changed))} differ); export it here again"
        )
    calibration = Calibration.from_dict(body["calibration"])
    return {
        name: (Latency(**one["latency"]), measure(name, folder / FORMATS[name].file, target, calibration))
        for name, one in body["files"].items()
    }


def read_facts(folder: Path) -> dict[str, Any]:
    """Raises: UserError if the folder holds none that `deploy` wrote."""
    try:
        body: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        Calibration.from_dict(body["calibration"])
        if not set(body["files"]) <= set(FORMATS) or len(body["input_shape"]) != len("CHW"):
            raise ValueError("unknown files or input")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"deployed={folder} has no {FACTS} of an export ({one_line(error)}); name a folder of one"
        ) from error
    return body


def write_weights(network: LITv2, x: Tensor, path: Path) -> None:
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)


def load_weights(path: Path, num_threads: int) -> Compute:
    """In PyTorch, prepared for inference. The architecture lies beside the weights."""
    architecture, _ = architecture_file.read(path.parent / ARCHITECTURE)
    return without_gradient(prepare(network_with(architecture, load_file(path))))


def write_exported(network: LITv2, x: Tensor, path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(prepare(network), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)


def load_exported(path: Path, num_threads: int) -> Compute:
    return without_gradient(torch.export.load(path).module())


def write_onnx(network: LITv2, x: Tensor, path: Path) -> None:
    export_onnx(prepare(network), x, path, any_batch=True)


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
    "safetensors": Format("model.safetensors", write_weights, load_weights, "search.results.deployment.load_weights"),
    "torch_export": Format("model.pt2", write_exported, load_exported, "torch.export.load(FILE).module()(images)"),
    "onnx": Format("model.onnx", write_onnx, load_onnx, 'onnxruntime.InferenceSession(FILE).run(None, {"x": images})'),
}
