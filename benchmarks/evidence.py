"""`python -m benchmarks.evidence data=cifar10`: what does a search gain over what you would take instead?

Two searches of equal time share a supernet: the default one, and one that draws networks at random. Five kinds of networks
are compared: members of the front; the authors' pattern at every width; members of the random search's front; of all that
the random search measured, the networks with the most multiply-accumulates within a latency; and small models of timm, at
the size of the images and at twice that. All are trained from random weights by one recipe, with several seeds, and classify
test images, which nothing was chosen on. Then all are measured in turn, in float32 and in int8.

The trainings take hours; cut off, the same command goes on. `--processes 2` trains two networks at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hydra
import lightning
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from benchmarks.evidence_table import ARMS, Measured, draw, show
from models.architecture import Architecture
from models.complexity import count_params
from models.litv2 import build as build_network
from search import UserError, one_line
from search.commands.cli import build, conf_dir, plain
from search.files import replacing, write_text
from search.latency.base import Latency
from search.latency.onnxruntime import RUNTIME, onnxruntime_target
from search.latency.runtime import ConversionError, Form
from search.latency.target import Network
from search.results.view import make_console
from search.space.dimensions import describe
from search.space.space import PATTERN
from search.study.front import front
from search.study.storage import SHARED_SECONDS, reading
from search.study.trial import TrialRecord, finished_trials
from search.training.task import ImageClassification, fit, predict

PEERS = (
    "mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv4_conv_small",
    "efficientnet_lite0", "efficientnet_b0", "mobilevit_xxs", "edgenext_xx_small", "fastvit_t8", "resnet10t", "resnet18",
)  # fmt: skip
SEARCHES = {"front": [], "random": ["sampler=random"]}
DTYPES = ("float32", "int8")


@dataclass(frozen=True)
class Contender:
    """A network to train and to measure.

    Args:
        name: What it is, for the table.
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
        """Name of its files; networks of several arms are trained once."""
        network = self.model or Architecture.from_dict(self.architecture or {}).key
        return f"{network}@{self.img_size}"

    def build(self, in_chans: int, num_classes: int) -> nn.Module:
        """Build it with random weights."""
        if self.architecture is not None:
            architecture = Architecture.from_dict(self.architecture)
            return build_network(architecture, in_chans=in_chans, num_classes=num_classes)
        model: nn.Module = timm.create_model(self.model, in_chans=in_chans, num_classes=num_classes)
        return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/evidence"), help="where everything is kept")
    parser.add_argument("--images", type=int, default=10000, help="training images, of searches and trainings")
    parser.add_argument("--val-images", type=int, default=4000, help="validation images, of searches")
    parser.add_argument("--minutes", type=float, default=20.0, help="time for the trials of a search")
    parser.add_argument("--epochs", type=int, default=14, help="of the supernet that both searches share")
    parser.add_argument("--train-epochs", type=int, default=40, help="of a network")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of a network")
    parser.add_argument("--levels", type=int, default=5, help="latencies at which networks are picked")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), help="models of timm")
    parser.add_argument("--processes", type=int, default=1, help="networks that are trained at a time, each on one thread")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="time for measuring a network")
    parser.add_argument("--plot", type=Path, help="file for the figure")
    parser.add_argument("overrides", nargs="*", help="of the searches, such as data=cifar10 space=fine")
    evidence = Evidence(parser.parse_args())
    for name, settings in SEARCHES.items():
        evidence.search(name, settings)
    arms = evidence.arms()
    contenders = {contender.key: contender for arm in arms.values() for contender in arm}
    evidence.train(list(contenders.values()))
    latencies = evidence.measure(list(contenders.values()))
    measured = {
        arm: [evidence.measured(contender, latencies[contender.key]) for contender in of_arm if contender.key in latencies]
        for arm, of_arm in arms.items()
    }
    show(evidence.console, measured, evidence.account())
    if evidence.options.plot is not None:
        draw(measured, evidence.options.plot)


class Evidence:
    """The steps of the benchmark, in one folder; what is done is not done again.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.console = options, make_console()
        self.folder: Path = options.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = [f"data.train_size={options.images}", f"data.val_size={options.val_images}"]
        self.overrides = ["+search=cpu_latency", "data=cifar10", "space=fine", *options.overrides, *sizes]
        training = [f"check.long.max_epochs={options.train_epochs}", *self.overrides]
        with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
            self.cfg: DictConfig = hydra.compose("check", training)

    def search(self, name: str, settings: Sequence[str]) -> None:
        """Search for some minutes, with the supernet of the other search; begin again if that was cut off."""
        done = self.folder / f"{name}.done"
        if done.exists():
            return
        supernet = [f"train.max_epochs={self.options.epochs}"]
        self.command("run", *supernet, "study.name=supernet", "study.n_trials=1")
        shutil.rmtree(self.folder / "outputs" / name, ignore_errors=True)
        limits = ["study.n_trials=100000", f"study.timeout_minutes={self.options.minutes}"]
        self.command("run", *supernet, f"study.name={name}", *limits, *settings)
        write_text(done, "")

    def command(self, name: str, *settings: str) -> None:
        """Run a command of the project; its output is kept in a file."""
        line = [sys.executable, "-m", f"search.{name}", *self.overrides, *settings]
        self.say(" ".join(line[2:]))
        with (self.folder / "commands.log").open("a") as log:
            code = subprocess.run(line, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            raise UserError(f"search.{name} ended with exit code {code}; see {self.folder / 'commands.log'}")

    def trials(self, name: str) -> tuple[list[TrialRecord], float]:
        """Return the trials of a search, and the seconds of its supernet."""
        with reading(name, f"sqlite:///{self.folder}/outputs/{name}/study.db") as study:
            return finished_trials(study), study.user_attrs.get(SHARED_SECONDS, 0.0)

    def arms(self) -> dict[str, list[Contender]]:
        """Pick the networks of each arm."""
        (searched, _), (drawn, _) = self.trials("front"), self.trials("random")
        members = front(searched)
        ends = members[0].result.latencies_ms[0], members[-1].result.latencies_ms[0]
        levels_ms = [float(each) for each in np.geomspace(*ends, self.options.levels)]
        patterns = [trial for trial in searched if trial.origin.startswith(PATTERN)]
        picked = (
            at_levels(members, levels_ms, lambda trial: trial.accuracy),
            patterns,
            at_levels(front(drawn), levels_ms, lambda trial: trial.accuracy),
            at_levels([trial for trial in drawn if trial.result.measured], levels_ms, lambda trial: trial.num_macs),
        )
        side = self.cfg.data.img_size
        peers = [
            Contender(f"{name} at {size}", None, name, size) for name in self.options.peers for size in (side, 2 * side)
        ]
        of_trials = [
            [Contender(describe(t.architecture), t.architecture.to_dict(), "", t.architecture.side(side)) for t in trials]
            for trials in picked
        ]
        return dict(zip(ARMS, [*of_trials, peers], strict=True))

    def train(self, contenders: Sequence[Contender]) -> None:
        """Train all networks with all seeds."""
        cfg = {"data": plain(self.cfg.data), "training": plain(self.cfg.check.long)}
        tasks = [(each, seed) for seed in range(self.options.seeds) for each in contenders]
        missing = [(each, seed) for each, seed in tasks if not self.result_file(each, seed).exists()]
        self.say(f"{len(tasks)} trainings, {len(missing)} of them to do")
        context = get_context("spawn")
        with ProcessPoolExecutor(self.options.processes, context) as pool:
            trainings = [pool.submit(train, cfg, each, seed, self.result_file(each, seed)) for each, seed in missing]
            for (each, seed), training in zip(missing, trainings, strict=True):
                self.say(f"{each.key}, seed {seed}: {training.result()}")

    def result_file(self, contender: Contender, seed: int) -> Path:
        return self.folder / "trained" / f"{contender.key}-{seed}.npz"

    def measure(self, contenders: Sequence[Contender]) -> dict[str, dict[str, Latency]]:
        """Measure all networks in turn, in float32 and in int8; those that cannot be converted are left out and named."""
        file = self.folder / "latencies.json"
        if file.exists() and set(stored := json.loads(file.read_text(encoding="utf-8"))) >= {
            each.key for each in contenders
        }:
            return {key: {name: Latency.from_summary(facts) for name, facts in of.items()} for key, of in stored.items()}
        data, num_classes = self.cfg.data, self.num_classes()
        target = onnxruntime_target(
            img_size=data.img_size, in_chans=data.in_chans, num_classes=num_classes, batch_size=1, num_threads=1,
            dtype="float32", prepared=True, tolerance=0.025, max_seconds=self.options.max_seconds, calibration_seconds=5.0,
        )  # fmt: skip
        anchor = build(self.cfg.space).anchor()
        calibration, ready, names = target.calibrate(anchor), [], []
        for contender, dtype in ((each, dtype) for each in contenders for dtype in DTYPES):
            shape = (data.in_chans, contender.img_size, contender.img_size)
            network = Network(partial(contender.build, data.in_chans, num_classes), shape)
            try:
                ready.append(target.make_ready(network, Form(RUNTIME, dtype)))
                names.append((contender.key, dtype))
            except (ConversionError, RuntimeError, ValueError) as error:
                self.say(f"{contender.key} in {dtype} is left out: {one_line(error)}")
        self.say(f"measuring {len(ready)} networks in turn")
        measured: dict[str, dict[str, Latency]] = {}
        for (key, dtype), latency in zip(names, target.time(ready, calibration), strict=True):
            measured.setdefault(key, {})[dtype] = latency.without_samples()
        stored = {key: {name: latency.summary() for name, latency in of.items()} for key, of in measured.items()}
        write_text(file, json.dumps(stored, indent=1))
        return measured

    def num_classes(self) -> int:
        classes: int = build(self.cfg.data).num_classes
        return classes

    def measured(self, contender: Contender, latencies: dict[str, Latency]) -> Measured:
        """Put together what is known of a network."""
        files = [self.result_file(contender, seed) for seed in range(self.options.seeds)]
        results = [np.load(file) for file in files]
        return Measured(
            name=contender.name,
            latencies=latencies,
            correct=np.stack([result["correct"] for result in results]),
            validation=float(np.mean([result["validation"] for result in results])),
            num_params=int(results[0]["num_params"]),
            seconds=float(np.mean([result["seconds"] for result in results])),
        )

    def account(self) -> list[str]:
        """What the searches took."""
        lines = []
        for name in SEARCHES:
            trials, seconds = self.trials(name)
            measured = sum(trial.result.measured for trial in trials)
            supernet = f", with a supernet of {seconds / 60:.0f} minutes" if seconds else ""
            lines.append(
                f"search {name}: {len(trials)} networks in {self.options.minutes:g} minutes, {measured} measured{supernet}"
            )
        return lines

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def at_levels(
    trials: Sequence[TrialRecord], levels_ms: Sequence[float], value: Callable[[TrialRecord], float]
) -> list[TrialRecord]:
    """The network of the largest value within each latency, each once."""
    best: dict[str, TrialRecord] = {}
    for level_ms in levels_ms:
        within = [trial for trial in trials if trial.result.latencies_ms[0] <= level_ms * (1 + 1e-9)]
        if within:
            trial = max(within, key=value)
            best[trial.architecture.key] = trial
    return list(best.values())


def train(cfg: dict[str, Any], contender: Contender, seed: int, file: Path) -> str:
    """Train a network, and store which test images it classifies correctly. Returns its test accuracy, in words."""
    torch.set_num_threads(1)
    config = OmegaConf.create(cfg)
    lightning.seed_everything(seed, verbose=False)
    data, settings, start = build(config.data), build(config.training), time.perf_counter()
    model = contender.build(data.in_chans, data.num_classes)
    task = ImageClassification(model, settings, data.num_classes, img_size=contender.img_size)
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = file.with_suffix(".ckpt")
    fit(task, data, lambda share: None, checkpoint)
    seconds = time.perf_counter() - start
    correct = correct_images(task, data.test_dataloader(), settings)
    values = {"correct": correct, "validation": correct_images(task, data.val_dataloader(), settings).mean()}
    with replacing(file) as new, new.open("wb") as out:
        np.savez_compressed(out, num_params=count_params(model), seconds=seconds, **values)
    checkpoint.unlink(missing_ok=True)
    return f"{correct.mean():.4f} of the test images in {seconds:.0f} s"


def correct_images(task: ImageClassification, batches: Any, settings: Any) -> NDArray[np.bool_]:
    """Which images a trained network classifies correctly."""
    logits, labels = predict(task, batches, settings)
    correct: NDArray[np.bool_] = (logits.argmax(1) == labels).numpy()
    return correct


if __name__ == "__main__":
    main()
