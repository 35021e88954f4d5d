"""`python -m benchmarks.transfer data=cifar10`: what does a supernet of other images bring a search on few images?

The classes are cut into halves. A supernet is trained on all images of the first half. Searches on a few images of the
second half start from nothing, from these weights, and from these weights with a quarter of the epochs and trials. Networks
of each front, at the same latencies, are trained on from the weights that their search scored them with, and classify test
images of the second half, which nothing was chosen on. `search.check` tells how well scores rank long trainings.

About three hours on one core; cut off, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import optuna
from datasets import Dataset
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from benchmarks.commands import run_command
from search.commands.cli import build, conf_dir
from search.results.export import member_name
from search.results.picking import pick
from search.results.view import make_console
from search.study.front import front
from search.study.storage import SHARED_SECONDS, SUPERNET, reading
from search.study.trial import finished_trials
from search.training.decoding import encoded
from search.training.labels import with_classes

CHECKED = ("nothing", "weights")
CHECK_ANSWERS = (0, 3, 4)  # exit codes of search.check: meaningful, not meaningful, undecided


@dataclass(frozen=True)
class Arm:
    """How searches start.

    Args:
        name: For the table.
        starts_from_weights: Or from nothing.
        share: Of the epochs and trials of the others.
    """

    name: str
    starts_from_weights: bool
    share: float = 1.0


ARMS = (Arm("nothing", False), Arm("weights", True), Arm("quarter", True, 0.25))


@dataclass(frozen=True)
class Result:
    """What a search led to.

    Args:
        minutes: Of shared training and trials.
        accuracies: On test images, of a trained network for each latency.
    """

    minutes: float
    accuracies: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/transfer"), help="where everything is kept")
    parser.add_argument("--images", type=int, default=1000, help="training images of a search")
    parser.add_argument("--val-images", type=int, default=2000, help="validation images of a search")
    parser.add_argument("--epochs", type=int, default=48, help="of a search's supernet")
    parser.add_argument("--pretrain-epochs", type=int, default=4, help="of the supernet of the first half")
    parser.add_argument("--train-epochs", type=int, default=30, help="of a network of a front")
    parser.add_argument("--trials", type=int, default=60, help="of a search")
    parser.add_argument("--checked", type=int, default=16, help="networks of each search.check")
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind")
    parser.add_argument("--levels", type=int, default=3, help="latencies at which networks are compared")
    parser.add_argument("overrides", nargs="*", help="of every command, such as data=cifar10 space=fine")
    options = parser.parse_args()
    transfer = Transfer(options, make_console())
    transfer.split()
    weights = transfer.pretrain()
    results: dict[Arm, list[Result]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:  # in turn, so that a load on the machine slows all of them
            results[arm].append(transfer.run(arm, seed, weights))
    taus = {name: transfer.check(name, weights) for name in CHECKED}
    show(transfer, results, taus)


class Transfer:
    """The commands of the benchmark, in one folder.

    Args:
        options: Of the command line.
        console: For progress.
    """

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.folder: Path = options.folder.resolve()
        with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
            self.cfg: DictConfig = hydra.compose("check", ["+search=cpu_latency", *options.overrides])
        self.latencies_ms: list[float] = []

    def split(self) -> None:
        """Write the images of both halves, unless they are there."""
        source, rng = build(self.cfg.data.source), np.random.default_rng(0)
        for split in ("train", "test"):
            if all((self.folder / half / f"{split}.parquet").exists() for half in ("first", "second")):
                continue
            dataset = with_classes(source(split, None), split)
            labels = np.array(dataset["label"][:])
            names = dataset.features["label"].names
            for half, classes in (("first", range(len(names) // 2)), ("second", range(len(names) // 2, len(names)))):
                rows = rng.permutation(np.flatnonzero(np.isin(labels, classes)))
                if (half, split) == ("second", "train"):
                    rows = rows[: self.options.images + self.options.val_images]
                self.say(f"{half} half, {split}: {len(rows):,} images of {', '.join(names[label] for label in classes)}")
                write(
                    dataset.select(rows), [names[label] for label in labels[rows]], self.folder / half / f"{split}.parquet"
                )

    def pretrain(self) -> Path:
        """Train the supernet of the first half; return the file of its weights."""
        settings = [f"train.max_epochs={self.options.pretrain_epochs}", "study.n_trials=1"]
        self.command("run", "pretrained", "first", f"data.val_size={self.options.val_images}", *settings)
        with reading("pretrained", self.storage("pretrained")) as study:
            file: str = study.user_attrs[SUPERNET]
            return self.folder / file

    def run(self, arm: Arm, seed: int, weights: Path) -> Result:
        """Search, and train networks of the front."""
        name = f"{arm.name}-{seed}"
        self.command("run", name, "second", *self.settings(arm, seed, weights))
        with reading(name, self.storage(name)) as study:
            trials = finished_trials(study)
            if not self.latencies_ms:  # those of the first search serve all
                self.latencies_ms = levels([t.result.latencies_ms[0] for t in trials], self.options.levels)
            of_supernet = study.user_attrs.get(SHARED_SECONDS, 0.0)  # none if another search has trained the same one
            minutes = (of_supernet + seconds_of_trials(study)) / 60
        accuracies = []
        for limit_ms in self.latencies_ms:
            (member,) = pick(front(trials), f"latency<={limit_ms:.6f}ms")
            file = Path("outputs", name, "pareto", member_name(member))
            result = self.folder / file.with_suffix(".result.json")
            if not result.exists():
                training = [f"arch={file}", "init=supernet", f"train.max_epochs={self.options.train_epochs}"]
                self.command("train", None, "second", *training)
            accuracies.append(json.loads(result.read_text())["test_accuracy"])
        return Result(minutes, accuracies)

    def check(self, name: str, weights: Path) -> dict[str, Any]:
        """Compare the scores of the first search of an arm with long trainings."""
        arm = next(arm for arm in ARMS if arm.name == name)
        settings = [*self.settings(arm, 0, weights), f"check.num_architectures={self.options.checked}"]
        self.command("check", f"{name}-0", "second", *settings, answers=CHECK_ANSWERS)
        checked: dict[str, Any] = json.loads((self.folder / "outputs" / f"{name}-0" / "check.json").read_text())
        return checked

    def settings(self, arm: Arm, seed: int, weights: Path) -> list[str]:
        """What the searches of an arm have of their own."""
        epochs, trials = (max(1, round(arm.share * each)) for each in (self.options.epochs, self.options.trials))
        start = [f"init={weights}"] if arm.starts_from_weights else []
        length = [f"study.n_trials={trials}", "study.min_expected_gain=null"]
        return [*start, f"study.seed={seed}", f"train.max_epochs={epochs}", *length, *self.sizes()]

    def sizes(self) -> list[str]:
        return [f"data.train_size={self.options.images}", f"data.val_size={self.options.val_images}"]

    def storage(self, name: str) -> str:
        return f"sqlite:///{self.folder}/outputs/{name}/study.db"

    def command(self, name: str, study: str | None, half: str, *settings: str, answers: tuple[int, ...] = (0,)) -> None:
        """Run a command of the project; its output is kept in a file."""
        data = self.cfg.data
        images = ["data=parquet", f"data.source.path={self.folder / half}", f"data.img_size={data.img_size}"]
        images += [f"data.in_chans={data.in_chans}", f"data.shift={data.shift}", f"data.flip={data.flip}"]
        left_out = ("data",) if name == "check" else ("data", "check")
        others = [each for each in self.options.overrides if not each.startswith(left_out)]
        of_study = [] if study is None else ["+search=cpu_latency", f"study.name={study}", *others]
        if name == "train":
            images += self.sizes()
        run_command(name, [*of_study, *images, *settings], self.folder, self.console, answers)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def write(dataset: Dataset, names: list[str], file: Path) -> None:
    """Write encoded images and the names of their classes."""
    images = [row["bytes"] or Path(row["path"]).read_bytes() for row in encoded(dataset)["image"]]
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({"image": images, "label": names}).to_parquet(file)


def seconds_of_trials(study: optuna.Study) -> float:
    """From the start of the first trial to the end of the last one."""
    trials = study.get_trials(deepcopy=False)
    starts = [trial.datetime_start for trial in trials if trial.datetime_start]
    ends = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return (max(ends) - min(starts)).total_seconds()


def levels(latencies_ms: list[float], number: int) -> list[float]:
    """Latencies at equal ratios, from above the fastest network to the slowest one."""
    return [float(each) for each in np.geomspace(min(latencies_ms), max(latencies_ms), number + 1)[1:]]


def show(transfer: Transfer, results: dict[Arm, list[Result]], checks: dict[str, dict[str, Any]]) -> None:
    """Print what the kinds of searches led to, and what scores tell."""
    headers = [f"at most {limit_ms:.3g} ms" for limit_ms in transfer.latencies_ms]
    table = Table("search from", "minutes", *headers, title="test accuracy after training on, mean ± standard deviation")
    nothing = results[ARMS[0]]
    for arm, of_arm in results.items():
        columns = zip(*(result.accuracies for result in of_arm), strict=True)
        table.add_row(
            arm.name, spread([result.minutes for result in of_arm], ".1f"), *(spread(each, ".4f") for each in columns)
        )
        if arm.starts_from_weights:
            pairs = zip(of_arm, nothing, strict=True)
            gains = np.array([np.subtract(started.accuracies, other.accuracies) for started, other in pairs])
            table.add_row("  gain over nothing", "", *(spread(list(each), "+.4f") for each in gains.T))
    transfer.console.print(table)
    for name, checked in checks.items():
        taus = {of: checked["quality"][key] for of, key in (("scores", "evaluator"), ("multiply-accumulates", "macs"))}
        texts = [f"{of} {tau['value']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}]" for of, tau in taus.items()]
        transfer.say(f"search from {name}: Kendall's tau with long trainings, of {', of '.join(texts)}")


def spread(values: Sequence[float], form: str) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):{form}} ±{deviation:{form.lstrip('+')}}"


if __name__ == "__main__":
    main()
