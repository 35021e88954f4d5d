"""`python -m benchmarks.evaluators`: which evaluator finds the better front in the same time?

Searches with `accuracy=supernet` and `accuracy=scratch` take turns, each in a process of its own, with a supernet of its
own, and stopped after the same wall-clock time. What counts is not what they say of their networks: members of every front,
evenly spaced, are trained alone for long and measured again, all by one ruler, and the hypervolumes of what that finds are
compared. About three hours on two cores; cut off, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from search.accuracy.cache import AccuracyCache
from search.commands.cli import build, conf_dir
from search.commands.standalone import standalone_trainings
from search.commands.targets import FIRST_DEVICE, make_engine
from search.engine.base import Engine
from search.latency.base import Calibration, Latency
from search.space.space import Space
from search.study.pareto import hypervolume
from search.study.storage import open_study
from search.study.trial import Finished, accuracy_of, finished_trials, front, latest_of_each
from search.training.data import ImageData

METHODS = ("supernet", "scratch")
GRACE_SECONDS = 60  # for a search that was told to stop


@dataclass(frozen=True)
class Ruler:
    """What every front is confirmed by: long trainings of single networks, and one measuring process."""

    alone: AccuracyCache
    engine: Engine
    calibration: Calibration
    latencies: dict[str, Latency]

    def accuracy(self, member: Finished) -> float:
        return self.alone.evaluate(member.architecture, seed=0).accuracy

    def latency_ms(self, member: Finished) -> float:
        key = member.architecture.key
        if key not in self.latencies:
            self.latencies[key] = self.engine.measure(FIRST_DEVICE, member.architecture, self.calibration)
        return self.latencies[key].latency_ms


@dataclass(frozen=True)
class Result:
    """Of one search: different networks with an accuracy, those of them that were measured, and hypervolumes."""

    num_judged: int
    num_measured: int
    front_size: int
    said: float
    confirmed: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="wall-clock time of a search")
    parser.add_argument("--repetitions", type=int, default=5, help="searches with each evaluator")
    parser.add_argument("--members", type=int, default=8, help="of a front that are confirmed, at most")
    parser.add_argument("--folder", type=Path, default=Path("outputs/evaluators"), help="where the searches are kept")
    parser.add_argument("overrides", nargs="*", help="of every search, such as data=digits")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a search that is under way ends too
    logging.getLogger("optuna").setLevel(logging.WARNING)
    console = Console()
    for repetition in range(options.repetitions):
        for method in METHODS:
            run(options.folder, method, repetition, options.minutes, options.overrides, console)
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = hydra.compose("confirm", ["+search=cpu_latency", "accuracy=scratch", *options.overrides])
    results = confirm(cfg, options, console)
    show(console, results, options)


def name_of(method: str, repetition: int) -> str:
    return f"{method}-{repetition}"


def run(folder: Path, method: str, repetition: int, minutes: float, overrides: list[str], console: Console) -> None:
    """One search, unless it was made before: to the end of its time, whatever it has found by then."""
    name = name_of(method, repetition)
    done = folder / f"{name}.done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "search.run", "+search=cpu_latency", f"accuracy={method}", f"study.name={name}"]
    command += [f"study.seed={repetition}", "study.n_trials=100000", *overrides]
    if method == "supernet":
        command.append(f"accuracy.cache=outputs/.supernets-{name}")
    for left in (name, f".supernets-{name}"):  # of a search that was cut off: its time is not known
        shutil.rmtree(folder / "outputs" / left, ignore_errors=True)
    console.print(f"{name}: searching for {minutes:g} minutes")
    with (folder / f"{name}.log").open("w") as log:
        search = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment())
        try:
            search.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            search.send_signal(signal.SIGTERM)
            search.wait(GRACE_SECONDS)
        finally:
            search.kill()
    done.touch()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def confirm(cfg: DictConfig, options: argparse.Namespace, console: Console) -> dict[str, list[Result]]:
    """Confirm the fronts of all searches by one ruler."""
    studies = {
        (method, repetition): finished_trials(
            open_study(
                name_of(method, repetition),
                f"sqlite:///{options.folder}/outputs/{name_of(method, repetition)}/study.db",
                create=False,
            )
        )
        for method in METHODS
        for repetition in range(options.repetitions)
    }
    data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
    trainings = standalone_trainings(cfg, cfg.confirm.train, data, options.folder / "alone.jsonl")
    engine = make_engine(cfg, data, partial(build(cfg.accuracy), data=data, train=build(cfg.train)))
    space: Space = build(cfg.space)
    results: dict[str, list[Result]] = {method: [] for method in METHODS}
    try:
        calibration = engine.calibrate(FIRST_DEVICE, space.anchor())
        limit = engine.measure(FIRST_DEVICE, space.largest(), calibration).latency_ms
        ruler = Ruler(trainings, engine, calibration, {})
        for (method, _), trials in track(list(studies.items()), "confirming", console=console):
            results[method].append(judge(trials, ruler, limit, options.members))
    finally:
        engine.close()
    (options.folder / "results.json").write_text(
        json.dumps({method: [vars(one) for one in found] for method, found in results.items()}, indent=2)
    )
    return results


def judge(trials: list[Finished], ruler: Ruler, limit_ms: float, num_members: int) -> Result:
    judged = [one for one in latest_of_each(trials) if one.outcome.accuracy is not None]
    members = front(trials)
    chosen = [members[index] for index in sorted(set(np.linspace(0, len(members) - 1, num_members).round().astype(int)))]
    said = hypervolume([accuracy_of(one) for one in members], [one.outcome.latency.latency_ms for one in members], limit_ms)
    confirmed = hypervolume([ruler.accuracy(one) for one in chosen], [ruler.latency_ms(one) for one in chosen], limit_ms)
    num_measured = sum(one.outcome.latency.measured for one in judged)
    return Result(len(judged), num_measured, len(members), said, confirmed)


def show(console: Console, results: dict[str, list[Result]], options: argparse.Namespace) -> None:
    title = f"{options.repetitions} searches of {options.minutes:g} minutes with each evaluator: mean ± standard deviation"
    table = Table(title=title, title_justify="left")
    for header in ("evaluator", "networks judged", "measured", "front", "hypervolume as the search says", "confirmed"):
        table.add_column(header, justify="left" if header == "evaluator" else "right")
    for method, found in results.items():
        counts = [[one.num_judged for one in found], [one.num_measured for one in found], [one.front_size for one in found]]
        volumes = [[one.said for one in found], [one.confirmed for one in found]]
        cells = [spread(values, "{:.0f}") for values in counts] + [spread(values, "{:.4f}") for values in volumes]
        table.add_row(method, *cells)
    console.print(table)
    pairs = list(zip(results["supernet"], results["scratch"], strict=True))
    console.print(
        "supernet against scratch, pair by pair: confirmed hypervolume "
        + spread([one.confirmed - other.confirmed for one, other in pairs], "{:+.4f}")
        + ", networks judged "
        + spread([one.num_judged / max(1, other.num_judged) for one, other in pairs], "{:.1f}")
        + " times"
    )


def spread(values: list[float] | list[int], form: str) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{form.format(statistics.fmean(values))} ±{form.format(deviation).lstrip('+')}"


if __name__ == "__main__":
    main()
