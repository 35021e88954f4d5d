"""What a study found, for people: one page that explains itself, and the same as Markdown."""

from __future__ import annotations

import json
import logging
import statistics
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.latency.base import Latency
from search.results import figures
from search.results.analysis import LEAST_JUDGED, PARTS, hypervolumes, influences, latency_by_stage
from search.results.page import Grid, Section
from search.results.picking import compare
from search.results.view import accuracy_text, describe, latency_text
from search.space.picture import picture
from search.study.coordinator import SHARED_SECONDS
from search.study.targets import FIRST
from search.study.trial import (
    INTERRUPTED,
    SAMPLED,
    SKIPPED,
    TrialRecord,
    evaluated,
    finished_trials,
    front,
    front_probability,
    further_objectives,
    reference_latencies,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A study as a report needs it. folder: outputs/NAME."""

    study: optuna.Study
    folder: Path

    @cached_property
    def trials(self) -> list[TrialRecord]:
        return finished_trials(self.study)

    @cached_property
    def raw(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @cached_property
    def members(self) -> list[TrialRecord]:
        return front(self.trials)

    @cached_property
    def evaluated(self) -> list[TrialRecord]:
        """Different networks that have an accuracy and keep the budget."""
        return evaluated(self.trials)

    @property
    def attrs(self) -> dict[str, Any]:
        return self.study.user_attrs

    @property
    def img_size(self) -> int:
        """Of the deployed network's input, in pixels."""
        return int(self.attrs["device"]["input_size"].split("x")[-1])

    def kept(self, name: str) -> dict[str, Any] | None:
        """What another command left in the study's folder, or None."""
        file = self.folder / name
        try:
            body: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except (OSError, ValueError):
            log.warning("%s cannot be read and is left out", file)
            return None
        return body


def sections(found: Found) -> list[Section]:
    """Everything, in the order in which one would ask."""
    parts = (
        setting, front_section, pictures, baselines, progress, mattered, by_stage, certainty, confirmation, latency,
        unfinished, time_spent, reproduce,
    )  # fmt: skip
    made = [part(found) for part in parts]
    return [section for section in made if section is not None]


def setting(found: Found) -> Section:
    settings, device = found.attrs["settings"], found.attrs["device"]
    data, budget = settings["data"], settings["latency"]["budget_ms"]
    images = (
        f"{data['train_size'] or 'all other'} training and {data['val_size']} validation images of {data['img_size']} pixels"
    )
    evaluator = settings["accuracy"]["_target_"].rpartition(".")[2]
    run = f"{device['num_threads']} thread(s), batch {device['batch_size']}, input {device['input_size']}"
    rows = [
        ("trials", f"{len(found.trials)} finished, {len(found.judged)} different networks judged"),
        ("data", f"{data['name']}, {images}"),
        ("accuracy", f"{evaluator}, {settings['train']['max_epochs']} epochs"),
        ("latency", f"{device['backend']}, {run}"),
        ("budget", "none" if budget is None else f"{budget:g} ms"),
        *((f"latency on {name}", further_device(found, name)) for name in found.attrs.get("further_devices", {})),
        ("machine", ", ".join(f"{key}: {value}" for key, value in device.items() if key in ("device", "cores"))),
        ("seed", str(settings["study"]["seed"])),
    ]
    return Section("What was asked", tables=[Grid(("", ""), rows)])


def further_device(found: Found, name: str) -> str:
    """A device beside the first: what it is, and whether latency is to be low on it."""
    device = found.attrs["further_devices"][name]
    budget_ms = found.attrs["settings"]["latency"]["devices"][name]["budget_ms"]
    goal = "to be low" if name in further_objectives(found.study) else "to keep its budget"
    return f"{device['backend']} on {device['device']}, {goal}" + ("" if budget_ms is None else f", budget {budget_ms:g} ms")


def front_section(found: Found) -> Section:
    if not found.members:
        return Section("Front", ["No network has both an accuracy and a latency within the budget yet."])
    probability = front_probability(found.trials)
    in_front = {one.architecture.key for one in found.members}
    known = [one for one in found.judged if one.origin != SAMPLED]
    dominated = [one for one in found.judged if one.architecture.key not in in_front and one.origin == SAMPLED]
    budget = found.attrs["settings"]["latency"]["budget_ms"]
    drawn = figures.front_figure(found.members, dominated, known, budget)
    rows = []
    for one in found.members:
        place, params = f"{probability[one.architecture.key]:.0%}", f"{one.num_params / 1e6:.2f} M"
        latencies = [latency_text(latency) for latency in (one.result.latencies[FIRST], *one.result.latencies.values())]
        values = (accuracy_text(one), *latencies, place, params, f"{one.num_macs / 1e6:,.1f} M")
        rows.append((str(one.number), *values, describe(one.architecture)))
    further = (f"on {name}" for name in found.attrs.get("further_devices", {}))
    header = (
        "trial",
        "accuracy",
        "latency, ms [95 %]",
        *further,
        "on the front",
        "parameters",
        "MACs",
        "width: blocks of each stage",
    )
    text = (
        "Networks that nothing judged so far dominates. ± is the standard error from the validation images; the interval is "
        "one in which another measurement falls; on the front: how probable it is that nothing dominates it, given both."
    )
    caption = "Accuracy over latency, with standard errors and 95 % intervals"
    return Section("Front", [text], [Grid(header, rows)], {caption: drawn})


def pictures(found: Found) -> Section | None:
    if not found.members:
        return None
    drawn = {
        f"Trial {one.number}: {accuracy_text(one)}, {latency_text(one.result.latencies[FIRST])} ms": picture(
            one.architecture, found.img_size
        )
        for one in found.members
    }
    return Section("Networks of the front", ["Dots are heads: Hi-Fi first, then Lo-Fi; bars are blocks."], figures=drawn)


def baselines(found: Found) -> Section | None:
    known = [one for one in found.judged if one.origin != SAMPLED]
    if not known or not found.members:
        return None
    rows = [
        (one.origin, accuracy_text(one), latency_text(one.result.latencies[FIRST]), describe(one.architecture))
        for one in known
    ]
    compared = [result for one in found.members if (result := compare(one, found.trials)) is not None]
    beside = [
        (f"trial {one.member.number}", f"width {one.pattern.architecture.embed_dim}", one.times, f"{one.gain:+.4f}")
        for one in compared
    ]
    text = "The pattern is that of LITv2: no attention in two stages, HiLo in the third, plain attention in the fourth."
    tables = [
        Grid(("network", "accuracy", "latency, ms [95 %]", "width: blocks of each stage"), rows),
        Grid(("of the front", "pattern", "times as fast [95 %]", "accuracy"), beside),
    ]
    return Section("Against the authors' pattern", [text], tables)


def progress(found: Found) -> Section | None:
    if len(found.trials) < 2:
        return None
    references = reference_latencies(found.study)
    volumes = hypervolumes(found.trials, references)
    ends = " and ".join(f"{reference:.3g} ms" for reference in references)
    text = f"Share of the space up to accuracy 1 and {ends} that the front dominates: {volumes[-1]:.4f}."
    return Section("Progress", [text], figures={"Hypervolume by finished trials": figures.progress_figure(volumes)})


def mattered(found: Found) -> Section | None:
    if len(found.judged) < LEAST_JUDGED:
        return None
    shares = influences(found.judged)
    rows = [
        (one.dimension, f"{one.accuracy:.0%}", f"{one.accuracy_gain:+.4f}", f"{one.latency:.0%}", f"{one.latency_gain:+.1%}")
        for one in shares
    ]
    header = ("dimension", "of accuracy's variance", "accuracy, lowest to highest", "of latency's variance", "latency")
    text = (
        "Means over the networks evaluated, which lie denser near the front; dimensions are not held apart. For effects with "
        "the rest held equal run search.check."
    )
    return Section(
        "What mattered", [text], [Grid(header, rows)], {"What each dimension explains": figures.influence_figure(shares)}
    )


def by_stage(found: Found) -> Section | None:
    rows = latency_by_stage(found.members, found.trials, found.img_size)
    if not rows:
        return None
    names = [f"trial {one.number}" for one in found.members]
    header = ("network", *PARTS)
    table = Grid(header, [(name, *(f"{value:.3f}" for value in row)) for name, row in zip(names, rows, strict=True)])
    return Section(
        "Where the latency goes",
        ["In milliseconds, by the block model that was fitted to this study's measurements."],
        [table],
        {"Latency by stage": figures.stages_figure(names, rows)},
    )


def certainty(found: Found) -> Section | None:
    check = found.kept("check.json")
    if check is None:
        return None
    rows = [("spread of accuracies over seed noise", f"{check['spread']:.4f} / {check['seed_noise']:.4f}")]
    labels = {"evaluator": "scores", "macs": "MACs", "params": "parameters", "seeds": "one seed with another"}
    for key, label in labels.items():
        interval = f"[{check[key]['low']:.2f}, {check[key]['high']:.2f}]"
        rows.append((f"Kendall's tau with long trainings: {label}", f"{check[key]['value']:.2f} {interval}"))
    verdict = "The accuracies tell networks apart and rank them as long trainings do."
    text = [verdict] if check["meaningful"] else [f"Not meaningful: {advice}" for advice in check["advice"]]
    return Section(f"Is it meaningful? {check['num_networks']} networks trained alone", text, [Grid(("", ""), rows)])


def confirmation(found: Found) -> Section | None:
    confirmed = found.kept("confirmed.json")
    if confirmed is None:
        return None
    rows = []
    for one in confirmed["networks"]:
        now, before, again = one["confirmed"], one["search"], one["confirmed"]["latency"]
        alone = place = ""
        if "accuracy" in now:
            alone = f"{now['accuracy']:.4f} ±{now['standard_error']:.4f} ({len(now['accuracies'])})"
            place = f"{now['front_probability']:.0%}"
        measured = latency_text(Latency(**again)) if again else ""
        said = (f"{before['accuracy']:.4f}", alone, f"{before['latency']['latency_ms']:.3f}", measured)
        rows.append((str(one["trial"]), *said, f"{before['front_probability']:.0%}", place))
    header = ("trial", "score", "trained alone (seeds)", "latency, ms", "measured again", "on the front", "now")
    return Section("Confirmed", ["Networks whose place on the front was uncertain."], [Grid(header, rows)])


def latency(found: Found) -> Section | None:
    measured = [one for one in found.trials if one.result.latencies[FIRST].measured]
    if not measured:
        return None
    latencies = [one.result.latencies[FIRST] for one in measured]
    tested = [one for one in measured if one.predicted_ms is not None]
    rows = [
        ("measurements", str(len(measured))),
        ("half-width of the 95 % interval, median", f"{statistics.median(one.half_width for one in latencies):.1%}"),
        ("as narrow as asked for", f"{sum(one.converged for one in latencies)} of {len(latencies)}"),
        ("runs of a network, median", f"{statistics.median(one.repetitions for one in latencies):.0f}"),
        ("disturbed", f"{sum(bool(one.warning) for one in latencies)} of {len(latencies)}"),
    ]
    drawn = {
        "Drift: the anchor's time over its calibrated time, which ratios cancel": figures.drift_figure(
            [one.number for one in measured], [one.slowdown for one in latencies]
        )
    }
    if len(tested) > 1:
        errors = [abs(one.predicted_ms / one.result.latencies[FIRST].latency_ms - 1) for one in tested if one.predicted_ms]
        rows.append(("block model off by, median", f"{statistics.median(errors):.1%}"))
        drawn["What the block model said before each measurement"] = figures.prediction_figure(
            [one.predicted_ms or 0.0 for one in tested], [one.result.latencies[FIRST].latency_ms for one in tested]
        )
    warnings = sorted({one.warning for one in latencies if one.warning})[:3]
    return Section("How well latency was measured", warnings, [Grid(("", ""), rows)], drawn)


def unfinished(found: Found) -> Section:
    """Trials that were not judged in full, by their reason."""
    reasons = Counter(reason(trial) for trial in found.raw)
    reasons.pop("", None)
    if not reasons:
        return Section("Failed, infeasible and unmeasured", ["None: every trial was measured and has an accuracy."])
    rows = [(text, str(count)) for text, count in reasons.most_common()]
    return Section("Failed, infeasible and unmeasured", tables=[Grid(("what", "trials"), rows)])


def reason(trial: FrozenTrial) -> str:
    """Why a trial is not a full one, or nothing."""
    status = str(trial.user_attrs.get("status", ""))
    if trial.state == TrialState.FAIL:
        return "interrupted; the search went on" if status == INTERRUPTED else f"failed: {status}"
    if SKIPPED in trial.user_attrs:
        return "over the budget by the block model: not measured"
    if trial.state == TrialState.PRUNED:
        return "over the latency budget: not trained"
    if trial.state == TrialState.RUNNING:
        return "running"
    return "dominated by the block model: scored, not measured" if status.startswith("dominated") else ""


def time_spent(found: Found) -> Section:
    whole = sum(
        (trial.datetime_complete - trial.datetime_start).total_seconds()
        for trial in found.raw
        if trial.datetime_start and trial.datetime_complete
    )
    latencies = [
        latency for one in found.trials for latency in (one.result.latencies[FIRST], *one.result.latencies.values())
    ]
    fresh = [one.result.accuracy for one in found.trials if one.result.accuracy and not one.result.reused_accuracy]
    seconds = {
        "timing": sum(one.seconds for one in latencies if one.measured),
        "preparing to time": sum(one.prepare_seconds for one in latencies),
        "scoring or training": sum(one.seconds for one in fresh),
    }
    seconds["proposing and writing"] = max(0.0, whole - sum(seconds.values()))
    if (shared := found.attrs.get(SHARED_SECONDS)) is not None:
        seconds = {"training shared weights": shared, **seconds}
    total = sum(seconds.values())
    rows = [(part, f"{value:.0f} s", f"{value / total:.0%}" if total else "") for part, value in seconds.items()]
    text = f"{total / 60:.1f} minutes, {whole / 60:.1f} of them in trials."
    return Section(
        "Time", [text], [Grid(("part", "seconds", "share"), rows)], {"Time by part": figures.time_figure(seconds)}
    )


def reproduce(found: Found) -> Section:
    name = found.study.study_name
    versions = ", ".join(f"{package} {version}" for package, version in found.attrs["versions"].items())
    text = [f"The configuration is {found.folder / 'config.yaml'}; run.log there has every step. Versions: {versions}."]
    commands = [
        f"python -m search.export study.name={name} pick=knee format=[onnx]",
        f"python -m search.dashboard study.name={name}",
    ]
    return Section("Go on from here", text, commands=commands)
