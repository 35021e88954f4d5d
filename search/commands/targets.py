"""The devices of a study: what is measured on each, and the calibrations and fingerprints that the study keeps of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import optuna
from omegaconf import DictConfig
from sqlalchemy.exc import SQLAlchemyError

from models.architecture import check_number
from search import SearchStopped, UserError, one_line
from search.accuracy.base import AccuracyEvaluator
from search.commands.cli import build, construct, target_of
from search.engine.base import HERE, Device, Engine
from search.latency.base import Calibration
from search.space.space import Space
from search.study.evaluate import Budgeted
from search.study.storage import has_trials, remember
from search.study.trial import reference_latencies
from search.training.data import ImageData

log = logging.getLogger(__name__)

SMALLEST = 1e-9  # for what must be above 0
FIRST_DEVICE = "first"
DEVICE_KEYS = ("devices", "objectives")  # of latency, where there are further devices


def latencies_of(cfg: DictConfig) -> dict[str, DictConfig]:
    """The settings of every device, by name."""
    return {FIRST_DEVICE: cfg.latency, **{str(name): latency for name, latency in cfg.latency.devices.items()}}


def objective_devices(cfg: DictConfig) -> list[str]:
    """Names of those on which latency is to be low."""
    return list(latencies_of(cfg)) if cfg.latency.objectives == "all" else [FIRST_DEVICE]


def budget_key(name: str) -> str:
    return "latency.budget_ms" if name == FIRST_DEVICE else f"latency.devices.{name}.budget_ms"


def budgets_of(cfg: DictConfig) -> dict[str, float]:
    """All that there are, by their keys."""
    return {budget_key(name): one.budget_ms for name, one in latencies_of(cfg).items() if one.budget_ms is not None}


def check_devices(cfg: DictConfig) -> None:
    """Raises: ValueError naming the first setting of a device that makes no sense."""
    if cfg.latency.objectives not in ("all", "first"):
        raise ValueError(f"latency.objectives={cfg.latency.objectives} must be all or first")
    for name, latency in latencies_of(cfg).items():
        key = budget_key(name)
        if latency.budget_ms is not None:
            check_number(key, latency.budget_ms, SMALLEST)
        elif name not in objective_devices(cfg):
            raise ValueError(f"{key}=null: with latency.objectives=first every further device needs a budget")
    if FIRST_DEVICE in cfg.latency.devices:
        raise ValueError(f"latency.devices.{FIRST_DEVICE}: that is the name of the device of latency itself; take another")


def deployed(cfg: DictConfig, data: ImageData) -> dict[str, int]:
    """Images and classes of the network whose latency counts."""
    num_classes = data.num_classes if cfg.deploy.num_classes is None else cfg.deploy.num_classes
    return {"img_size": cfg.deploy.img_size, "in_chans": data.in_chans, "num_classes": num_classes}


def make_engine(cfg: DictConfig, data: ImageData, make_evaluator: Callable[[], AccuracyEvaluator]) -> Engine:
    """Raises: UserError if its settings or those of a device cannot be used."""
    devices = {}
    for name, latency in latencies_of(cfg).items():
        make_target = target_of(latency, **deployed(cfg, data))
        if cfg.engine.get("address") is None:  # on a cluster the device may be another machine's
            construct(make_target)  # a mistake in its settings shows here, not in the measuring process
        devices[name] = Device(make_target, (latency.host, HERE) if "host" in latency else (HERE,))
    engine: Engine = construct(build(cfg.engine), devices=devices, make_evaluator=make_evaluator)
    return engine


def prepare_measuring(
    cfg: DictConfig, study: optuna.Study, engine: Engine, space: Space
) -> tuple[dict[str, Budgeted], list[float]]:
    """The study's devices with their calibrations, and the latencies in milliseconds up to which its hypervolume counts.

    All is measured before the first trial and kept. The edge of the hypervolume is a device's budget or, without one, the
    latency of the space's largest network on it.
    Raises: UserError if a device is not the study's, SearchStopped if nothing can be measured on one.
    """
    remedy = "measure on that device, or choose another study.name"
    wanted = latencies_of(cfg)
    try:
        found = {name: engine.fingerprint(name) for name in wanted}
        for name, fingerprint in found.items():
            engine.expect(name, fingerprint)
        remember(study, "device", found.pop(FIRST_DEVICE), remedy)
        if found:
            remember(study, "further_devices", found, remedy)
        if not has_trials(study):
            calibrate(cfg, study, engine, space)
    except (UserError, SQLAlchemyError, optuna.exceptions.OptunaError):
        raise
    except Exception as error:
        raise SearchStopped(f"nothing can be measured here: {one_line(error)}") from error
    calibrations = {FIRST_DEVICE: study.user_attrs["calibration"], **study.user_attrs.get("further_calibrations", {})}
    objectives = objective_devices(cfg)
    devices = {
        name: Budgeted(Calibration.from_dict(calibrations[name]), latency.budget_ms, name in objectives)
        for name, latency in wanted.items()
    }
    return devices, reference_latencies(study)


def calibrate(cfg: DictConfig, study: optuna.Study, engine: Engine, space: Space) -> None:
    """Measure the anchor on every device, and the largest network where no budget bounds the latency; keep both."""
    calibrations, references = {}, {}
    for name, latency in latencies_of(cfg).items():
        log.info("calibrating the anchor network%s", "" if name == FIRST_DEVICE else f" on {name}")
        calibration = engine.calibrate(name, space.anchor())
        calibrations[name] = calibration.to_dict()
        references[name] = latency.budget_ms or engine.measure(name, space.largest(), calibration).latency_ms
    study.set_user_attr("calibration", calibrations.pop(FIRST_DEVICE))
    study.set_user_attr("reference_latency_ms", references.pop(FIRST_DEVICE))
    if calibrations:
        study.set_user_attr("further_calibrations", calibrations)
        objectives = {name: ms for name, ms in references.items() if name in objective_devices(cfg)}
        study.set_user_attr("further_reference_latencies_ms", objectives)


def fingerprints(study: optuna.Study) -> dict[str, Any]:
    """Of all devices of a study."""
    return {FIRST_DEVICE: study.user_attrs["device"], **study.user_attrs.get("further_devices", {})}
