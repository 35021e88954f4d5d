"""What gives networks their accuracies, from the configuration: the evaluator of a search, and long standalone trainings.

Both have the same images and the same metric, start from the same weights and learn from the same teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from models.deploy.int8 import FLOAT32, INT8
from search import UserError
from search.accuracy.base import AccuracyEvaluator
from search.accuracy.cache import AccuracyCache
from search.accuracy.initial_weights import InitialWeights
from search.accuracy.proxy_training import FULL_PRECISION
from search.accuracy.scratch import ScratchEvaluator
from search.accuracy.teachers import TeacherSettings, read_teacher
from search.commands.cli import build, construct, plain
from search.files import sha256
from search.training.data import ImageData
from search.training.streamed import StreamedData
from search.training.teacher import Teacher

log = logging.getLogger(__name__)


def initial_weights(cfg: DictConfig) -> InitialWeights | None:
    """Read the weights that init names, if it names any. Raises: UserError if they cannot be used."""
    file = cfg.accuracy.get("init")
    return None if file is None else InitialWeights.read(Path(str(file)))


def accuracy_settings(cfg: DictConfig) -> dict[str, Any]:
    """The settings of the evaluator; those of weights to start from, or of a teacher, are their digest.

    Raises: UserError if there is no such file.
    """
    settings = plain(cfg.accuracy)
    if settings.get("teacher") is not None:
        settings["teacher"] = build(cfg.accuracy.teacher).to_dict()
    if settings.get("init") is not None:
        file = Path(str(settings["init"]))
        if not file.is_file():
            raise UserError(f"init={file}: there is no such file; name a .pth or .safetensors file of weights")
        settings["init"] = f"sha256 {sha256(file)[:16]}"
    if "halving" in settings:
        del settings["cache"]
        if settings["halving"] is None:  # as in studies of earlier versions
            del settings["halving"]
    if "space" in settings:
        settings["space"] = space_settings(settings["space"])
    return settings


def space_settings(space: dict[str, Any]) -> dict[str, Any]:
    """The settings of a space, without the sizes of images where they are no choice."""
    return {key: value for key, value in space.items() if key != "img_size" or value is not None}


def training_images(cfg: DictConfig, weights: InitialWeights | None) -> ImageData:
    """Read the images of a search, normalised as the weights expect that it starts from."""
    data: ImageData
    if weights is None:
        data = build(cfg.data, img_size=cfg.proxy.img_size)
    else:
        normalisation = weights.normalisation_for(cfg.data.in_chans)
        data = construct(build(cfg.data, _partial_=True), img_size=cfg.proxy.img_size, normalisation=normalisation)
    return data


def teacher_of(cfg: DictConfig, data: ImageData | StreamedData) -> Teacher | None:
    """Read the trained network that others learn from, if there is one. Raises: UserError if it cannot be used."""
    settings: TeacherSettings = build(cfg.teacher)
    return read_teacher(settings, data)


def evaluator_factory(cfg: DictConfig, data: ImageData, weights: InitialWeights | None) -> Callable[[], AccuracyEvaluator]:
    """Return what makes the evaluator, here or in another process."""
    make = partial(build(cfg.accuracy), data=data, train=build(cfg.train))
    if "teacher" in cfg.accuracy:
        teacher = teacher_of(cfg, data)
        make = partial(make, teacher=teacher)
        if teacher is not None:
            log.info("learning from %s", teacher)
    if scores_int8(cfg):
        make = partial(make, dtype=INT8)
    return make if weights is None else partial(make, init=weights)


def scores_int8(cfg: DictConfig) -> bool:
    """Whether accuracies are those of networks in 8-bit integers: they are deployed so on all targets."""
    return bool(cfg.latency.dtype == INT8)


def cached_evaluator(cfg: DictConfig, data: ImageData, file: Path, weights: InitialWeights | None) -> AccuracyCache:
    """Make the evaluator of a search, whose accuracies are kept in a file."""
    evaluator: AccuracyEvaluator = construct(evaluator_factory(cfg, data, weights))
    settings = accuracy_settings(cfg)
    settings.pop("halving", None)  # whole trainings do not depend on it
    return cached(evaluator, {"train": plain(cfg.train), "accuracy": settings}, data, file)


def standalone_trainings(
    cfg: DictConfig, train: DictConfig, data: ImageData, file: Path, weights: InitialWeights | None
) -> AccuracyCache:
    """Make an evaluator that trains single networks by themselves, the reference of search.check and search.confirm.

    Args:
        cfg: The configuration of the command.
        train: Optimiser and schedule of the trainings.
        data: Images to train on and to validate on.
        file: Holds the accuracies, so that a command that was killed does not train a network twice.
        weights: What the search starts from, and these trainings too; None for random weights.
    """
    metric, threads = cfg.accuracy.metric, cfg.accuracy.num_threads
    evaluator = ScratchEvaluator(
        data,
        build(train),
        cfg.proxy.width_multiplier,
        threads,
        metric=metric,
        init=weights,
        teacher=teacher_of(cfg, data),
        precision=cfg.accuracy.get("precision", FULL_PRECISION),
        dtype=INT8 if scores_int8(cfg) else FLOAT32,
    )
    return cached(evaluator, {"train": plain(train), "proxy": plain(cfg.proxy), "metric": metric}, data, file)


def cached(evaluator: AccuracyEvaluator, settings: dict[str, Any], data: ImageData, file: Path) -> AccuracyCache:
    """Keep accuracies in a file; they depend on the settings and the images."""
    return AccuracyCache(evaluator, {**settings, "data": data.fingerprint(), "images": data.contents()}, file)
