"""`python -m benchmarks.peers benchmarks/tables/default.json.gz`: how soon do samplers find a front?

Searches on a recorded table (tables.py), so that many of them take minutes. All start with the same known networks and
see the same scores; each measurement has its own error. Fronts are compared by true values.

"ours" is the search itself with a simulated engine (simulation.py): it skips measurements of networks that are probably
dominated, and pays for its database and its dashboard. The others are scripts that score and measure what a sampler of
Optuna proposes, with the settings of conf/sampler; a network that comes again costs nothing. "GP" and "NSGA-II" are asked
for every dimension, those that do not matter too: they learn nothing of dimensions that only some networks have.
pymoo's NSGA-II, DeepHyper and Ax (BoTorch's qLogNEHVI) are too; they take part if --arms names them, in an environment of
their own (peer_process.py).
"multiply-accumulates" scores nothing: it measures random networks, and its front is that of multiply-accumulates and
latency. Time is that of scoring, converting and measuring as recorded, and of proposing here, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler
from rich.console import Console

from benchmarks.peer_process import PACKAGES, REQUIREMENTS, Proposals, environment, package_proposals
from benchmarks.peers_table import OURS, Curve, plot, show
from benchmarks.simulation import RecordingView, SimulatedEngine, configuration, coordinator
from benchmarks.tables import LATENCY_ERROR, Table
from models.architecture import Architecture
from search import UserError
from search.accuracy.base import Accuracy
from search.commands.run import sampler_of
from search.files import sha256, write_text
from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.results.export import versions
from search.study.evaluate import Rules
from search.study.pareto import front_indices
from search.study.storage import open_study, quiet_experimental
from search.study.trial import TrialRecord
from search.training.processes import end_with_parent

MACS = "multiply-accumulates"
SAMPLERS = {"random": "random", "TPE": "tpe", "NSGA-II": "nsga2", "GP": "gp"}
"""Files of conf/sampler."""
FLAT = ("NSGA-II", "GP")  # samplers that are asked for every dimension
ARMS = (OURS, *SAMPLERS, MACS)
NUM_IMAGES = 3000  # of a score: Accuracy needs a number
OTHER_RESULTS = "{file} is of another table, version or number of processes; choose another --folder"

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
    if arm == MACS:
        return list(itertools.islice(measure_random(table, seed), num_trials))
    if arm in PACKAGES:
        with package_proposals(table.space, seed, arm) as proposals:
            return list(itertools.islice(evaluate(table, seed, proposals), num_trials))
    with quiet_experimental():
        sampler = sampler_of(configuration(f"sampler={SAMPLERS[arm]}", f"study.seed={seed}"))(seed)
        return list(itertools.islice(run_sampler(table, seed, sampler, is_flat=arm in FLAT), num_trials))


def run_sampler(
    table: Table, seed: int, sampler: BaseSampler, is_flat: bool, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Evaluated]:
    """Score and measure each network that a sampler of Optuna proposes, once.

    Args:
        is_flat: whether the sampler is asked for every dimension, whether or not it matters beside the others.
    """
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    choices = table.space.searched_dimensions()
    for parameters in table.space.baselines().values():
        others = {name: values[0] for name, values in choices.items()} if is_flat else {}
        study.enqueue_trial(others | parameters)

    def proposals() -> Proposals:
        while True:
            trial = study.ask()
            if is_flat:
                asked = {name: trial.suggest_categorical(name, list(values)) for name, values in choices.items()}
                architecture = table.space.architecture(asked)
            else:
                architecture = table.space.suggest(trial)
            study.tell(trial, (yield architecture))

    yield from evaluate(table, seed, proposals(), clock)


def evaluate(
    table: Table, seed: int, proposals: Proposals, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Evaluated]:
    """Score and measure each proposed network, once. A network that comes again costs nothing but the proposal."""
    rng, seconds, start = np.random.default_rng(seed), 0.0, clock()
    results: dict[str, tuple[float, float]] = {}
    architecture = next(proposals)
    while True:
        seconds += clock() - start
        if architecture.key not in results:
            results[architecture.key] = table.score(architecture, seed), table.measured_ms(architecture, rng)
            seconds += sum(table.seconds(architecture))
        accuracy, latency_ms = results[architecture.key]
        yield Evaluated(architecture.to_dict(), accuracy, latency_ms, seconds)
        start = clock()
        architecture = proposals.send((accuracy, latency_ms))


def measure_random(table: Table, seed: int) -> Iterator[Evaluated]:
    """Measure random networks, and take their multiply-accumulates for their accuracy."""
    known = (table.space.architecture(parameters) for parameters in table.space.baselines().values())
    drawn = (table.space.sample([seed, number]) for number in itertools.count())
    rng, seconds = np.random.default_rng(seed), 0.0
    for architecture in itertools.chain(known, drawn):
        seconds += table.seconds(architecture)[1]
        macs = float(table.cost(architecture)[1])
        yield Evaluated(architecture.to_dict(), macs, table.measured_ms(architecture, rng), seconds)


def our_search(
    table: Table, seed: int, num_trials: int, observe: Callable[[TrialRecord], None] = lambda trial: None
) -> list[Evaluated]:
    """Search as `search.run` does, one network at a time. observe: takes each finished trial."""
    rng = np.random.default_rng(seed)

    def latency_of(architecture: Architecture) -> Latency:
        estimate = Estimate(table.measured_ms(architecture, rng), LATENCY_ERROR, 100.0)
        return Latency(estimate, 40, 10, True, table.seconds(architecture)[1])

    def accuracy_of(architecture: Architecture) -> Accuracy:
        return Accuracy(table.score(architecture, seed), NUM_IMAGES, seed, table.seconds(architecture)[0])

    cfg = configuration(f"study.seed={seed}")
    cfg.space = table.config["space"]
    images = table.config["images"]
    cfg.data.in_chans, cfg.data.img_size = images["in_chans"], images["img_size"]
    engine = SimulatedEngine(1, latency_of, accuracy_of)
    evaluated: list[Evaluated] = []

    def record(trial: TrialRecord) -> None:
        latency_ms = trial.result.latencies_ms[0] if trial.result.measured else None
        evaluated.append(Evaluated(trial.architecture.to_dict(), trial.accuracy, latency_ms, engine.clock()))
        observe(trial)

    with tempfile.TemporaryDirectory() as folder:
        study = open_study("study", f"sqlite:///{folder}/study.db", create=True)
        rules = Rules(seed, scores_before_measuring=True)
        view = RecordingView(record)
        ours = coordinator(study, Path(folder), cfg, engine, view, rules, reference_ms(table), images["num_classes"])
        engine.start_clock()
        asyncio.run(ours.run(num_trials, None))
    return evaluated


def reference_ms(table: Table) -> float:
    """The latency up to which the search's own hypervolume counts."""
    return 1.5 * table.slowest_ms


def gains(table: Table, evaluated: Sequence[Evaluated]) -> Vector:
    """True gain of the front after each evaluation, (evaluations,); see `Table.gain`."""
    members: list[Evaluated] = []
    values: list[float] = []
    for network in evaluated:
        front = members if network.latency_ms is None else front_of([*members, network])
        if front != members or not values:
            values.append(table.gain([Architecture.from_dict(member.architecture) for member in front]))
        else:
            values.append(values[-1])
        members = front
    return np.array(values)


def front_of(measured: Sequence[Evaluated]) -> list[Evaluated]:
    """The networks that no other one dominates, as the arm saw them."""
    latencies = [network.latency_ms for network in measured if network.latency_ms is not None]
    return [measured[index] for index in front_indices([network.accuracy for network in measured], latencies)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="file that benchmarks.record wrote")
    parser.add_argument("--folder", type=Path, default=Path("outputs/peers"), help="where finished searches are kept")
    parser.add_argument("--arms", nargs="+", choices=(*ARMS, *PACKAGES), default=ARMS)
    parser.add_argument("--trials", type=positive, default=250, help="evaluations of a search (default 250)")
    parser.add_argument("--seeds", type=positive, default=10, help="searches of an arm (default 10)")
    parser.add_argument(
        "--processes", type=positive, default=1, help="searches at a time; times of proposals then disturb each other"
    )
    parser.add_argument("--plot", type=Path, help="file for the figure")
    options = parser.parse_args()
    console = Console(width=160)
    try:
        if options.trials > (size := read_table(options.table).space.num_architectures()):
            raise UserError(f"--trials {options.trials} is more than the {size} networks of the table's space; lower it")
        curves = run(options, console)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    show(console, curves)
    if options.plot is not None:
        plot(curves, options.plot)
        console.print(f"saved {options.plot}", highlight=False)


def positive(text: str) -> int:
    """Parse a number of the command line. Raises: ValueError if it is not a positive whole number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def run(options: argparse.Namespace, console: Console) -> dict[str, Curve]:
    """Run the searches that are not finished. Returns the curve of each arm. Raises: UserError if others are there."""
    folder = options.folder / options.table.name.removesuffix(".json.gz")
    folder.mkdir(parents=True, exist_ok=True)
    made_with = {"table": sha256(options.table), "processes": options.processes, "versions": versions()}
    if packages := set(options.arms) & set(PACKAGES):
        environment()  # made here: searches may run in several processes
    made_with_packages = {**made_with, "packages": sha256(REQUIREMENTS)}
    tasks = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    files = {task: folder / f"{task[0]}-{task[1]}-{options.trials}.json" for task in tasks}
    provenance = {arm: made_with_packages if arm in packages else made_with for arm in options.arms}
    for (arm, _), file in files.items():
        if file.exists() and read_search(file)[0] != provenance[arm]:
            raise UserError(OTHER_RESULTS.format(file=file))
    missing = [task for task in tasks if not files[task].exists()]
    for (arm, seed), evaluated in search_all(missing, options):
        body = {"made_with": provenance[arm], "networks": [asdict(network) for network in evaluated]}
        write_text(files[arm, seed], json.dumps(body))
        console.print(f"{arm}, seed {seed}: {evaluated[-1].seconds:.0f} s of simulated time", highlight=False)
    table = read_table(options.table)
    curves = {}
    for arm in options.arms:
        searches = [read_search(files[arm, seed])[1] for seed in range(options.seeds)]
        seconds = np.array([[network.seconds for network in evaluated] for evaluated in searches])
        curves[arm] = Curve(np.stack([gains(table, evaluated) for evaluated in searches]), seconds)
    return curves


Task = tuple[str, int]
"""An arm and a seed."""


def search_all(tasks: Sequence[Task], options: argparse.Namespace) -> Iterator[tuple[Task, list[Evaluated]]]:
    """Run searches, here or in several processes. Yields each when it is finished."""
    if options.processes == 1:
        yield from ((task, search(options.table, *task, options.trials)) for task in tasks)
        return
    with ProcessPoolExecutor(options.processes, get_context("spawn"), initializer=end_with_parent) as pool:
        searches = {pool.submit(search, options.table, *task, options.trials): task for task in tasks}
        yield from ((searches[finished], finished.result()) for finished in as_completed(searches))


def read_search(file: Path) -> tuple[dict[str, Any], list[Evaluated]]:
    """Read a finished search. Returns what it was made with, and its networks."""
    body = json.loads(file.read_text(encoding="utf-8"))
    return body["made_with"], [Evaluated(**network) for network in body["networks"]]


if __name__ == "__main__":
    main()
