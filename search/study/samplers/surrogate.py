"""An Optuna sampler that knows what it samples: of many children of the best networks it proposes the most promising one.

Children are bred from the networks that the fewest fronts dominate, as NSGA-II breeds them (Deb et al., 2002). What each
would add to the front's hypervolume is foretold by two models of all trials so far: latency by the block model, accuracy by
Bayesian linear regression on what the stages consist of, whose weights are drawn from their posterior (Thompson sampling).
Optuna's own samplers know neither that latency is a sum over blocks nor which parameters are equal networks.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from models.architecture import Architecture, check_int, check_number
from search.latency import block_model
from search.latency.base import Latency
from search.space.space import Parameters, Space
from search.study.pareto import front_indices, gain
from search.study.trial import Finished, accuracy_of, is_judged, judged, read

MAX_DRAWS = 10  # of children for each that is wanted: in a space that is nearly used up few are new
FIRST = ""  # the first device, whatever its name
PRIOR = 1.0  # precision of the weights of standardised features, in units of the residual's

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What models take of a network. accuracy: nan if it has none or breaks a budget. inputs, blocks: of either model."""

    trial: Finished
    accuracy: float
    latencies_ms: list[float]
    inputs: Vector
    blocks: Vector

    @classmethod
    def of(cls, trial: Finished, img_size: int) -> Self:
        outcome, network = trial.outcome, trial.architecture
        accuracy = accuracy_of(trial) if judged([trial]) else math.nan
        return cls(trial, accuracy, outcome.latencies_ms, features(network), block_model.features(network, img_size))

    @property
    def is_scored(self) -> bool:
        return not math.isnan(self.accuracy)

    def latency_on(self, device: str) -> Latency | None:
        """None where an earlier device's budget was broken, so that this one was not measured."""
        outcome = self.trial.outcome
        return outcome.latency if device == FIRST else outcome.further.get(device)


class SurrogateSampler(BaseSampler):
    """Propose what should add most to the front, and no network twice while there are others.

    space: what may be proposed. img_size: of the deployed network, in pixels. budget_ms: latency that the front ends at, or
    None; budgets: of further devices. n_startup_trials: random networks to begin with. population_size: how many networks
    children are bred from. num_children: how many are compared for a proposal. mutation: probability of a parameter to be
    drawn anew.
    Raises: ValueError naming the setting that makes no sense.
    """

    def __init__(
        self,
        space: Space,
        img_size: int,
        budget_ms: float | None,
        n_startup_trials: int,
        population_size: int,
        num_children: int,
        mutation: float,
        seed: int | None = None,
    ) -> None:
        check_int("sampler.n_startup_trials", n_startup_trials, block_model.MIN_NETWORKS)
        check_int("sampler.population_size", population_size, 2)
        check_int("sampler.num_children", num_children, 1)
        check_number("sampler.mutation", mutation, 0, 1)
        self.space = space
        self.img_size = img_size
        self.budget_ms = budget_ms
        self.n_startup_trials = n_startup_trials
        self.population_size = population_size
        self.num_children = num_children
        self.mutation = mutation
        self.budgets: dict[str, float | None] = {}
        self.rng = np.random.default_rng(seed)
        self._seen: set[int] = set()  # numbers of the finished trials that were read
        self._rows: dict[str, Row] = {}  # the latest of each network, by key
        self._keys: dict[int, str] = {}  # of networks that are or were under way, by trial number
        self._proposals: dict[int, Parameters] = {}

    def seeded(self, seed: int) -> Self:
        """This sampler, for a trial that draws from this seed: what it has read of the study stays read."""
        self.rng = np.random.default_rng(seed)
        self._proposals.clear()
        return self

    def reseed_rng(self) -> None:
        self.rng = np.random.default_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}  # what is asked depends on the answers, so each parameter is sampled when it is

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if trial.number not in self._proposals:
            others = study.get_trials(deepcopy=False)
            self._learn(others)
            underway = [one for one in others if one.state == TrialState.RUNNING and one.number != trial.number]
            self._proposals[trial.number] = self.proposal(underway)
        return self._proposals[trial.number][param_name]

    def _learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Read the finished ones, each once. Thousands of rows are stacked for each proposal, but none is made anew."""
        for trial in trials:
            if trial.number not in self._seen and is_judged(trial):
                self._seen.add(trial.number)
                found = read(trial)
                before = self._rows.get(found.architecture.key)
                if before is None or before.trial.number < found.number:
                    self._rows[found.architecture.key] = Row.of(found, self.img_size)

    def proposal(self, underway: Sequence[FrozenTrial]) -> Parameters:
        """The parameters of the next network to judge. underway: trials whose networks are being judged."""
        taken = self._rows.keys() | {key for one in underway if (key := self.key_of(one))}
        known = sorted(self._rows.values(), key=lambda row: row.trial.number)  # in whatever order they were read
        scored = [row for row in known if row.is_scored]
        if len(self._seen) < self.n_startup_trials or len(scored) < 2:
            return next(iter(self.children(taken, [], 1).values()))
        fronts = self.fronts(scored)
        parents = [row.trial.parameters for front in fronts for row in front]
        children = self.children(taken, parents, self.num_children)
        return children[self.best(list(children), known, scored, fronts[0])]

    def key_of(self, trial: FrozenTrial) -> str | None:
        """Of the network of a trial that is under way, or None if it has not been asked in full."""
        if trial.number not in self._keys:
            try:
                self._keys[trial.number] = self.space.architecture(trial.params).key
            except KeyError:
                return None
        return self._keys[trial.number]

    def children(self, taken: Container[str], parents: Sequence[Parameters], count: int) -> dict[Architecture, Parameters]:
        """Up to so many networks that no trial has had; a known one if no other is found."""
        found: dict[Architecture, Parameters] = {}
        for _ in range(MAX_DRAWS * count):
            chosen = self.rng.permutation(len(parents))[:2]
            child = self.space.child([parents[index] for index in chosen], self.mutation, self.rng)
            architecture = self.space.architecture(child)
            if architecture.key not in taken:
                found[architecture] = child
            if len(found) == count:
                break
        return found or {architecture: child}

    def fronts(self, scored: Sequence[Row]) -> list[list[Row]]:
        """The front, then the front without it, and so on until there are enough to breed from."""
        accuracies, latencies = np.array([row.accuracy for row in scored]), np.array([row.latencies_ms for row in scored])
        left, found, count = np.arange(len(scored)), list[list[Row]](), 0
        while len(left) and count < self.population_size:
            members = left[front_indices(accuracies[left], latencies[left])]
            found.append([scored[index] for index in members])
            count += len(members)
            left = np.setdiff1d(left, members)
        return found

    def best(
        self, children: Sequence[Architecture], known: Sequence[Row], scored: Sequence[Row], front: Sequence[Row]
    ) -> Architecture:
        """Which child should add most to the front or, if none should, come nearest to it."""
        accuracies = self.accuracies(children, scored)
        outcome = scored[0].trial.outcome
        budgets = {FIRST: self.budget_ms, **self.budgets}
        expected = {name: self.latencies(children, known, name) for name in (FIRST, *outcome.further)}
        limits = {
            name: budgets.get(name) or max(one.latency_ms for row in scored if (one := row.latency_on(name)))
            for name in expected
        }
        objectives = [FIRST, *outcome.others]
        front_accuracies = [row.accuracy for row in front]
        front_latencies = [row.latencies_ms for row in front]
        ends = [limits[name] for name in objectives]

        def worth(index: int) -> tuple[float, float]:
            over = max(expected[name][index] / limits[name] for name in expected)
            if over > 1:
                return 0.0, -over
            latencies = [expected[name][index] for name in objectives]
            gained = gain(front_accuracies, front_latencies, accuracies[index], latencies, ends)
            reached = [
                accuracy
                for accuracy, others in zip(front_accuracies, front_latencies, strict=True)
                if all(other <= own for other, own in zip(others, latencies, strict=True))
            ]
            return gained, accuracies[index] - max(reached, default=0.0)

        return children[max(range(len(children)), key=worth)]

    def latencies(self, children: Sequence[Architecture], known: Sequence[Row], device: str) -> list[float]:
        """In milliseconds, by the block model of what was measured."""
        measured = [(row, one) for row in known if (one := row.latency_on(device)) and one.measured]
        costs = block_model.fit(
            np.stack([row.blocks for row, _ in measured]), np.array([latency.latency_ms for _, latency in measured])
        )
        return [float(block_model.features(child, self.img_size) @ costs) for child in children]

    def accuracies(self, children: Sequence[Architecture], scored: Sequence[Row]) -> list[float]:
        """Of one model drawn from the posterior: as far apart as what is not known allows."""
        inputs = np.stack([row.inputs for row in scored])
        target = np.array([row.accuracy for row in scored])
        mean, scale = inputs.mean(0), inputs.std(0) + 1e-9
        design = (inputs - mean) / scale
        precision = design.T @ design + PRIOR * np.eye(design.shape[1])
        weights = np.linalg.solve(precision, design.T @ (target - target.mean()))
        noise = (target - target.mean() - design @ weights).std()
        root = np.linalg.cholesky(np.linalg.inv(precision))
        drawn = weights + noise * root @ self.rng.normal(size=len(weights))
        outputs = (np.stack([features(child) for child in children]) - mean) / scale @ drawn + target.mean()
        return [float(value) for value in outputs]


@lru_cache(maxsize=block_model.KEPT)
def features(architecture: Architecture) -> Vector:
    """What accuracy is linear in, about: width, and of each stage its depth, its MLP and its attention."""
    numbers = [math.log(architecture.embed_dim), math.log(architecture.embed_dim) ** 2]
    for stage in architecture.stages:
        windowed = stage.window_size > 1
        numbers += [
            math.log(stage.depth),
            stage.mlp_ratio,
            float(stage.window_size == 0),
            float(stage.window_size == 1),
            math.log(stage.window_size) if windowed else 0.0,
            stage.lo_heads / stage.num_heads - 0.5 if windowed else 0.0,
            math.log(stage.num_heads) if stage.window_size else 0.0,
        ]
    return np.array(numbers)
