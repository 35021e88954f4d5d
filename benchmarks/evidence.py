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
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from benchmarks.commands import run_command
from benchmarks.contenders import Contender, Results, each_once, measure, train
from benchmarks.evidence_table import ARMS, DTYPE, Measured, draw, read, show
from search import UserError
from search.commands.cli import build, conf_dir
from search.files import write_text
from search.results.view import make_console
from search.space.dimensions import describe
from search.space.space import PATTERN
from search.study.front import front
from search.study.storage import SHARED_SECONDS, reading
from search.study.trial import SAMPLED, TrialRecord, finished_trials
from search.training.data import ImageData

PEERS = (
    "mobilenetv3_small_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "mobilenetv4_conv_small",
    "efficientnet_lite0", "efficientnet_b0", "mobilevit_xxs", "edgenext_xx_small", "fastvit_t8", "resnet10t", "resnet18",
)  # fmt: skip
SEARCHES = {"front": [], "random": ["sampler=random"]}
SUPERNET = "supernet"  # the study whose shared weights both searches use


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
        self.results = Results(self.settings, options.record)
        self.overrides = search_overrides(self.settings, overrides)
        self.cfg = config(self.settings, self.overrides)

    def run(self) -> dict[str, list[Measured]]:
        """Search, measure, train and show. Returns the networks of each arm."""
        data: ImageData = build(self.cfg.data)
        contenders, options = self.contenders(data), self.options
        forms = [(contender, dtype) for contender in contenders for dtype in (DTYPE, "int8")]
        latencies = measure(forms, self.cfg, data, options.max_seconds, self.console)
        contenders = [contender for contender in contenders if contender.key in latencies]
        train(contenders, self.cfg, options.seeds, options.processes, self.results, self.console)
        measured, account = read(Path())
        show(self.console, measured, account)
        return measured

    @property
    def settings(self) -> dict[str, Any]:
        """The options that results depend on."""
        may_change = ("folder", "plot", "record", "processes", "seeds")
        return {key: value for key, value in vars(self.options).items() if key not in may_change}

    def contenders(self, data: ImageData) -> list[Contender]:
        """Search, and pick the networks of all arms; what was picked is kept. Raises: UserError as of the steps."""
        if not self.results.arms():
            peers = self.peers(data)
            for name, settings in SEARCHES.items():
                self.search(name, settings)
            arms = dict(zip(ARMS, [*self.of_searches(), peers], strict=True))
            self.results.save_arms(arms, self.account())
        return each_once(self.results.arms())

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


def search_overrides(settings: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a search; those of the command line count before the sizes of its data."""
    sizes = [f"data.train_size={settings['images']}", f"data.val_size={settings['val_images']}"]
    return ["+search=cpu_latency", "data=cifar10", "space=fine", *overrides, *sizes]


def config(settings: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration of a search, with the recipe of a network's training in `check.long`."""
    recipe = [f"check.long.max_epochs={settings['train_epochs']}", f"check.long.lr={settings['lr']}"]
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        return hydra.compose("check", [*overrides, *recipe])


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


if __name__ == "__main__":
    main()
