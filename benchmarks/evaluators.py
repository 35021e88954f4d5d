"""`python -m benchmarks.evaluators`: which evaluator finds the better front in the same time?

Searches with `accuracy=supernet` and `accuracy=scratch` (or, by --evaluators scratch,halving, with trainings to the end and
with those that stop early) take turns, each in a process of its own, with a supernet of its own, and stopped after the same
wall-clock time. What counts is not their own values: members of every front,
evenly spaced, are trained alone for long and measured again, all by one ruler, and the hypervolumes of these values are
compared. About three hours on two cores; cut off, the same command goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.commands import environment
from search.accuracy.cache import AccuracyCache
from search.commands.accuracy import evaluator_factory, initial_weights, standalone_trainings, training_images
from search.commands.cli import build, conf_dir
from search.commands.targets import make_engine
from search.engine.base import Engine
from search.latency.base import Calibration, Latency
from search.space.space import Space
from search.study.front import front, latest_of_each
from search.study.pareto import hypervolume
from search.study.storage import open_study
from search.study.targets import FIRST
from search.study.trial import TrialRecord, finished_trials

METHODS = {
    "supernet": ["accuracy=supernet"],
    "scratch": ["accuracy=scratch"],
    "halving": ["accuracy=scratch", "accuracy.halving=3"],
}
GRACE_SECONDS = 60  # for a search that was told to stop


@dataclass(frozen=True)
class Ruler:
    """What every front is confirmed by: long trainings of single networks, and one measuring process."""

    trainings: AccuracyCache
    engine: Engine
    calibration: Calibration
    latencies: dict[str, Latency]

    def accuracy(self, member: TrialRecord) -> float:
        return self.trainings.evaluate(member.architecture, seed=0).accuracy

    async def latency_ms(self, member: TrialRecord) -> float:
        key = member.architecture.key
        if key not in self.latencies:
            self.latencies[key] = await self.engine.measure(FIRST, member.architecture, self.calibration)
        return self.latencies[key].latency_ms


@dataclass(frozen=True)
class Result:
    """What one search found.

    Attributes:
        num_evaluated: different networks with an accuracy.
        num_measured: those of them that were measured.
        reported: hypervolume of the front by the search's own values.
        confirmed: hypervolume by the common ruler.
    """

    num_evaluated: int
    num_measured: int
    front_size: int
    reported: float
    confirmed: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluators", default="supernet,scratch", help=f"two of {', '.join(METHODS)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="wall-clock time of a search")
    parser.add_argument("--repetitions", type=int, default=5, help="searches with each evaluator")
    parser.add_argument("--members", type=int, default=8, help="of a front that are confirmed, at most")
    parser.add_argument("--folder", type=Path, default=Path("outputs/evaluators"), help="where the searches are kept")
    parser.add_argument("overrides", nargs="*", help="of every search, such as data=digits")
    options = parser.parse_args()
    options.methods = options.evaluators.split(",")
    if len(options.methods) != 2 or len(set(options.methods) & set(METHODS)) != 2:
        parser.error(f"--evaluators {options.evaluators}: name two of {', '.join(METHODS)}, separated by a comma")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a search that is running ends too
    logging.getLogger("optuna").setLevel(logging.WARNING)
    console = Console()
    for repetition in range(options.repetitions):
        for method in options.methods:
            run(options.folder, method, repetition, options.minutes, options.overrides, console)
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = hydra.compose("confirm", ["+search=cpu_latency", "accuracy=scratch", *options.overrides])
    results = asyncio.run(confirm(cfg, options, console))
    show(console, results, options)


def name_of(method: str, repetition: int) -> str:
    return f"{method}-{repetition}"


def run(folder: Path, method: str, repetition: int, minutes: float, overrides: list[str], console: Console) -> None:
    """Run one search to the end of its time, unless it was run before."""
    name = name_of(method, repetition)
    done = folder / f"{name}.done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "search.run", "+search=cpu_latency", *METHODS[method], f"study.name={name}"]
    command += [f"study.seed={repetition}", "study.n_trials=100000", "study.min_expected_gain=null", *overrides]
    command.append(f"accuracy.cache=outputs/.cache-{name}")
    for left in (name, f".cache-{name}"):  # of a search that was cut off: its time is not known
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


async def confirm(cfg: DictConfig, options: argparse.Namespace, console: Console) -> dict[str, list[Result]]:
    """Confirm the fronts of all searches by one ruler: the same trainings and one measuring process."""
    studies = {
        (method, repetition): finished_trials(
            open_study(
                name_of(method, repetition),
                f"sqlite:///{options.folder}/outputs/{name_of(method, repetition)}/study.db",
                create=False,
            )
        )
        for method in options.methods
        for repetition in range(options.repetitions)
    }
    weights = initial_weights(cfg)
    data = training_images(cfg, weights)
    trainings = standalone_trainings(cfg, cfg.confirm.train, data, options.folder / "standalone.jsonl", weights)
    engine = make_engine(cfg, data, evaluator_factory(cfg, data, weights))
    space: Space = build(cfg.space)
    results: dict[str, list[Result]] = {method: [] for method in options.methods}
    try:
        calibration = await engine.calibrate(FIRST, space.anchor())
        limit = (await engine.measure(FIRST, space.largest(), calibration)).latency_ms
        ruler = Ruler(trainings, engine, calibration, {})
        for (method, _), trials in track(list(studies.items()), "confirming", console=console):
            results[method].append(await compare(trials, ruler, limit, options.members))
    finally:
        engine.close()
    (options.folder / "results.json").write_text(
        json.dumps({method: [vars(result) for result in listed] for method, listed in results.items()}, indent=2)
    )
    return results


async def compare(trials: list[TrialRecord], ruler: Ruler, limit_ms: float, num_members: int) -> Result:
    evaluated = [trial for trial in latest_of_each(trials) if trial.result.accuracy is not None]
    members = front(trials)
    chosen = [members[index] for index in sorted(set(np.linspace(0, len(members) - 1, num_members).round().astype(int)))]
    reported = hypervolume(
        [member.accuracy for member in members], [member.result.latencies_ms for member in members], limit_ms
    )
    latencies = [await ruler.latency_ms(member) for member in chosen]
    confirmed = hypervolume([ruler.accuracy(member) for member in chosen], latencies, limit_ms)
    num_measured = sum(trial.result.measured for trial in evaluated)
    return Result(len(evaluated), num_measured, len(members), reported, confirmed)


def show(console: Console, results: dict[str, list[Result]], options: argparse.Namespace) -> None:
    title = f"{options.repetitions} searches of {options.minutes:g} minutes with each evaluator: mean ± standard deviation"
    table = Table(title=title, title_justify="left")
    for header in ("evaluator", "networks evaluated", "measured", "front", "hypervolume by the search", "confirmed"):
        table.add_column(header, justify="left" if header == "evaluator" else "right")
    for method, listed in results.items():
        counts = [[r.num_evaluated for r in listed], [r.num_measured for r in listed], [r.front_size for r in listed]]
        volumes = [[r.reported for r in listed], [r.confirmed for r in listed]]
        cells = [spread(values, "{:.0f}") for values in counts] + [spread(values, "{:.4f}") for values in volumes]
        table.add_row(method, *cells)
    console.print(table)
    pairs = list(zip(*results.values(), strict=True))
    console.print(
        f"{' against '.join(results)}, pair by pair: confirmed hypervolume "
        + spread([first.confirmed - second.confirmed for first, second in pairs], "{:+.4f}")
        + ", networks evaluated "
        + spread([first.num_evaluated / max(1, second.num_evaluated) for first, second in pairs], "{:.1f}")
        + " times"
    )


def spread(values: list[float] | list[int], form: str) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{form.format(statistics.fmean(values))} ±{form.format(deviation).lstrip('+')}"


if __name__ == "__main__":
    main()
