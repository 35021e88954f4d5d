"""`python -m search.run`: one search, from a composed configuration to a saved front."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shlex
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

from models.architecture import Architecture
from models.complexity import cost
from models.elastic import Bounds
from search import UserError, differences
from search.accuracy.base import AccuracyEvaluator, SharedWeights, digest_of, with_shared_weights
from search.accuracy.checked import CHECK_FILE, read_checked
from search.commands.accuracy import evaluator_factory, initial_weights, training_images
from search.commands.cli import build, construct, plain, set_up_logging
from search.commands.limits import check_costs, cost_limits
from search.commands.settings import IMAGES_REMEDY, REMEDY, WEIGHTS_REMEDY, check_study, study_settings
from search.commands.targets import (
    deployed_network,
    limits_of,
    make_engine,
    num_objectives,
    prepare_targets,
)
from search.engine.base import TRAINING, Engine
from search.files import write_text
from search.latency.base import Latency
from search.latency.block_model import BlockModel
from search.results.dashboard import DashboardPublisher
from search.results.export import export_front, member_name, versions
from search.results.picking import knee
from search.results.significance import Monitor, in_words, significance
from search.results.tables import front_table
from search.results.view import LiveView, LogView, make_console, progress_of
from search.space import Space
from search.study.convergence import Convergence
from search.study.coordinator import Coordinator
from search.study.drift import drift_notes
from search.study.evaluate import Rules
from search.study.front import gain_over_pattern
from search.study.halving import Halving
from search.study.limits import save_limits
from search.study.locks import RetryPolicy, export_lock, folder_lock, study_lock
from search.study.samplers.surrogate import SurrogateSampler
from search.study.search_time import SearchTime
from search.study.stopping import StoppingCriteria, stop_reason
from search.study.storage import (
    NORMALISATION,
    SHARED_SECONDS,
    SUPERNET,
    WEIGHTS,
    has_trials,
    open_study,
    public_url,
    quiet_experimental,
    remember,
    study_folder,
)
from search.study.targets import Target, references_ms, targets_of
from search.study.trial import TrialResult, finished_by_time, finished_trials
from search.study.writer import StudyWriter

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> None:
    """Check the configuration, then search until the study is complete.

    Raises:
        UserError: if what is asked for cannot be done.
        SearchStopped: if the search cannot continue.
    """
    start = time.monotonic()
    folder = study_folder(cfg.study.name)
    construct(check_study, cfg=cfg)
    space: Space = build(cfg.space)
    with quiet_experimental():
        sampler = build(cfg.sampler, seed=cfg.study.seed)  # a mistake in its settings shows here, not after the data
    with contextlib.ExitStack() as locks:
        locks.enter_context(folder_lock(folder))
        console = make_console()
        set_up_logging(console, folder / "run.log")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        lock = locks.enter_context(study_lock(folder.name, cfg.storage.url))
        study = open_study(folder.name, cfg.storage.url, create=True, num_latencies=num_objectives(cfg))
        remember(study, "settings", study_settings(cfg), REMEDY)
        save_config(folder, cfg)
        criteria = stopping_criteria(cfg, predicts=isinstance(sampler, SurrogateSampler))
        if stop_reason(study, space, criteria) is None:
            retry = RetryPolicy(cfg.storage.retry_seconds, lock)
            taken = SearchTime(study, lock, criteria.timeout_minutes, start, time.monotonic)
            asyncio.run(taken.count(search(cfg, study, space, folder, console, retry, criteria, taken)))
        conclude(cfg, study, folder, console)
        if (reason := stop_reason(study, space, criteria)) is not None:
            log.info("study %s %s", folder.name, reason.text)
            if reason.remedy:
                console.print(f"continue:    the same command with {reason.remedy}", highlight=False, soft_wrap=True)


async def search(
    cfg: DictConfig,
    study: optuna.Study,
    space: Space,
    folder: Path,
    console: Console,
    retry: RetryPolicy,
    criteria: StoppingCriteria,
    taken: SearchTime,
) -> None:
    """Start the engine, check that its workers are those of the study, and run the coordinator."""
    log.info("study %s: %s different networks; preparing the data", folder.name, f"{space.num_architectures():,}")
    weights = initial_weights(cfg)
    data = training_images(cfg, weights)
    remember(study, "data", data.contents(), IMAGES_REMEDY)
    study.set_user_attr(NORMALISATION, asdict(data.normalisation))
    network, limits = deployed_network(cfg, data), cost_limits(cfg)
    check_costs(limits, space, network)
    if weights is not None:
        log.info("%s", weights.summary(data, Bounds.of(space.covering())))
    make_evaluator = evaluator_factory(cfg, data, weights)
    evaluator: AccuracyEvaluator = construct(make_evaluator)  # a mistake in its settings shows here
    engine = make_engine(cfg, data, make_evaluator)
    torch.set_num_threads(1)  # what trains or measures has processes of its own
    try:
        targets = await prepare_targets(cfg, study, engine, space)  # first: a budget that no network keeps shows here
        save_limits(study, limits)
        minutes = taken.minutes_left()
        if not await prepare_training(study, engine, evaluator, make_evaluator, cfg.study.seed, console, minutes):
            log.info("the training of shared weights is cut off; finished epochs are kept")
            return
        dashboard = DashboardPublisher(study, folder)
        if not has_trials(study):
            study.set_user_attr("versions", versions())
            dashboard.write_note(public_url(cfg.storage.url), space, evaluator.scores_before_measuring)
        finished = finished_trials(study)
        monitor = Monitor(references_ms(targets), list(finished))
        view = LiveView(console, cfg.study.n_trials, finished, monitor) if console.is_terminal else LogView(monitor=monitor)
        limit = criteria.min_expected_gain
        with view:
            writer = StudyWriter(study, space, targets, sampler_of(cfg), cfg.study.seed, dashboard.annotate, retry, limits)
            coordinator = Coordinator(
                writer=writer,
                engine=engine,
                targets=targets,
                rules=Rules(cfg.study.seed, evaluator.scores_before_measuring, limits, Halving.of(evaluator)),
                models={name: BlockModel(cfg.deploy.img_size) for name in targets},
                cost=lambda architecture: cost(architecture, **network),
                save_samples=partial(save_samples, folder / "latency", targets),
                publish=dashboard.publish_front,
                view=view,
                max_consecutive_failures=cfg.study.max_consecutive_failures,
                convergence=None if limit is None else Convergence(references_ms(targets), limit),
            )
            await coordinator.run(criteria.n_trials, taken.minutes_left())
    finally:
        engine.close()


def stopping_criteria(cfg: DictConfig, predicts: bool) -> StoppingCriteria:
    """The limits of a search. predicts: whether the sampler knows how much is still to be gained."""
    min_expected_gain = cfg.study.min_expected_gain
    if min_expected_gain is not None and not predicts:
        log.info("study.min_expected_gain=%g does not count: only sampler=surrogate predicts gains", min_expected_gain)
        min_expected_gain = None
    return StoppingCriteria(cfg.study.n_trials, cfg.study.timeout_minutes, min_expected_gain)


def sampler_of(cfg: DictConfig) -> Callable[[int], BaseSampler]:
    """A factory of samplers by seed; one that remembers what it has read of the study is the same every time."""
    make = build(cfg.sampler, _partial_=True)
    with quiet_experimental():
        first = make(seed=cfg.study.seed)
    return first.seeded if isinstance(first, SurrogateSampler) else lambda seed: make(seed=seed)


async def prepare_training(
    study: optuna.Study,
    engine: Engine,
    evaluator: AccuracyEvaluator,
    make_evaluator: Callable[[], AccuracyEvaluator],
    seed: int,
    console: Console,
    minutes_left: float | None = None,
) -> bool:
    """Check the training setup; train shared weights once, if the evaluator has any, and distribute them to the workers.

    Returns:
        Whether networks can be evaluated; False if the time was up while shared weights were trained.

    Raises:
        UserError: if accuracies would depend on something else than before.
        NonFiniteLoss: if training diverges.
    """
    start = time.monotonic()
    training = await engine.fingerprint(TRAINING)
    remember(study, "training", dict(training), REMEDY)
    engine.expect(TRAINING, training)
    if not isinstance(evaluator, SharedWeights):
        return True
    if changed := differences(evaluator.fingerprint(), training):
        raise UserError(
            f"accuracy=supernet needs the same training here and on the workers, but they differ: {changed}; "
            "start the search on a machine like the workers, or with accuracy=scratch"
        )
    packed = evaluator.pack(seed)
    if packed is None:
        try:
            async with asyncio.timeout(None if minutes_left is None else 60 * minutes_left) as limit:
                with progress_of(console, "training shared weights") as progress:
                    packed = await engine.train_shared_weights(seed, progress)
        except TimeoutError:
            if not limit.expired():  # the training's own
                raise
            return False
        evaluator.unpack(seed, packed)
        if not has_trials(study):
            study.set_user_attr(SHARED_SECONDS, round(time.monotonic() - start, 1))
    file = evaluator.weights_file(seed)
    remember(study, WEIGHTS, {"supernet": digest_of(packed)}, WEIGHTS_REMEDY.format(file=file))
    study.set_user_attr(SUPERNET, str(file))
    engine.use_evaluator(partial(with_shared_weights, make_evaluator, seed, packed))
    return True


def conclude(cfg: DictConfig, study: optuna.Study, folder: Path, console: Console) -> None:
    """Show the front, save it, and say what can be done with it."""
    trials = finished_trials(study)
    if not trials:
        return
    DashboardPublisher(study, folder).publish(trials)
    with export_lock(folder):
        members = export_front(study, folder)
    pareto = folder / "pareto"
    lines = [
        f"saved in {pareto}, with all trials in {pareto}.csv and {pareto}.png",
        f"look at it:  python -m search.dashboard study.name={folder.name}",
    ]
    if members:
        checked = read_checked(folder / CHECK_FILE, study.user_attrs["settings"])
        console.print(front_table(f"Front of {len(trials)} finished trials", trials, checked))
        told_apart = significance(trials, references_ms(targets_of(study)))
        gain = gain_over_pattern(trials)
        outlook = Convergence.of(finished_by_time(study), references_ms(targets_of(study))).outlook()
        texts = [*in_words(told_apart), *(f"{each}." for each in (gain, outlook) if each is not None)]
        console.print("\n".join(texts), highlight=False, markup=False, soft_wrap=True)
        tells_nothing_apart = told_apart is not None and told_apart.tells_nothing_apart
        file = pareto / member_name(members[0] if tells_nothing_apart else knee(members))
        lines.append(f"train one:   python -m search.train arch={file} {images_overrides(cfg)}")
    else:
        limits = ", ".join(f"{key}={value}" for key, value in limits_of(cfg).items())
        lines.insert(0, f"all {len(trials)} networks are over {limits}")
    lines = [*drift_notes(trials), *lines]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def images_overrides(cfg: DictConfig) -> str:
    """The overrides by which another command reads the images of a search, as a shell takes them."""
    path = cfg.data.source.get("path")
    from_path = [] if path is None else [f"data.source.path={path}", f"data.img_size={cfg.data.img_size}"]
    return shlex.join([f"data={cfg.data.name}", *from_path])


def save_samples(
    folder: Path, targets: Mapping[str, Target], number: int, architecture: Architecture, result: TrialResult
) -> None:
    """Store every time of a trial's own measurements, and the devices that they were made on."""
    folder.mkdir(exist_ok=True)
    body = {name: samples(latency, targets[name].device_for(architecture)) for name, latency in result.latencies.items()}
    write_text(folder / f"trial-{number:05d}.json", json.dumps(body))


def samples(latency: Latency, device: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement as plain data, raw times included."""
    return {**latency.summary(), "device": dict(device), "rounds": [asdict(timing) for timing in latency.rounds]}


def save_config(folder: Path, cfg: DictConfig) -> None:
    """Save the resolved configuration, without passwords."""
    config = plain(cfg)
    config["storage"]["url"] = public_url(config["storage"]["url"])
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
