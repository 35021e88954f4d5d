"""Deployable files of a network: written, checked against eager PyTorch, measured, described in a card.

A folder contains the architecture, the files that were asked for, a model card for people and the same facts for programs.
Its latencies are those of the files themselves, timed in turn with the study's anchor network, so that they compare with the
study's latencies and with another measurement beside the same anchor.

A folder may come from somebody else, so nothing is loaded from it that can run code unless the user trusts it. That is every
file of torch.export, whether or not it contains pickles: PyTorch runs the expressions of its shapes and guards as Python
(`sympify` in torch/_export/serde/serialize.py, `exec` in torch/export/_unlift.py of PyTorch 2.15).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.architecture import Architecture
from models.litv2 import LITv2, build
from search import SearchStopped, UserError, one_line
from search.files import sha256, write_text
from search.latency.base import Calibration, Latency
from search.latency.protocol import Run
from search.latency.target import PairedTarget
from search.results import architecture_file
from search.results.architecture_file import network_input
from search.results.card import card
from search.results.formats import ARCHITECTURE, FORMATS, Compute, network_with
from search.training.metadata import CLASS_NAMES_KEY, NORMALISATION_KEY, metadata_of, read_metadata

log = logging.getLogger(__name__)
CARD, FACTS = "README.md", "card.json"
PARITY = 1e-4  # greatest difference of a file's outputs from eager PyTorch's, relative to the greatest output
BATCHES = (1, 3)  # that every file must take, whatever it was traced with
TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant


@dataclass(frozen=True)
class Trained:
    """A network with weights.

    Attributes:
        origin: where the weights come from, for people.
        metadata: of their file, as `search.training.metadata` describes it; the deployed files get it too.
        result: what search.train reported about them.
    """

    network: LITv2
    origin: str
    metadata: Mapping[str, str]
    result: Mapping[str, Any]

    def expects(self) -> dict[str, Any]:
        """Normalisation of images and names of classes, as far as they are known."""
        return {key: json.loads(self.metadata[key]) for key in (NORMALISATION_KEY, CLASS_NAMES_KEY) if key in self.metadata}


def deploy(file: Path, formats: Sequence[str], target: PairedTarget, calibration: Calibration, folder: Path) -> Path:
    """Write an exported network in some formats, with a card.

    Args:
        file: the exported architecture; weights of search.train are read from beside it.
        formats: keys of FORMATS.
        target: measures the files.
        calibration: of the anchor on the target.
        folder: where to write.

    Returns:
        The folder.

    Raises:
        UserError: if weights cannot be read, or a file cannot be written or computes something else than PyTorch.
    """
    architecture, facts = architecture_file.read(file)
    trained = trained_network(file, architecture, facts)
    check_fits(trained.network, target, file.with_suffix(".safetensors"), file)
    folder.mkdir(parents=True, exist_ok=True)
    comment = f"Architecture of the files in this folder; from {file}."
    architecture_file.write(folder / ARCHITECTURE, comment, architecture, facts)
    side = network_input(architecture, facts).img_size
    shape = (trained.network.in_chans, side, side)
    body = {
        "trained": trained.result,
        "weights": trained.origin,
        "expects": trained.expects(),
        "device": {**target.fingerprint(), "input_size": "x".join(map(str, shape))},
        "calibration": calibration.to_dict(),
        "input_shape": list(shape),
        "files": {name: write_and_measure(trained, name, folder, shape, target, calibration) for name in formats},
    }
    write_text(folder / FACTS, json.dumps(body, indent=2) + "\n")
    uses = {name: FORMATS[name].use for name in formats}
    write_text(folder / CARD, card(file, architecture, facts, body, uses))
    return folder


def check_fits(network: LITv2, target: PairedTarget, weights: Path, file: Path) -> None:
    """Raises: UserError if trained weights are not for the images and classes of the study."""
    if network.num_classes == 0 and target.settings.num_classes:
        raise UserError(f"{weights} has no head; train again with search.train arch={file}")
    if network.in_chans != target.settings.in_chans:
        raise UserError(
            f"{weights} is for images of {network.in_chans} channel(s), the study's have {target.settings.in_chans}: train "
            "on the study's data, or move that file elsewhere"
        )


def check_runs_files(target: PairedTarget) -> None:
    """Raises: UserError if a target cannot measure deployable files, which run on this machine's CPU."""
    if not target.runtime.runs_files:
        name = target.runtime.name
        raise UserError(f"latency={name}: exported files run on this machine's CPU here; choose latency=onnxruntime")


def trained_network(file: Path, architecture: Architecture, facts: Mapping[str, Any]) -> Trained:
    """Build the network with the weights that search.train left beside its file, or else with random ones."""
    weights, report = file.with_suffix(".safetensors"), file.with_suffix(".result.json")
    if not weights.exists():
        log.warning("there is no %s: the files get random weights; train first with search.train arch=%s", weights, file)
        in_chans, _, num_classes = network_input(architecture, facts)
        network = build(architecture, in_chans=in_chans, num_classes=num_classes).eval()
        return Trained(network, "random, untrained", metadata_of(architecture.key, facts.get(NORMALISATION_KEY)), {})
    try:
        network = network_with(architecture, load_file(weights))
        metadata, result = read_metadata(weights), result_of(weights, report)
        if NORMALISATION_KEY not in metadata and NORMALISATION_KEY in result:  # weights of version 0.1
            metadata |= metadata_of(architecture.key, result[NORMALISATION_KEY])
        return Trained(network, f"trained by search.train, {weights.name}", metadata, result)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{weights} cannot be read ({one_line(error)}); train again with search.train arch={file}"
        ) from error


def result_of(weights: Path, report: Path) -> Mapping[str, Any]:
    """What search.train reported about weights; nothing, with a warning, if its report is of other ones.

    Raises:
        ValueError, OSError: if the report cannot be read.
    """
    result = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    if not isinstance(result, dict):
        raise ValueError(f"{report} is not a result of search.train")
    if result.get("weights_sha256") == sha256(weights):
        return result
    log.warning(
        "%s: the card gets no accuracy of %s; run search.train to its end",
        f"{report} is of other weights" if result else f"there is no {report}",
        weights,
    )
    return {}


def write_and_measure(
    trained: Trained,
    name: str,
    folder: Path,
    shape: tuple[int, int, int],
    target: PairedTarget,
    calibration: Calibration,
) -> dict[str, Any]:
    """Write one format. Returns the facts about it for the card."""
    path = folder / FORMATS[name].file
    parity = write_checked(trained, name, path, shape)
    latency = measure(name, path, target, calibration, shape)
    log.info("%s: %.3f ms, outputs within %.0e of PyTorch's", path, latency.latency_ms, parity)
    return {"file": path.name, "parity": parity, "latency": latency.summary()}


def write_checked(trained: Trained, name: str, path: Path, shape: tuple[int, int, int]) -> float:
    """Write a file and run it on batches of several sizes.

    Args:
        shape: of an input, (C, H, W).

    Returns:
        The greatest relative difference of its outputs from eager PyTorch's.

    Raises:
        UserError: if it cannot be written, or computes something else.
    """
    kind, network = FORMATS[name], trained.network
    try:
        kind.write(network, torch.rand(TRACED_BATCH, *shape), path, trained.metadata)
        compute = kind.load(path, 1)
        differences = [difference(network, compute, torch.rand(batch, *shape)) for batch in BATCHES]
    except SearchStopped:  # the file cannot be written
        raise
    except Exception as error:  # whatever an exporter or a runtime raises
        raise UserError(f"format={name}: {path} cannot be written and run ({one_line(error)}); omit that format") from error
    if not max(differences) <= PARITY:
        raise UserError(
            f"format={name}: the outputs of {path} differ from PyTorch's by {max(differences):.1e}, which is above "
            f"{PARITY:.0e}; omit that format"
        )
    return max(differences)


def difference(network: nn.Module, compute: Compute, x: Tensor) -> float:
    """The greatest difference of outputs, relative to the greatest output."""
    with torch.inference_mode():
        expected = network(x)
    return float((compute(x) - expected).abs().max()) / (float(expected.abs().max()) or 1.0)


def measure(name: str, path: Path, target: PairedTarget, calibration: Calibration, shape: tuple[int, int, int]) -> Latency:
    """Measure the latency of a file, timed in turn with the anchor.

    Args:
        shape: of an input, (C, H, W).
    """
    settings = target.settings
    x = torch.rand(settings.batch_size, *shape)

    def load() -> Run:
        return partial(FORMATS[name].load(path, settings.num_threads), x.clone())

    return target.time([target.ready(load)], calibration)[0]


def measure_again(folder: Path, target: PairedTarget, trusted: bool = False) -> dict[str, tuple[Latency, Latency]]:
    """Measure the files of a folder again, with the calibration of its card.

    Args:
        trusted: whether files may be loaded that can run code.

    Returns:
        The latency that the card has and the new one, by format. Files that can run code are left out, with a warning,
        unless they are trusted.

    Raises:
        UserError: if the folder has no card, one of another device, or only files that can run code and are not trusted.
    """
    body = read_facts(folder)
    if changed := {key for key, value in target.fingerprint().items() if body["device"].get(key) != value}:
        raise UserError(
            f"deployed={folder} was measured on another device or with other settings ({', '.join(sorted(changed))}); "
            "export it here again"
        )
    calibration = Calibration.from_dict(body["calibration"])
    in_chans, height, width = body["input_shape"]
    shape = (in_chans, height, width)
    safe = {name: file for name, file in body["files"].items() if trusted or not FORMATS[name].runs_code}
    refused = ", ".join(str(folder / FORMATS[name].file) for name in body["files"] if name not in safe)
    if refused:
        reason = f"{refused} is not loaded: PyTorch runs code that such a file contains"
        remedy = "set trusted=true if you exported it yourself, or ask for format=[onnx]"
        if not safe:
            raise UserError(f"{reason}; {remedy}")
        log.warning("%s; %s", reason, remedy)
    return {
        name: (Latency.from_summary(file["latency"]), measure(name, folder / FORMATS[name].file, target, calibration, shape))
        for name, file in safe.items()
    }


def read_facts(folder: Path) -> dict[str, Any]:
    """Read the facts that `deploy` wrote. Raises: UserError if the folder has none."""
    try:
        body: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        Calibration.from_dict(body["calibration"])
        if not set(body["files"]) <= set(FORMATS) or len(body["input_shape"]) != len("CHW"):
            raise ValueError("unknown files or input")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"deployed={folder} has no {FACTS} of an export ({one_line(error)}); name a folder that search.export wrote"
        ) from error
    return body
