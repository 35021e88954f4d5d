"""`python -m search.confirm`: measure and train again, within a time, the networks that are or may be on a front."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import optuna
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.architecture import check_int, check_number
from search import UserError
from search.accuracy.checked import CHECK_FILE, Checked, read_checked
from search.commands.accuracy import evaluator_factory, initial_weights, standalone_trainings, training_images
from search.commands.cli import build, construct, set_up_logging
from search.commands.settings import IMAGES_REMEDY, REMEDY, check_study, study_settings
from search.commands.targets import make_engine, prepare_targets
from search.results import architecture_file
from search.results.export import member_facts, member_name, remove_stale, train_command, write_shared_weights
from search.results.tables import latency_cells, latency_headers, latency_text
from search.results.view import make_console, progress_of
from search.space import Space
from search.study.cases import (
    Case,
    all_cases,
    confirmed_front,
    confirmed_probabilities,
    seed_noise,
    standard_error,
)
from search.study.confirmation import Confirmation, case_facts
from search.study.front import probability_name
from search.study.locks import folder_lock
from search.study.storage import existing_folder, open_study, refuse_changes
from search.study.trial import finished_trials
from search.training.data import ImageData
from search.training.held_out import hold_out

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
        checked = read_checked(folder / CHECK_FILE, study_settings(cfg))
        cases = asyncio.run(confirm(cfg, study, find_cases(cfg, study, checked), checked, folder, console))
        export(study, cases, checked, folder / "confirmed")
        console.print(case_table(cases, checked))
        console.print(noise_text(cases, checked), highlight=False, soft_wrap=True)
        console.print(f"saved in {folder / RESULTS}, the confirmed front in {folder / 'confirmed'}", soft_wrap=True)


def check_confirm_settings(settings: DictConfig) -> None:
    """Raises: ValueError naming the first number that makes no sense."""
    check_number("confirm.minutes", settings.minutes, 1e-9)
    check_int("confirm.num_seeds", settings.num_seeds, 1)
    if settings.val_size is not None:
        check_int("confirm.val_size", settings.val_size, 1)
    check_number("confirm.min_probability", settings.min_probability, 0, 1)
    check_number("confirm.max_probability", settings.max_probability, settings.min_probability, 1)


def find_cases(cfg: DictConfig, study: optuna.Study, checked: Checked | None) -> list[Case]:
    """Read the networks of a study. Raises: UserError if it has none, or was made with other settings."""
    if cfg.latency.devices:
        raise UserError("search.confirm takes studies with one latency target; this one has latency.devices")
    trials = finished_trials(study)
    if not trials:
        raise UserError(f"study {study.study_name} has no finished trial yet; continue the search first")
    refuse_changes(study, study.user_attrs["settings"], study_settings(cfg), REMEDY)
    cases = all_cases(trials, checked)
    if not cases:
        raise UserError(f"study {study.study_name} has no network with an accuracy within its budget; continue the search")
    shares = [case.front_probability for case in cases]
    sure = sum(share > cfg.confirm.max_probability for share in shares)
    unsure = sum(cfg.confirm.min_probability <= share for share in shares) - sure
    log.info("%s: %d of %d networks surely, %d perhaps", probability_name(checked), sure, len(cases), unsure)
    return cases


async def confirm(
    cfg: DictConfig, study: optuna.Study, cases: list[Case], checked: Checked | None, folder: Path, console: Console
) -> list[Case]:
    """Measure and train the cases with the study's engine, on its targets."""
    space: Space = build(cfg.space)
    weights = initial_weights(cfg)
    data = training_images(cfg, weights)
    refuse_changes(study, study.user_attrs["data"], data.contents(), IMAGES_REMEDY)
    trainings = standalone_trainings(
        cfg, cfg.confirm.train, data_of_trainings(data, cfg.confirm.val_size), folder / "confirm.jsonl", weights
    )
    engine = make_engine(cfg, data, evaluator_factory(cfg, data, weights))
    try:
        targets = await prepare_targets(cfg, study, engine, space)
        confirmation = Confirmation(
            engine,
            targets,
            trainings,
            checked,
            folder / RESULTS,
            low=cfg.confirm.min_probability,
            high=cfg.confirm.max_probability,
            num_seeds=cfg.confirm.num_seeds,
        )
        with progress_of(console, "confirming") as progress:
            return await confirmation.run(cases, 60 * cfg.confirm.minutes, progress)
    finally:
        engine.close()


def data_of_trainings(data: ImageData, val_size: int | None) -> ImageData:
    """Keep some training images aside to validate on: the search has chosen networks by the validation images.

    Raises:
        UserError: if there are too few.
    """
    count = data.num_train // 4 if val_size is None else val_size
    if not 0 < count < data.num_train:
        raise UserError(
            f"confirm.val_size={count} must be at least 1 and below the {data.num_train} training images, which it is taken "
            "from; change it, or raise data.train_size"
        )
    log.info("training on %d images, validating on the %d others of the training set", data.num_train - count, count)
    return hold_out(data, count)


def export(study: optuna.Study, cases: Sequence[Case], checked: Checked | None, folder: Path) -> None:
    """Write the confirmed front: architectures with the search's values and the confirmed ones."""
    folder.mkdir(exist_ok=True)
    noise, probabilities = seed_noise(cases, checked), confirmed_probabilities(cases, checked)
    members = confirmed_front(cases)
    trials = [member.trial for member in members]
    remove_stale(folder, trials)
    for member in members:
        path = folder / member_name(member.trial)
        comment = f"Confirmed: on the front of study {study.study_name}.\nTrain it: {train_command(study, path)}"
        facts = member_facts(study, member.trial, member.front_probability, checked)
        facts["confirmed"] = case_facts(member, noise, probabilities[member.trial.number])["confirmed"]
        architecture_file.write(path, comment, member.trial.architecture, facts)
    write_shared_weights(study, trials, folder)


def case_table(cases: Sequence[Case], checked: Checked | None) -> Table:
    """The cases that have new values as rows, by rising latency: the search's values beside the confirmed ones."""
    noise, probabilities = seed_noise(cases, checked), confirmed_probabilities(cases, checked)
    targets = list(cases[0].trial.result.objectives)
    confirmed = sorted((case for case in cases if case.is_confirmed), key=lambda case: case.latencies_ms)
    title = f"{len(confirmed)} of {len(cases)} networks are or may be on the front"
    table = Table(title=title, title_justify="left")
    repeated = ("measured again" for _ in targets)
    columns = ("trial", "score", "standalone", *latency_headers(targets), *repeated, probability_name(checked), "confirmed")
    for name in columns:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for case in confirmed:
        probability = probabilities.get(case.trial.number)
        table.add_row(
            str(case.trial.number),
            f"{case.score.accuracy:.4f}",
            f"{case.accuracy:.4f} ±{standard_error(case, noise):.4f} ({len(case.accuracies)})" if case.accuracies else "",
            *map(escape, latency_cells(case.trial, targets)),
            *(escape(latency_text(case.latencies[name])) if name in case.latencies else "" for name in targets),
            f"{case.front_probability:.0%}",
            "" if probability is None else f"{probability:.0%}",
        )
    return table


def noise_text(cases: Sequence[Case], checked: Checked | None) -> str:
    """What is known of the noise of seeds."""
    noise = seed_noise(cases, checked)
    if noise is None:
        return (
            "the errors do not contain the noise of seeds, which is not known: no network has two trainings; run "
            "search.check, which measures it, or this command with confirm.max_probability=1 confirm.num_seeds=2"
        )
    return f"standard deviation of an accuracy over seeds: {noise:.4f}; in brackets: number of trainings"
