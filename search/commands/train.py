"""Training one architecture for real, an exported one or LITv2's own, and its test accuracy."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import cast

import lightning
import timm
import torch
from omegaconf import DictConfig
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models.architecture import check_int
from models.complexity import count_params
from models.litv2 import LITv2
from models.litv2 import build as build_network
from search import UserError, one_line
from search.commands.cli import build, construct, plain, set_up_logging
from search.results import architecture_file
from search.results.export import shared_weights_file
from search.results.view import progress_of
from search.space.dimensions import describe
from search.training.data import ImageData
from search.training.recipe import FullTraining, Recipe
from search.training.streamed import StreamedData
from search.training.task import TrainSettings, fit, test_accuracy

log = logging.getLogger(__name__)
VARIANTS = ("litv2_s", "litv2_m", "litv2_b")


def main(cfg: DictConfig) -> None:
    """Train one architecture and write its weights and accuracy beside its file."""
    path = variant_file(cfg.arch) if cfg.arch in VARIANTS else Path(cfg.arch)
    architecture, facts = architecture_file.read(path)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"the folder of arch={path} cannot be written, and the weights go there; copy the file elsewhere")
    console = Console()
    set_up_logging(console, None)
    searched_on = facts["accuracy"].get("data") if isinstance(facts.get("accuracy"), dict) else None
    if searched_on not in (None, cfg.data.name):
        log.warning("this network was searched on %s and is trained on %s", searched_on, cfg.data.name)
    construct(check_int, name="seed", value=cfg.seed, low=0, high=2**32 - 1)
    settings: TrainSettings = build(cfg.train)
    recipe: Recipe = build(cfg.recipe)
    data = images(cfg, recipe)
    if recipe.mixes and settings.batch_size % 2:
        raise UserError(
            f"train.batch_size={settings.batch_size} must be even: recipe.mixup and recipe.cutmix pair the images"
        )
    if data.img_size < architecture.stride:
        raise UserError(f"data.img_size={data.img_size} is below {architecture.stride}, the smallest image for this network")
    test_batches = data.test_dataloader()  # a missing test split shows now, not after the training
    lightning.seed_everything(cfg.seed, verbose=False)
    model = build_network(
        architecture, in_chans=data.in_chans, num_classes=data.num_classes, drop_path_rate=settings.drop_path_rate
    )
    log.info("training %s (%s parameters)", describe(architecture), f"{count_params(model):,}")
    initialise(model, str(cfg.init), path)
    task = FullTraining(model, settings, data.num_classes, recipe)
    checkpoint = checkpoint_of(path, model, cfg.seed, settings, recipe, data)
    options = construct(recipe.options, accelerator=settings.accelerator, folder=path.with_suffix(".logs"))
    validation = data.val_dataloader() if recipe.validate_every and data.num_val else None
    start = time.perf_counter()
    with progress_of(console, "training") as progress:
        fit(task, data, progress, checkpoint, recipe.callbacks(), validation, **options)
        progress(1.0)
    if not is_first_of_processes():
        return
    seconds = time.perf_counter() - start
    weights, report = (path.with_suffix(suffix) for suffix in (".safetensors", ".result.json"))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    result = {
        "test_accuracy": test_accuracy(task, test_batches, settings),
        "validation_accuracy": test_accuracy(task, data.val_dataloader(), settings) if data.num_val else None,
        "max_epochs": settings.max_epochs,
        "train_size": data.num_train,
        "seed": cfg.seed,
        "data": cfg.data.name,
        "init": str(cfg.init),
        "recipe": asdict(recipe),
        "normalisation": data.normalisation(),
        "seconds": round(seconds, 1),
    }
    if searched_on == cfg.data.name and data.num_val:  # the same task
        searched = facts["accuracy"]
        result |= {"search_accuracy": searched["validation"], "gap": result["validation_accuracy"] - searched["validation"]}
    report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    log.info(
        "test accuracy %.4f, validation accuracy %s after %d epochs in %.0f s; weights in %s, figures in %s",
        result["test_accuracy"], f"{result['validation_accuracy']:.4f}" if data.num_val else "not asked for",
        settings.max_epochs, seconds, weights, report,
    )  # fmt: skip
    if "gap" in result:
        log.info("the search said %.4f: a gap of %+.4f", result["search_accuracy"], result["gap"])


def variant_file(name: str) -> Path:
    """The architecture of a network of the paper, as a file in a folder of its own."""
    with torch.device("meta"):
        network = cast(LITv2, timm.create_model(name))
    path = Path("outputs") / name / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    architecture_file.write(path, f"{name} of the LITv2 paper, arXiv 2205.13213.", network.architecture, {})
    return path


def images(cfg: DictConfig, recipe: Recipe) -> ImageData | StreamedData:
    """In memory, or streamed for what the recipe does to them. Raises: UserError if they cannot be read."""
    if recipe.augmentation is None:
        in_memory: ImageData = build(cfg.data)
        return in_memory
    settings = plain(cfg.data) | {"source": build(cfg.data.source), "augmentation": recipe.augmentation}
    del settings["_target_"], settings["shift"]
    streamed: StreamedData = construct(StreamedData, **settings)
    return streamed


def is_first_of_processes() -> bool:
    """Of those that trained together: the others have nothing left to do. They part here."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    rank = distributed.get_rank()
    distributed.destroy_process_group()
    return rank == 0


def checkpoint_of(
    path: Path, model: nn.Module, seed: int, settings: TrainSettings, recipe: Recipe, data: ImageData | StreamedData
) -> Path:
    """Where a training keeps its state: named by all that it depends on, so that no other training goes on from it."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    depends_on = {"seed": seed, "train": asdict(settings), "recipe": asdict(recipe), "data": data.fingerprint()}
    digest.update(json.dumps(depends_on, sort_keys=True).encode())
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
