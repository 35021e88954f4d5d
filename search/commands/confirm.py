"""`python -m search.confirm`: measure and train again, within a time, the networks whose place on a front is uncertain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import optuna
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.architecture import check_int, check_number
from search import UserError
from search.commands.cli import build, construct, set_up_logging
from search.commands.settings import IMAGES_REMEDY, REMEDY, check_study, study_settings
from search.commands.standalone import standalone_trainings
from search.commands.targets import make_engine, prepare_targets
from search.results import architecture_file
from search.results.export import member_facts, member_name, remove_stale, write_shared_weights
from search.results.tables import latency_cells, latency_headers, latency_text
from search.results.view import make_console, progress_of
from search.space import Space
from search.study.confirmation import (
    Case,
    Confirmation,
    case_facts,
    confirmed_front,
    confirmed_probabilities,
    seed_noise,
    standard_error,
    uncertain_cases,
)
from search.study.front import latest_of_each
from search.study.locks import folder_lock
from search.study.storage import existing_folder, open_study, refuse_changes
from search.study.trial import finished_trials
from search.training.data import ImageData

log = logging.getLogger(__name__)
RESULTS = "confirmed.json"


def main(cfg: DictConfig) -> None:
    """Confirm a study of this machine; results are stored as they come.

    Raises:
        UserError: if there is no such study, or its settings are others.
    """
    folder = existing_folder(cfg.study.name)
    construct(check_study, cfg=cfg)
    construct(check_confirm_settings, settings=cfg.confirm)
    with folder_lock(folder):
        console = make_console()
        set_up_logging(console, folder / "confirm.log")
        study = open_study(folder.name, cfg.storage.url, create=False)
        cases = find_cases(cfg, study)
        if not cases:
            console.print("the place of every network is certain: there is nothing to confirm")
            return
        cases = asyncio.run(confirm(cfg, study, cases, folder, console))
        export(study, cases, folder / "confirmed")
        console.print(case_table(cases))
        if noise := seed_noise(cases):
            console.print(f"standard deviation of an accuracy over seeds: {noise:.4f}; in brackets: number of trainings")
        console.print(f"saved in {folder / RESULTS}, the confirmed front in {folder / 'confirmed'}", soft_wrap=True)


def check_confirm_settings(settings: DictConfig) -> None:
    """Raises: ValueError naming the first number that makes no sense."""
    check_number("confirm.minutes", settings.minutes, 1e-9)
    check_int("confirm.num_seeds", settings.num_seeds, 1)
    check_number("confirm.min_probability", settings.min_probability, 0, 1)
    check_number("confirm.max_probability", settings.max_probability, settings.min_probability, 1)


def find_cases(cfg: DictConfig, study: optuna.Study) -> list[Case]:
    """Find the uncertain networks of a study. Raises: UserError if it has no trials, or was made with other settings."""
    if cfg.latency.devices:
        raise UserError("search.confirm takes studies with one latency target; this one has latency.devices")
    trials = finished_trials(study)
    if not trials:
        raise UserError(f"study {study.study_name} has no finished trial yet; continue the search first")
    refuse_changes(study, study.user_attrs["settings"], study_settings(cfg), REMEDY)
    cases = uncertain_cases(trials, cfg.confirm.min_probability, cfg.confirm.max_probability)
    log.info("%d of %d networks may or may not be on the front", len(cases), len(latest_of_each(trials)))
    return cases


async def confirm(cfg: DictConfig, study: optuna.Study, cases: list[Case], folder: Path, console: Console) -> list[Case]:
    """Measure and train the cases with the study's engine, on its targets."""
    space: Space = build(cfg.space)
    data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
    refuse_changes(study, study.user_attrs["data"], data.contents(), IMAGES_REMEDY)
    trainings = standalone_trainings(cfg, cfg.confirm.train, data, folder / "confirm.jsonl")
    engine = make_engine(cfg, data, partial(build(cfg.accuracy), data=data, train=build(cfg.train)))
    try:
        targets = await prepare_targets(cfg, study, engine, space)
        limits = (cfg.confirm.min_probability, cfg.confirm.max_probability)
        confirmation = Confirmation(engine, targets, trainings, folder / RESULTS, *limits)
        with progress_of(console, "confirming") as progress:
            return await confirmation.run(cases, cfg.confirm.num_seeds, 60 * cfg.confirm.minutes, progress)
    finally:
        engine.close()


def export(study: optuna.Study, cases: Sequence[Case], folder: Path) -> None:
    """Write the confirmed front: architectures with the search's values and the confirmed ones."""
    folder.mkdir(exist_ok=True)
    noise, probabilities = seed_noise(cases), confirmed_probabilities(cases)
    members = confirmed_front(cases)
    trials = [member.trial for member in members]
    remove_stale(folder, trials)
    for member in members:
        path = folder / member_name(member.trial)
        comment = f"Confirmed: on the front of study {study.study_name}.\nTrain it: python -m search.train arch={path}"
        facts = member_facts(study, member.trial, member.front_probability)
        facts["confirmed"] = case_facts(member, noise, probabilities[member.trial.number])["confirmed"]
        architecture_file.write(path, comment, member.trial.architecture, facts)
    write_shared_weights(study, trials, folder)


def case_table(cases: Sequence[Case]) -> Table:
    """The cases as rows, by rising latency: the search's values beside the confirmed ones."""
    noise, probabilities = seed_noise(cases), confirmed_probabilities(cases)
    targets = list(cases[0].trial.result.objectives)
    latencies = latency_headers(targets)
    table = Table(title=f"{len(cases)} networks whose place was uncertain", title_justify="left")
    header = ("trial", "score", "standalone", *latencies, *("measured again" for _ in targets), "on the front", "confirmed")
    for name in header:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for case in sorted(cases, key=lambda case: case.latencies_ms):
        accuracy = f"{case.accuracy:.4f} ±{standard_error(case, noise):.4f} ({len(case.accuracies)})"
        probability = probabilities.get(case.trial.number)
        table.add_row(
            str(case.trial.number),
            f"{case.trial.accuracy:.4f}",
            accuracy if case.accuracies else "",
            *map(escape, latency_cells(case.trial, targets)),
            *(escape(latency_text(case.latencies[name])) if name in case.latencies else "" for name in targets),
            f"{case.front_probability:.0%}",
            "" if probability is None else f"{probability:.0%}",
        )
    return table
