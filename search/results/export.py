"""The front of a study as files: architectures as YAML with what was measured, all trials as CSV, a plot, shared weights."""

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

from search import UserError
from search.results import architecture_file
from search.study.front import front, front_probability, latest_of_each
from search.study.storage import SUPERNET
from search.study.targets import FIRST, targets_of
from search.study.trial import TrialRecord, finished_trials

log = logging.getLogger(__name__)
SHARED_WEIGHTS = ".supernet.safetensors"
PACKAGES = ("torch", "torchvision", "timm", "optuna", "lightning", "datasets")


def is_trained(file: Path) -> bool:
    """Whether search.train has left weights of this architecture, or the state of a training, beside its file."""
    return file.with_suffix(".safetensors").exists() or any(file.parent.glob(f"{file.stem}.*.ckpt"))


def remove_left(folder: Path, members: Sequence[TrialRecord]) -> None:
    """Remove files of networks that have left a front, but for what search.train worked on and what others put there."""
    wanted = {member_name(member) for member in members}
    for old in folder.glob("trial-*.yaml"):
        if re.fullmatch(r"trial-\d+\.yaml", old.name) and old.name not in wanted and not is_trained(old):
            old.unlink()


def export_front(study: optuna.Study, folder: Path) -> list[TrialRecord]:
    """Write what a study has found so far below its folder. Returns the front."""
    trials = finished_trials(study)
    members = front(trials)
    probability = front_probability(trials)
    pareto = folder / "pareto"
    pareto.mkdir(exist_ok=True)
    remove_left(pareto, members)
    for member in members:
        path = pareto / member_name(member)
        comment = f"One network of the front of study {study.study_name}.\nTrain it: python -m search.train arch={path}"
        architecture_file.write(
            path, comment, member.architecture, facts(study, member, probability[member.architecture.key])
        )
    write_shared_weights(study, members, pareto)
    (folder / "pareto.csv").write_text(_csv(trials, members, probability), encoding="utf-8")
    _plot(trials, members, study, folder / "pareto.png")
    return members


def write_shared_weights(study: optuna.Study, members: list[TrialRecord], folder: Path) -> None:
    """Beside each member its share of the supernet's weights, for search.train init=supernet."""
    if SUPERNET not in study.user_attrs or study.user_attrs["settings"]["proxy"]["width_multiplier"] != 1:
        return  # weights of narrower proxies start no training of what is deployed
    from safetensors.torch import save_file

    from search.accuracy.supernet import open_supernet  # torch takes seconds that --help need not wait

    try:
        elastic = open_supernet(Path(study.user_attrs[SUPERNET]))
    except UserError as error:
        log.warning("no weights are exported: %s", error)
        return
    for old in folder.glob(f"trial-*{SHARED_WEIGHTS}"):
        if not old.with_name(old.name.replace(SHARED_WEIGHTS, ".yaml")).exists():
            old.unlink()
    for member in members:
        save_file(elastic.extract(member.architecture).state_dict(), shared_weights_file(folder / member_name(member)))


def shared_weights_file(architecture_file: Path) -> Path:
    """Where an exported architecture's share of a supernet's weights is."""
    return architecture_file.with_suffix(SHARED_WEIGHTS)


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def member_name(member: TrialRecord) -> str:
    return f"trial-{member.number:05d}.yaml"


def facts(study: optuna.Study, member: TrialRecord, front_probability: float) -> dict[str, Any]:
    """What an exported file says of its network beside the architecture."""
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
        "latency": member.result.latencies[FIRST].summary(),
        **{},
        "front_probability": front_probability,
        "device": dict(targets_of(study)["first"].device),
        "parameters": member.num_params,
        "multiply_accumulates": member.num_macs,
        "study": study.study_name,
        "trial": member.number,
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": dict(study.user_attrs["versions"]),
    }


def further_facts(study: optuna.Study, member: TrialRecord) -> dict[str, Any]:
    """Of the devices beside the first, if there are any."""
    latencies = member.result.latencies
    devices = study.user_attrs.get("further_devices", {})
    further = {name: {"latency": one.summary(), "device": dict(devices[name])} for name, one in latencies.items()}
    return {"further": further} if further else {}


def _csv(trials: list[TrialRecord], members: list[TrialRecord], probability: Mapping[str, float]) -> str:
    out = io.StringIO()
    in_front = {member.number for member in members}
    devices = list(dict.fromkeys(name for trial in trials for name in trial.result.latencies))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (
            "trial",
            "in_front",
            "front_probability",
            "feasible",
            "accuracy",
            "accuracy_standard_error",
            "latency_ms",
            "latency_low_ms",
        )
        + ("latency_high_ms", "repetitions", "parameters", "multiply_accumulates", "origin", "architecture")
        + tuple(f"{key}.{name}" for name in devices for key in ("latency_ms", "latency_low_ms", "latency_high_ms"))
    )
    for trial in trials:
        accuracy, latency, further = trial.result.accuracy, trial.result.latencies[FIRST], trial.result.latencies
        elsewhere = [
            value
            for one in (further.get(name) for name in devices)
            for value in (("", "", "") if one is None else (one.latency_ms, one.low_ms, one.high_ms))
        ]
        writer.writerow(
            (
                trial.number,
                trial.number in in_front,
                probability.get(trial.architecture.key, ""),
                trial.result.feasible,
                "" if accuracy is None else accuracy.accuracy,
                "" if accuracy is None else accuracy.standard_error,
                latency.latency_ms,
                latency.low_ms,
                latency.high_ms,
                latency.repetitions,
                trial.num_params,
                trial.num_macs,
                trial.origin,
                trial.architecture.key,
                *elsewhere,
            )
        )
    return out.getvalue()


def _plot(trials: list[TrialRecord], members: list[TrialRecord], study: optuna.Study, path: Path) -> None:
    """All networks and the front, accuracy over latency, with standard errors and 95 % intervals."""
    from matplotlib.figure import Figure  # a second to import

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    judged = latest_of_each(trials)
    in_front = {t.architecture.key for t in members}
    trained = [
        t for t in judged if t.result.accuracy is not None and t.result.feasible and t.architecture.key not in in_front
    ]
    for group, color, label in ((trained, "#9aa5b1", "dominated"), (members, "#0b7285", "front")):
        latencies = [t.result.latencies[FIRST] for t in group]
        axes.errorbar(
            [latency.latency_ms for latency in latencies],
            [t.accuracy for t in group],
            xerr=(
                [latency.latency_ms - latency.low_ms for latency in latencies],
                [latency.high_ms - latency.latency_ms for latency in latencies],
            ),
            yerr=[t.result.accuracy.standard_error for t in group if t.result.accuracy],
            fmt="o",
            markersize=5,
            capsize=2,
            color=color,
            label=label,
        )
    if not any(t.result.latencies for t in members):  # a staircase on one device, on several a surface
        axes.step(
            [t.result.latencies[FIRST].latency_ms for t in members],
            [t.accuracy for t in members],
            where="post",
            color="#0b7285",
        )
    ruled_out = [t.result.latencies[FIRST].latency_ms for t in judged if not t.result.feasible]
    if ruled_out:
        axes.plot(
            ruled_out,
            [0.0] * len(ruled_out),
            "x",
            color="#d1495b",
            label="over budget",
            transform=axes.get_xaxis_transform(),
        )
    device = targets_of(study)["first"].device
    axes.set_xlabel(f"latency, ms ({device['device']}, {device['num_threads']} thread(s), batch {device['batch_size']})")
    axes.set_ylabel("validation accuracy")
    axes.set_title(f"Study {study.study_name}: {len(trials)} finished trials")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
