"""The latency targets of a search: from their configuration to what the study stores of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from omegaconf import DictConfig
from sqlalchemy.exc import SQLAlchemyError

from models.architecture import check_number
from models.deploy.int8 import INT8
from search import BUGS, SearchStopped, UserError, one_line
from search.accuracy.base import AccuracyEvaluator
from search.commands.cli import build, construct, plain, target_of
from search.commands.limits import check_limits, check_smallest, resource_limits
from search.engine.base import HERE, Engine, Fingerprint, TargetSource
from search.latency.base import Latency
from search.latency.repeatability import unreachable
from search.space import Space
from search.study.storage import has_trials, refuse_changes
from search.study.targets import FIRST, BudgetOn, Role, Target, save_targets, targets_of
from search.training.data import ImageData

log = logging.getLogger(__name__)

SMALLEST = 1e-9  # for what must be above 0


def target_configs(cfg: DictConfig) -> dict[str, DictConfig]:
    """The configuration of each target: latency itself is the one named `first`, latency.devices has the others."""
    return {FIRST: cfg.latency, **{str(name): latency for name, latency in cfg.latency.devices.items()}}


def role_of(cfg: DictConfig, name: str) -> Role:
    """Whether a target's latency is minimised, or only has to keep its limit."""
    is_objective = cfg.latency.objectives == "all" or name == FIRST
    return Role.OBJECTIVE if is_objective else Role.CONSTRAINT


def num_objectives(cfg: DictConfig) -> int:
    """How many latencies are minimised."""
    return sum(role_of(cfg, name) is Role.OBJECTIVE for name in target_configs(cfg))


def limit_key(name: str, key: str = "budget_ms") -> str:
    """The configuration key of a target's limit, or of another setting about it."""
    return f"latency.{key}" if name == FIRST else f"latency.devices.{name}.{key}"


def budget_on(value: str, name: str = FIRST) -> BudgetOn:
    """Read a target's latency.budget_on. Raises: ValueError if it is neither choice."""
    try:
        return BudgetOn(value)
    except ValueError:
        raise ValueError(f"{limit_key(name, 'budget_on')}={value} must be {' or '.join(BudgetOn)}") from None


def limits_of(cfg: DictConfig) -> dict[str, Any]:
    """The limits that there are, by their keys."""
    limits = {limit_key(name): latency.budget_ms for name, latency in target_configs(cfg).items()}
    limits |= {f"limits.{name}": limit for name, limit in plain(cfg.limits).items()}
    return {key: limit for key, limit in limits.items() if limit is not None}


def check_targets(cfg: DictConfig) -> None:
    """Raises: ValueError naming the first setting of a target that makes no sense."""
    if cfg.latency.objectives not in ("all", "first"):
        raise ValueError(f"latency.objectives={cfg.latency.objectives} must be all or first")
    if FIRST in cfg.latency.devices:
        raise ValueError(f"latency.devices.{FIRST}: this is the name of the target that latency configures; choose another")
    check_dtypes(target_configs(cfg))
    for name, latency in target_configs(cfg).items():
        budget_on(latency.budget_on, name)
        if latency.budget_ms is not None:
            check_number(limit_key(name), latency.budget_ms, SMALLEST)
        elif role_of(cfg, name) is Role.CONSTRAINT:
            raise ValueError(f"{limit_key(name)}=null: with latency.objectives=first every further device needs a budget")
    check_limits(cfg, target_configs(cfg))


def check_dtypes(targets: Mapping[str, DictConfig]) -> None:
    """Raises: ValueError if networks would run in 8-bit integers on some targets only: a network has one accuracy."""
    dtypes = {limit_key(name, "dtype"): latency.dtype for name, latency in targets.items()}
    if len({dtype == INT8 for dtype in dtypes.values()}) > 1:
        listed = ", ".join(f"{key}={dtype}" for key, dtype in dtypes.items())
        raise ValueError(f"{listed}: their accuracies do not compare; set {INT8} for all targets, or run a search for each")


def deployed_network(cfg: DictConfig, data: ImageData) -> dict[str, int]:
    """Images and classes of the network whose latency counts."""
    num_classes = data.num_classes if cfg.deploy.num_classes is None else cfg.deploy.num_classes
    return {"img_size": cfg.deploy.img_size, "in_chans": data.in_chans, "num_classes": num_classes}


def make_engine(cfg: DictConfig, data: ImageData, make_evaluator: Callable[[], AccuracyEvaluator]) -> Engine:
    """Raises: UserError if the settings of the engine or of a target cannot be used."""
    sources = {}
    for name, latency in target_configs(cfg).items():
        make_target = target_of(latency, **deployed_network(cfg, data))
        if cfg.engine.get("address") is None:  # on a cluster another machine may be the target
            construct(make_target)  # a mistake in its settings shows here, not in the measuring process
        sources[name] = TargetSource(make_target, (latency.host, HERE) if "host" in latency else (HERE,))
    engine: Engine = construct(build(cfg.engine), targets=sources, make_evaluator=make_evaluator)
    return engine


async def prepare_targets(cfg: DictConfig, study: optuna.Study, engine: Engine, space: Space) -> dict[str, Target]:
    """Calibrate the targets of a new study; check that they are those of one with trials.

    Raises:
        UserError: if a target is not the study's.
        SearchStopped: if nothing can be measured on one.
    """
    try:
        devices = {name: await engine.fingerprint(name) for name in target_configs(cfg)}
        for name, device in devices.items():
            engine.expect(name, device)
        if not has_trials(study):
            save_targets(study, {name: await calibrate(cfg, name, devices[name], engine, space) for name in devices})
    except (UserError, SearchStopped, SQLAlchemyError, optuna.exceptions.OptunaError, *BUGS):
        raise
    except Exception as error:  # whatever a runtime raises
        raise SearchStopped(f"latency cannot be measured: {one_line(error)}; repair it and start again") from error
    targets = targets_of(study)
    before = {name: target.device for name, target in targets.items()}
    refuse_changes(study, before, devices, "measure on that device, or choose another study.name")
    return targets


async def calibrate(cfg: DictConfig, name: str, device: Fingerprint, engine: Engine, space: Space) -> Target:
    """Measure the anchor, how well a target repeats, and the smallest and the largest network of the space.

    Raises:
        UserError: if not even the smallest network keeps the target's limits.
    """
    where = "" if name == FIRST else f" on {name}"
    log.info("calibrating the anchor network%s", where)
    latency = target_configs(cfg)[name]
    limit_ms: Any = latency.budget_ms
    calibration = await engine.calibrate(name, space.anchor(), (space.anchor(), space.smallest(), space.largest()))
    repeatability = calibration.repeatability
    log.info("standard deviation of separate measurements of a network%s: %s", where, repeatability)
    if problem := unreachable(latency.tolerance, repeatability):
        log.warning("%s", problem)
    smallest = await engine.measure(name, space.smallest(), calibration)
    largest = await engine.measure(name, space.largest(), calibration)
    log.info("the smallest network of the space takes %s%s, the largest %s", size_text(smallest), where, size_text(largest))
    target = Target(
        calibration.with_kernels_of(smallest).with_kernels_of(largest),
        role_of(cfg, name),
        limit_ms,
        device,
        limit_ms or largest.latency_ms,
        budget_on(latency.budget_on, name),
        resource_limits(cfg, name),
    )
    check_smallest(target, smallest, name, target_configs(cfg), limit_key(name))
    return target


def size_text(latency: Latency) -> str:
    """A network's latency with its 95 % confidence interval, and its file and memory as far as they are known."""
    names = {"file_mb": "file", "peak_memory_mb": "peak memory"}
    sizes = [f"{size:.3g} MB {names[name]}" for name, size in latency.resources.items()]
    return ", ".join([f"{latency.latency_ms:.3g} ms [{latency.low_ms:.3g}, {latency.high_ms:.3g}]", *sizes])
