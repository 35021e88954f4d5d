"""The front of a study as files: architectures as YAML with their values, all trials as CSV, a plot, and shared weights."""

from __future__ import annotations

import csv
import datetime
import io
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from safetensors import SafetensorError, safe_open

from search import UserError
from search.files import sha256, write_bytes, write_text
from search.latency.base import Latency
from search.results import architecture_file
from search.study.front import front, front_probability
from search.study.locks import training_lock
from search.study.storage import SUPERNET
from search.study.targets import Target, targets_of
from search.study.trial import TrialRecord, finished_trials

log = logging.getLogger(__name__)
SHARED_WEIGHTS = ".supernet.safetensors"
PACKAGES = ("torch", "torchvision", "timm", "optuna", "lightning", "datasets")


def export_front(study: optuna.Study, folder: Path) -> list[TrialRecord]:
    """Write the front of a study, and all its trials, below its folder. Returns the front."""
    trials = finished_trials(study)
    members = front(trials)
    probability = front_probability(trials)
    targets = targets_of(study)
    pareto = folder / "pareto"
    pareto.mkdir(exist_ok=True)
    remove_stale(pareto, members)
    for member in members:
        path = pareto / member_name(member)
        comment = f"A network of the front of study {study.study_name}.\nTrain it: python -m search.train arch={path}"
        facts = member_facts(study, member, probability[member.architecture.key])
        architecture_file.write(path, comment, member.architecture, facts)
    write_shared_weights(study, members, pareto)
    write_text(folder / "pareto.csv", _csv(trials, members, probability, list(targets)))
    _save_plot(study, trials, targets, folder / "pareto.png")
    return members


def member_name(member: TrialRecord) -> str:
    """The name of a network's file."""
    return f"trial-{member.number:05d}.yaml"


def member_facts(study: optuna.Study, member: TrialRecord, front_probability: float) -> dict[str, Any]:
    """Facts about a network for its exported file, beside the architecture."""
    accuracy = member.result.accuracy
    assert accuracy is not None
    settings: Mapping[str, Any] = study.user_attrs["settings"]
    return {
        "accuracy": {
            "validation": accuracy.accuracy,
            "standard_error": accuracy.standard_error,
            "num_images": accuracy.num_images,
            "seed": accuracy.seed,
            "data": settings["data"]["name"],
            "train_size": settings["data"]["train_size"],
            "max_epochs": settings["train"]["max_epochs"],
        },
        "targets": target_facts(member, targets_of(study)),
        "front_probability": front_probability,
        "parameters": member.num_params,
        "multiply_accumulates": member.num_macs,
        "study": study.study_name,
        "trial": member.number,
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": dict(study.user_attrs["versions"]),
    }


def target_facts(trial: TrialRecord, targets: Mapping[str, Target]) -> dict[str, Any]:
    """A trial's latency on each target, with the target's role and device."""
    return {
        name: {"role": str(targets[name].role), "latency": latency.summary(), "device": dict(targets[name].device)}
        for name, latency in trial.result.latencies.items()
    }


def remove_stale(folder: Path, members: Sequence[TrialRecord]) -> None:
    """Remove files of networks that have left a front, except those that were or are trained, and files of users."""
    wanted = {member_name(member) for member in members}
    for old in folder.glob("trial-*.yaml"):
        if re.fullmatch(r"trial-\d+\.yaml", old.name) and old.name not in wanted:
            _remove_unless_trained(old)


def _remove_unless_trained(file: Path) -> None:
    """Remove an architecture's file, unless search.train uses it now or has left weights or its state beside it."""
    try:
        with training_lock(file) as lock:
            if not file.with_suffix(".safetensors").exists() and not any(file.parent.glob(f"{file.stem}.*.ckpt")):
                file.unlink()
                lock.unlink()
    except UserError as error:
        log.info("%s stays: %s", file, error)


def write_shared_weights(study: optuna.Study, members: Sequence[TrialRecord], folder: Path) -> None:
    """Write each member's share of the supernet's weights beside its file, for search.train init=supernet."""
    if SUPERNET not in study.user_attrs or study.user_attrs["settings"]["proxy"]["width_multiplier"] != 1:
        return  # weights of narrower proxies do not fit the deployed networks
    for old in folder.glob(f"trial-*{SHARED_WEIGHTS}"):
        if not old.with_name(old.name.replace(SHARED_WEIGHTS, ".yaml")).exists():
            old.unlink()
    supernet = Path(study.user_attrs[SUPERNET])
    digest = sha256(supernet) if supernet.is_file() else ""
    origins = {
        shared_weights_file(folder / member_name(member)): {"supernet": digest, "architecture": member.architecture.key}
        for member in members
    }
    missing = {file: member for file, member in zip(origins, members, strict=True) if _metadata(file) != origins[file]}
    if not missing:
        return
    from safetensors.torch import save

    from search.accuracy.supernet import open_supernet  # torch and what builds on it take four fifths of an export's time

    try:
        elastic = open_supernet(supernet)
    except UserError as error:
        log.warning("no weights are exported: %s", error)
        return
    for file, member in missing.items():
        write_bytes(file, save(elastic.extract(member.architecture).state_dict(), origins[file]))


def _metadata(file: Path) -> dict[str, str] | None:
    """What a file of weights says about them; None if there is none, or it is not whole."""
    try:
        with safe_open(file, "np") as weights:
            metadata: dict[str, str] | None = weights.metadata()
            return metadata
    except (OSError, SafetensorError):
        return None


def shared_weights_file(architecture_file: Path) -> Path:
    """The file of an exported architecture's share of a supernet's weights."""
    return architecture_file.with_suffix(SHARED_WEIGHTS)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _csv(
    trials: Sequence[TrialRecord], members: Sequence[TrialRecord], probability: Mapping[str, float], targets: Sequence[str]
) -> str:
    """All trials as rows; the columns of latencies name the target where there are several."""
    in_front = {member.number for member in members}
    rows = []
    for trial in trials:
        accuracy = trial.result.accuracy
        row: dict[str, object] = {
            "trial": trial.number,
            "in_front": trial.number in in_front,
            "front_probability": probability.get(trial.architecture.key, ""),
            "feasible": trial.result.feasible,
            "accuracy": "" if accuracy is None else accuracy.accuracy,
            "accuracy_standard_error": "" if accuracy is None else accuracy.standard_error,
        }
        for name in targets:
            suffix = "" if len(targets) == 1 else f".{name}"
            row |= {f"{key}{suffix}": value for key, value in _latency_values(trial.result.latencies.get(name)).items()}
        row |= {
            "parameters": trial.num_params,
            "multiply_accumulates": trial.num_macs,
            "origin": trial.origin,
            "architecture": trial.architecture.key,
        }
        rows.append(row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _latency_values(latency: Latency | None) -> dict[str, object]:
    keys = {
        "latency_ms": "latency_ms",
        "latency_low_ms": "low_ms",
        "latency_high_ms": "high_ms",
        "repetitions": "repetitions",
    }
    return {key: "" if latency is None else getattr(latency, name) for key, name in keys.items()}


def _save_plot(study: optuna.Study, trials: Sequence[TrialRecord], targets: Mapping[str, Target], path: Path) -> None:
    """Draw accuracy over latency, one panel for each target that is an objective."""
    from search.results.figures import front_figures  # what else uses this module need not wait for them
    from search.results.static import save_png

    figures = front_figures(trials, targets)
    save_png(list(figures.values()), f"Study {study.study_name}: {len(trials)} finished trials", path)
