"""The front of a study as files: architectures as YAML with their values, all trials as CSV, a plot, and shared weights."""

from __future__ import annotations

import csv
import datetime
import io
import logging
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from safetensors import SafetensorError

from search import UserError
from search.accuracy.base import digest_of
from search.accuracy.checked import CHECK_FILE, Checked, read_checked
from search.files import write_text
from search.latency.base import Latency
from search.results import architecture_file
from search.study.drift import Drift, drifts
from search.study.front import front, front_probability
from search.study.locks import training_lock
from search.study.storage import NORMALISATION, SUPERNET, WEIGHTS
from search.study.targets import Target, targets_of
from search.study.trial import TrialRecord, finished_trials
from search.training.metadata import ARCHITECTURE_KEY, SUPERNET_KEY, read_metadata

log = logging.getLogger(__name__)
SHARED_WEIGHTS = ".supernet.safetensors"
LATENCY_COLUMNS = ("latency_ms", "latency_low_ms", "latency_high_ms", "latency_sustained_ms", "repetitions")
PACKAGES = ("torch", "torchvision", "timm", "optuna", "lightning", "datasets")


def export_front(study: optuna.Study, folder: Path) -> list[TrialRecord]:
    """Write the front of a study, and all its trials, below its folder. Returns the front."""
    trials = finished_trials(study)
    members = front(trials)
    checked = read_checked(folder / CHECK_FILE, study.user_attrs["settings"])
    probability = front_probability(trials, checked)
    targets = targets_of(study)
    slowdowns = drifts(trials)
    pareto = folder / "pareto"
    pareto.mkdir(exist_ok=True)
    remove_stale(pareto, members)
    for member in members:
        path = pareto / member_name(member)
        comment = f"A network of the front of study {study.study_name}.\nTrain it: {train_command(study, path)}"
        facts = member_facts(study, member, probability[member.architecture.key], checked, slowdowns)
        architecture_file.write(path, comment, member.architecture, facts)
    write_shared_weights(study, members, pareto)
    table = _csv(trials, members, probability, checked, list(targets), slowdowns)
    write_text(folder / "pareto.csv", table)
    _save_plot(study, trials, targets, folder / "pareto.png")
    return members


def train_command(study: optuna.Study, path: Path) -> str:
    """The command that trains an exported network on data of the study's name; where files are is not known here."""
    return f"python -m search.train arch={path} data={study.user_attrs['settings']['data']['name']}"


def member_name(member: TrialRecord) -> str:
    """The name of a network's file."""
    return f"trial-{member.number:05d}.yaml"


def member_facts(
    study: optuna.Study,
    member: TrialRecord,
    front_probability: float,
    checked: Checked | None,
    slowdowns: Mapping[str, Drift] | None = None,
) -> dict[str, Any]:
    """Facts about a network for its exported file, beside the architecture.

    Args:
        checked: what the probability takes into account of scores' errors.
        slowdowns: of the study's targets, which give latencies under sustained load.
    """
    accuracy = member.result.accuracy
    assert accuracy is not None
    settings: Mapping[str, Any] = study.user_attrs["settings"]
    return {
        "accuracy": {
            "metric": accuracy.metric,
            "validation": accuracy.accuracy,
            "standard_error": accuracy.standard_error,
            "num_images": accuracy.num_images,
            "seed": accuracy.seed,
            "data": settings["data"]["name"],
            "train_size": settings["data"]["train_size"],
            "max_epochs": settings["train"]["max_epochs"],
            **({} if settings["train"].get("max_steps") is None else {"max_steps": settings["train"]["max_steps"]}),
            **({} if settings["accuracy"].get("init") is None else {"init": settings["accuracy"]["init"]}),
        },
        **({"normalisation": study.user_attrs[NORMALISATION]} if NORMALISATION in study.user_attrs else {}),
        "targets": target_facts(member, targets_of(study), slowdowns),
        probability_key(checked): front_probability,
        "parameters": member.num_params,
        "multiply_accumulates": member.num_macs,
        "study": study.study_name,
        "trial": member.number,
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": dict(study.user_attrs["versions"]),
    }


def probability_key(checked: Checked | None) -> str:
    """The name of `front_probability` in files."""
    return "front_probability_by_score" if checked is None else "front_probability"


def target_facts(
    trial: TrialRecord, targets: Mapping[str, Target], slowdowns: Mapping[str, Drift] | None = None
) -> dict[str, Any]:
    """A trial's latency on each target, with the target's role and device.

    Args:
        slowdowns: of the targets, which give latencies under sustained load.
    """
    facts: dict[str, Any] = {}
    for name, latency in trial.result.latencies.items():
        facts[name] = {"role": str(targets[name].role), "latency": latency.summary()}
        if slowdowns and name in slowdowns:
            facts[name]["sustained_ms"] = slowdowns[name].sustained * latency.latency_ms
        facts[name]["device"] = targets[name].device_for(trial.architecture)
    return facts


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
            left = [file.with_suffix(".safetensors"), file.with_suffix(".int8.safetensors")]
            if not any(weights.exists() for weights in left) and not any(file.parent.glob(f"{file.stem}.*.ckpt")):
                file.unlink()
                lock.unlink()
    except UserError as error:
        log.info("%s stays: %s", file, error)


def write_shared_weights(study: optuna.Study, members: Sequence[TrialRecord], folder: Path) -> None:
    """Write each member's weights, batch statistics and normalisation as the search scored it, for search.train."""
    if SUPERNET not in study.user_attrs or study.user_attrs["settings"]["proxy"]["width_multiplier"] != 1:
        return  # weights of narrower proxies do not fit the deployed networks
    for old in folder.glob(f"trial-*{SHARED_WEIGHTS}"):
        if not old.with_name(old.name.replace(SHARED_WEIGHTS, ".yaml")).exists():
            old.unlink()
    path, digest = Path(study.user_attrs[SUPERNET]), study.user_attrs[WEIGHTS]["supernet"]
    files = {shared_weights_file(folder / member_name(member)): member.architecture for member in members}
    missing = [file for file, architecture in files.items() if origin_of_share(file) != (digest, architecture.key)]
    if not missing:
        return
    from search.accuracy.trained_supernet import TrainedSupernet  # torch takes four fifths of an export's time

    try:
        supernet = TrainedSupernet.open(path)
    except UserError as error:
        log.warning("no weights are exported: %s", error)
        return
    if digest_of(path.read_bytes()) != digest:
        log.warning("no weights are exported: the supernet %s is not the one that scored this study", path)
        return
    with num_threads(study.user_attrs["training"]["num_threads"]):
        for file in missing:
            supernet.save_share(files[file], file, digest)


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Compute on some threads, which the last bits of a result depend on."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def origin_of_share(file: Path) -> tuple[str | None, str | None]:
    """The digest of the supernet that weights were taken from, and the key of their network; None if a file is not whole."""
    try:
        metadata = read_metadata(file)
    except (OSError, SafetensorError):
        metadata = {}
    return metadata.get(SUPERNET_KEY), metadata.get(ARCHITECTURE_KEY)


def shared_weights_file(architecture_file: Path) -> Path:
    """The file of an exported architecture's share of a supernet's weights."""
    return architecture_file.with_suffix(SHARED_WEIGHTS)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def _csv(
    trials: Sequence[TrialRecord],
    members: Sequence[TrialRecord],
    probability: Mapping[str, float],
    checked: Checked | None,
    targets: Sequence[str],
    slowdowns: Mapping[str, Drift],
) -> str:
    """All trials as rows; the columns of latencies name the target where there are several."""
    in_front = {member.number for member in members}
    rows = []
    for trial in trials:
        accuracy = trial.result.accuracy
        row: dict[str, object] = {
            "trial": trial.number,
            "in_front": trial.number in in_front,
            probability_key(checked): probability.get(trial.architecture.key, ""),
            "feasible": trial.result.feasible,
            "accuracy": "" if accuracy is None else accuracy.accuracy,
            "accuracy_standard_error": "" if accuracy is None else accuracy.standard_error,
        }
        for name in targets:
            suffix = "" if len(targets) == 1 else f".{name}"
            values = _latency_values(trial.result.latencies.get(name), slowdowns.get(name))
            row |= {f"{key}{suffix}": value for key, value in values.items()}
        row |= {
            "parameters": trial.num_params,
            "multiply_accumulates": trial.num_macs,
            "origin": trial.origin,
            "architecture": trial.architecture.key,
            "metric": "" if accuracy is None else accuracy.metric,
        }
        rows.append(row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _latency_values(latency: Latency | None, drift: Drift | None) -> dict[str, object]:
    """A latency with its 95 % confidence interval, and that under sustained load."""
    if latency is None:
        return dict.fromkeys(LATENCY_COLUMNS, "")
    sustained_ms = "" if drift is None else drift.sustained * latency.latency_ms
    values = (latency.latency_ms, latency.low_ms, latency.high_ms, sustained_ms, latency.repetitions)
    return dict(zip(LATENCY_COLUMNS, values, strict=True))


def _save_plot(study: optuna.Study, trials: Sequence[TrialRecord], targets: Mapping[str, Target], path: Path) -> None:
    """Draw accuracy over latency, one panel for each target that is an objective."""
    from search.results.figures import front_figures  # what else uses this module need not wait for them
    from search.results.static import save_png

    figures = front_figures(trials, targets)
    save_png(list(figures.values()), f"Study {study.study_name}: {len(trials)} finished trials", path)
