"""`python -m benchmarks.peers benchmarks/tables/default.json.gz`: how soon do samplers find a front?

Searches on a recorded table (tables.py), so that many of them take minutes. Everybody starts with the same known networks
and sees the same noisy values; their fronts are compared by true ones. "Ours" is the search itself (simulation.py): it
skips measurements of networks that are probably dominated. The others are scripts that score and measure each network that
Optuna's sampler proposes. "multiply-accumulates" scores nothing: it measures random networks, and its front is that of
multiply-accumulates and latency. Time is that of scoring, measuring, converting and proposing, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.simulation import SimulatedEngine, configuration, coordinator
from benchmarks.tables import LATENCY_ERROR, Table
from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.files import write_text
from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.results.view import LogView
from search.study.coordinator import SearchProgress
from search.study.evaluate import Rules
from search.study.pareto import front_indices
from search.study.storage import open_study
from search.study.trial import TrialRecord

OURS, MACS = "ours", "multiply-accumulates"
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "TPE": lambda seed: TPESampler(seed=seed, multivariate=True, group=True),
    "NSGA-II": lambda seed: NSGAIISampler(seed=seed, population_size=24),
    "GP": lambda seed: GPSampler(seed=seed),
}
ARMS = (OURS, *SAMPLERS, MACS)
NUM_IMAGES = 3000  # of a score: Accuracy needs a number

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """A network that an arm evaluated.

    Attributes:
        architecture: as plain data.
        accuracy: as the arm saw it; what stands in its place for arms that score nothing.
        latency_ms: as the arm saw it; None if it was not measured.
        seconds: since the start, at the end of the evaluation.
    """

    architecture: dict[str, object]
    accuracy: float
    latency_ms: float | None
    seconds: float


@lru_cache
def read_table(file: Path) -> Table:
    return Table.read(file)


def search(file: Path, arm: str, seed: int, num_trials: int) -> list[Evaluated]:
    """Run an arm on a table. Returns the networks in the order of their evaluation."""
    table = read_table(file)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arm == OURS:
        return our_search(table, seed, num_trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says of each argument that it is experimental
        evaluate = measure_most_macs if arm == MACS else partial(script, sampler=SAMPLERS[arm](seed))
        return list(evaluate(table, np.random.default_rng(seed), num_trials))


def script(table: Table, rng: np.random.Generator, num_trials: int, sampler: BaseSampler) -> Iterator[Evaluated]:
    """Score and measure each network that a sampler of Optuna's proposes."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for parameters in table.space.baselines().values():
        study.enqueue_trial(parameters)
    seconds = 0.0
    for _ in range(num_trials):
        start = time.perf_counter()
        trial = study.ask()
        architecture = table.space.suggest(trial)
        seconds += time.perf_counter() - start
        accuracy, latency_ms = table.score(architecture), table.measured_ms(architecture, rng)
        seconds += sum(table.seconds(architecture))
        start = time.perf_counter()
        study.tell(trial, [accuracy, latency_ms])
        seconds += time.perf_counter() - start
        yield Evaluated(architecture.to_dict(), accuracy, latency_ms, seconds)


def measure_most_macs(table: Table, rng: np.random.Generator, num_trials: int) -> Iterator[Evaluated]:
    """Measure random networks, and take their multiply-accumulates for their accuracy."""
    known = [table.space.architecture(parameters) for parameters in table.space.baselines().values()]
    drawn = [table.space.sample([int(rng.integers(2**31)), number]) for number in range(num_trials - len(known))]
    seconds = 0.0
    for architecture in [*known, *drawn]:
        seconds += table.seconds(architecture)[1]
        macs = float(table.cost(architecture)[1])
        yield Evaluated(architecture.to_dict(), macs, table.measured_ms(architecture, rng), seconds)


class Recorder(LogView):
    """Records the trials of a search, with the time of the simulation."""

    def __init__(self, engine: SimulatedEngine) -> None:
        super().__init__(logging.DEBUG)
        self.engine = engine
        self.evaluated: list[Evaluated] = []

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None:
        super().trial_finished(trial, progress)
        latency_ms = trial.result.latencies_ms[0] if trial.result.measured else None
        evaluated = Evaluated(trial.architecture.to_dict(), trial.accuracy, latency_ms, self.engine.clock())
        self.evaluated.append(evaluated)


def our_search(table: Table, seed: int, num_trials: int, *overrides: str) -> list[Evaluated]:
    """Search as `search.run` does, one network at a time. overrides: of the configuration."""
    rng = np.random.default_rng(seed)

    def latency_of(architecture: Architecture) -> Latency:
        estimate = Estimate(table.measured_ms(architecture, rng), LATENCY_ERROR, 100.0)
        return Latency(estimate, 40, 10, True, table.seconds(architecture)[1])

    def accuracy_of(architecture: Architecture) -> Accuracy:
        return Accuracy(table.score(architecture), NUM_IMAGES, seed, table.seconds(architecture)[0])

    cfg = configuration(f"study.seed={seed}", *overrides)
    cfg.space = table.config["space"]
    images = table.config["images"]
    cfg.data.in_chans, cfg.data.img_size = images["in_chans"], images["img_size"]
    engine = SimulatedEngine(1, latency_of, accuracy_of)
    view = Recorder(engine)
    with tempfile.TemporaryDirectory() as folder:
        study = open_study("study", f"sqlite:///{folder}/study.db", create=True)
        rules = Rules(seed, scores_before_measuring=True)
        reference_ms = 1.5 * table.slowest_ms
        started = coordinator(study, Path(folder), cfg, engine, view, rules, reference_ms, images["num_classes"])
        engine.start_clock()
        asyncio.run(started.run(num_trials, None))
    return view.evaluated


def gains(table: Table, evaluated: Sequence[Evaluated]) -> Vector:
    """True gain of the front after each evaluation, (evaluations,); see `Table.gain`."""
    members: list[Evaluated] = []
    values: list[float] = []
    for network in evaluated:
        if network.latency_ms is not None:
            compared = [*members, network]
            latencies = [each.latency_ms for each in compared if each.latency_ms is not None]
            indices = front_indices([each.accuracy for each in compared], latencies)
            front = [compared[index] for index in indices]
            changed, members = front != members, front
        else:
            changed = False
        if changed or not values:
            values.append(table.gain([Architecture.from_dict(each.architecture) for each in members]))
        else:
            values.append(values[-1])
    return np.array(values)


@dataclass(frozen=True)
class Curve:
    """Gains of an arm, over evaluations and over time.

    Attributes:
        gains: (seeds, evaluations).
        seconds: at the end of each evaluation, (seeds, evaluations).
    """

    gains: Vector
    seconds: Vector

    def until(self, gain: float) -> tuple[float, float]:
        """Median number of evaluations, and of seconds, until a gain is reached; inf where it is not."""
        reached = self.gains >= gain
        numbers = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1.0, np.inf)
        rows = np.arange(len(self.gains))
        seconds = np.where(reached.any(axis=1), self.seconds[rows, reached.argmax(axis=1)], np.inf)
        return float(np.median(numbers)), float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="file that benchmarks.record wrote")
    parser.add_argument("--folder", type=Path, default=Path("outputs/peers"), help="where finished searches are kept")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--trials", type=int, default=250, help="evaluations of a search (default 250)")
    parser.add_argument("--seeds", type=int, default=10, help="searches of an arm (default 10)")
    parser.add_argument(
        "--processes", type=int, default=1, help="searches at a time; times of proposals then disturb each other"
    )
    parser.add_argument("--plot", type=Path, help="file for the figure")
    options = parser.parse_args()
    if not options.table.is_file():
        parser.error(f"{options.table} is not a file; record a table with python -m benchmarks.record")
    console = Console(width=160)
    curves = run(options, console)
    show(console, curves)
    if options.plot is not None:
        plot(curves, options.plot)
        console.print(f"saved {options.plot}", highlight=False)


def run(options: argparse.Namespace, console: Console) -> dict[str, Curve]:
    """Run the searches that are not finished. Returns the curve of each arm."""
    folder = options.folder / options.table.name.removesuffix(".json.gz")
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    files = {task: folder / f"{task[0]}-{task[1]}-{options.trials}.json" for task in tasks}
    missing = [task for task in tasks if not files[task].exists()]
    for (arm, seed), evaluated in zip(missing, search_all(missing, options), strict=True):
        write_text(files[arm, seed], json.dumps([asdict(network) for network in evaluated]))
        console.print(f"{arm}, seed {seed}: {evaluated[-1].seconds:.0f} s of simulated time", highlight=False)
    table = read_table(options.table)
    curves = {}
    for arm in options.arms:
        searches_of_arm = [read_search(files[arm, seed]) for seed in range(options.seeds)]
        seconds = np.array([[network.seconds for network in evaluated] for evaluated in searches_of_arm])
        curves[arm] = Curve(np.stack([gains(table, evaluated) for evaluated in searches_of_arm]), seconds)
    return curves


def search_all(tasks: Sequence[tuple[str, int]], options: argparse.Namespace) -> Iterator[list[Evaluated]]:
    """Run searches by arm and seed, here or in several processes. Yields their results in this order."""
    run_task = partial(search_task, options.table, options.trials)
    if options.processes == 1:
        yield from map(run_task, tasks)
        return
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        yield from pool.map(run_task, tasks)


def search_task(file: Path, num_trials: int, task: tuple[str, int]) -> list[Evaluated]:
    return search(file, *task, num_trials)


def read_search(file: Path) -> list[Evaluated]:
    return [Evaluated(**network) for network in json.loads(file.read_text(encoding="utf-8"))]


def show(console: Console, curves: dict[str, Curve]) -> None:
    """Print where the arms stand at some numbers of evaluations, and how soon ours is as good as each at its end."""
    num_seeds, num_trials = next(iter(curves.values())).gains.shape
    checkpoints = [number for number in (20, 40, 80, 150, 250) if number < num_trials] + [num_trials]
    title = f"Gain, 0: LITv2 pattern, 1: best known front; mean ± standard deviation of {num_seeds} seeds"
    shown = RichTable(title=title, title_justify="left")
    for header in ("arm", *(f"after {number}" for number in checkpoints), "seconds", "ours as good after", "in seconds"):
        shown.add_column(header, justify="left" if header == "arm" else "right")
    for arm, curve in curves.items():
        cells = [f"{g.mean():.3f} ±{g.std(ddof=1):.3f}" for g in (curve.gains[:, number - 1] for number in checkpoints)]
        total = float(np.median(curve.seconds[:, -1]))
        if arm == OURS or OURS not in curves:
            sooner = ["", ""]
        else:
            number, seconds = curves[OURS].until(float(np.median(curve.gains[:, -1])))
            sooner = [f"{number:.0f}", f"{seconds:.0f} ({seconds / total:.2f})"]
        shown.add_row(arm, *cells, f"{total:.0f}", *sooner)
    console.print(shown)


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Mean gains over evaluations and over time, with their standard deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_number, by_time = figure.subplots(1, 2, sharey=True)
    for arm, curve in curves.items():
        mean, deviation = curve.gains.mean(axis=0), curve.gains.std(axis=0)
        for axes, x in ((by_number, np.arange(1, len(mean) + 1.0)), (by_time, np.median(curve.seconds, axis=0))):
            (line,) = axes.plot(x, mean, label=arm)
            axes.fill_between(x, mean - deviation, mean + deviation, alpha=0.15, color=line.get_color())
    by_number.set_xlabel("evaluations")
    by_number.set_ylabel("gain over the pattern, 1 = best known front")
    by_time.set_xlabel("simulated seconds")
    by_time.set_xscale("log")
    for axes in (by_number, by_time):
        axes.grid(alpha=0.3)
    by_number.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
