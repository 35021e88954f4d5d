"""`python -m benchmarks.evidence data=cifar10`: what does a search gain over what you would take instead?

Two searches of equal time share a supernet: the default one, and one that draws networks at random. Five kinds of networks
are compared: members of the front; the authors' pattern at every width; members of the random search's front; of all that
the random search drew, the networks with the most multiply-accumulates within a latency, whatever they score; and small
models of timm, at the size of the images and at twice that.

All are measured in turn, in float32 and in int8, and trained from random weights by one recipe, with several seeds. Which
networks of a kind count is chosen by validation images; the test images are for the comparison alone. The trainings take
hours; cut off, the same command goes on. With --record FILE all results are kept in a small file too, from which the same
command goes on in another folder or on another machine, and which `python -m benchmarks.evidence_table FILE` shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import hydra
import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from benchmarks.commands import run_command
from benchmarks.evidence_table import (
    ARMS,
    ARMS_FILE,
    DTYPE,
    LATENCIES_FILE,
    TRAINED,
    Measured,
    draw,
    read,
    read_latencies,
    result_file,
    show,
)
from models.architecture import Architecture
from models.litv2 import build as build_network
from search import UserError, one_line
from search.commands.cli import build, conf_dir, plain
from search.commands.measure import from_timm
from search.files import replacing, write_text
from search.latency.base import Latency
from search.latency.onnxruntime import RUNTIME, onnxruntime_target
from search.latency.runtime import Form
from search.latency.target import Network
from search.results.view import make_console
from search.space.dimensions import describe
from search.space.space import PATTERN
from search.study.front import front
from search.study.storage import SHARED_SECONDS, reading
from search.study.trial import SAMPLED, TrialRecord, finished_trials
from search.training.data import ImageData
from search.training.processes import end_with_parent
from search.training.settings import TrainSettings
from search.training.task import ImageClassification, fit, predict

PEERS = (
    "mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv4_conv_small",
    "efficientnet_lite0", "efficientnet_b0", "mobilevit_xxs", "edgenext_xx_small", "fastvit_t8", "resnet10t", "resnet18",
)  # fmt: skip
SEARCHES = {"front": [], "random": ["sampler=random"]}
SUPERNET = "supernet"  # the study whose shared weights both searches use
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/evidence"), help="where everything is kept")
    parser.add_argument("--images", type=int, default=10000, help="training images, of searches and trainings")
    parser.add_argument("--val-images", type=int, default=4000, help="validation images")
    parser.add_argument("--minutes", type=float, default=20.0, help="time limit of a search, without the supernet")
    parser.add_argument("--epochs", type=int, default=14, help="of the supernet that both searches share")
    parser.add_argument("--train-epochs", type=int, default=40, help="of a network")
    parser.add_argument("--lr", type=float, default=1.7e-3, help="learning rate of a network's training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of a network")
    parser.add_argument("--levels", type=int, default=5, help="latencies at which networks are picked")
    parser.add_argument("--peers", default=",".join(PEERS), help="models of timm, separated by commas")
    parser.add_argument("--processes", type=int, default=1, help="networks that are trained at a time, each on one thread")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="time limit for measuring a network")
    parser.add_argument("--plot", type=Path, help="file for the figure")
    parser.add_argument("--record", type=Path, help="file for all results; the folder gets what it lacks from it")
    parser.add_argument("overrides", nargs="*", help="of the searches, such as data=cifar10 space=fine")
    options = parser.parse_args()
    plot = None if options.plot is None else options.plot.resolve()
    options.record = None if options.record is None else options.record.resolve()
    try:
        measured = Evidence(options).run()
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    if plot is not None:
        draw(measured, plot)


class Evidence:
    """The steps of the benchmark, in one folder; steps that are finished are not repeated.

    Args:
        options: Of the command line.

    Raises:
        UserError: If the folder or the record has results of other options, or the record cannot be read.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.console = options, make_console()
        overrides = [absolute(override) for override in options.overrides]  # before the folder changes
        self.folder: Path = options.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        os.chdir(self.folder)  # what searches and trainings leave is in one place
        sizes = [f"data.train_size={options.images}", f"data.val_size={options.val_images}"]
        self.overrides = ["+search=cpu_latency", "data=cifar10", "space=fine", *overrides, *sizes]
        self.begin_with_record()
        self.refuse_other_options()
        recipe = [f"check.long.max_epochs={options.train_epochs}", f"check.long.lr={options.lr}"]
        with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
            self.cfg: DictConfig = hydra.compose("check", [*self.overrides, *recipe])

    def run(self) -> dict[str, list[Measured]]:
        """Search, measure, train and show. Returns the networks of each arm."""
        data: ImageData = build(self.cfg.data)
        contenders = {contender.key: contender for contender in self.contenders(data)}
        latencies = self.measure(list(contenders.values()), data)
        self.train([contender for key, contender in contenders.items() if key in latencies])
        measured, account = read(Path())
        show(self.console, measured, account)
        return measured

    def begin_with_record(self) -> None:
        """Unpack what the record has and the folder lacks. Raises: UserError if it cannot be read or is of other options."""
        record = self.options.record
        if record is None or not record.exists():
            return
        try:
            with ZipFile(record) as archive:
                if archive.read(OPTIONS_FILE).decode() != self.options_text:
                    raise UserError(f"{record} has results of other options; choose another --record")
                for name in archive.namelist():
                    if not Path(name).exists():
                        archive.extract(name)
        except (BadZipFile, KeyError, OSError) as error:
            raise UserError(
                f"{record} is not a record of this benchmark ({one_line(error)}); choose another --record"
            ) from error

    def keep_record(self) -> None:
        """Pack all results but the searches themselves into the record."""
        if self.options.record is None:
            return
        files = [Path(name) for name in (OPTIONS_FILE, ARMS_FILE, LATENCIES_FILE)]
        with replacing(self.options.record) as new, ZipFile(new, "w", ZIP_DEFLATED) as archive:
            for file in [*files, *sorted(Path(TRAINED).glob("*.npz"))]:
                archive.write(file)

    @property
    def options_text(self) -> str:
        """The options that results depend on."""
        may_change = ("folder", "plot", "record", "processes", "seeds")
        return json.dumps({key: value for key, value in vars(self.options).items() if key not in may_change}, indent=1)

    def refuse_other_options(self) -> None:
        """Keep the options that results depend on. Raises: UserError if the folder has results of others."""
        file = Path(OPTIONS_FILE)
        if file.exists() and file.read_text(encoding="utf-8") != self.options_text:
            raise UserError(f"{self.folder} has results of other options ({file}); choose another --folder")
        write_text(file, self.options_text)

    def contenders(self, data: ImageData) -> list[Contender]:
        """Search, and pick the networks of all arms; what was picked is kept. Raises: UserError as of the steps."""
        file = Path(ARMS_FILE)
        if not file.exists():
            peers = self.peers(data)
            for name, settings in SEARCHES.items():
                self.search(name, settings)
            arms = dict(zip(ARMS, [*self.of_searches(), peers], strict=True))
            of_arms = {arm: [{"key": each.key, **asdict(each)} for each in of_arm] for arm, of_arm in arms.items()}
            write_text(file, json.dumps({"account": self.account(), "arms": of_arms}, indent=1))
        stored = json.loads(file.read_text(encoding="utf-8"))["arms"]
        fields = [{name: value for name, value in each.items() if name != "key"} for arm in ARMS for each in stored[arm]]
        return [Contender(**each) for each in fields]

    def search(self, name: str, settings: Sequence[str]) -> None:
        """Search for some minutes with the shared supernet; a search that was cut off starts again."""
        done = Path(f"{name}.done")
        if done.exists():
            return
        supernet = [f"train.max_epochs={self.options.epochs}"]
        self.command("run", *supernet, f"study.name={SUPERNET}", "study.n_trials=1")
        shutil.rmtree(Path("outputs") / name, ignore_errors=True)
        limits = ["study.n_trials=100000", "study.min_expected_gain=null", f"study.timeout_minutes={self.options.minutes}"]
        self.command("run", *supernet, f"study.name={name}", *limits, *settings)
        write_text(done, "")

    def command(self, name: str, *settings: str) -> None:
        """Run a command of the project; its output goes to a file. Raises: UserError if it fails."""
        run_command(name, [*self.overrides, *settings], self.folder, self.console)

    def peers(self, data: ImageData) -> list[Contender]:
        """Return the models of timm at both sizes. Raises: UserError if one is unknown."""
        names = [name for name in self.options.peers.split(",") if name]
        sizes = (data.img_size, 2 * data.img_size)
        peers = [Contender(f"{name} at {size}", None, name, size) for name in names for size in sizes]
        for peer in peers:
            with torch.device("meta"):
                peer.build(data.in_chans, data.num_classes)
        return peers

    def of_searches(self) -> list[list[Contender]]:
        """Pick the networks of the other arms. Raises: UserError if a search found nothing."""
        (searched, _), (drawn, _) = self.trials("front"), self.trials("random")
        members, drawn_members = front(searched), front(drawn)
        if not members or not drawn_members:
            raise UserError(f"a search found no network in {self.options.minutes:g} minutes; set --minutes higher")
        ends_ms = members[0].result.latencies_ms[0], members[-1].result.latencies_ms[0]
        levels_ms = [float(level) for level in np.geomspace(*ends_ms, self.options.levels)]
        samples = [trial for trial in drawn if trial.origin == SAMPLED]  # measured or, if they scored badly, predicted
        picked = (
            within(levels_ms, members, lambda trial: trial.accuracy),
            [trial for trial in searched if trial.origin.startswith(PATTERN)],
            within(levels_ms, drawn_members, lambda trial: trial.accuracy),
            within(levels_ms, samples, lambda trial: trial.num_macs),
        )
        return [[self.contender(trial) for trial in trials] for trials in picked]

    def contender(self, trial: TrialRecord) -> Contender:
        architecture = trial.architecture
        side = architecture.side(self.cfg.data.img_size)
        return Contender(describe(architecture), architecture.to_dict(), "", side)

    def trials(self, name: str) -> tuple[list[TrialRecord], float]:
        """Return the trials of a study, and the seconds that its supernet took; 0 if it was there."""
        with reading(name, f"sqlite:///{self.folder}/outputs/{name}/study.db") as study:
            return finished_trials(study), study.user_attrs.get(SHARED_SECONDS, 0.0)

    def measure(self, contenders: Sequence[Contender], data: ImageData) -> dict[str, dict[str, Latency]]:
        """Measure all networks in turn, in both dtypes. Returns latencies by network and dtype; all have float32."""
        file = Path(LATENCIES_FILE)
        if file.exists():
            return read_latencies(Path())
        target = onnxruntime_target(
            img_size=data.img_size, in_chans=data.in_chans, num_classes=data.num_classes, batch_size=1, num_threads=1,
            dtype=DTYPE, prepared=True, tolerance=0.025, max_seconds=self.options.max_seconds, calibration_seconds=5.0,
        )  # fmt: skip
        calibration, ready = target.calibrate(build(self.cfg.space).anchor()), {}
        for contender, dtype in ((contender, dtype) for contender in contenders for dtype in (DTYPE, "int8")):
            shape = (data.in_chans, contender.img_size, contender.img_size)
            network = Network(partial(contender.build, data.in_chans, data.num_classes), shape)
            try:
                ready[contender.key, dtype] = target.make_ready(network, Form(RUNTIME, dtype))
            except Exception as error:  # whatever a model of others raises
                if not contender.model:
                    raise
                self.say(f"{contender.key} in {dtype} is left out: {one_line(error)}")
        self.say(f"measuring {len(ready)} networks in turn")
        latencies: dict[str, dict[str, Latency]] = {}
        for (key, dtype), latency in zip(ready, target.time(list(ready.values()), calibration), strict=True):
            if dtype == DTYPE or key in latencies:
                latencies.setdefault(key, {})[dtype] = latency.without_samples()
        body = {key: {name: each.summary() for name, each in by.items()} for key, by in latencies.items()}
        write_text(file, json.dumps(body, indent=1))
        return latencies

    def train(self, contenders: Sequence[Contender]) -> None:
        """Train all networks with all seeds; those whose training fails are named, and left out of the results."""
        cfg = {"data": plain(self.cfg.data), "training": plain(self.cfg.check.long)}
        tasks = [(contender, seed) for seed in range(self.options.seeds) for contender in contenders]
        tasks.sort(key=lambda task: bool(task[0].model))  # the arms that are compared first
        missing = [(contender, seed) for contender, seed in tasks if not Path(result_file(contender.key, seed)).exists()]
        self.say(f"{len(tasks)} trainings, {len(missing)} to do")
        self.keep_record()
        pool = ProcessPoolExecutor(self.options.processes, get_context("spawn"), initializer=end_with_parent)
        try:
            trainings = [pool.submit(train, cfg, contender, seed) for contender, seed in missing]
            for (contender, seed), training in zip(missing, trainings, strict=True):
                self.say(f"{contender.key}, seed {seed}: {training.result()}")
                self.keep_record()
        finally:
            pool.shutdown(cancel_futures=True)

    def account(self) -> list[str]:
        """Return lines about the time and the networks of the searches."""
        lines = [f"supernet of both searches: {self.trials(SUPERNET)[1] / 60:.1f} minutes"]
        for name in SEARCHES:
            trials, _ = self.trials(name)
            num_measured = sum(trial.result.measured for trial in trials)
            lines.append(
                f"search {name}: {len(trials)} networks in {self.options.minutes:g} minutes, {num_measured} measured"
            )
        return lines

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def absolute(override: str) -> str:
    """Return an override with an absolute path, where its value is a file or a folder here."""
    key, _, value = override.partition("=")
    return f"{key}={Path(value).resolve()}" if "/" in value and Path(value).exists() else override


def within(
    levels_ms: Sequence[float], trials: Sequence[TrialRecord], value: Callable[[TrialRecord], float]
) -> list[TrialRecord]:
    """Return the trial of the largest value within each latency, each network once."""
    best: dict[str, TrialRecord] = {}
    for level_ms in levels_ms:
        candidates = [trial for trial in trials if trial.result.latencies_ms[0] <= level_ms * (1 + 1e-9)]
        if candidates:
            trial = max(candidates, key=value)
            best[trial.architecture.key] = trial
    return list(best.values())


def train(cfg: dict[str, Any], contender: Contender, seed: int) -> str:
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


if __name__ == "__main__":
    main()
