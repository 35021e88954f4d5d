"""Sections about the course of a study: its setup, the trials that are incomplete, its time, and what to run next."""

from __future__ import annotations

from collections import Counter

from optuna.trial import FrozenTrial, TrialState

from search.results.figures import time_figure
from search.results.report.page import Section, Table
from search.results.report.study_data import StudyData
from search.results.static import svg
from search.study.limits import Limits, limits_of, setting
from search.study.storage import SHARED_SECONDS
from search.study.targets import Target
from search.study.trial import INTERRUPTED, OVER_LIMITS, SKIPPED, STATUS, metric_of
from search.training.schedule import duration_text

OVER_BUDGET = "over the latency budget: scored, but infeasible"
OVER_RESOURCES = "over a limit of file or memory"


def setup(study: StudyData) -> Section:
    """The configuration of the study in short."""
    settings = study.settings
    data = settings["data"]
    num_train, num_val = data["train_size"] or "all other", data["val_size"] or "a fifth as"
    images = f"{num_train} training and {num_val} validation images of {data['img_size']} pixels"
    evaluator = settings["accuracy"]["_target_"].rpartition(".")[2]
    rows = [
        ("trials", f"{len(study.trials)} finished, {len(study.evaluated)} different networks evaluated"),
        ("data", f"{data['name']}, {images}"),
        (metric_of(study.trials), f"{evaluator}, {duration_text(settings['train'])}"),
        *_target_rows(study.targets),
        *_limit_rows("limits", limits_of(study.study)),
        ("seed", str(settings["study"]["seed"])),
    ]
    return Section("Setup", tables=[Table(("", ""), rows)])


def _target_rows(targets: dict[str, Target]) -> list[tuple[str, str]]:
    if len(targets) > 1:
        return [(f"latency on {name}", f"{_target_text(target)}, {_goal(target)}") for name, target in targets.items()]
    (target,) = targets.values()
    machine = ", ".join(f"{key}: {target.device[key]}" for key in ("device", "cores") if key in target.device)
    limit = "none" if target.limit_ms is None else f"{target.limit_ms:g} ms"
    limits = _limit_rows("limits of file and memory", target.limits)
    return [("latency", _runtime(target)), ("budget", limit), *limits, ("machine", machine)]


def _limit_rows(name: str, limits: Limits) -> list[tuple[str, str]]:
    """A row, if there are any limits."""
    return [(name, _limits_text(limits))] if limits else []


def _limits_text(limits: Limits) -> str:
    return ", ".join(setting(name, limit) for name, limit in limits.items())


def _target_text(target: Target) -> str:
    return f"{target.device['device']}, {_runtime(target)}"


def _runtime(target: Target) -> str:
    device = target.device
    return f"{device['backend']}, {device['num_threads']} thread(s), batch {device['batch_size']}, input {target.input_text}"


def _goal(target: Target) -> str:
    budget = "" if target.limit_ms is None else f"budget {target.limit_ms:g} ms"
    role = "minimised" if target.is_objective else "constraint"
    return ", ".join(filter(None, [role, budget, _limits_text(target.limits)]))


def incomplete_trials(study: StudyData) -> Section:
    """Trials that lack an accuracy or a measured latency, or are over a budget or another limit, by their reason."""
    title = "Failed, infeasible and unmeasured trials"
    reasons = Counter(reason for trial in study.raw_trials if (reason := _reason(trial)))
    if not reasons:
        return Section(title, ["None: every trial was measured, keeps the budget and has an accuracy."])
    rows = [(reason, str(count)) for reason, count in reasons.most_common()]
    return Section(title, tables=[Table(("reason", "trials"), rows)])


def _reason(trial: FrozenTrial) -> str:
    """The reason why a trial is incomplete; empty for a complete one."""
    status = str(trial.user_attrs.get(STATUS, ""))
    if trial.state == TrialState.FAIL:
        return "interrupted; the search continued" if status == INTERRUPTED else f"failed: {status}"
    if SKIPPED in trial.user_attrs:
        return "over the budget by the block model: not measured"
    if OVER_LIMITS in trial.user_attrs:
        return f"over {', '.join(f'limits.{name}' for name in trial.user_attrs[OVER_LIMITS])}: neither measured nor trained"
    if status.startswith("infeasible: ") and not status.startswith("infeasible: latency"):
        return f"{OVER_RESOURCES}: {'scored, but infeasible' if 'accuracy' in trial.user_attrs else 'not trained'}"
    if status.startswith("stopped early"):
        return "training stopped early: dominated after some epochs"
    if trial.state == TrialState.PRUNED:
        return "over the latency budget: not trained" if "accuracy" not in trial.user_attrs else OVER_BUDGET
    if any(value > 0 for value in trial.system_attrs.get("constraints", ())):
        return OVER_BUDGET
    if trial.state == TrialState.RUNNING:
        return "running"
    return "dominated by the block model: scored, not measured" if status.startswith("dominated") else ""


def time_spent(study: StudyData) -> Section:
    """The time of the study by part."""
    in_trials = sum(
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in study.raw_trials
        if trial.datetime_start and trial.datetime_complete
    )
    seconds = _seconds_of_parts(study)
    seconds["proposing and writing"] = max(0.0, in_trials - sum(seconds.values()))
    if (shared_seconds := study.attrs.get(SHARED_SECONDS)) is not None:
        seconds = {"training shared weights": shared_seconds, **seconds}
    total = sum(seconds.values())
    rows = [(part, f"{value:.0f} s", f"{value / total:.0%}" if total else "") for part, value in seconds.items()]
    text = f"{total / 60:.1f} minutes, {in_trials / 60:.1f} of them in trials."
    table = Table(("part", "seconds", "share"), rows)
    return Section("Time", [text], [table], {"Time by part": svg(time_figure(seconds), "time")})


def _seconds_of_parts(study: StudyData) -> dict[str, float]:
    """Time spent on measuring and training in trials."""
    results = [trial.result for trial in study.trials]
    latencies = [latency for result in results for latency in result.latencies.values()]
    accuracies = [result.accuracy for result in results if result.accuracy is not None and not result.reused_accuracy]
    return {
        "timing": sum(latency.seconds for latency in latencies if latency.measured),
        "preparing to time": sum(latency.prepare_seconds for latency in latencies),
        "scoring or training": sum(
            [*(accuracy.seconds for accuracy in accuracies), *(result.stopped_seconds for result in results)]
        ),
    }


def next_steps(study: StudyData) -> Section:
    """Commands that continue from here."""
    name = study.study.study_name
    versions = ", ".join(f"{package} {version}" for package, version in study.attrs["versions"].items())
    config, log = study.folder / "config.yaml", study.folder / "run.log"
    text = f"The configuration is in {config}, every step in {log}. Versions: {versions}."
    commands = [
        f"python -m search.export study.name={name} pick=knee format=[onnx]",
        f"python -m search.dashboard study.name={name}",
    ]
    return Section("Next steps", [text], commands=commands)
