"""Sections about what the trials show together, and how far accuracies and latencies can be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from search.accuracy.bootstrap import Statistic
from search.latency.base import Latency
from search.results import analysis
from search.results.analysis import MIN_EVALUATED, PARTS, hypervolumes, influences
from search.results.figures import drift_figure, hypervolume_figure, influence_figure, prediction_figure, stages_figure
from search.results.report.page import Section, Table
from search.results.report.study_data import StudyData
from search.results.significance import significance_text
from search.results.static import svg
from search.study.drift import drift_notes, drifts
from search.study.targets import objectives, references_ms
from search.study.trial import TrialRecord, metric_of, on

MAX_WARNINGS = 3


def progress(study: StudyData) -> Section | None:
    """The hypervolume of the front over time."""
    if len(study.trials) < 2:
        return None
    references = references_ms(study.targets)
    volumes = hypervolumes(study.trials, references)
    ends = " and ".join(f"{reference:.3g} ms" for reference in references)
    text = f"The front dominates {volumes[-1]:.4f} of the space between accuracies of 0 and 1 and latencies of 0 and {ends}."
    drawn = {"Hypervolume after each finished trial": svg(hypervolume_figure(volumes), "progress")}
    return Section("Progress", [text], figures=drawn)


def told_apart(study: StudyData) -> Section | None:
    """How much of the front and of its gain is more than noise."""
    text = significance_text(study.trials, references_ms(study.targets))
    return Section("More than noise?", text) if text else None


def influence(study: StudyData) -> Section | None:
    """The influence of each dimension."""
    if len(study.evaluated) < MIN_EVALUATED:
        return None
    shares = influences(study.evaluated)
    targets = objectives(study.targets)
    metric = metric_of(study.trials)
    header = ["dimension", f"of {metric}'s variance", f"{metric}, lowest to highest"]
    for name in targets:
        latency = f"latency{on(name, dict.fromkeys(targets))}"
        header += [f"of {latency}'s variance" if len(targets) == 1 else f"of the variance of {latency}", latency]
    rows = []
    for share in shares:
        row = [share.dimension, f"{share.accuracy.share:.0%}", f"{share.accuracy.gain:+.4f}"]
        for name in targets:
            row += [f"{share.latencies[name].share:.0%}", f"{share.latencies[name].gain:+.1%}"]
        rows.append(row)
    text = [
        "The share of the variance that each dimension explains by itself, over all evaluated networks, which lie denser "
        "near the front. Other dimensions vary at the same time; search.check measures effects with all others equal.",
        "The dashboard's own plot, Hyperparameter Importance, answers another question: in which dimensions the best tenth "
        "of the trials differs from the others. The two may disagree.",
    ]
    return Section(
        "What mattered",
        text,
        [Table(header, rows)],
        {"Variance explained": svg(influence_figure(shares, metric), "influence")},
    )


def latency_by_stage(study: StudyData) -> Section | None:
    """The latency of the front's networks in each stage."""
    names = [f"trial {member.number}" for member in study.members]
    tables, drawn = [], {}
    for target in objectives(study.targets):
        rows = analysis.latency_by_stage(study.members, study.trials, target, study.img_size)
        if not rows:
            continue
        network = f"network{on(target, study.targets)}"
        cells = [(name, *(f"{value:.3f}" for value in row)) for name, row in zip(names, rows, strict=True)]
        tables.append(Table((network, *PARTS), cells))
        drawn[f"Latency by stage{on(target, study.targets)}"] = svg(stages_figure(names, rows), f"stages-{target}")
    if not tables:
        return None
    text = "In milliseconds, by the block model that was fitted to this study's measurements."
    return Section("Latency by stage", [text], tables, drawn)


def accuracy_check(study: StudyData) -> Section | None:
    """Results of search.check."""
    check = study.read_json("check.json")
    if check is None or "quality" not in check:
        return None
    quality = check["quality"]
    within = quality["equal_cost"]
    taus = {
        "scores": (quality["evaluator"], ".2f"),
        "MACs": (quality["macs"], ".2f"),
        "parameters": (quality["params"], ".2f"),
        "one seed with another": (quality["seeds"], ".2f"),
        "scores minus MACs": (quality["over_macs"], "+.2f"),
        "scores minus parameters": (quality["over_params"], "+.2f"),
        f"scores, {within['num_pairs']} pairs of about equal cost": (within["evaluator"], ".2f"),
        "MACs, the same pairs": (within["macs"], ".2f"),
    }
    rows = [("standard deviation over networks / over seeds", f"{quality['spread']:.4f} / {quality['seed_noise']:.4f}")]
    for label, (tau, form) in taus.items():
        rows.append((f"Kendall's tau with long trainings: {label}", Statistic(**tau).text(form)))
    answer = check["verdict"].capitalize()
    text = [f"{answer}: {reason}." for reason in check["reasons"]]
    if not text:
        text = [f"{answer}: the accuracies tell networks apart and rank them as long trainings do."]
    if check["more_networks"]:
        text.append(f"If the values stay as they are, {check['more_networks']} more networks would decide.")
    title = f"Are the accuracies meaningful? {quality['num_networks']} networks trained standalone"
    return Section(title, [*text, "Intervals are those of 90 % over networks."], [Table(("", ""), rows)])


def latency_quality(study: StudyData) -> Section | None:
    """Precision, drift and predictions of the latency measurements on each target."""
    measured = {name: _measured(study.trials, name) for name in study.targets}
    measured = {name: trials for name, trials in measured.items() if trials}
    if not measured:
        return None
    latencies = {name: [trial.result.latencies[name] for trial in trials] for name, trials in measured.items()}
    numbers = {name: [float(trial.number) for trial in trials] for name, trials in measured.items()}
    slowdowns = {name: [latency.slowdown for latency in listed] for name, listed in latencies.items()}
    drift = "Drift: the anchor's time over its calibrated time; it cancels in ratios"
    drawn = {drift: svg(drift_figure(numbers, slowdowns), "drift")}
    rows = [(label, *map(cell, latencies.values())) for label, cell in QUALITIES.items()]
    repeatabilities = [str(study.targets[name].calibration.repeatability) for name in measured]
    rows.append(("standard deviation of separate measurements of a network", *repeatabilities))
    slowdown = drifts(study.trials)
    texts = [f"{slowdown[name].sustained:.2f}, {slowdown[name].recent:.2f} at last" for name in measured]
    rows.append(("the anchor's time over its calibrated time, median", *texts))
    predicted = {name: [trial for trial in trials if name in trial.predicted_ms] for name, trials in measured.items()}
    predicted = {name: trials for name, trials in predicted.items() if len(trials) > 1}
    if predicted:
        predicted_ms = {name: [trial.predicted_ms[name] for trial in trials] for name, trials in predicted.items()}
        measured_ms = {name: [_latency_ms(trial, name) for trial in trials] for name, trials in predicted.items()}
        errors = [_error_text(predicted_ms.get(name, []), measured_ms.get(name, [])) for name in measured]
        rows.append(("relative error of the block model's predictions, median", *errors))
        caption = "Predictions of the block model before each measurement"
        drawn[caption] = svg(prediction_figure(predicted_ms, measured_ms), "prediction")
    header = ("", "") if len(measured) == 1 else ("", *measured)
    warnings = sorted({latency.warning for listed in latencies.values() for latency in listed if latency.warning})
    text = [*drift_notes(study.trials), *warnings[:MAX_WARNINGS]]
    return Section("Quality of the latency measurements", text, [Table(header, rows)], drawn)


QUALITIES: Mapping[str, Callable[[Sequence[Latency]], str]] = {
    "measurements": lambda latencies: str(len(latencies)),
    "half-width of the 95 % confidence interval, median": lambda latencies: (
        f"{statistics.median(latency.half_width for latency in latencies):.1%}"
    ),
    "intervals as narrow as required": lambda latencies: (
        f"{sum(latency.converged for latency in latencies)} of {len(latencies)}"
    ),
    "timed runs of a network, median": lambda latencies: (
        f"{statistics.median(latency.repetitions for latency in latencies):.0f}"
    ),
    "disturbed": lambda latencies: f"{sum(bool(latency.warning) for latency in latencies)} of {len(latencies)}",
}


def _measured(trials: Sequence[TrialRecord], target: str) -> list[TrialRecord]:
    return [trial for trial in trials if target in trial.result.latencies and trial.result.latencies[target].measured]


def _latency_ms(trial: TrialRecord, target: str) -> float:
    return trial.result.latencies[target].latency_ms


def _error_text(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> str:
    errors = [abs(predicted / measured - 1) for predicted, measured in zip(predicted_ms, measured_ms, strict=True)]
    return f"{statistics.median(errors):.1%}" if errors else ""
