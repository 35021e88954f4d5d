"""`python -m search.export study.name=NAME`: the front as YAML files, all trials as CSV, a plot; files to deploy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, ListConfig
from rich.console import Console

from search import UserError
from search.accuracy.checked import CHECK_FILE, read_checked
from search.commands.cli import construct, set_up_logging, target_of
from search.commands.targets import budget_on
from search.results.export import export_front, member_name
from search.results.picking import compare, compared_text, pick
from search.results.tables import front_table
from search.results.view import make_console
from search.study.drift import drift_notes
from search.study.locks import export_lock
from search.study.storage import existing_folder, reading
from search.study.targets import targets_of
from search.study.trial import finished_trials

log = logging.getLogger(__name__)
FORMATS = (
    "yaml", "safetensors", "torch_export", "onnx", "onnx_float16", "onnx_int8", "openvino", "openvino_float16",
    "openvino_bfloat16", "openvino_int8", "executorch",
)  # fmt: skip


def main(cfg: DictConfig) -> None:
    """Export a study of this machine.

    Raises:
        UserError: if the study has no front yet, or what is asked for cannot be exported.
    """
    folder = existing_folder(cfg.study.name)
    set_up_logging(Console(), folder / "run.log")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with export_lock(folder), reading(folder.name, cfg.storage.url) as study:
        export(cfg, study, folder)


def export(cfg: DictConfig, study: optuna.Study, folder: Path) -> None:
    """Write the front, pick networks of it, and write their files to deploy. Raises: as `main`."""
    formats = listed_formats(cfg.format)
    members = export_front(study, folder)
    if not members:
        raise UserError(
            f"study {cfg.study.name} has no network with an accuracy within its budget yet; continue the search first"
        )
    trials, console = finished_trials(study), make_console()
    targets = targets_of(study)
    compared = {name: target.budget_on for name, target in targets.items()}
    if cfg.latency.budget_on is not None:
        compared = dict.fromkeys(targets, construct(budget_on, value=cfg.latency.budget_on))
    picked = pick(members, str(cfg.pick), compared)
    pareto = folder / "pareto"
    checked = read_checked(folder / CHECK_FILE, study.user_attrs["settings"])
    console.print(front_table(f"Front of {study.study_name}", trials, checked))
    for note in drift_notes(trials):
        console.print(note, soft_wrap=True, highlight=False)
    console.print(f"saved in {pareto}, {pareto}.csv and {pareto}.png", soft_wrap=True)
    files = [pareto / member_name(member) for member in picked]
    if cfg.pick != "front":
        for member, file in zip(picked, files, strict=True):
            console.print(f"picked{compared_text(str(cfg.pick), compared)}: {file}", soft_wrap=True)
            if (comparison := compare(member, trials)) is not None:
                console.print(str(comparison), soft_wrap=True, highlight=False, markup=False)
    if formats:
        deploy_all(cfg, study, files, formats, folder, console)


def listed_formats(value: Any) -> list[str]:
    """Formats to write beside the front's YAML. Raises: UserError if one is unknown."""
    names = [str(name) for name in value] if isinstance(value, ListConfig) else [str(value)]
    if unknown := [name for name in names if name not in FORMATS]:
        raise UserError(f"format={','.join(unknown)} is unknown; choose from {', '.join(FORMATS)}")
    return [name for name in names if name != "yaml"]


def deploy_all(
    cfg: DictConfig,
    study: optuna.Study,
    files: list[Path],
    formats: list[str],
    folder: Path,
    console: Console,
) -> None:
    """Write, check and measure the deployable files of exported networks.

    Args:
        study: if one of its targets is this machine with these settings, the files are measured with its calibration.
        folder: of the study.

    Raises:
        UserError: if weights cannot be read, or a format cannot be written.
    """
    from models.deploy.onnx import OnnxVersions
    from search.commands.images import images_of_search
    from search.latency.target import PairedTarget  # torch takes seconds, and the front alone is exported without it
    from search.results.deployment import check_runs_files, deploy

    targets = targets_of(study)
    any_target = next(iter(targets.values()))  # all have the same network and anchor
    in_chans, side, _ = (int(part) for part in any_target.device["input_size"].split("x"))
    versions = construct(OnnxVersions, opset=cfg.onnx.opset, ir_version=cfg.onnx.ir_version)
    target: PairedTarget = construct(
        target_of(cfg.latency, img_size=side, in_chans=in_chans, num_classes=any_target.device["num_classes"])
    )
    check_runs_files(target)
    device = target.fingerprint()
    calibrations = [target.calibration for target in targets.values() if target.device == device]
    if calibrations:
        calibration = calibrations[0]
    else:
        log.info("the study was not measured on this device with these settings: calibrating its anchor network here")
        calibration = target.calibrate(any_target.calibration.anchor)
    has_int8 = any(name.endswith("int8") for name in formats)
    images = images_of_search(folder, cfg.data_path, study, side, bool(cfg.trusted)) if has_int8 else None
    for file in files:
        written = deploy(file, formats, target, calibration, folder / "deploy" / file.stem, images, versions)
        console.print(f"deployable files and their card: {written}", soft_wrap=True)
