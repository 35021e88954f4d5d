"""One check of a search's accuracy signal: random networks trained long and alone, against what the evaluator says."""

from __future__ import annotations

import itertools
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.architecture import Architecture, check_int, check_number
from models.complexity import cost
from search import UserError
from search.accuracy.cache import KeptAccuracies
from search.accuracy.ranking import Effect, Fidelity, Judged, effects, judge
from search.commands.cli import build, construct, plain, set_up_logging
from search.commands.run import alone, check_limits
from search.results.view import make_console, progress_of
from search.space.dimensions import describe
from search.space.space import Space
from search.study.storage import locked, study_folder
from search.training.data import ImageData

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Train, score, compare, and say whether the search's accuracies mean anything.

    Raises: UserError if what is asked for cannot be, KeyboardInterrupt if the user stops it; what was trained is kept.
    """
    folder = study_folder(cfg.study.name)
    construct(check_limits, cfg=cfg)
    construct(check_settings, settings=cfg.check)
    space: Space = build(cfg.space)
    start = time.monotonic()
    with locked(folder):
        console = make_console()
        set_up_logging(console, folder / "check.log")
        data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
        judges = make_judges(cfg, data, folder / "check.jsonl")
        networks = distinct(space, cfg.check.num_architectures, cfg.check.seed)
        with progress_of(console, "training shared weights") as progress:
            judges.search.evaluator.prepare(cfg.study.seed, progress)
        judged = judge_networks(networks, judges, cfg, data, console)
        found = measure_effects(space, judges.search, cfg, console)
        fidelity = judge(judged)
        minutes = (time.monotonic() - start) / 60
        save(folder / "check.json", cfg, judged, fidelity, found, minutes)
        report(console, cfg, judged, fidelity, found, minutes)
        console.print(f"kept in {folder / 'check.json'}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Judges:
    """search: what the search goes by. alone: long trainings of single networks."""

    search: KeptAccuracies
    alone: KeptAccuracies


def make_judges(cfg: DictConfig, data: ImageData, file: Path) -> Judges:
    images = {"data": data.fingerprint(), "images": data.num_val}
    evaluator = construct(build(cfg.accuracy), data=data, train=build(cfg.train))
    return Judges(
        search=KeptAccuracies(evaluator, {"train": plain(cfg.train), "accuracy": plain(cfg.accuracy), **images}, file),
        alone=alone(cfg, cfg.check.long, data, file),
    )


def distinct(space: Space, count: int, seed: int) -> list[Architecture]:
    """Random networks, all different. Raises: UserError if the space has fewer."""
    if space.num_architectures() < count:
        raise UserError(
            f"check.num_architectures={count} is more than the {space.num_architectures()} networks of the space"
        )
    found: dict[str, Architecture] = {}
    for number in itertools.count():
        architecture = space.sample([seed, number])
        found.setdefault(architecture.key, architecture)
        if len(found) == count:
            break
    return list(found.values())


def judge_networks(
    networks: list[Architecture], judges: Judges, cfg: DictConfig, data: ImageData, console: Console
) -> list[Judged]:
    """Score each network as the search does, and train it long and alone with every seed."""
    network = {"img_size": cfg.deploy.img_size, "in_chans": data.in_chans, "num_classes": data.num_classes}
    log.info("scoring %d networks, then training each %d times", len(networks), cfg.check.num_seeds)
    judged = []
    with progress_of(console, "scoring and training alone") as progress:
        for number, architecture in enumerate(networks, start=1):
            score = judges.search.accuracy(architecture, cfg.study.seed).accuracy
            alone = tuple(judges.alone.accuracy(architecture, seed).accuracy for seed in range(cfg.check.num_seeds))
            one = Judged(architecture, *cost(architecture, **network), score, alone)
            judged.append(one)
            accuracies = ", ".join(f"{accuracy:.4f}" for accuracy in alone)
            log.info("%s: score %.4f, trained alone %s", describe(architecture), score, accuracies)
            progress(number / len(networks))
    return judged


def measure_effects(space: Space, judge: KeptAccuracies, cfg: DictConfig, console: Console) -> list[Effect]:
    """Score pairs of networks that differ in one dimension alone, each dimension in turn, until the time is up."""
    dimensions = space.dimensions()
    gains: dict[str, list[float]] = {name: [] for name in dimensions}
    start, limit = time.monotonic(), 60 * cfg.check.effects_minutes
    turns = ((dimension, number) for number in itertools.count() for dimension in dimensions)
    with progress_of(console, "effects of the dimensions") as progress:
        for dimension, number in turns:
            elapsed = time.monotonic() - start
            if elapsed > limit:
                break
            low, high = (
                judge.accuracy(one, cfg.study.seed).accuracy for one in space.pair(dimension, [cfg.check.seed, number])
            )
            gains[dimension].append(high - low)
            progress(elapsed / limit)
    return effects(gains, dimensions)


def save(file: Path, cfg: DictConfig, judged: list[Judged], fidelity: Fidelity, found: list[Effect], minutes: float) -> None:
    body = {
        "meaningful": fidelity.meaningful,
        "advice": fidelity.advice(),
        **asdict(fidelity),
        "effects": [asdict(effect) for effect in found],
        "networks": [{**asdict(one), "architecture": one.architecture.to_dict()} for one in judged],
        "minutes": round(minutes, 1),
        "settings": {name: plain(cfg)[name] for name in ("space", "data", "train", "accuracy", "proxy", "check")},
    }
    file.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def report(
    console: Console, cfg: DictConfig, judged: list[Judged], fidelity: Fidelity, found: list[Effect], minutes: float
) -> None:
    accuracies = [one.accuracy for one in judged]
    table = Table(title=f"{cfg.data.name}: {len(judged)} random networks, {minutes:.0f} minutes", title_justify="left")
    table.add_column("what")
    table.add_column("found", justify="right", no_wrap=True)
    epochs = f"{cfg.check.long.max_epochs} epochs"
    rows = {
        f"accuracies, trained alone for {epochs}": f"{min(accuracies):.3f} to {max(accuracies):.3f}",
        "their standard deviation": f"{fidelity.spread:.4f}",
        "what a seed moves one by": f"{fidelity.seed_noise:.4f}",
        "the one over the other": f"{fidelity.spread_over_noise:.1f}",
        "Kendall's tau with them, and 90 % interval: the search's evaluator": str(fidelity.evaluator),
        "multiply-accumulates": str(fidelity.macs),
        "parameters": str(fidelity.params),
        "one seed with another": str(fidelity.seeds),
    }
    for what, value in rows.items():
        table.add_row(what, escape(value))
    console.print(table)
    if found:
        gains = Table(title="What a dimension moves the score by", title_justify="left")
        for header in ("dimension", "from", "to", "gain", "± standard error", "pairs"):
            gains.add_column(header, justify="left" if header == "dimension" else "right")
        for effect in found:
            error = "" if effect.standard_error is None else f"{effect.standard_error:.4f}"
            cells = (f"{effect.lowest:g}", f"{effect.highest:g}", f"{effect.gain:+.4f}", error, str(effect.num_pairs))
            gains.add_row(effect.dimension, *cells)
        console.print(gains)
    if fidelity.meaningful:
        console.print("meaningful: this search's accuracies tell its networks apart, and rank them as long trainings do")
    for advice in fidelity.advice():
        console.print(f"not meaningful: {advice}", highlight=False, soft_wrap=True)


def check_settings(settings: DictConfig) -> None:
    """Raises: ValueError naming the first number that makes no sense."""
    check_int("check.num_architectures", settings.num_architectures, 3)
    check_int("check.num_seeds", settings.num_seeds, 2)
    check_int("check.seed", settings.seed, 0)
    check_number("check.effects_minutes", settings.effects_minutes, 0)
