"""One run of a search: from a composed configuration to a saved front."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from omegaconf import DictConfig
from optuna.samplers import BaseSampler
from rich.console import Console

from models.architecture import NUM_STAGES, check_int, check_number
from models.complexity import cost
from search import UserError, differences
from search.accuracy.base import AccuracyEvaluator, SharedWeights, with_shared_weights
from search.commands.cli import build, construct, plain, set_up_logging
from search.commands.targets import (
    DEVICE_KEYS,
    FIRST_DEVICE,
    SMALLEST,
    budgets_of,
    check_devices,
    deployed,
    fingerprints,
    make_engine,
    objective_devices,
    prepare_measuring,
)
from search.engine.base import Engine
from search.engine.work import TRAINING
from search.latency.base import Latency
from search.latency.block_model import BlockModel
from search.results.board import Board
from search.results.export import export_front, member_name, versions
from search.results.view import LiveView, LogView, front_table, make_console, progress_of
from search.space.space import Space
from search.study.coordinator import SHARED_SECONDS, SUPERNET, Coordinator
from search.study.evaluate import Objective, Outcome
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import (
    Patience,
    has_password,
    has_trials,
    held,
    locked,
    open_study,
    public_url,
    quiet_experimental,
    remember,
    study_folder,
)
from search.study.trial import finished_trials
from search.training.data import ImageData

log = logging.getLogger(__name__)

REMEDY = "restore that, or choose another study.name"
SECTIONS = ("space", "data", "train", "accuracy", "latency", "deploy", "proxy")
"""What a study must not change: everything that its results depend on."""


def main(cfg: DictConfig) -> None:
    """Check what was asked for, then search until the study is complete.

    Raises: UserError if what is asked for cannot be, SearchStopped if the search cannot go on, KeyboardInterrupt.
    """
    folder = study_folder(cfg.study.name)
    construct(check_limits, cfg=cfg)
    space: Space = build(cfg.space)
    with quiet_experimental():
        build(cfg.sampler, seed=cfg.study.seed)  # a mistake in its settings shows here, not after the data
    with locked(folder), held(folder.name, cfg.storage.url) as hold:
        console = make_console()
        set_up_logging(console, folder / "run.log")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = open_study(folder.name, cfg.storage.url, create=True, num_latencies=len(objective_devices(cfg)))
        remember(study, "settings", study_settings(cfg), REMEDY)
        save_config(folder, cfg)
        num_finished = len(finished_trials(study))
        if num_finished < cfg.study.n_trials:
            search(cfg, study, space, folder, console, Patience(cfg.storage.patience_seconds, hold))
        else:
            log.info("study %s is complete: %d of %d trials are finished", folder.name, num_finished, cfg.study.n_trials)
        conclude(cfg, study, folder, console)


def search(cfg: DictConfig, study: optuna.Study, space: Space, folder: Path, console: Console, patiently: Patience) -> None:
    """Start the engine, make sure its devices are those the study was measured on, and run the coordinator."""
    log.info("study %s: %s different networks; preparing the data", folder.name, f"{space.num_architectures():,}")
    data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
    make_evaluator = partial(build(cfg.accuracy), data=data, train=build(cfg.train))
    evaluator: AccuracyEvaluator = construct(make_evaluator)  # a mistake in its settings shows here
    engine = make_engine(cfg, data, make_evaluator)
    torch.set_num_threads(1)  # what trains or measures has processes of its own
    board = Board(study, folder)
    budget_ms, network = cfg.latency.budget_ms, deployed(cfg, data)
    try:
        prepare_training(study, engine, evaluator, make_evaluator, cfg.study.seed, console)
        devices, references = prepare_measuring(cfg, study, engine, space)
        if not has_trials(study):
            study.set_user_attr("versions", versions())
            board.write_note(public_url(cfg.storage.url), space, budget_ms)
        terminal = console.is_terminal
        view = LiveView(console, cfg.study.n_trials, finished_trials(study)) if terminal else LogView()
        with view:
            coordinator = Coordinator(
                study=study,
                space=space,
                engine=engine,
                objective=Objective(devices, cfg.study.seed, evaluator.scores_before_measuring),
                models={name: BlockModel(cfg.deploy.img_size) for name in devices},
                make_sampler=sampler_of(cfg),
                seed=cfg.study.seed,
                cost=lambda architecture: cost(architecture, **network),
                save_samples=partial(save_samples, folder / "latency", fingerprints(study)),
                annotate=board.annotate,
                publish=lambda trials: board.publish_front(trials, budget_ms),
                view=view,
                reference_ms=references,
                max_consecutive_failures=cfg.study.max_consecutive_failures,
                patiently=patiently,
            )
            if not coordinator.run(cfg.study.n_trials, cfg.study.timeout_minutes):
                log.info("time is up after %g minutes; the same command goes on from here", cfg.study.timeout_minutes)
    finally:
        engine.close()


def sampler_of(cfg: DictConfig) -> Callable[[int], BaseSampler]:
    """Gives a sampler for a seed; one that remembers what it has read of the study is the same every time."""
    make = build(cfg.sampler, _partial_=True)
    with quiet_experimental():
        first = make(seed=cfg.study.seed)
    if not isinstance(first, SurrogateSampler):
        return lambda seed: make(seed=seed)
    first.budgets = {name: latency.budget_ms for name, latency in cfg.latency.devices.items()}
    return first.seeded


def prepare_training(
    study: optuna.Study,
    engine: Engine,
    evaluator: AccuracyEvaluator,
    make_evaluator: Callable[[], AccuracyEvaluator],
    seed: int,
    console: Console,
) -> None:
    """Have done once what all evaluations share, and hand it to all that train.

    Raises: UserError if accuracies would depend on something else than before, NonFiniteLoss if training diverges.
    """
    start = time.monotonic()
    training = engine.fingerprint(TRAINING)
    remember(study, "training", training, REMEDY)
    engine.expect(TRAINING, training)
    if not isinstance(evaluator, SharedWeights):
        return
    if changed := differences(evaluator.fingerprint(), training):
        raise UserError(
            f"shared weights are kept here, and what trains them is other: {changed}; "
            "search from a machine like those that train, or with accuracy=scratch"
        )
    packed = evaluator.pack(seed)
    if packed is None:
        with progress_of(console, "training shared weights") as progress:
            packed = engine.prepare(seed, progress)
        evaluator.unpack(seed, packed)
        if not has_trials(study):
            study.set_user_attr(SHARED_SECONDS, round(time.monotonic() - start, 1))
    engine.train_with(partial(with_shared_weights, make_evaluator, seed, packed))
    study.set_user_attr(SUPERNET, str(evaluator.weights_file(seed)))


def study_settings(cfg: DictConfig) -> dict[str, Any]:
    """What a study must not change."""
    settings = {name: plain(cfg[name]) for name in SECTIONS} | {"study": {"seed": cfg.study.seed}}
    if not settings["latency"]["devices"]:
        settings["latency"] = {key: value for key, value in settings["latency"].items() if key not in DEVICE_KEYS}
    return settings


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
        budgets = ", ".join(f"{key}={value:g}" for key, value in budgets_of(cfg).items())
        lines.insert(0, f"all {len(trials)} networks are over {budgets}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def save_samples(folder: Path, devices: Mapping[str, Any], number: int, outcome: Outcome) -> None:
    """Keep every time of a trial's own measurements, and what they were made on."""
    folder.mkdir(exist_ok=True)
    body = samples(outcome.latency, devices[FIRST_DEVICE])
    if further := outcome.further:
        body["further"] = {name: samples(latency, devices[name]) for name, latency in further.items()}
    (folder / f"trial-{number:05d}.json").write_text(json.dumps(body), encoding="utf-8")


def samples(latency: Latency, device: Mapping[str, Any]) -> dict[str, Any]:
    return {**latency.summary(), "device": device, "rounds": [asdict(one) for one in latency.rounds]}


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
    check_number("storage.patience_seconds", cfg.storage.patience_seconds, 0)
    if cfg.engine.get("address") is not None and has_password(str(cfg.storage.url)):
        raise ValueError(
            "storage.url holds a password, and Ray shows the command to all who see the cluster's jobs; keep it in ~/.pgpass"
        )
    if cfg.study.timeout_minutes is not None:
        check_number("study.timeout_minutes", cfg.study.timeout_minutes, SMALLEST)
    check_devices(cfg)
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
