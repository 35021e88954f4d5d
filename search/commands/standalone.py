"""Long standalone trainings of single networks, the reference of search.check and search.confirm."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from search.accuracy.cache import AccuracyCache
from search.accuracy.scratch import ScratchEvaluator
from search.commands.cli import build, plain
from search.training.data import ImageData


def standalone_trainings(cfg: DictConfig, train: DictConfig, data: ImageData, file: Path) -> AccuracyCache:
    """Make an evaluator that trains single networks from scratch.

    Args:
        cfg: The configuration of the command.
        train: Optimiser and schedule of the trainings.
        data: Images to train on and to validate on.
        file: Holds the accuracies, so that a command that was killed does not train a network twice.
    """
    metric, width_multiplier = cfg.accuracy.metric, cfg.proxy.width_multiplier
    evaluator = ScratchEvaluator(data, build(train), width_multiplier, cfg.accuracy.num_threads, metric=metric)
    images = {"data": data.fingerprint(), "images": data.contents()}
    settings = {"train": plain(train), "proxy": plain(cfg.proxy), "metric": metric, **images}
    return AccuracyCache(evaluator, settings, file)
