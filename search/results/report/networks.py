"""Sections about networks: the front, its pictures, the comparison with the LITv2 pattern, and confirmed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.latency.base import Latency
from search.results.figures import as_title, front_figures
from search.results.picking import compare
from search.results.picture import picture
from search.results.report.page import Section, Table
from search.results.report.study_data import PEERS_FILE, StudyData
from search.results.static import svg
from search.results.tables import NETWORK, accuracy_text, latencies_text, latency_cells, latency_headers, latency_text
from search.space.dimensions import describe
from search.study.front import BY_ACCURACY, BY_SCORE, gain_over_pattern, probability_name
from search.study.trial import SAMPLED, TrialRecord, metric_of, on


def front(study: StudyData) -> Section:
    """The networks of the front, and a plot for each target that is an objective."""
    if not study.members:
        return Section("Front", ["No network has both an accuracy and a latency within the budget yet."])
    text = (
        f"The networks that no other network found so far dominates. ± is the standard error {_error_source(study)}. "
        "In brackets: the 95 % confidence interval of the latency."
    )
    probability = probability_name(study.checked)
    errors = (
        "the errors of latencies, of validation images, which are the same for all networks, and of predicting a training's "
        f"accuracy from a score (standard deviation {study.checked.residual:.4f}, by search.check)."
        if study.checked
        else "the errors of latencies and of validation images, which are the same for all networks. How far scores are "
        "from accuracies of trainings is not known: run search.check, which measures it, or search.confirm, which trains."
    )
    legend = (
        "In the plot baselines are the LITv2 pattern at every width, the smallest and the largest network; predicted are "
        "dominated networks whose latency was not measured."
    )
    metric = metric_of(study.trials)
    header = ("trial", metric, *latency_headers(list(study.targets)), probability, "parameters", "MACs", NETWORK)
    drawn = {
        f"{as_title(metric)} over latency{on(name, study.targets)}: standard errors, 95 % confidence intervals": svg(
            figure, f"front-{name}"
        )
        for name, figure in front_figures(study.trials, study.targets).items()
    }
    meaning = f"{probability.capitalize()}: the probability that no other network dominates this one, given {errors}"
    return Section(
        "Front", [text, meaning, legend], [Table(header, [_row(member, study) for member in study.members])], drawn
    )


def _error_source(study: StudyData) -> str:
    """Where standard errors come from, in words."""
    is_top1 = all(trial.result.accuracy is None or trial.result.accuracy.error is None for trial in study.trials)
    return "from the number of validation images" if is_top1 else "over validation images, by bootstrap"


def _row(member: TrialRecord, study: StudyData) -> Sequence[str]:
    return (
        str(member.number),
        accuracy_text(member),
        *latency_cells(member, list(study.targets)),
        f"{study.front_probability[member.architecture.key]:.0%}",
        f"{member.num_params / 1e6:.2f} M",
        f"{member.num_macs / 1e6:,.1f} M",
        describe(member.architecture),
    )


def pictures(study: StudyData) -> Section | None:
    """A picture of each network of the front."""
    if not study.members:
        return None
    drawn = {
        f"Trial {member.number}: {accuracy_text(member)}, {latencies_text(member.result, study.targets)}": picture(
            member.architecture, study.img_size
        )
        for member in study.members
    }
    text = "Bars are blocks, a square is the map with its windows, dots are attention heads: Hi-Fi first, then Lo-Fi."
    return Section("Networks on the front", [text], figures=drawn)


def comparison(study: StudyData) -> Section | None:
    """The baselines, and how the networks of the front compare with the LITv2 pattern."""
    baselines = [trial for trial in study.evaluated if trial.origin != SAMPLED]
    if not baselines or not study.members:
        return None
    targets = list(study.targets)
    rows = [
        (trial.origin, accuracy_text(trial), *latency_cells(trial, targets), describe(trial.architecture))
        for trial in baselines
    ]
    compared = [result for member in study.members if (result := compare(member, study.trials)) is not None]
    compared_rows = [
        (
            f"trial {result.member.number}",
            f"width {result.pattern.architecture.embed_dim}",
            *(str(result.speedups[name]) if name in result.speedups else "" for name in targets),
            f"{result.gain:+.4f}",
        )
        for result in compared
    ]
    speedups = [f"times as fast{on(name, study.targets)} [95 % CI]" for name in targets]
    text = (
        "The LITv2 pattern, as close as the space comes to it: no attention in the first two stages, HiLo in the third, "
        "plain attention in the fourth."
    )
    gain = gain_over_pattern(study.trials)
    texts = [text] if gain is None else [text, f"{gain}."]
    tables = [
        Table(("network", metric_of(study.trials), *latency_headers(targets), NETWORK), rows),
        Table(("network of the front", "pattern", *speedups, f"difference in {metric_of(study.trials)}"), compared_rows),
    ]
    return Section("Comparison with the LITv2 pattern", texts, tables)


def peers(study: StudyData) -> Section | None:
    """Models of timm that were measured beside the study's networks, each with the network of the front that is as fast."""
    measured = study.read_json(PEERS_FILE)
    if measured is None or not study.members:
        return None
    target, metric = measured["target"], metric_of(study.trials)
    (latency,) = latency_headers([target])
    header = ("model", latency, "parameters", "MACs", "as fast on the front", metric, latency)
    text = (
        "Models of timm, measured as the networks of the study were, on images of the same size; they are not trained. "
        "Beside each is the most accurate network of the front that takes no longer."
    )
    rows = [_peer_row(name, measured["models"][name], target, study) for name in measured["shown"]]
    return Section("Comparison with other models", [text], [Table(header, rows)])


def _peer_row(name: str, facts: Mapping[str, Any], target: str, study: StudyData) -> Sequence[str]:
    latency = Latency.from_summary(facts["latency"])
    cost = (f"{facts['num_params'] / 1e6:.2f} M", f"{facts['num_macs'] / 1e6:,.1f} M")
    as_fast = [member for member in study.members if member.result.latencies[target].latency_ms <= latency.latency_ms]
    best = max(as_fast, key=lambda member: member.accuracy, default=None)
    if best is None:
        return name, latency_text(latency), *cost, "none", "", ""
    return name, latency_text(latency), *cost, f"trial {best.number}", accuracy_text(best), *latency_cells(best, [target])


def confirmation(study: StudyData) -> Section | None:
    """Results of search.confirm."""
    confirmed = study.read_json("confirmed.json")
    if confirmed is None:
        return None
    targets = list(study.targets)
    latencies = latency_headers(targets)
    header = (
        "trial", "score", "trained standalone (seeds)", *latencies, *(f"{name}, measured again" for name in latencies),
        BY_SCORE if confirmed["by_score"] else BY_ACCURACY, "on the front, confirmed",
    )  # fmt: skip
    text = (
        "Networks that are or may be on the front: values of the search, and those confirmed since, on images that the "
        "search has not chosen networks by. Confirmed probabilities are against all networks; those that were not trained "
        "count with the accuracy that their score predicts."
    )
    return Section(
        "Confirmed networks", [text], [Table(header, [_confirmed_row(row, targets) for row in confirmed["networks"]])]
    )


def _confirmed_row(network: Mapping[str, Any], targets: Sequence[str]) -> Sequence[str]:
    search, confirmed = network["search"], network["confirmed"]
    accuracy = probability = ""
    if "accuracy" in confirmed:
        accuracy = f"{confirmed['accuracy']:.4f} ±{confirmed['standard_error']:.4f} ({len(confirmed['accuracies'])})"
        probability = f"{confirmed['front_probability']:.0%}"
    return (
        str(network["trial"]),
        f"{search['accuracy']:.4f}",
        accuracy,
        *_stored_latencies(search["latencies"], targets),
        *_stored_latencies(confirmed["latencies"], targets),
        f"{search['front_probability']:.0%}",
        probability,
    )


def _stored_latencies(stored: Mapping[str, Mapping[str, Any]], targets: Sequence[str]) -> list[str]:
    return [latency_text(Latency.from_summary(stored[name])) if name in stored else "" for name in targets]
