"""Networks that a benchmark compares: measured in turn, trained from random weights by one recipe, with several seeds.

All results are in a folder, and in a small file too (the record), from which the benchmark goes on in another folder or on
another machine. What is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from benchmarks.evidence_table import ARMS_FILE, DTYPE, LATENCIES_FILE, TRAINED, read_latencies, result_file
from models.architecture import Architecture
from models.litv2 import build as build_network
from search import UserError, one_line
from search.commands.cli import build, plain
from search.commands.measure import from_timm
from search.files import replacing, write_text
from search.latency.base import Latency
from search.latency.onnxruntime import RUNTIME, onnxruntime_target
from search.latency.runtime import Form
from search.latency.target import Network, PairedTarget
from search.training.data import ImageData
from search.training.processes import end_with_parent
from search.training.settings import TrainSettings
from search.training.task import ImageClassification, fit, predict

OPTIONS_FILE = "options.json"


@dataclass(frozen=True)
class Contender:
    """A network to measure and to train.

    Args:
        name: Description for the table.
        architecture: As plain data; None for a model of timm.
        model: Name of a model of timm; empty for an LITv2.
        img_size: Side of its images, in pixels.
    """

    name: str
    architecture: dict[str, Any] | None
    model: str
    img_size: int

    @property
    def key(self) -> str:
        """Name of its files; networks that several arms have are trained once."""
        network = self.model or Architecture.from_dict(self.architecture or {}).key
        return f"{network}@{self.img_size}"

    def build(self, in_chans: int, num_classes: int) -> nn.Module:
        """Build it with random weights."""
        if self.architecture is not None:
            architecture = Architecture.from_dict(self.architecture)
            return build_network(architecture, in_chans=in_chans, num_classes=num_classes)
        return from_timm(self.model, self.img_size, "--peers").build(in_chans=in_chans, num_classes=num_classes)


class Results:
    """Results of a benchmark in the current folder, and in its record.

    Args:
        options: What the results depend on.
        record: File for all results; None for the folder alone.

    Raises:
        UserError: If the folder or the record has results of other options, or the record cannot be read.
    """

    def __init__(self, options: Mapping[str, Any], record: Path | None) -> None:
        self.record, text = record, json.dumps(options, indent=1)
        if record is not None and record.exists():
            unpack(record, text)
        file = Path(OPTIONS_FILE)
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise UserError(f"{Path.cwd()} has results of other options ({file}); choose another --folder")
        write_text(file, text)

    def save_arms(self, arms: Mapping[str, Sequence[Contender]], account: Sequence[str]) -> None:
        """Store which networks are compared, and lines about how they were found."""
        of_arms = {arm: [{"key": each.key, **asdict(each)} for each in of_arm] for arm, of_arm in arms.items()}
        write_text(Path(ARMS_FILE), json.dumps({"account": account, "arms": of_arms}, indent=1))

    def arms(self) -> dict[str, list[Contender]]:
        """Return the networks of each arm; none if they were not stored yet."""
        file = Path(ARMS_FILE)
        return arms_of(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}

    def pack(self) -> None:
        """Write all results into the record."""
        if self.record is None:
            return
        files = [Path(name) for name in (OPTIONS_FILE, ARMS_FILE, LATENCIES_FILE)]
        with replacing(self.record) as new, ZipFile(new, "w", ZIP_DEFLATED) as archive:
            for file in [*files, *sorted(Path(TRAINED).glob("*.npz"))]:
                archive.write(file)


def each_once(arms: Mapping[str, Sequence[Contender]]) -> list[Contender]:
    """Return the networks of all arms, each once."""
    return list({contender.key: contender for of_arm in arms.values() for contender in of_arm}.values())


def arms_of(stored: Mapping[str, Any]) -> dict[str, list[Contender]]:
    """Return the networks of each arm, as `Results.save_arms` stored them."""
    return {
        arm: [Contender(**{name: value for name, value in each.items() if name != "key"}) for each in of_arm]
        for arm, of_arm in stored["arms"].items()
    }


def unpack(record: Path, options: str) -> None:
    """Unpack what the current folder lacks. Raises: UserError if the record cannot be read or is of other options."""
    try:
        with ZipFile(record) as archive:
            if archive.read(OPTIONS_FILE).decode() != options:
                raise UserError(f"{record} has results of other options; choose another --record")
            for name in archive.namelist():
                if not Path(name).exists():
                    archive.extract(name)
    except (BadZipFile, KeyError, OSError) as error:
        raise UserError(
            f"{record} is not a record of this benchmark ({one_line(error)}); choose another --record"
        ) from error


def target_for(data: ImageData, dtype: str, max_seconds: float) -> PairedTarget:
    """Make the target that networks are measured on: ONNX Runtime on one thread, one image at a time.

    Args:
        data: Its images give the input and the number of classes.
        dtype: What networks compute in.
        max_seconds: Time limit for a network.
    """
    return onnxruntime_target(
        img_size=data.img_size, in_chans=data.in_chans, num_classes=data.num_classes, batch_size=1, num_threads=1,
        dtype=dtype, prepared=True, tolerance=0.025, max_seconds=max_seconds, calibration_seconds=5.0,
    )  # fmt: skip


def measure(
    forms: Iterable[tuple[Contender, str]], cfg: DictConfig, data: ImageData, max_seconds: float, console: Console
) -> dict[str, dict[str, Latency]]:
    """Measure networks in turn, unless it was done. Models of timm that cannot be converted are named and left out.

    Args:
        forms: Networks, each with a dtype; that of `DTYPE` before others.
        cfg: Of the search; its space has the anchor.
        data: Its images give the input and the number of classes.
        max_seconds: Time limit for a network.
        console: Shows what is measured.

    Returns:
        Latencies by network and dtype; all networks have `DTYPE`.
    """
    file = Path(LATENCIES_FILE)
    if file.exists():
        return read_latencies(Path())
    target = target_for(data, DTYPE, max_seconds)
    calibration, ready = target.calibrate(build(cfg.space).anchor()), {}
    for contender, dtype in forms:
        shape = (data.in_chans, contender.img_size, contender.img_size)
        network = Network(partial(contender.build, data.in_chans, data.num_classes), shape)
        try:
            ready[contender.key, dtype] = target.make_ready(network, Form(RUNTIME, dtype))
        except Exception as error:  # whatever a model of others raises
            if not contender.model:
                raise
            say(console, f"{contender.key} in {dtype} is left out: {one_line(error)}")
    say(console, f"measuring {len(ready)} networks in turn")
    latencies: dict[str, dict[str, Latency]] = {}
    for (key, dtype), latency in zip(ready, target.time(list(ready.values()), calibration), strict=True):
        if dtype == DTYPE or key in latencies:
            latencies.setdefault(key, {})[dtype] = latency.without_samples()
    body = {key: {name: each.summary() for name, each in by.items()} for key, by in latencies.items()}
    write_text(file, json.dumps(body, indent=1))
    return latencies


def train(
    contenders: Sequence[Contender], cfg: DictConfig, num_seeds: int, num_processes: int, results: Results, console: Console
) -> None:
    """Train networks with all seeds, except those whose results are there; all LITv2 before the models of timm, and
    these by the size of their images.

    Args:
        contenders: The networks; models of timm whose training fails are named, and left out of the results.
        cfg: Of the search; `data` and `check.long` are used.
        num_seeds: Trainings of a network.
        num_processes: Trainings at a time, each on one thread.
        results: Packed after each training.
        console: Shows the test accuracy of each training.
    """
    plain_cfg = {"data": plain(cfg.data), "training": plain(cfg.check.long)}
    tasks = [(contender, seed) for seed in range(num_seeds) for contender in contenders]
    tasks.sort(key=lambda task: task[0].img_size if task[0].model else 0)
    missing = [(contender, seed) for contender, seed in tasks if not Path(result_file(contender.key, seed)).exists()]
    say(console, f"{len(tasks)} trainings, {len(missing)} to do")
    results.pack()
    pool = ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=end_with_parent)
    try:
        trainings = [pool.submit(train_network, plain_cfg, contender, seed) for contender, seed in missing]
        for (contender, seed), training in zip(missing, trainings, strict=True):
            say(console, f"{contender.key}, seed {seed}: {training.result()}")
            results.pack()
    finally:
        pool.shutdown(cancel_futures=True)


def train_network(cfg: dict[str, Any], contender: Contender, seed: int) -> str:
    """Train a network, and store which test images it classifies correctly. Returns its accuracy or why it is left out."""
    torch.set_num_threads(1)
    config, file = OmegaConf.create(cfg), Path(result_file(contender.key, seed))
    lightning.seed_everything(seed, verbose=False)
    data: ImageData = build(config.data)
    settings: TrainSettings = build(config.training)
    model = contender.build(data.in_chans, data.num_classes)
    task = ImageClassification(model, settings, data.num_classes, img_size=contender.img_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = file.with_suffix(".ckpt")
    try:
        fit(task, data, lambda share: None, checkpoint)
        correct = correct_images(task, data.test_dataloader(), settings)
        validation = correct_images(task, data.val_dataloader(), settings).mean()
    except Exception as error:  # whatever a model of others raises
        if not contender.model:
            raise
        return f"left out: {one_line(error)}"
    with replacing(file) as new, new.open("wb") as out:
        np.savez_compressed(out, correct=correct, validation=validation)
    checkpoint.unlink(missing_ok=True)
    return f"{correct.mean():.4f} of the test images"


def correct_images(task: ImageClassification, batches: Any, settings: TrainSettings) -> NDArray[np.bool_]:
    """Return True for each image that a trained network classifies correctly, (images,)."""
    logits, labels = predict(task, batches, settings)
    correct: NDArray[np.bool_] = (logits.argmax(1) == labels).numpy()
    return correct


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
