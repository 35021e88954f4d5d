"""Proposals of optimisers of other packages: what `benchmarks.peers` runs in an environment of their own.

The first line of the input is the problem as JSON: `sizes`, the number of choices of each dimension, `known`, networks to
begin with as lists of indices, and a `seed`. Each line of the output is a network; the next line of the input has its
accuracy and the logarithm of its latency. Nothing of this project is imported, since it is not installed there.

All get dimensions as ordered whole numbers and their package's defaults; ten networks, the known ones included, come before
models are asked, as with Optuna's samplers.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence

Indices = list[int]
Result = tuple[float, float]  # accuracy, logarithm of latency
Proposals = Generator[Indices, Result, None]
NUM_FIRST = 10
POPULATION = 20  # of NSGA-II, as in conf/sampler/nsga2.yaml


def first_networks(sizes: Sequence[int], known: Sequence[Indices], seed: int, count: int) -> list[Indices]:
    """Return the known networks, and random ones up to a number."""
    rng = random.Random(seed)
    drawn = [[rng.randrange(size) for size in sizes] for _ in range(count - len(known))]
    return [*known, *drawn]


def pymoo(sizes: Sequence[int], known: Sequence[Indices], seed: int) -> Proposals:
    """NSGA-II of pymoo (https://pymoo.org)."""
    import numpy as np
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.problems.static import StaticProblem

    problem = Problem(n_var=len(sizes), n_obj=2, xl=np.zeros(len(sizes)), xu=np.array(sizes) - 1.0, vtype=int)
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=np.array(first_networks(sizes, known, seed, POPULATION)),
        crossover=SBX(vtype=float, repair=RoundingRepair()),
        mutation=PM(vtype=float, repair=RoundingRepair()),
    )
    algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed)
    while True:
        population, results = algorithm.ask(), list[Result]()
        for network in population.get("X"):
            results.append((yield [int(index) for index in network]))
        costs = np.array([[-accuracy, log_latency] for accuracy, log_latency in results])
        Evaluator().eval(StaticProblem(problem, F=costs), population)
        algorithm.tell(infills=population)


def deephyper(sizes: Sequence[int], known: Sequence[Indices], seed: int) -> Proposals:
    """CBO of DeepHyper (https://deephyper.readthedocs.io), which scalarises objectives with random weights."""
    from deephyper.hpo import CBO, HpProblem

    names = [f"d{number}" for number in range(len(sizes))]
    problem = HpProblem()
    for name, size in zip(names, sizes, strict=True):
        problem.add_hyperparameter((0, size - 1), name)
    with tempfile.TemporaryDirectory() as folder:
        search = CBO(problem, random_state=seed, log_dir=folder, n_initial_points=NUM_FIRST - len(known))
        for network in known:
            accuracy, log_latency = yield network
            search.tell([(dict(zip(names, network, strict=True)), (accuracy, -log_latency))])
        while True:
            (chosen,) = search.ask(1)
            accuracy, log_latency = yield [int(chosen[name]) for name in names]
            search.tell([(chosen, (accuracy, -log_latency))])


def ax(sizes: Sequence[int], known: Sequence[Indices], seed: int) -> Proposals:
    """qLogNEHVI of BoTorch through Ax (https://ax.dev)."""
    from ax.api.client import Client
    from ax.api.configs import ChoiceParameterConfig

    client, names = Client(random_seed=seed), [f"d{number}" for number in range(len(sizes))]
    client.configure_experiment(
        [
            ChoiceParameterConfig(name=name, values=list(range(size)), parameter_type="int", is_ordered=True)
            for name, size in zip(names, sizes, strict=True)
        ]
    )
    client.configure_optimization(objective="accuracy, -log_latency")
    client.configure_generation_strategy(initialization_budget=NUM_FIRST, initialize_with_center=False)
    for network in known:
        number = client.attach_trial(dict(zip(names, network, strict=True)))
        accuracy, log_latency = yield network
        client.complete_trial(number, {"accuracy": accuracy, "log_latency": log_latency})
    while True:
        ((number, chosen),) = client.get_next_trials(1).items()
        accuracy, log_latency = yield [int(chosen[name]) for name in names]
        client.complete_trial(number, {"accuracy": accuracy, "log_latency": log_latency})


OPTIMISERS: dict[str, Callable[[Sequence[int], Sequence[Indices], int], Proposals]] = {
    "pymoo": pymoo, "DeepHyper": deephyper, "Ax": ax,
}  # fmt: skip


def main() -> None:
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print does not come between
    problem = json.loads(sys.stdin.readline())
    proposals = OPTIMISERS[sys.argv[1]](problem["sizes"], problem["known"], problem["seed"])
    network = next(proposals)
    while True:
        print(json.dumps(network), file=output, flush=True)
        if not (line := sys.stdin.readline()):
            return
        accuracy, log_latency = json.loads(line)
        network = proposals.send((accuracy, log_latency))


if __name__ == "__main__":
    main()
