"""`search.report report.peers=[...]`: models of timm, measured on a target of the study as its networks were."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig

from search import UserError
from search.commands.cli import construct, target_of
from search.commands.measure import Candidate, checked_cost, from_timm, naming_failures
from search.files import write_text
from search.latency.base import Latency
from search.latency.target import PairedTarget
from search.results.report.study_data import PEERS_FILE
from search.study.targets import Target, targets_of

log = logging.getLogger(__name__)


def measure_peers(names: Sequence[str], latency: DictConfig, study: optuna.Study, folder: Path) -> None:
    """Measure models in turn, unless they are known, and store their latencies in the study's folder.

    Raises:
        UserError: If a model is unknown or does not take the study's images, or no target of the study is this machine.
        SearchStopped: If a model cannot be converted.
    """
    targets = targets_of(study)
    any_target = next(iter(targets.values()))  # all have the same images and classes
    target: PairedTarget = construct(target_of(latency, **any_target.network_input))
    name = name_of_target(target, targets)
    file, device = folder / PEERS_FILE, dict(targets[name].device)
    models = known_models(file, device)
    missing = [peer(model, any_target) for model in names if model not in models]
    costs = {
        candidate.name: checked_cost(candidate, "report.peers=", "the study's images", "leave it out")
        for candidate in missing
    }
    if missing:
        log.info("measuring %s", ", ".join(costs))
        latencies = time_all(target, missing, targets[name])
        for candidate, measured in zip(missing, latencies, strict=True):
            num_params, num_macs = costs[candidate.name]
            models[candidate.name] = {"num_params": num_params, "num_macs": num_macs, "latency": measured.summary()}
    body = {"target": name, "device": device, "models": models, "shown": list(names)}
    write_text(file, json.dumps(body, indent=2) + "\n")


def name_of_target(target: PairedTarget, targets: Mapping[str, Target]) -> str:
    """Return the name of the study's target that is this one. Raises: UserError if none is."""
    device = target.fingerprint()
    for name, known in targets.items():
        if dict(known.device) == device:
            return name
    different = [
        f"{key} {known.device.get(key)} instead of {device.get(key)}"
        for known in targets.values()
        for key in {**known.device, **device}
        if known.device.get(key) != device.get(key)
    ]
    raise UserError(
        f"report.peers: latency={target.runtime.name} on this machine is not a target of the study "
        f"({', '.join(different)}); set latency= as in the search, or run the command where it measured"
    )


def known_models(file: Path, device: Mapping[str, Any]) -> dict[str, Any]:
    """Read the models that were measured on a device; none if the file is missing or cannot be read."""
    try:
        body = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return dict(body["models"]) if body.get("device") == device else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s cannot be read; its models are measured again", file)
        return {}


def peer(name: str, target: Target) -> Candidate:
    """Return a model of timm for a study's images and classes. Raises: UserError if no model has this name."""
    side, in_chans, num_classes = (target.network_input[key] for key in ("img_size", "in_chans", "num_classes"))
    candidate = from_timm(name, side, "report.peers")
    build = partial(candidate.build, in_chans=in_chans, num_classes=num_classes)
    return Candidate(name, build, (in_chans, side, side))


def time_all(target: PairedTarget, candidates: Sequence[Candidate], of_study: Target) -> list[Latency]:
    """Measure models in turn. Raises: SearchStopped, naming what cannot be measured."""
    with naming_failures("leave that model out of report.peers"):
        target.use_kernels(of_study.calibration)
        ready = [target.make_ready(candidate.network()) for candidate in candidates]
        return target.time(ready, of_study.calibration)
