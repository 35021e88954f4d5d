"""Training one exported architecture, and its test accuracy."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

import lightning
from omegaconf import DictConfig
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models.architecture import check_int
from models.complexity import count_params
from models.litv2 import build as build_network
from search import config_file
from search.cli import build, construct, set_up_logging
from search.data import ImageData
from search.errors import UserError, one_line
from search.export import shared_weights_file
from search.task import ImageClassification, TrainSettings, fit, test_accuracy
from search.view import describe, progress_of

log = logging.getLogger(__name__)


def retrain(cfg: DictConfig) -> None:
    """Train one architecture and write its weights and accuracy beside its file."""
    path = Path(cfg.arch)
    architecture, facts = config_file.read(path)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the folder of arch={path} cannot be written, and the weights go there; copy the file elsewhere")
    console = Console()
    set_up_logging(console, None)
    searched_on = facts["accuracy"].get("data") if isinstance(facts.get("accuracy"), dict) else None
    if searched_on not in (None, cfg.data.name):
        log.warning("this network was searched on %s and is trained on %s", searched_on, cfg.data.name)
    construct(check_int, name="seed", value=cfg.seed, low=0, high=2**32 - 1)
    settings: TrainSettings = build(cfg.train)
    data: ImageData = build(cfg.data)
    if data.img_size < architecture.stride:
        raise UserError(f"data.img_size={data.img_size} is below {architecture.stride}, the smallest image for this network")
    test_batches = data.test_dataloader()  # a missing test split shows now, not after the training
    lightning.seed_everything(cfg.seed, verbose=False)
    model = build_network(
        architecture, in_chans=data.in_chans, num_classes=data.num_classes, drop_path_rate=settings.drop_path_rate
    )
    log.info("training %s (%s parameters)", describe(architecture), f"{count_params(model):,}")
    initialise(model, str(cfg.init), path)
    task = ImageClassification(model, settings, data.num_classes)
    checkpoint = checkpoint_of(path, model, cfg.seed, settings, data)
    start = time.perf_counter()
    with progress_of(console, "training") as progress:
        fit(task, data, progress, checkpoint)
        progress(1.0)
    seconds = time.perf_counter() - start
    weights, report = (path.with_suffix(suffix) for suffix in (".safetensors", ".result.json"))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    result = {
        "test_accuracy": test_accuracy(task, test_batches, settings),
        "validation_accuracy": test_accuracy(task, data.val_dataloader(), settings),
        "max_epochs": settings.max_epochs,
        "train_size": len(data.train.labels),
        "seed": cfg.seed,
        "data": cfg.data.name,
        "init": str(cfg.init),
        "seconds": round(seconds, 1),
    }
    if searched_on == cfg.data.name:  # the same task
        searched = facts["accuracy"]
        result |= {"search_accuracy": searched["validation"], "gap": result["validation_accuracy"] - searched["validation"]}
    report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    log.info(
        "test accuracy %.4f, validation accuracy %.4f after %d epochs in %.0f s; weights in %s, figures in %s",
        result["test_accuracy"], result["validation_accuracy"], settings.max_epochs, seconds, weights, report,
    )  # fmt: skip
    if "gap" in result:
        log.info("the search said %.4f: a gap of %+.4f", result["search_accuracy"], result["gap"])


def checkpoint_of(path: Path, model: nn.Module, seed: int, settings: TrainSettings, data: ImageData) -> Path:
    """Where a training keeps its state: named by all that it depends on, so that no other training goes on from it."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    digest.update(json.dumps({"seed": seed, **asdict(settings), **data.fingerprint()}, sort_keys=True).encode())
    return path.with_suffix(f".{digest.hexdigest()[:12]}.ckpt")


def initialise(model: nn.Module, init: str, path: Path) -> None:
    """Give a model the weights to start from. Raises: UserError if they are missing or another network's."""
    if init == "scratch":
        return
    file = shared_weights_file(path) if init == "supernet" else Path(init)
    if not file.is_file():
        remedy = (
            "init=supernet needs a study with accuracy=supernet, exported" if init == "supernet" else "choose init=scratch"
        )
        raise UserError(f"there is no {file} to start from; {remedy}")
    try:
        model.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{file} does not hold weights of this network: {one_line(error)}") from error
