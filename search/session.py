"""One run of a search: from a composed configuration to a saved front."""

from __future__ import annotations

import json
import logging
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from omegaconf import DictConfig
from rich.console import Console

from models.architecture import Architecture
from models.complexity import count_macs, count_params
from models.litv2 import build as build_network
from search import dashboard
from search.cli import build, construct, plain, set_up_logging
from search.data import ImageData
from search.engine.base import Engine
from search.errors import UserError
from search.export import export_front, member_name
from search.latency.base import Calibration, Latency
from search.objective import Objective
from search.space import Space
from search.study import Coordinator, finished_trials, front, locked, open_study, public_url, remember
from search.view import LiveView, LogView, make_console, trial_table

log = logging.getLogger(__name__)

SECTIONS = ("space", "data", "train", "accuracy", "latency", "deploy", "proxy")
"""What a study must not change: everything that its results depend on."""


def run_search(cfg: DictConfig) -> None:
    """Check what was asked for, then search until the study is complete.

    Raises: UserError if what is asked for cannot be, SearchStopped if the search cannot go on, KeyboardInterrupt.
    """
    folder = study_folder(cfg.study.name)
    check_limits(cfg)
    space: Space = build(cfg.space)
    with locked(folder):
        console = make_console()
        set_up_logging(console, folder / "run.log")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = open_study(cfg.study.name, cfg.storage.url, create=True)
        settings = {name: plain(cfg[name]) for name in SECTIONS} | {"study": {"seed": cfg.study.seed}}
        remember(study, "settings", settings, "restore that, or choose another study.name")
        save_config(folder, cfg)
        num_finished = len(finished_trials(study))
        if num_finished < cfg.study.n_trials:
            search(cfg, study, space, folder, console)
        else:
            log.info("study %s is complete: %d of %d trials are finished", cfg.study.name, num_finished, cfg.study.n_trials)
        conclude(cfg, study, folder, console)


def search(cfg: DictConfig, study: optuna.Study, space: Space, folder: Path, console: Console) -> None:
    """Start the engine, make sure it is the device the study was measured on, and run the coordinator."""
    log.info("study %s: %s different networks; preparing the data", cfg.study.name, f"{space.num_architectures():,}")
    data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
    network: dict[str, int] = {
        "img_size": cfg.deploy.img_size,
        "in_chans": data.in_chans,
        "num_classes": cfg.deploy.num_classes or data.num_classes,
    }
    target = plain(cfg.latency)
    budget_ms = target.pop("budget_ms")
    make_target = partial(build(target), **network)
    construct(make_target)  # a mistake in its settings shows here, not in the measuring process
    evaluator = construct(build(cfg.accuracy), data=data, train=build(cfg.train))
    engine: Engine = construct(build(cfg.engine), make_target=make_target, evaluator=evaluator)
    try:
        remember(study, "device", engine.fingerprint(), "measure on that device, or choose another study.name")
        calibration = calibrated(study, engine, space)
        reference_ms = budget_ms or reference_latency(study, engine, space, calibration)
        dashboard.write_note(study, public_url(cfg.storage.url), space, budget_ms)
        view = LiveView(console, cfg.study.n_trials) if console.is_terminal else LogView()
        with view:
            coordinator = Coordinator(
                study=study,
                space=space,
                objective=Objective(engine, calibration, budget_ms, cfg.study.seed),
                make_sampler=lambda seed: build(cfg.sampler, seed=seed),
                cost=cache(lambda architecture: cost(architecture, **network)),
                save_samples=partial(save_samples, folder / "latency"),
                publish=lambda trials: dashboard.publish_front(study, trials, budget_ms),
                view=view,
                reference_ms=reference_ms,
                max_consecutive_failures=cfg.study.max_consecutive_failures,
            )
            if not coordinator.run(cfg.study.n_trials, cfg.study.timeout_minutes):
                log.info("time is up after %g minutes; the same command goes on from here", cfg.study.timeout_minutes)
    finally:
        engine.close()


def conclude(cfg: DictConfig, study: optuna.Study, folder: Path, console: Console) -> None:
    """Show the front, save it, and say how to go on."""
    trials = finished_trials(study)
    members = front(trials)
    if not members:
        log.info("no network is both trained and within the budget yet")
        return
    console.print(trial_table(f"Front of {len(trials)} finished trials", members))
    export_front(study, folder)
    pareto = folder / "pareto"
    console.print(
        f"saved in {pareto}, with all trials in {pareto}.csv and {pareto}.png\n"
        f"look at it:  optuna-dashboard {public_url(cfg.storage.url)}\n"
        f"train one:   python -m search.train arch={pareto / member_name(members[-1])} data={cfg.data.name}\n"
        f"search on:   the same command with study.n_trials above {cfg.study.n_trials}",
        highlight=False,
        soft_wrap=True,
    )


def calibrated(study: optuna.Study, engine: Engine, space: Space) -> Calibration:
    """The study's calibration, made the first time."""
    if saved := study.user_attrs.get("calibration"):
        return Calibration.from_dict(saved)
    log.info("calibrating the anchor network")
    calibration = engine.calibrate(space.anchor())
    study.set_user_attr("calibration", calibration.to_dict())
    return calibration


def reference_latency(study: optuna.Study, engine: Engine, space: Space, calibration: Calibration) -> float:
    """Latency of the space's largest network in milliseconds: the edge up to which the hypervolume counts."""
    if saved := study.user_attrs.get("reference_latency_ms"):
        return float(saved)
    latency = engine.measure(space.largest(), calibration).latency_ms
    study.set_user_attr("reference_latency_ms", latency)
    return latency


def cost(architecture: Architecture, in_chans: int, num_classes: int, img_size: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of the deployed network, counted without allocating it."""
    with torch.device("meta"):
        model = build_network(architecture, in_chans=in_chans, num_classes=num_classes)
    return count_params(model), count_macs(model, (in_chans, img_size, img_size))


def save_samples(folder: Path, number: int, latency: Latency) -> None:
    """Keep every ratio that a trial's latency was made from."""
    folder.mkdir(exist_ok=True)
    body = {**latency.summary(), "ratios": latency.ratios}
    (folder / f"trial-{number:05d}.json").write_text(json.dumps(body), encoding="utf-8")


def save_config(folder: Path, cfg: DictConfig) -> None:
    """The resolved configuration, passwords left out."""
    config = plain(cfg)
    config["storage"]["url"] = public_url(config["storage"]["url"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def study_folder(name: str) -> Path:
    """Raises: UserError if the name cannot be a folder's."""
    if not re.fullmatch(r"[\w.-]+", str(name)) or str(name).startswith("."):
        raise UserError(f"study.name={name} may hold letters, digits, '_', '.' and '-' alone, and not start with '.'")
    return Path("outputs") / str(name)


def check_limits(cfg: DictConfig) -> None:
    """Raises: UserError naming the first number that makes no sense."""
    limits: dict[str, Any] = {
        "study.n_trials": cfg.study.n_trials,
        "study.max_consecutive_failures": cfg.study.max_consecutive_failures,
        "study.timeout_minutes": cfg.study.timeout_minutes,
        "latency.budget_ms": cfg.latency.budget_ms,
    }
    for key, value in limits.items():
        if value is not None and (isinstance(value, str) or not value > 0):
            raise UserError(f"{key}={value} must be a number above 0")
    smallest = cfg.space.patch_size * 8
    for key in ("deploy", "proxy"):
        if cfg[key].img_size < smallest:
            raise UserError(
                f"{key}.img_size={cfg[key].img_size} is below {smallest}, the smallest image for "
                f"space.patch_size={cfg.space.patch_size}; raise one or lower the other"
            )
