"""A surrogate-based Optuna sampler: of many children of the best networks it proposes the most promising one.

Children are bred from the networks that the fewest fronts dominate, as NSGA-II breeds them (Deb et al., 2002). What each
would add to the front's hypervolume is predicted by Gaussian processes that learn from all trials so far (models.py),
averaged over functions drawn from their posteriors: a network of which little is known may be much better than expected.
With a single draw (Thompson sampling) fronts of 60 networks were less good. What is added counts by the square of the
probability not to fail (failure_model.py): nothing is known of networks of a kind that always failed, and they would be
tried again and again. Right after a failure, the child that is the least likely to fail is next, so that networks of one
kind that cannot be built do not end the search. Networks over a limit of parameters or multiply-accumulates are not proposed
while there are others; file and memory are predicted (limit_model.py), and count like latency over its budget.

Optuna's own samplers know neither that latency is a sum over blocks nor which parameters are equal networks.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from models.architecture import Architecture, check_int, check_number
from search.latency import block_model
from search.space.space import Parameters, Space
from search.study.pareto import gain, nondominated_fronts
from search.study.samplers import failure_model
from search.study.samplers.failure_model import FailureModel
from search.study.samplers.limit_model import StudyLimits
from search.study.samplers.models import AccuracyModel, LatencyModel
from search.study.samplers.row import Features, Row, scales, with_expected_accuracies
from search.study.trial import ended_with_failure, has_failed, is_finished, is_skipped, network_of, read

MAX_DRAWS = 10  # children drawn for each that is wanted: in a space that is nearly used up few are new
NUM_DRAWS = 8  # models over which a gain is averaged

Vector = NDArray[np.float64]


class SurrogateSampler(BaseSampler):
    """Propose what should add most to the front, and no network twice while there are others.

    Latencies that the front ends at are the limits of the study's targets.

    Args:
        space: what may be proposed.
        img_size: side of the deployed network's input, in pixels, where a network has none of its own.
        n_startup_trials: finished trials, of known networks first and then of random ones, before networks are predicted.
        population_size: how many networks children are bred from.
        num_children: how many are compared for a proposal.
        mutation: probability of a parameter to be drawn anew.

    Attributes:
        expected_gain: what the latest proposal should add to the hypervolume of the front; None of a random network.

    Raises:
        ValueError: naming the setting that makes no sense.
    """

    def __init__(
        self,
        space: Space,
        img_size: int,
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
        self.n_startup_trials = n_startup_trials
        self.population_size = population_size
        self.num_children = num_children
        self.mutation = mutation
        self.rng = np.random.default_rng(seed)
        self.expected_gain: float | None = None
        self._limits = StudyLimits()  # without targets before the study was read
        self._seen: set[int] = set()  # numbers of the closed trials that were read
        self._num_finished = 0  # of those
        self._rows: dict[str, Row] = {}  # the latest of each network, by key, in the order in which they were finished
        self._failed: dict[str, Architecture] = {}  # in some trial, by key
        self._skipped: set[str] = set()  # keys of networks that surely exceed a limit by prediction
        self._keys: dict[int, str] = {}  # of networks that run or ran, by trial number
        self._proposals: dict[int, Parameters] = {}

    def seeded(self, seed: int) -> Self:
        """This sampler, for a trial that draws from this seed: what it has read of the study stays read."""
        self.rng = np.random.default_rng(seed)
        self.expected_gain = None
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
            if not self._limits.targets:
                self._limits = StudyLimits.of(study)
            trials = study.get_trials(deepcopy=False)
            self._learn(trials)
            running = [other for other in trials if other.state == TrialState.RUNNING and other.number != trial.number]
            self._proposals[trial.number] = self.proposal(running, ended_with_failure(trials))
        return self._proposals[trial.number][param_name]

    def _learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Read the closed trials, each once, in the order in which they were closed."""
        new = [trial for trial in trials if trial.datetime_complete is not None and trial.number not in self._seen]
        for trial in sorted(new, key=lambda trial: (trial.datetime_complete, trial.number)):
            if is_finished(trial):
                self._seen.add(trial.number)
                self._num_finished += 1
                record = read(trial)
                self._rows.pop(record.architecture.key, None)  # the latest counts, and comes last
                self._rows[record.architecture.key] = Row.of(record, self.img_size)
            elif has_failed(trial):
                self._seen.add(trial.number)
                network = network_of(trial)
                self._failed[network.key] = network
            elif is_skipped(trial):
                self._seen.add(trial.number)
                self._skipped.add(network_of(trial).key)

    def proposal(self, running: Sequence[FrozenTrial], is_careful: bool = False) -> Parameters:
        """The parameters of the next network to evaluate.

        Args:
            running: trials whose networks are being evaluated.
            is_careful: whether to avoid failure above all.
        """
        tried = self._rows.keys() | self._failed.keys() | self._skipped
        taken = tried | {key for trial in running if (key := self.key_of(trial))}
        rows = list(self._rows.values())
        scored = [row for row in rows if row.is_scored]
        if self._num_finished < self.n_startup_trials or len(scored) < 2:
            return self.first(taken, rows, is_careful)
        fronts = self.fronts(scored)
        parents = [row.trial.parameters for front in fronts for row in front]
        children = self.children(taken, parents, self.num_children)
        return children[self.best(list(children), rows, scored, fronts[0], is_careful)]

    def first(self, taken: Container[str], rows: Sequence[Row], is_careful: bool) -> Parameters:
        """A random network; once some have failed, one that is less likely to, bred from those that have not."""
        if not self._failed:
            network, child = next(iter(self.children(taken, [], 1).items()))
            if self._limits.are_kept(network):
                return child
            within = [row.trial.parameters for row in rows if row.trial.result.feasible]  # random networks are all over them
            return next(iter(self.children(taken, within, 1).values()))
        children = self.children(taken, [], self.num_children)
        children |= self.children(taken, [row.trial.parameters for row in rows], self.num_children)
        networks = list(children)
        successes = 1 - self.failures(networks, rows)
        index = successes.argmax() if is_careful else self.rng.choice(len(networks), p=successes / successes.sum())
        return children[networks[int(index)]]

    def key_of(self, trial: FrozenTrial) -> str | None:
        """The key of a running trial's network, or None if its parameters have not been asked in full."""
        if trial.number not in self._keys:
            try:
                self._keys[trial.number] = self.space.architecture(trial.params).key
            except KeyError:
                return None
        return self._keys[trial.number]

    def children(self, taken: Container[str], parents: Sequence[Parameters], count: int) -> dict[Architecture, Parameters]:
        """Up to `count` networks that no trial has had and that keep the limits of parameters and multiply-accumulates.

        If there is no such network: one that is over a limit, or else one that some trial has had.
        """
        children: dict[Architecture, Parameters] = {}
        over: dict[Architecture, Parameters] = {}
        for _ in range(MAX_DRAWS * count):
            chosen = self.rng.permutation(len(parents))[:2]
            child = self.space.child([parents[index] for index in chosen], self.mutation, self.rng)
            architecture = self.space.architecture(child)
            if architecture.key not in taken:
                (children if self._limits.are_kept(architecture) else over)[architecture] = child
            if len(children) == count:
                break
        return children or dict([*over.items()][:1]) or self.untried(taken) or {architecture: child}

    def untried(self, taken: Container[str]) -> dict[Architecture, Parameters]:
        """The first network of the space that no trial has had, if there is any."""
        for parameters in self.space.every():
            architecture = self.space.architecture(parameters)
            if architecture.key not in taken:
                return {architecture: parameters}
        return {}

    def fronts(self, scored: Sequence[Row]) -> list[list[Row]]:
        """The front, then the front of the rest, and so on until there are enough to breed from."""
        parents, count = list[list[Row]](), 0
        for members in nondominated_fronts([row.accuracy for row in scored], [row.latencies_ms for row in scored]):
            parents.append([scored[index] for index in members])
            count += len(members)
            if count >= self.population_size:
                break
        return parents

    def best(
        self,
        children: Sequence[Architecture],
        rows: Sequence[Row],
        scored: Sequence[Row],
        front: Sequence[Row],
        is_careful: bool,
    ) -> Architecture:
        """The child that should add most to the front or, if none should, come nearest to it."""
        features = [Features.of(child, self.img_size) for child in children]
        failures = self.failures(children, rows)
        result = scored[0].trial.result
        accuracy_model = AccuracyModel.fit(with_expected_accuracies(rows), self._input_scales)
        latency_models = {
            name: LatencyModel.fit([row for row in rows if row.was_measured_on(name)], self._input_scales, name)
            for name in result.latencies
        }
        accuracies = accuracy_model.predict(features)
        latencies = {name: model.predict(features) for name, model in latency_models.items()}
        drawn_accuracies = accuracy_model.draw(features, NUM_DRAWS, self.rng)
        of_objectives = [latency_models[name].draw(features, NUM_DRAWS, self.rng) for name in result.objectives]
        drawn_latencies = np.stack(of_objectives, axis=-1)  # (draws, children, objectives)
        ends = {name: self.end(name, scored) for name in latencies}
        of_resources = self._limits.excesses(children, [row.trial for row in rows])
        objective_ends = [ends[name] for name in result.objectives]
        front_accuracies = [row.accuracy for row in front]
        front_latencies = [row.latencies_ms for row in front]

        def worth(index: int) -> tuple[float, float, float]:
            safety = -failures[index] if is_careful else 0.0
            excess = max(*(latencies[name][index] / ends[name] for name in latencies), of_resources[index])
            if excess > 1:
                return safety, 0.0, -excess - failures[index]
            points = zip(drawn_accuracies[:, index], drawn_latencies[:, index], strict=True)
            gained = float(np.mean([gain(front_accuracies, front_latencies, *point, objective_ends) for point in points]))
            at = [latencies[name][index] for name in result.objectives]
            no_slower = [
                accuracy
                for accuracy, others in zip(front_accuracies, front_latencies, strict=True)
                if all(other <= latency for other, latency in zip(others, at, strict=True))
            ]
            nearness = accuracies[index] - max(no_slower, default=0.0)
            return safety, gained * (1 - failures[index]) ** 2, nearness - failures[index]

        best, (_, self.expected_gain, _) = max(
            ((index, worth(index)) for index in range(len(children))), key=lambda indexed: indexed[1]
        )
        return children[best]

    def end(self, target: str, scored: Sequence[Row]) -> float:
        """The latency that the front ends at: the target's limit, or the slowest network's."""
        return self._limits.budget_ms(target) or max(
            latency.latency_ms for row in scored if (latency := row.latency_on(target))
        )

    def failures(self, children: Sequence[Architecture], rows: Sequence[Row]) -> Vector:
        """Probabilities that children fail, (children,); 0 while nothing has failed. What worked in some trial works."""
        failed = [network for key, network in sorted(self._failed.items()) if key not in self._rows]
        if not failed:
            return np.zeros(len(children))
        networks = [row.trial.architecture for row in rows] + failed
        has_failed = np.arange(len(networks)) >= len(rows)
        inputs = np.stack([self._failure_inputs(network) for network in networks])
        model = FailureModel.fit(inputs, has_failed, self._failure_scales)
        return model.predict(np.stack([self._failure_inputs(child) for child in children]))

    def _failure_inputs(self, network: Architecture) -> Vector:
        return failure_model.inputs_of(network, self.img_size)

    @cached_property
    def _input_scales(self) -> Vector:
        return scales(self.space, lambda network: Features.of(network, self.img_size).inputs)

    @cached_property
    def _failure_scales(self) -> Vector:
        return scales(self.space, self._failure_inputs)
