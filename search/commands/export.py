"""`python -m search.export study.name=NAME`: the front as YAML files, all trials as CSV, a plot; files to deploy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, ListConfig
from rich.console import Console

from search import UserError
from search.commands.cli import construct, set_up_logging, target_of
from search.results.export import export_front, member_name
from search.results.picking import compare, pick
from search.results.view import front_table, make_console
from search.study.storage import existing_folder, open_study
from search.study.trial import finished_trials

log = logging.getLogger(__name__)
FORMATS = ("yaml", "safetensors", "torch_export", "onnx")


def main(cfg: DictConfig) -> None:
    """Export a study of this machine."""
    folder = existing_folder(cfg.study.name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(str(cfg.study.name), cfg.storage.url, create=False)
    formats = listed_formats(cfg.format)
    members = export_front(study, folder)
    if not members:
        raise UserError(f"study {cfg.study.name} has no network yet that is both trained and within its budget; search on")
    trials, console = finished_trials(study), make_console()
    picked = pick(members, str(cfg.pick))
    console.print(front_table(f"Front of {study.study_name}", trials))
    console.print(f"saved in {folder / 'pareto'}, {folder / 'pareto.csv'} and {folder / 'pareto.png'}", soft_wrap=True)
    if cfg.pick != "front":
        for one in picked:
            console.print(f"picked: {folder / 'pareto' / member_name(one)}", soft_wrap=True)
            if (found := compare(one, trials)) is not None:
                console.print(str(found), soft_wrap=True, highlight=False, markup=False)
    if formats:
        deploy_all(cfg, study, [folder / "pareto" / member_name(one) for one in picked], formats, folder / "deploy", console)


def listed_formats(asked: Any) -> list[str]:
    """Formats to write beside the front's YAML. Raises: UserError if one is unknown."""
    names = [str(name) for name in asked] if isinstance(asked, ListConfig) else [str(asked)]
    if unknown := [name for name in names if name not in FORMATS]:
        raise UserError(f"format={','.join(unknown)} is unknown; choose of {', '.join(FORMATS)}")
    return [name for name in names if name != "yaml"]


def deploy_all(
    cfg: DictConfig, study: optuna.Study, files: list[Path], formats: list[str], folder: Path, console: Console
) -> None:
    """Write, check and measure the deployable files of exported networks.

    Raises: UserError if weights cannot be read, or a format cannot be written.
    """
    from search.latency.base import Calibration
    from search.latency.target import PairedTarget
    from search.results.deployment import check_runs_files, deploy  # torch takes seconds that --help need not wait

    set_up_logging(console, None)
    device = study.user_attrs["device"]
    in_chans, side, _ = (int(part) for part in device["input_size"].split("x"))
    target: PairedTarget = construct(
        target_of(cfg.latency, img_size=side, in_chans=in_chans, num_classes=device["num_classes"])
    )
    check_runs_files(target)
    calibration = Calibration.from_dict(study.user_attrs["calibration"])
    if target.fingerprint() != device:
        log.info("this is not the device that the study was measured on: calibrating its anchor network here")
        calibration = target.calibrate(calibration.anchor)
    for file in files:
        written = deploy(file, formats, target, calibration, folder / file.stem)
        console.print(f"deployable files and their card: {written}", soft_wrap=True)
