"""One run of a search: from a composed configuration to a saved front."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from models.architecture import NUM_STAGES, Architecture, check_int, check_number
from models.complexity import count_macs, count_params
from models.litv2 import build as build_network
from search.accuracy.base import AccuracyEvaluator
from search.accuracy.kept import KeptAccuracies
from search.accuracy.scratch import ScratchEvaluator
from search.board import Board
from search.cli import build, construct, plain, set_up_logging, target_of
from search.data import ImageData
from search.engine.base import Engine
from search.errors import SearchStopped, UserError, one_line
from search.export import export_front, member_name, versions
from search.latency.base import Calibration, Latency
from search.latency.block_model import BlockModel
from search.objective import Objective
from search.space import Space
from search.study import (
    SHARED_SECONDS,
    SUPERNET,
    Coordinator,
    finished_trials,
    has_trials,
    locked,
    open_study,
    public_url,
    quiet_experimental,
    remember,
    study_folder,
)
from search.view import LiveView, LogView, front_table, make_console, progress_of

log = logging.getLogger(__name__)

REMEDY = "restore that, or choose another study.name"
SMALLEST = 1e-9  # for what must be above 0
SECTIONS = ("space", "data", "train", "accuracy", "latency", "deploy", "proxy")
"""What a study must not change: everything that its results depend on."""


def run_search(cfg: DictConfig) -> None:
    """Check what was asked for, then search until the study is complete.

    Raises: UserError if what is asked for cannot be, SearchStopped if the search cannot go on, KeyboardInterrupt.
    """
    folder = study_folder(cfg.study.name)
    construct(check_limits, cfg=cfg)
    space: Space = build(cfg.space)
    with quiet_experimental():
        build(cfg.sampler, seed=cfg.study.seed)  # a mistake in its settings shows here, not after the data
    with locked(folder):
        console = make_console()
        set_up_logging(console, folder / "run.log")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = open_study(folder.name, cfg.storage.url, create=True)
        remember(study, "settings", study_settings(cfg), REMEDY)
        save_config(folder, cfg)
        num_finished = len(finished_trials(study))
        if num_finished < cfg.study.n_trials:
            search(cfg, study, space, folder, console)
        else:
            log.info("study %s is complete: %d of %d trials are finished", folder.name, num_finished, cfg.study.n_trials)
        conclude(cfg, study, folder, console)


def search(cfg: DictConfig, study: optuna.Study, space: Space, folder: Path, console: Console) -> None:
    """Start the engine, make sure it is the device the study was measured on, and run the coordinator."""
    log.info("study %s: %s different networks; preparing the data", folder.name, f"{space.num_architectures():,}")
    data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
    construct(
        target_of(cfg.latency, **deployed(cfg, data))
    )  # a mistake in its settings shows here, not in the measuring process
    evaluator: AccuracyEvaluator = construct(build(cfg.accuracy), data=data, train=build(cfg.train))
    remember(study, "training", evaluator.fingerprint(), REMEDY)
    start = time.monotonic()
    with progress_of(console, "training shared weights") as progress:
        evaluator.prepare(cfg.study.seed, progress)
    if (weights := evaluator.shared_weights(cfg.study.seed)) is not None:
        study.set_user_attr(SUPERNET, str(weights))
        if not has_trials(study):
            study.set_user_attr(SHARED_SECONDS, round(time.monotonic() - start, 1))
    engine = make_engine(cfg, data, evaluator)
    board = Board(study, folder)
    budget_ms, network = cfg.latency.budget_ms, deployed(cfg, data)
    try:
        calibration, reference_ms = prepare_measuring(study, engine, space, budget_ms)
        if not has_trials(study):
            study.set_user_attr("versions", versions())
            board.write_note(public_url(cfg.storage.url), space, budget_ms)
        terminal = console.is_terminal
        sampler = build(cfg.sampler, _partial_=True)
        view = LiveView(console, cfg.study.n_trials, finished_trials(study)) if terminal else LogView()
        with view:
            coordinator = Coordinator(
                study=study,
                space=space,
                objective=Objective(engine, calibration, budget_ms, cfg.study.seed, evaluator.quick),
                model=BlockModel(cfg.deploy.img_size),
                make_sampler=lambda seed: sampler(seed=seed),
                seed=cfg.study.seed,
                cost=cache(lambda architecture: cost(architecture, **network)),
                save_samples=partial(save_samples, folder / "latency", study.user_attrs["device"]),
                annotate=board.annotate,
                publish=lambda trials: board.publish_front(trials, budget_ms),
                view=view,
                reference_ms=reference_ms,
                max_consecutive_failures=cfg.study.max_consecutive_failures,
            )
            if not coordinator.run(cfg.study.n_trials, cfg.study.timeout_minutes):
                log.info("time is up after %g minutes; the same command goes on from here", cfg.study.timeout_minutes)
    finally:
        engine.close()


def deployed(cfg: DictConfig, data: ImageData) -> dict[str, int]:
    """Images and classes of the network whose latency counts."""
    num_classes = data.num_classes if cfg.deploy.num_classes is None else cfg.deploy.num_classes
    return {"img_size": cfg.deploy.img_size, "in_chans": data.in_chans, "num_classes": num_classes}


def make_engine(cfg: DictConfig, data: ImageData, evaluator: AccuracyEvaluator) -> Engine:
    """Raises: UserError if its settings cannot be used."""
    engine: Engine = construct(
        build(cfg.engine), make_target=target_of(cfg.latency, **deployed(cfg, data)), evaluator=evaluator
    )
    return engine


def alone(cfg: DictConfig, train: DictConfig, data: ImageData, file: Path) -> KeptAccuracies:
    """Long trainings of single networks, kept in a file as they come. train: their schedule."""
    evaluator = ScratchEvaluator(data, build(train), cfg.proxy.width_multiplier, cfg.accuracy.num_threads)
    settings = {"train": plain(train), "proxy": plain(cfg.proxy), "data": data.fingerprint(), "images": data.num_val}
    return KeptAccuracies(evaluator, settings, file)


def study_settings(cfg: DictConfig) -> dict[str, Any]:
    """What a study must not change."""
    return {name: plain(cfg[name]) for name in SECTIONS} | {"study": {"seed": cfg.study.seed}}


def prepare_measuring(
    study: optuna.Study, engine: Engine, space: Space, budget_ms: float | None
) -> tuple[Calibration, float]:
    """The study's calibration, and the latency in milliseconds up to which its hypervolume counts.

    Both are measured before the first trial and kept. The edge of the hypervolume is the budget or, without one, the
    latency of the space's largest network.
    Raises: UserError if the device is not the study's, SearchStopped if nothing can be measured on it.
    """
    try:
        remember(study, "device", engine.fingerprint(), "measure on that device, or choose another study.name")
        if has_trials(study):
            return Calibration.from_dict(study.user_attrs["calibration"]), study.user_attrs["reference_latency_ms"]
        log.info("calibrating the anchor network")
        calibration = engine.calibrate(space.anchor())
        reference_ms = budget_ms or engine.measure(space.largest(), calibration).latency_ms
    except (UserError, SQLAlchemyError, optuna.exceptions.OptunaError):
        raise
    except Exception as error:
        raise SearchStopped(f"nothing can be measured here: {one_line(error)}") from error
    study.set_user_attr("calibration", calibration.to_dict())
    study.set_user_attr("reference_latency_ms", reference_ms)
    return calibration, reference_ms


def conclude(cfg: DictConfig, study: optuna.Study, folder: Path, console: Console) -> None:
    """Show the front, save it, and say how to go on."""
    trials = finished_trials(study)
    if not trials:
        return
    Board(study, folder).publish(trials, cfg.latency.budget_ms)
    members = export_front(study, folder)
    pareto = folder / "pareto"
    lines = [
        f"saved in {pareto}, with all trials in {pareto}.csv and {pareto}.png",
        f"look at it:  python -m search.dashboard study.name={folder.name}",
        f"search on:   the same command with study.n_trials above {cfg.study.n_trials}",
    ]
    if members:
        console.print(front_table(f"Front of {len(trials)} finished trials", trials))
        one = pareto / member_name(members[-1])
        lines.append(f"train one:   python -m search.train arch={one} data={cfg.data.name}")
    else:
        lines.insert(0, f"all {len(trials)} networks are over latency.budget_ms={cfg.latency.budget_ms:g}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def cost(architecture: Architecture, in_chans: int, num_classes: int, img_size: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of the deployed network."""
    with torch.device("meta"):
        model = build_network(architecture, in_chans=in_chans, num_classes=num_classes)
    model.to_empty(device="cpu")  # counting on the meta device takes twice the time
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    return count_params(model), count_macs(model, (in_chans, img_size, img_size))


def save_samples(folder: Path, device: Mapping[str, Any], number: int, latency: Latency) -> None:
    """Keep every time of a trial's own measurement, and what it was measured on."""
    folder.mkdir(exist_ok=True)
    body = {**latency.summary(), "device": device, "rounds": [asdict(one) for one in latency.rounds]}
    (folder / f"trial-{number:05d}.json").write_text(json.dumps(body), encoding="utf-8")


def save_config(folder: Path, cfg: DictConfig) -> None:
    """The resolved configuration, passwords left out."""
    config = plain(cfg)
    config["storage"]["url"] = public_url(config["storage"]["url"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def check_limits(cfg: DictConfig) -> None:
    """Raises: ValueError naming the first number that makes no sense."""
    check_int("study.n_trials", cfg.study.n_trials, 1)
    check_int("study.max_consecutive_failures", cfg.study.max_consecutive_failures, 1)
    check_int("study.seed", cfg.study.seed, 0, 2**32 - 1)
    for key in ("study.timeout_minutes", "latency.budget_ms"):
        value = OmegaConf.select(cfg, key)
        if value is not None:
            check_number(key, value, SMALLEST)
    if cfg.deploy.num_classes is not None:
        check_int("deploy.num_classes", cfg.deploy.num_classes, 0)
    for key in ("deploy", "proxy"):
        check_int(f"{key}.img_size", cfg[key].img_size, 1)
        check_image_fits(f"{key}.img_size", cfg[key].img_size, cfg.space.patch_size)
    if not isinstance(cfg.storage.url, str):
        raise ValueError(f"storage.url={cfg.storage.url} must be a database URL such as sqlite:///study.db")


def check_image_fits(key: str, img_size: int, patch_size: int) -> None:
    """Raises: ValueError if the last stage would have no map left."""
    smallest = patch_size * 2 ** (NUM_STAGES - 1)
    if img_size < smallest:
        raise ValueError(f"{key}={img_size} is below {smallest}, the smallest image for patches of {patch_size} pixels")
