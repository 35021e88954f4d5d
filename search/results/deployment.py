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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.deploy.int8 import FLOAT32, INT8
from models.deploy.onnx import NEWEST, OnnxVersions
from models.litv2 import LITv2
from search import SearchStopped, UserError, one_line
from search.files import write_text
from search.latency.base import Calibration, Latency
from search.latency.machine import allowed_cores
from search.latency.protocol import Run
from search.latency.runtime import PARITY, require
from search.latency.target import PairedTarget
from search.results import architecture_file
from search.results.architecture_file import network_input
from search.results.card import card
from search.results.deployable import TRACED_BATCH, Deployable, int8_network
from search.results.deployed_images import DeployedImages
from search.results.formats import ARCHITECTURE, FORMATS, Compute
from search.results.trained import Trained, trained_network
from search.training.files import weights_file

log = logging.getLogger(__name__)
CARD, FACTS = "README.md", "card.json"
BATCHES = (1, 3)  # that every file must take, whatever it was traced with


def deploy(
    file: Path,
    formats: Sequence[str],
    target: PairedTarget,
    calibration: Calibration,
    folder: Path,
    images: DeployedImages | None = None,
    versions: OnnxVersions = NEWEST,
) -> Path:
    """Write an exported network in some formats, with a card.

    Args:
        file: the exported architecture; weights of search.train are read from beside it.
        formats: keys of FORMATS.
        target: measures the files.
        calibration: of the anchor on the target.
        folder: where to write.
        images: to calibrate int8 files with, and to compute the accuracy of all files; None for float32 files alone.
        versions: of ONNX files.

    Returns:
        The folder.

    Raises:
        UserError: if weights cannot be read, or a file cannot be written or computes something else than PyTorch.
    """
    architecture, facts = architecture_file.read(file)
    trained = trained_network(file, architecture, facts)
    check_fits(trained.network, target, weights_file(file), file)
    folder.mkdir(parents=True, exist_ok=True)
    comment = f"Architecture of the files in this folder; from {file}."
    architecture_file.write(folder / ARCHITECTURE, comment, architecture, facts)
    side = network_input(architecture, facts).img_size
    shape = (trained.network.in_chans, side, side)
    networks = {FLOAT32: Deployable(trained.network, torch.rand(TRACED_BATCH, *shape), trained, versions=versions)}
    if INT8 in {FORMATS[name].dtype for name in formats}:
        assert images is not None
        is_fine_tuned = weights_file(file, INT8).exists()
        for_int8 = trained_network(file, architecture, facts, INT8) if is_fine_tuned else trained
        check_fits(for_int8.network, target, weights_file(file, INT8), file)
        check_classes(for_int8.network, images, file)
        networks[INT8] = int8_network(for_int8, images, side, file, versions)
    files = {}
    for name in formats:
        network = networks[INT8 if FORMATS[name].dtype == INT8 else FLOAT32]
        files[name] = write_and_measure(network, name, folder, shape, target, calibration)
        if images is not None and network.trained.is_trained:
            files[name] |= accuracy_of_file(name, folder, images, network.trained, side)
    body = {
        "trained": trained.result,
        "weights": trained.origin,
        "expects": trained.expects(),
        "device": {**target.fingerprint(), "input_size": "x".join(map(str, shape))},
        "calibration": calibration.to_dict(),
        "input_shape": list(shape),
        "files": files,
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


def check_classes(network: LITv2, images: DeployedImages, file: Path) -> None:
    """Raises: UserError if a network was trained for other classes than the search's data have."""
    if network.num_classes != images.num_classes:
        raise UserError(
            f"the weights of {file} are for {network.num_classes} classes, the search's data have {images.num_classes}: "
            "train on the data of the search, or ask for float32 formats alone"
        )


def check_runs_files(target: PairedTarget) -> None:
    """Raises: UserError if a target cannot measure deployable files, which run on this machine's CPU."""
    if not target.runtime.runs_files:
        name = target.runtime.name
        raise UserError(f"latency={name}: exported files run on this machine's CPU here; choose latency=onnxruntime")


def accuracy_of_file(name: str, folder: Path, images: DeployedImages, trained: Trained, side: int) -> dict[str, Any]:
    """Run a file on the test set. Returns facts for the card."""
    path = folder / FORMATS[name].file
    log.info("%s: computing the test accuracy", path)
    compute = FORMATS[name].load(path, len(allowed_cores()))
    accuracy = images.test_accuracy(compute, trained.normalisation(path), side)
    log.info("%s: test accuracy %.4f ±%.4f", path, accuracy.accuracy, accuracy.standard_error)
    return {"test_accuracy": accuracy.accuracy, "test_images": accuracy.num_images}


def write_and_measure(
    deployable: Deployable,
    name: str,
    folder: Path,
    shape: tuple[int, int, int],
    target: PairedTarget,
    calibration: Calibration,
) -> dict[str, Any]:
    """Write one format. Returns the facts about it for the card."""
    path = folder / FORMATS[name].file
    parity = write_checked(deployable, name, path, shape, target.settings.num_threads)
    latency = measure(name, path, target, calibration, shape)
    log.info("%s: %.3f ms, outputs within %.0e of PyTorch's", path, latency.latency_ms, parity)
    facts = {"file": path.name, "bytes": size_of(path), "parity": parity, "latency": latency.summary()}
    if FORMATS[name].dtype == INT8:
        facts |= {"weights": deployable.trained.origin, "float32_layers": list(deployable.float_layers)}
    return facts


def size_of(path: Path) -> int:
    """Bytes of a file, and of OpenVINO's weights beside it."""
    weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    return sum(file.stat().st_size for file in [path, *weights])


def write_checked(deployable: Deployable, name: str, path: Path, shape: tuple[int, int, int], num_threads: int = 1) -> float:
    """Write a file and run it on batches of several sizes.

    Args:
        shape: of an input, (C, H, W).
        num_threads: of its runs.

    Returns:
        The greatest relative difference of its outputs from eager PyTorch's.

    Raises:
        UserError: if it cannot be written, or computes something else.
    """
    kind, network = FORMATS[name], deployable.network
    if kind.package:
        try:
            require(kind.package, f"format={name}", kind.package)
        except ValueError as error:
            raise UserError(str(error)) from error
    try:
        kind.write(deployable, path)
        compute = kind.load(path, num_threads)
        differences = [difference(network, compute, torch.rand(batch, *shape)) for batch in BATCHES]
    except SearchStopped:  # the file cannot be written
        raise
    except Exception as error:  # whatever an exporter or a runtime raises
        raise UserError(f"format={name}: {path} cannot be written and run ({one_line(error)}); omit that format") from error
    if not max(differences) <= PARITY[kind.dtype]:
        raise UserError(
            f"format={name}: the outputs of {path} differ from PyTorch's by {max(differences):.1e}, which is above "
            f"{PARITY[kind.dtype]:.0e}; omit that format"
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


def measure_elsewhere(folder: Path, target: PairedTarget) -> dict[str, Latency]:
    """Measure the ONNX files of a folder on another device, in turn with its anchor, which is calibrated there.

    Returns:
        Latencies by format.

    Raises:
        UserError: if the folder has no card, or no ONNX file.
    """
    body = read_facts(folder)
    names = [name for name in body["files"] if FORMATS[name].file.endswith(".onnx")]
    if not names:
        raise UserError(
            f"deployed={folder} has no ONNX file, the only kind that devices run; export format=[onnx,onnx_int8]"
        )
    if left_out := [FORMATS[name].file for name in body["files"] if name not in names]:
        log.warning("%s: left out, devices run ONNX files", ", ".join(left_out))
    x = torch.rand(target.settings.batch_size, *body["input_shape"])
    log.info("calibrating the anchor network of the card on the device")
    calibration = target.calibrate(Calibration.from_dict(body["calibration"]).anchor)
    ready = [target.file_ready((folder / FORMATS[name].file).read_bytes(), x, FORMATS[name].dtype) for name in names]
    return dict(zip(names, target.time(ready, calibration), strict=True))


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
