"""Settling a study's front: networks whose place is uncertain are measured again and trained alone, within a time.

A search's values are quick ones, and the best of many quick values are too good on average. Networks that may or may not be
on the front, given the errors of their values, get a new measurement and long trainings with several seeds; what these show
is kept beside what the search said.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.architecture import check_int, check_number
from search import UserError
from search.accuracy.base import Accuracy
from search.accuracy.cache import AccuracyCache
from search.commands.cli import build, construct, set_up_logging
from search.commands.run import REMEDY, check_limits, study_settings
from search.commands.standalone import standalone_trainings
from search.commands.targets import FIRST_DEVICE, make_engine
from search.engine.base import Engine
from search.latency.base import Calibration, Latency
from search.results import architecture_file
from search.results.export import facts, member_name, remove_left, write_shared_weights
from search.results.view import describe, latency_text, make_console, progress_of
from search.study.pareto import front_indices, front_probabilities
from search.study.storage import existing_folder, locked, open_study, remember
from search.study.trial import Finished, accuracy_of, finished_trials, judged, latest_of_each
from search.training.data import ImageData

log = logging.getLogger(__name__)
RESULTS = "confirmed.json"


@dataclass(frozen=True)
class Case:
    """A network to be settled: what the search said, and what was found since.

    before: probability of being on the front by the search's values. latency: measured again. accuracies: of trainings
    alone, a seed each.
    """

    trial: Finished
    before: float
    latency: Latency | None = None
    accuracies: tuple[Accuracy, ...] = ()

    @property
    def accuracy(self) -> float:
        """Mean over seeds, or what the search said as long as nothing was trained."""
        return statistics.fmean(one.accuracy for one in self.accuracies) if self.accuracies else accuracy_of(self.trial)


def main(cfg: DictConfig) -> None:
    """Measure, train, compare and keep.

    Raises: UserError if there is no such study or it was made otherwise, KeyboardInterrupt; what was found is kept.
    """
    folder = existing_folder(cfg.study.name)
    construct(check_limits, cfg=cfg)
    construct(check_settings, settings=cfg.confirm)
    with locked(folder):
        console = make_console()
        set_up_logging(console, folder / "confirm.log")
        study = open_study(folder.name, cfg.storage.url, create=False)
        trials = finished_trials(study)
        if cfg.latency.devices:
            raise UserError("search.confirm settles studies of one device; this one has latency.devices")
        if not trials:
            raise UserError(f"study {folder.name} has no finished trial yet; search on")
        remember(study, "settings", study_settings(cfg), REMEDY)
        cases = uncertain(trials, cfg.confirm.min_probability, cfg.confirm.max_probability)
        if not cases:
            console.print("the place of every network is sure: there is nothing to confirm")
            return
        log.info("%d of %d networks may or may not be on the front", len(cases), len(latest_of_each(trials)))
        data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
        trainings = standalone_trainings(cfg, cfg.confirm.train, data, folder / "confirm.jsonl")
        engine = make_engine(cfg, data, partial(build(cfg.accuracy), data=data, train=build(cfg.train)))
        try:
            remember(study, "device", engine.fingerprint(FIRST_DEVICE), "confirm on that device")
            calibration = Calibration.from_dict(study.user_attrs["calibration"])
            limits = (cfg.confirm.min_probability, cfg.confirm.max_probability)
            work = Work(engine, calibration, trainings, folder / RESULTS, *limits)
            with progress_of(console, "confirming") as progress:
                cases = work.settle(cases, cfg.confirm.num_seeds, 60 * cfg.confirm.minutes, progress)
        finally:
            engine.close()
        export(study, cases, folder / "confirmed")
        report(console, cases)
        console.print(f"kept in {folder / RESULTS}, the confirmed front in {folder / 'confirmed'}", soft_wrap=True)


def uncertain(trials: list[Finished], low: float, high: float) -> list[Case]:
    """Networks whose probability of being on the front is between two limits, the most probable first.

    Predicted latencies count too, with the errors that predictions have.
    """
    cases = [Case(trial, 0.0) for trial in judged(trials)]
    found = [replace(case, before=share) for case, share in zip(cases, places(cases), strict=True)]
    return sorted((one for one in found if low <= one.before <= high), key=lambda case: -case.before)


def places(cases: Sequence[Case]) -> list[float]:
    """Probability of each to be on the front of all, by the newest values."""
    noise = seed_noise(cases)
    latencies = [case.latency or case.trial.outcome.latency for case in cases]
    return front_probabilities(
        [case.accuracy for case in cases],
        [standard_error(case, noise) for case in cases],
        [latency.latency_ms for latency in latencies],
        [latency.standard_error for latency in latencies],
    )


def seed_noise(cases: Sequence[Case]) -> float:
    """Standard deviation of one network's accuracies over seeds, alike for all; 0 as long as none has two."""
    variances = [statistics.variance(one.accuracy for one in case.accuracies) for case in cases if len(case.accuracies) > 1]
    return math.sqrt(statistics.fmean(variances)) if variances else 0.0


def standard_error(case: Case, noise: float) -> float:
    """Of a case's accuracy: from the validation images, which all seeds share, and from the seeds."""
    if not case.accuracies:
        assert case.trial.outcome.accuracy is not None
        return case.trial.outcome.accuracy.standard_error
    images = replace(case.accuracies[0], accuracy=case.accuracy).standard_error
    return math.hypot(images, noise / math.sqrt(len(case.accuracies)))


@dataclass(frozen=True)
class Work:
    """What settling needs. file: where the cases are kept after each step. low, high: as in `uncertain`."""

    engine: Engine
    calibration: Calibration
    alone: AccuracyCache
    file: Path
    low: float
    high: float

    def settle(self, cases: list[Case], num_seeds: int, seconds: float, progress: Any) -> list[Case]:
        """Measure all, then train with one seed after the other those that are still uncertain, until the time is up."""
        end = time.monotonic() + seconds
        kept = kept_latencies(self.file)
        keys = [case.trial.architecture.key for case in cases]
        settled = {key: replace(case, latency=kept.get(key)) for key, case in zip(keys, cases, strict=True)}

        def step(case: Case, share: float) -> None:
            settled[case.trial.architecture.key] = case
            save(self.file, list(settled.values()))
            progress(share)

        for done, case in enumerate(list(settled.values())):
            if case.latency is None and time.monotonic() <= end:
                latency = self.engine.measure(FIRST_DEVICE, case.trial.architecture, self.calibration)
                case = replace(case, latency=latency)
            step(case, (done + 1) / len(cases) / (1 + num_seeds))
        for seed in range(num_seeds):
            remaining = self.still_uncertain(list(settled.values()), seed)
            for done, case in enumerate(remaining):
                architecture = case.trial.architecture
                if time.monotonic() > end and self.alone.get(architecture, seed) is None:
                    log.info("time is up; confirm.minutes=N gives more, and the same command goes on")
                    return list(settled.values())
                accuracy = self.alone.evaluate(architecture, seed)
                log.info("%s, seed %d: %.4f", describe(architecture), seed, accuracy.accuracy)
                share = (1 + seed + (done + 1) / len(remaining)) / (1 + num_seeds)
                step(replace(case, accuracies=(*case.accuracies, accuracy)), share)
        return list(settled.values())

    def still_uncertain(self, cases: list[Case], num_trained: int) -> list[Case]:
        """Those with so many trainings whose place the newest values do not settle."""
        compared = [case for case in cases if case.latency is not None and len(case.accuracies) == num_trained]
        if len(compared) < 2:
            return compared if num_trained == 0 else []
        return [case for case, place in zip(compared, places(compared), strict=True) if self.low <= place <= self.high]


def trained(cases: Sequence[Case]) -> dict[int, float]:
    """Probability of being on the front by confirmed values, by trial number, of the networks that have them."""
    compared = [case for case in cases if case.accuracies]
    return {case.trial.number: place for case, place in zip(compared, places(compared), strict=True)}


def as_data(case: Case, noise: float, place: float | None) -> dict[str, Any]:
    """What the search said of a network, and what was found since."""
    confirmed: dict[str, Any] = {"latency": None if case.latency is None else case.latency.summary()}
    if case.accuracies:
        confirmed |= {
            "accuracy": case.accuracy,
            "standard_error": standard_error(case, noise),
            "accuracies": [one.to_dict() for one in case.accuracies],
            "front_probability": place,
        }
    found = case.trial.outcome
    search = {
        "accuracy": accuracy_of(case.trial),
        "standard_error": None if found.accuracy is None else found.accuracy.standard_error,
        "latency": found.latency.summary(),
        "front_probability": case.before,
    }
    return {"search": search, "confirmed": confirmed}


def save(file: Path, cases: Sequence[Case]) -> None:
    """Keep all cases, whole or not at all."""
    noise, place = seed_noise(cases), trained(cases)
    networks = [
        {
            "trial": case.trial.number,
            "key": case.trial.architecture.key,
            "architecture": case.trial.architecture.to_dict(),
            **as_data(case, noise, place.get(case.trial.number)),
        }
        for case in cases
    ]
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"seed_noise": noise, "networks": networks}, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)


def kept_latencies(file: Path) -> dict[str, Latency]:
    """Measurements of an earlier run, by network."""
    if not file.exists():
        return {}
    try:
        networks = json.loads(file.read_text(encoding="utf-8"))["networks"]
        return {one["key"]: Latency(**one["confirmed"]["latency"]) for one in networks if one["confirmed"]["latency"]}
    except (ValueError, KeyError, TypeError):
        log.warning("%s cannot be read; its networks are measured again", file)
        return {}


def export(study: Any, cases: Sequence[Case], folder: Path) -> None:
    """Write the confirmed front: architectures that no other dominates by confirmed values, with these."""
    compared = [case for case in cases if case.accuracies and case.latency is not None]
    folder.mkdir(exist_ok=True)
    noise, place = seed_noise(cases), trained(cases)
    latencies = [case.latency.latency_ms for case in compared if case.latency is not None]
    members = [compared[index] for index in front_indices([case.accuracy for case in compared], latencies)]
    remove_left(folder, [member.trial for member in members])
    for member in members:
        path = folder / member_name(member.trial)
        comment = f"Confirmed: on the front of study {study.study_name}.\nTrain it: python -m search.train arch={path}"
        found = facts(study, member.trial, member.before)
        found["confirmed"] = as_data(member, noise, place[member.trial.number])["confirmed"]
        architecture_file.write(path, comment, member.trial.architecture, found)
    write_shared_weights(study, [member.trial for member in members], folder)


def report(console: Console, cases: Sequence[Case]) -> None:
    noise, place = seed_noise(cases), trained(cases)
    table = Table(title=f"{len(cases)} networks whose place was uncertain", title_justify="left")
    for header in ("trial", "score", "trained alone", "latency, ms [95 %]", "measured again", "on the front", "now"):
        table.add_column(header, justify="right", no_wrap=True)
    for case in sorted(cases, key=lambda one: (one.latency or one.trial.outcome.latency).latency_ms):
        alone = f"{case.accuracy:.4f} ±{standard_error(case, noise):.4f}" if case.accuracies else ""
        now = place.get(case.trial.number)
        table.add_row(
            str(case.trial.number),
            f"{accuracy_of(case.trial):.4f}",
            f"{alone} ({len(case.accuracies)})" if alone else "",
            escape(latency_text(case.trial.outcome.latency)),
            "" if case.latency is None else escape(latency_text(case.latency)),
            f"{case.before:.0%}",
            "" if now is None else f"{now:.0%}",
        )
    console.print(table)
    if noise:
        console.print(f"a seed moves an accuracy by {noise:.4f}; in brackets: trainings")


def check_settings(settings: DictConfig) -> None:
    """Raises: ValueError naming the first number that makes no sense."""
    check_number("confirm.minutes", settings.minutes, 1e-9)
    check_int("confirm.num_seeds", settings.num_seeds, 1)
    check_number("confirm.min_probability", settings.min_probability, 0, 1)
    check_number("confirm.max_probability", settings.max_probability, settings.min_probability, 1)
