"""`search.train`: train one architecture, exported or LITv2's own, and report its test accuracy."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import timm
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from models.architecture import Architecture, check_int
from models.complexity import count_params
from models.deploy import prepare
from models.deploy.int8 import FLOAT32, INT8, calibrated, calibration_batches
from models.elastic import Bounds
from models.litv2 import LITv2
from models.litv2 import build as build_network
from search import UserError
from search.accuracy.base import Metric, metric_name
from search.accuracy.initial_weights import InitialWeights, measuring_batches
from search.accuracy.metrics import accuracy_of, check_metric
from search.commands.accuracy import teacher_of
from search.commands.cli import build, construct, plain, set_up_logging
from search.files import sha256
from search.results import architecture_file
from search.results.export import shared_weights_file
from search.results.view import progress_of
from search.space.dimensions import describe
from search.study.locks import training_lock
from search.training.augmentation import BatchAugmentation, PhotoAugmentation, ShiftAndFlip
from search.training.data import ImageData, calibration_images
from search.training.files import TrainingResult, checkpoint_file, result_file, save_weights, weights_file
from search.training.normalisation import Normalisation
from search.training.recipe import FullTraining, Recipe
from search.training.resizing import resized
from search.training.resuming import log_resumption
from search.training.step_memory import log_step_memory
from search.training.streamed import StreamedData
from search.training.task import TrainSettings, fit, make_trainer, predict, test_accuracy
from search.training.teacher import Teacher

log = logging.getLogger(__name__)
VARIANTS = ("litv2_s", "litv2_m", "litv2_b")
INIT_REMEDIES = {
    "supernet": "init=supernet needs a study with accuracy=supernet, exported",
    "trained": "init=trained needs an earlier search.train of this network",
}


@dataclass(frozen=True)
class Network:
    """The architecture to train.

    Args:
        file: File of the architecture; everything that the training writes lies beside it.
        architecture: The network.
        search_data: Name of the dataset it was searched on; None if it was not searched.
        search_accuracy: Validation accuracy that the search gave it.
        metric: What the search counted as accuracy.
        is_int8: Whether the search was one for 8-bit integers.
    """

    file: Path
    architecture: Architecture
    search_data: str | None
    search_accuracy: float | None
    metric: str = Metric.TOP1.value
    is_int8: bool = False


@dataclass(frozen=True)
class Setup:
    """Configuration of a training: optimiser and schedule, recipe, images, weights to start from, teacher."""

    settings: TrainSettings
    recipe: Recipe
    data: ImageData | StreamedData
    weights: InitialWeights | None
    teacher: Teacher | None


def main(cfg: DictConfig) -> None:
    """Train one architecture, and write its weights and its result beside its file.

    Raises:
        UserError: If a setting or a file cannot be used.
        KeyboardInterrupt: If the user stops the training; the same command resumes it.
    """
    file = variant_file(cfg.arch) if cfg.arch in VARIANTS else Path(str(cfg.arch))
    architecture_file.read(file)  # a mistake shows before anything is written beside it
    console = Console()
    with training_lock(file) if is_first_process() else contextlib.nullcontext():
        set_up_logging(console, file.with_suffix(".log"))
        train_and_report(cfg, read_network(file), console)


def is_first_process() -> bool:
    """Whether no other process of the same training, if there are several, has the network's lock."""
    return not getattr(rank_zero_only, "rank", 0)


def train_and_report(cfg: DictConfig, network: Network, console: Console) -> None:
    """Train a network that nobody else trains meanwhile. Raises: as `main`."""
    warn_of_other_data(network, cfg.data.name)
    setup = make_setup(cfg, network)
    test_batches = setup.data.test_dataloader()  # before the training: a missing test set shows now
    task = make_task(cfg, network, setup)
    checkpoint = checkpoint_file(
        network.file,
        task.model,
        cfg.seed,
        setup.settings,
        setup.recipe,
        setup.data,
        img_size=network.architecture.img_size,
        teacher=setup.teacher,
    )
    num_epochs, seconds = train(task, setup, network.file, checkpoint, console)
    if leave_process_group() != 0:
        return
    data = setup.data
    dtype = setup.settings.quantise or FLOAT32
    save_weights(cast(LITv2, task.model), data.normalisation, weights_file(network.file, dtype), data.class_names)
    result = evaluate(task, test_batches, cfg, network, setup, num_epochs, seconds)
    result.save(result_file(network.file, dtype))
    checkpoint.unlink(missing_ok=True)
    log_result(result, network.file, dtype)


def read_network(file: Path) -> Network:
    """Read an exported architecture. Raises: UserError if it cannot be used."""
    architecture, facts = architecture_file.read(file)
    accuracy: Mapping[str, Any] = facts["accuracy"] if isinstance(facts.get("accuracy"), dict) else {}
    metric = accuracy.get("metric", Metric.TOP1.value)
    try:
        check_metric(metric)
    except ValueError as error:
        raise UserError(f"arch={file}: {error}") from error
    targets = facts["targets"].values() if isinstance(facts.get("targets"), dict) else ()
    is_int8 = any(target.get("device", {}).get("dtype") == INT8 for target in targets if isinstance(target, dict))
    return Network(file, architecture, accuracy.get("data"), accuracy.get("validation"), metric, is_int8)


def variant_file(name: str) -> Path:
    """Write the architecture of a network of the paper as a file in its own folder."""
    with torch.device("meta"):
        network = cast(LITv2, timm.create_model(name))
    file = Path("outputs") / name / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    architecture_file.write(file, f"{name} of the LITv2 paper, arXiv 2205.13213.", network.architecture, {})
    return file


def warn_of_other_data(network: Network, data: str) -> None:
    """Warn if a network is trained on another dataset than it was searched on."""
    if network.search_data not in (None, data):
        log.warning("this network was searched on %s but is trained on %s; check data=", network.search_data, data)


def make_setup(cfg: DictConfig, network: Network) -> Setup:
    """Build what a training needs, and check that the parts fit together. Raises: UserError if they do not."""
    construct(check_int, name="seed", value=cfg.seed, low=0, high=2**32 - 1)
    settings: TrainSettings = build(cfg.train)
    recipe: Recipe = build(cfg.recipe)
    build(cfg.teacher)  # a missing file shows before images are decoded
    if cfg.init == "trained" and settings.quantise is None:
        raise UserError(
            "init=trained would replace the weights that it starts from: set train.quantise=int8, whose weights have their "
            "own file, or name a copy of them"
        )
    weights = initial_weights(str(cfg.init), network)
    data = make_data(cfg, recipe, None if weights is None else weights.normalisation_for(cfg.data.in_chans))
    if recipe.mixes_images and settings.batch_size % 2:
        raise UserError(
            f"train.batch_size={settings.batch_size} must be even: recipe.mixup and recipe.cutmix pair the images"
        )
    if data.img_size < (smallest := network.architecture.stride):
        raise UserError(f"data.img_size={data.img_size} is below {smallest}, the smallest image for this network")
    if data.img_size < (size := network.architecture.side(data.img_size)):
        raise UserError(f"data.img_size={data.img_size} is below {size}, the image size of this network; set it to {size}")
    if data.img_size > size:
        log.info("the network gets images of %d pixels, resized from data.img_size=%d", size, data.img_size)
    teacher = teacher_of(cfg, data)
    if teacher is not None:
        log.info("learning from %s", teacher)
    return Setup(settings, recipe, data, weights, teacher)


def make_data(cfg: DictConfig, recipe: Recipe, normalisation: Normalisation | None) -> ImageData | StreamedData:
    """Decode images, or stream them if the recipe augments them. Raises: UserError if they cannot be read."""
    augment: BatchAugmentation = build(cfg.augment)
    if isinstance(augment, PhotoAugmentation) and recipe.mixes_images:
        raise UserError("augment=photo and this recipe would both mix images; set recipe.mixup=0 and recipe.cutmix=0")
    if recipe.augmentation is None:
        in_memory: ImageData = construct(build(cfg.data, _partial_=True), normalisation=normalisation)
        return in_memory
    if augment != ShiftAndFlip(cfg.data.shift, cfg.data.flip):
        raise UserError("augment and recipe.augmentation would both change the images; choose recipe=light or augment=light")
    settings = plain(cfg.data) | {"source": build(cfg.data.source), "augmentation": recipe.augmentation}
    for key in ("_target_", "shift", "augment", "cache", "cache_folder"):
        del settings[key]
    streamed: StreamedData = construct(StreamedData, **settings, normalisation=normalisation)
    return streamed


def make_task(cfg: DictConfig, network: Network, setup: Setup) -> FullTraining:
    """Build the network with the weights to start from. Raises: UserError if these cannot be used."""
    data, drop_path_rate = setup.data, setup.settings.drop_path_rate
    lightning.seed_everything(cfg.seed, verbose=False)
    if setup.weights is None:
        model = build_network(
            network.architecture, in_chans=data.in_chans, num_classes=data.num_classes, drop_path_rate=drop_path_rate
        )
    else:
        log.info("%s", setup.weights.summary(data, Bounds.of([network.architecture])))
        model = setup.weights.network(network.architecture, data, measuring_batches(data), drop_path_rate)
    log.info("training %s (%s parameters)", describe(network.architecture), f"{count_params(model):,}")
    img_size = network.architecture.img_size
    return FullTraining(model, setup.settings, data.num_classes, setup.recipe, img_size, teacher=setup.teacher)


def initial_weights(init: str, network: Network) -> InitialWeights | None:
    """Read the weights to start from; None for a random initialisation. Raises: UserError if they cannot be used."""
    if init == "scratch":
        return None
    files = {"supernet": shared_weights_file(network.file), "trained": weights_file(network.file)}
    file = files.get(init, Path(init))
    if not file.is_file():
        raise UserError(f"there is no {file} to start from; {INIT_REMEDIES.get(init, 'choose init=scratch')}")
    weights = InitialWeights.read(file, network.architecture)
    construct(weights.check, bounds=Bounds.of([network.architecture]))
    return weights


def train(task: FullTraining, setup: Setup, architecture: Path, checkpoint: Path, console: Console) -> tuple[int, float]:
    """Train, or resume from the checkpoint. Returns the number of epochs, and the duration in seconds."""
    recipe, data = setup.recipe, setup.data
    folder = architecture.with_suffix(".logs")
    options = construct(recipe.trainer_options, accelerator=setup.settings.accelerator, folder=folder)
    side = task.img_size or data.img_size
    batch = (min(setup.settings.batch_size, data.num_train), data.in_chans, side, side)
    device = make_trainer(setup.settings).strategy.root_device
    log_step_memory([task.model], task.model, batch, device, options["precision"])
    validation = data.val_dataloader() if recipe.validate_every and data.num_val else None
    log_resumption(checkpoint)
    start = time.perf_counter()
    with progress_of(console, "training") as progress:
        num_epochs = fit(task, data, progress, checkpoint, recipe.callbacks(), validation, **options)
        progress(1.0)
    return num_epochs, time.perf_counter() - start


def leave_process_group() -> int:
    """Leave the processes that trained together on several devices. Returns the rank of this one; 0 reports the result."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0
    rank = distributed.get_rank()
    distributed.destroy_process_group()
    return rank


def evaluate(
    task: FullTraining, test_batches: Any, cfg: DictConfig, network: Network, setup: Setup, num_epochs: int, seconds: float
) -> TrainingResult:
    """Compute the accuracies of a trained network; after a training in 8-bit integers, those that it has in them."""
    settings, data = setup.settings, setup.data
    weights = weights_file(network.file, settings.quantise or FLOAT32)
    if settings.quantise is not None:
        batches = calibration_batches(resized(calibration_images(data), task.img_size))
        task.model = calibrated(prepare(task.model), batches)
    is_same_task = network.search_data == cfg.data.name and data.num_val
    is_same_dtype = network.is_int8 == (settings.quantise == INT8)
    return TrainingResult(
        test_accuracy=test_accuracy(task, test_batches, settings),
        validation_accuracy=test_accuracy(task, data.val_dataloader(), settings) if data.num_val else None,
        max_epochs=num_epochs,
        train_size=data.num_train,
        seed=cfg.seed,
        data=cfg.data.name,
        init=str(cfg.init),
        recipe=setup.recipe,
        normalisation=data.normalisation,
        seconds=seconds,
        weights_sha256=sha256(weights),
        class_names=data.class_names,
        teacher=None if setup.teacher is None else f"{setup.teacher}, sha256 {setup.teacher.digest}",
        search_accuracy=network.search_accuracy if is_same_task and is_same_dtype else None,
        metric=network.metric,
        test_metric=metric_value(task, test_batches, network.metric, settings),
        validation_metric=metric_value(task, data.val_dataloader(), network.metric, settings) if data.num_val else None,
    )


def metric_value(task: FullTraining, batches: Any, metric: str, settings: TrainSettings) -> dict[str, float] | None:
    """Value and standard error of the search's metric; None if it is top-1 accuracy, which is always reported."""
    if metric == Metric.TOP1:
        return None
    accuracy = accuracy_of(metric, *predict(task, batches, settings), seed=0, seconds=0.0)
    return {"value": accuracy.accuracy, "standard_error": accuracy.standard_error}


def log_result(result: TrainingResult, architecture: Path, dtype: str) -> None:
    """Log the accuracies, and where weights and figures are."""
    validation = "not measured" if result.validation_accuracy is None else f"{result.validation_accuracy:.4f}"
    log.info(
        "%stest accuracy %.4f, validation accuracy %s after %d epochs in %.0f s; weights in %s, figures in %s",
        "in 8-bit integers: " if dtype == INT8 else "",
        result.test_accuracy,
        validation,
        result.max_epochs,
        result.seconds,
        weights_file(architecture, dtype),
        result_file(architecture, dtype),
    )
    if result.test_metric is not None:
        log.info("test %s %.4f ±%.4f", metric_name(result.metric), *result.test_metric.values())
    if result.gap is not None:
        log.info("score in the search %.4f, by this training %+.4f", result.search_accuracy, result.gap)
