"""`search.check`: can the accuracies of a search be trusted? Scores are compared with long standalone trainings."""

from __future__ import annotations

import itertools
import json
import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.architecture import Architecture, check_int, check_number
from models.complexity import cost
from models.elastic import Bounds
from search import UserError
from search.accuracy.base import SharedWeights, metric_name
from search.accuracy.cache import AccuracyCache
from search.accuracy.initial_weights import InitialWeights
from search.accuracy.ranking import Effect, EvaluatedNetwork, SignalQuality, assess, summarise_effects
from search.accuracy.verdict import Answer, verdict
from search.commands.accuracy import (
    accuracy_settings,
    cached_evaluator,
    initial_weights,
    standalone_trainings,
    training_images,
)
from search.commands.cli import build, construct, plain, set_up_logging
from search.commands.settings import check_study
from search.files import write_text
from search.results.view import make_console, progress_of
from search.space.dimensions import describe
from search.space.space import Space
from search.study.locks import folder_lock
from search.study.storage import study_folder
from search.training.data import ImageData
from search.training.schedule import duration_text

log = logging.getLogger(__name__)
SECTIONS = ("space", "data", "train", "accuracy", "proxy", "check")
"""Sections of the configuration that the result depends on."""
EXIT_CODES = {Answer.MEANINGFUL: 0, Answer.NOT_MEANINGFUL: 3, Answer.UNDECIDED: 4}
"""1, 2 and those from 128 mean that there is no answer."""


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Args:
        networks: Random networks with scores and accuracies.
        quality: Statistics of their accuracies.
        effects: Effect of each dimension on the score.
        minutes: Duration of the check.
    """

    networks: list[EvaluatedNetwork]
    quality: SignalQuality
    effects: list[Effect]
    minutes: float


@dataclass(frozen=True)
class Evaluators:
    """The evaluator of the search, and the long standalone trainings that it is compared with."""

    search: AccuracyCache
    standalone: AccuracyCache


def main(cfg: DictConfig) -> None:
    """Check a search's accuracies, save the figures and report whether they are meaningful.

    Raises:
        SystemExit: With the exit code of the answer.
        UserError: If a setting cannot be used.
        KeyboardInterrupt: If the user stops the check; finished evaluations are kept.
    """
    folder = study_folder(cfg.study.name)
    construct(check_study, cfg=cfg)
    construct(check_settings, settings=cfg.check)
    space: Space = build(cfg.space)
    with folder_lock(folder):
        console = make_console()
        set_up_logging(console, folder / "check.log")
        result = check(cfg, space, folder, console)
        save(folder / "check.json", cfg, result)
        report(console, cfg, result)
        console.print(f"saved in {folder / 'check.json'}", highlight=False, soft_wrap=True)
    raise SystemExit(EXIT_CODES[verdict(result.quality).answer])


def check(cfg: DictConfig, space: Space, folder: Path, console: Console) -> CheckResult:
    """Evaluate random networks, and pairs of networks that differ in one dimension."""
    start = time.monotonic()
    weights = initial_weights(cfg)
    data = training_images(cfg, weights)
    if weights is not None:
        log.info("%s", weights.summary(data, Bounds.of(space.covering())))
    evaluators = make_evaluators(cfg, data, folder / "check.jsonl", weights)
    architectures = distinct(space, cfg.check.num_architectures, cfg.check.seed)
    train_shared_weights(evaluators.search, cfg.study.seed, console)
    networks = evaluate_networks(architectures, evaluators, cfg, data, console)
    effects = measure_effects(space, evaluators.search, cfg, console)
    return CheckResult(networks, assess(networks), effects, minutes=(time.monotonic() - start) / 60)


def make_evaluators(cfg: DictConfig, data: ImageData, file: Path, weights: InitialWeights | None) -> Evaluators:
    """Make both evaluators, which start from the same weights; their results are kept in one file."""
    return Evaluators(
        search=cached_evaluator(cfg, data, file, weights),
        standalone=standalone_trainings(cfg, cfg.check.long, data, file, weights),
    )


def distinct(space: Space, count: int, seed: int) -> list[Architecture]:
    """Draw random architectures that are all different. Raises: UserError if the space has fewer."""
    if space.num_architectures() < count:
        raise UserError(
            f"check.num_architectures={count} is more than the {space.num_architectures()} networks of the space; lower it"
        )
    architectures: dict[str, Architecture] = {}
    for number in itertools.count():
        architecture = space.sample([seed, number])
        architectures.setdefault(architecture.key, architecture)
        if len(architectures) == count:
            break
    return list(architectures.values())


def train_shared_weights(scores: AccuracyCache, seed: int, console: Console) -> None:
    """Train the weights that all scores share, if the evaluator has any."""
    if isinstance(scores.evaluator, SharedWeights):
        with progress_of(console, "training shared weights") as progress:
            scores.evaluator.prepare(seed, progress)


def evaluate_networks(
    architectures: Sequence[Architecture], evaluators: Evaluators, cfg: DictConfig, data: ImageData, console: Console
) -> list[EvaluatedNetwork]:
    """Evaluate each network, one after the other."""
    log.info("scoring %d networks, and training each of them %d times", len(architectures), cfg.check.num_seeds)
    networks = []
    with progress_of(console, "scores and standalone trainings") as progress:
        for number, architecture in enumerate(architectures, start=1):
            network = evaluate_network(architecture, evaluators, cfg, data)
            accuracies = ", ".join(f"{accuracy:.4f}" for accuracy in network.accuracies)
            log.info("%s: score %.4f, standalone %s", describe(architecture), network.score.accuracy, accuracies)
            networks.append(network)
            progress(number / len(architectures))
    return networks


def evaluate_network(
    architecture: Architecture, evaluators: Evaluators, cfg: DictConfig, data: ImageData
) -> EvaluatedNetwork:
    """Score a network as the search does, and train it standalone with every seed."""
    score = evaluators.search.evaluate(architecture, cfg.study.seed)
    seeds = range(cfg.check.num_seeds)
    trainings = tuple(evaluators.standalone.evaluate(architecture, seed) for seed in seeds)
    num_params, num_macs = cost(architecture, data.in_chans, data.num_classes, cfg.deploy.img_size)
    return EvaluatedNetwork(architecture, num_params, num_macs, score, trainings)


def measure_effects(space: Space, scores: AccuracyCache, cfg: DictConfig, console: Console) -> list[Effect]:
    """Score pairs of networks that differ in one dimension, for each dimension in turn, until the time is up."""
    dimensions = space.searched_dimensions()
    gains: dict[str, list[float]] = {dimension: [] for dimension in dimensions}
    start, limit = time.monotonic(), 60 * cfg.check.effects_minutes
    turns = ((dimension, number) for number in itertools.count() for dimension in dimensions)
    with progress_of(console, "effects of the dimensions") as progress:
        for dimension, number in turns:
            elapsed = time.monotonic() - start
            if elapsed > limit:
                break
            pair = space.pair(dimension, [cfg.check.seed, number])
            low, high = (scores.evaluate(architecture, cfg.study.seed).accuracy for architecture in pair)
            gains[dimension].append(high - low)
            progress(elapsed / limit)
    return summarise_effects(gains, dimensions)


def save(file: Path, cfg: DictConfig, result: CheckResult) -> None:
    """Write the figures, and the settings they depend on, as JSON."""
    answer = verdict(result.quality)
    body = {
        "verdict": answer.answer,
        "reasons": answer.reasons(),
        "more_networks": answer.more_networks,
        "quality": finite(asdict(result.quality)),
        "effects": [asdict(effect) for effect in result.effects],
        "networks": [network_facts(network) for network in result.networks],
        "minutes": round(result.minutes, 1),
        "settings": {section: plain(cfg)[section] for section in SECTIONS}
        | {"accuracy": accuracy_settings(cfg), "latency": {"dtype": cfg.latency.dtype}},
    }
    write_text(file, json.dumps(body, indent=2, allow_nan=False) + "\n")


def network_facts(network: EvaluatedNetwork) -> dict[str, Any]:
    """A network and its accuracies as plain data."""
    return {
        "architecture": network.architecture.to_dict(),
        "num_params": network.num_params,
        "num_macs": network.num_macs,
        "score": network.score.accuracy,
        "accuracies": list(network.accuracies),
    }


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with None for infinite numbers, which JSON does not have."""
    return {
        key: finite(value) if isinstance(value, dict) else None if value in (math.inf, -math.inf) else value
        for key, value in values.items()
    }


def report(console: Console, cfg: DictConfig, result: CheckResult) -> None:
    """Print the figures, what they say, and what to do next."""
    console.print(signal_table(cfg, result))
    if result.effects:
        console.print(effects_table(result.effects))
    answer = verdict(result.quality)
    if answer.answer is Answer.MEANINGFUL:
        lines = ["meaningful: the accuracies tell networks apart and rank them as long trainings do"]
    else:
        lines = [f"{answer.answer}: {reason}" for reason in answer.reasons()]
    if answer.answer is Answer.UNDECIDED:
        lines.append(advice(answer.more_networks, result.networks))
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def advice(more_networks: int | None, networks: Sequence[EvaluatedNetwork]) -> str:
    """What to do about an undecided check."""
    if more_networks is None:
        return "no practical number of networks would decide this: the values are too close to what is needed"
    seconds = statistics.fmean(sum(training.seconds for training in network.trainings) for network in networks)
    return (
        f"if the values stay as they are, {more_networks} more networks would decide, which train for about "
        f"{more_networks * seconds / 60:.0f} minutes: run the same command again with "
        f"check.num_architectures={len(networks) + more_networks}; finished trainings are kept"
    )


def signal_table(cfg: DictConfig, result: CheckResult) -> Table:
    """Signal, noise and rank correlations of the networks' accuracies."""
    accuracies, quality = [network.accuracy for network in result.networks], result.quality
    title = f"{cfg.data.name}: {len(accuracies)} random networks, {result.minutes:.0f} minutes"
    table = Table(title=title, title_justify="left")
    table.add_column("quantity, 90 % interval over networks")
    table.add_column("value", justify="right", no_wrap=True)
    training = f"standalone training for {duration_text(cfg.check.long)}"
    rows = {
        f"{metric_name(cfg.accuracy.metric)}, {training}": f"{min(accuracies):.3f} to {max(accuracies):.3f}",
        "standard deviation over networks (signal)": f"{quality.spread:.4f}",
        "standard deviation over seeds (noise)": f"{quality.seed_noise:.4f}",
        "signal-to-noise ratio": quality.signal_to_noise.text(".1f"),
        "standard deviation around the best prediction from the score": f"{quality.residual:.4f}",
        **tau_rows(quality),
    }
    for quantity, value in rows.items():
        table.add_row(quantity, escape(value))
    return table


def tau_rows(quality: SignalQuality) -> dict[str, str]:
    """Kendall's taus with the accuracies of long trainings, with their intervals, by what they are of."""
    within = quality.equal_cost
    groups = f"{within.num_groups} groups of equal cost within {within.cost_ratio - 1:.0%} ({within.num_pairs} pairs)"

    return {
        "Kendall's tau with these accuracies: scores of the search": str(quality.evaluator),
        "multiply-accumulates": str(quality.macs),
        "parameters": str(quality.params),
        "one seed with another": str(quality.seeds),
        "scores minus multiply-accumulates": quality.over_macs.text("+.2f"),
        "scores minus parameters": quality.over_params.text("+.2f"),
        f"scores, within {groups}": str(within.evaluator),
        "multiply-accumulates, within these groups": str(within.macs),
    }


def effects_table(effects: Sequence[Effect]) -> Table:
    """Effect of each dimension on the score."""
    table = Table(title="Effect of each dimension on the score", title_justify="left")
    for header in ("dimension", "from", "to", "gain", "± standard error", "pairs"):
        table.add_column(header, justify="left" if header == "dimension" else "right")
    for effect in effects:
        error = "" if effect.standard_error is None else f"{effect.standard_error:.4f}"
        cells = (f"{effect.lowest:g}", f"{effect.highest:g}", f"{effect.gain:+.4f}", error, str(effect.num_pairs))
        table.add_row(effect.dimension, *cells)
    return table


def check_settings(settings: DictConfig) -> None:
    """Check the settings of `check`. Raises: ValueError naming the first one that is out of range."""
    check_int("check.num_architectures", settings.num_architectures, 3)
    check_int("check.num_seeds", settings.num_seeds, 2)
    check_int("check.seed", settings.seed, 0)
    check_number("check.effects_minutes", settings.effects_minutes, 0)
