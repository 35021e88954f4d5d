"""Long standalone trainings of single networks, the reference of search.check and search.confirm."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from search.accuracy.cache import AccuracyCache
from search.accuracy.initial_weights import InitialWeights
from search.accuracy.scratch import ScratchEvaluator
from search.commands.cli import build, plain
from search.training.data import ImageData


def standalone_trainings(
    cfg: DictConfig, train: DictConfig, data: ImageData, file: Path, weights: InitialWeights | None = None
) -> AccuracyCache:
    """Make an evaluator that trains single networks by themselves.

    Args:
        cfg: The configuration of the command.
        train: Optimiser and schedule of the trainings.
        data: Images to train on and to validate on.
        file: Holds the accuracies, so that a command that was killed does not train a network twice.
        weights: What the search starts from, and these trainings too; None for random weights.
    """
    evaluator = ScratchEvaluator(data, build(train), cfg.proxy.width_multiplier, cfg.accuracy.num_threads, init=weights)
    settings = {"train": plain(train), "proxy": plain(cfg.proxy), "data": data.fingerprint(), "images": data.contents()}
    return AccuracyCache(evaluator, settings, file)
