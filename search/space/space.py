"""The search space: Optuna trial -> Architecture, and baselines -> parameters to start a study from.

Parameters are the dimensions of dimensions.py that have several choices: `embed_dim` and others of the whole network, and
`stageN.depth`, `stageN.window_size` and others of a stage, N from 1. A value that cannot matter is not asked: alpha where
the window is 0 (no attention) or 1 (plain attention), heads without attention.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from models.architecture import NUM_STAGES, Architecture, StageSpec
from search import UserError
from search.space import dimensions
from search.space.choices import HEADS, Choices, activating_choices, check_head_dim, declared_in, distinct_stages
from search.space.dimensions import Dimension, Value, in_order_of_asking
from search.space.trials import BredTrial, CountedTrial, DrawnTrial, GivenTrial
from search.space.trials import Parameters as Parameters
from search.space.trials import Size as Size
from search.space.trials import TrialLike as TrialLike

PATTERN = "LITv2 pattern"  # origin of trials with the depths, windows, alphas and MLP ratios of the published LITv2-S


class Space:
    """All architectures that a search may propose.

    Args:
        stages: for each of the four stages the choices of its dimensions (depth, window_size, alpha, num_heads and others):
            a list, or one value to fix it.
        head_dim: channels of every head, so that wider networks have more heads; num_heads is then left out. None for as
            many heads as the stages say, at every width.
        patch_size: side of the patches that become tokens, in pixels.
        downsample: "dtm" or "conv", see `models.litv2.Downsample`.
        **choices: the choices of the whole network's dimensions: embed_dim, and img_size where the size of images is one.

    Raises:
        UserError: naming the stage and the value if a list is empty or a combination cannot be built.
    """

    def __init__(
        self,
        stages: Sequence[Mapping[str, Any]],
        patch_size: int,
        downsample: str,
        head_dim: int | None = None,
        **choices: int | Sequence[int] | None,
    ) -> None:
        if len(stages) != NUM_STAGES:
            raise UserError(f"space.stages has {len(stages)} entries; LITv2 has {NUM_STAGES} stages")
        self.patch_size = patch_size
        self.downsample = downsample
        self.head_dim = head_dim
        self.network: Choices = _parse("space", dimensions.NETWORK_DIMENSIONS, choices)
        if head_dim is not None:
            check_head_dim(head_dim, self.network["embed_dim"], stages)
        declared = [d for d in dimensions.STAGE_DIMENSIONS if head_dim is None or d.name != HEADS]
        self.stages: tuple[Choices, ...] = tuple(
            _parse(f"space.stages[{index}]", declared, stage) for index, stage in enumerate(stages)
        )
        try:
            list(self.covering())
        except ValueError as error:
            raise UserError(f"space: {error}") from error

    def suggest(self, trial: TrialLike) -> Architecture:
        """The architecture that a trial's parameters stand for, in canonical form.

        Args:
            trial: an Optuna trial, or anything that answers like one; it is asked for the dimensions that matter.
        """
        network = _suggest(trial, "", self.network_dimensions, self.network)
        stages = tuple(
            StageSpec(**_suggest(trial, f"stage{number}.", dimensions.STAGE_DIMENSIONS, choices))
            for number, choices in enumerate(self.stages_at(network["embed_dim"]), start=1)
        )
        return self._architecture(network, stages).canonical()

    def stages_at(self, embed_dim: int) -> tuple[Choices, ...]:
        """The choices of each stage in networks of this width."""
        if self.head_dim is None:
            return self.stages
        return tuple(
            {**choices, HEADS: (embed_dim * 2**index // self.head_dim,)} for index, choices in enumerate(self.stages)
        )

    @property
    def network_dimensions(self) -> tuple[Dimension[Architecture], ...]:
        """The dimensions of the whole network that this space has."""
        return tuple(dimension for dimension in dimensions.NETWORK_DIMENSIONS if dimension.name in self.network)

    def architecture(self, parameters: Mapping[str, Value]) -> Architecture:
        """The architecture of given parameters; those that are fixed may be left out."""
        return self.suggest(GivenTrial(parameters))

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Check parameters that come from elsewhere, such as those of an enqueued trial.

        Those that are fixed, or do not matter beside the others, may be left out or given.

        Raises:
            ValueError: naming the first parameter that is unknown, missing or not a choice of the space.
        """
        choices_of = self._choices()
        for name, value in parameters.items():
            if name not in choices_of:
                raise ValueError(f"{name} is not a parameter of the space; known are {', '.join(choices_of)}")
            if value not in choices_of[name]:
                listed = ", ".join(map(str, choices_of[name]))
                raise ValueError(f"{name}={value!r} is not in the space; choose from {listed}")
        try:
            self.architecture(parameters)
        except KeyError as error:
            listed = ", ".join(map(str, choices_of[error.args[0]]))
            raise ValueError(f"{error.args[0]} is missing; choose from {listed}") from error

    def num_architectures(self) -> int:
        """Number of different networks."""
        return sum(
            math.prod(
                len({spec.key(dim) for spec in distinct_stages(choices)})
                for choices, dim in zip(self.stages_at(network.embed_dim), network.dims, strict=True)
            )
            for network in self._first_of_each_width()
        )

    def every(self) -> Iterator[Parameters]:
        """Parameters of every network, in a fixed order; some networks come more than once."""
        choose: list[int] = []  # the choice of each parameter that is asked, in the order of asking
        while True:
            counted = CountedTrial(choose)
            self.suggest(counted)
            yield counted.asked
            choose = counted.chosen
            while choose and choose[-1] == counted.counts[len(choose) - 1] - 1:
                choose.pop()
            if not choose:
                return
            choose[-1] += 1

    def baselines(self) -> dict[str, Parameters]:
        """Networks to evaluate first, by name: the extremes, and as close as possible the LITv2 pattern at every width.

        The smallest comes first: it is the least likely to fail, and what fails later is compared with what worked.
        """
        patterns = {f"{PATTERN}, width {width}": self._pattern(width) for width in self.network["embed_dim"]}
        named = {**patterns, "smallest": self._extreme("smallest"), "largest": self._extreme("largest")}
        first_name = {self.architecture(parameters).key: name for name, parameters in reversed(named.items())}
        return {name: named[name] for name in ("smallest", *patterns, "largest") if name in first_name.values()}

    def anchor(self) -> Architecture:
        """The network that latencies are measured against: the LITv2 pattern at the middle width and image size."""
        middle = {name: values[len(values) // 2] for name, values in self.network.items()}
        return self.architecture({**self._pattern(middle["embed_dim"]), **middle})

    def largest(self) -> Architecture:
        """Every choice at its most expensive: bounds the latencies of a space for the hypervolume."""
        return self.architecture(self._extreme("largest"))

    def smallest(self) -> Architecture:
        """Every choice at its least expensive."""
        return self.architecture(self._extreme("smallest"))

    def cheapest(self, cost: Callable[[Architecture], float]) -> Architecture:
        """The network of the lowest cost, exactly, for a cost that is a sum over stages at each width."""
        candidates = []
        for network in self._first_of_each_width():
            for index, choices in enumerate(self.stages_at(network.embed_dim)):
                stages = ((*network.stages[:index], spec, *network.stages[index + 1 :]) for spec in distinct_stages(choices))
                network = min((replace(network, stages=changed) for changed in stages), key=lambda n: (cost(n), n.key))
            candidates.append(network)
        return min(candidates, key=lambda network: (cost(network), network.key)).canonical()

    def sample(self, seed: Sequence[int], size: Size = "any") -> Architecture:
        """A random architecture; the same seed gives the same one.

        Args:
            seed: non-negative integers.
            size: draw everything from its choices, or take the largest or smallest width, depths and MLP ratios.
        """
        return self.suggest(DrawnTrial(seed, size))

    def searched_dimensions(self) -> dict[str, tuple[Value, ...]]:
        """Every parameter that has several choices, with them, where some choice of the others makes it matter."""
        return {name: values for name, values in self._choices(active=True).items() if len(values) > 1}

    def pair(self, name: str, seed: Sequence[int]) -> tuple[Architecture, Architecture]:
        """Two random architectures that differ in one dimension alone: its lowest and its highest value.

        Args:
            name: one of `searched_dimensions()`.
            seed: non-negative integers.
        """
        fixed = self._activating_parameters(name, seed)
        lowest, *_, highest = self.searched_dimensions()[name]
        low, high = (self.suggest(DrawnTrial(seed, fixed={**fixed, name: value})) for value in (lowest, highest))
        return low, high

    def child(self, parents: Sequence[Mapping[str, Value]], mutation: float, rng: np.random.Generator) -> Parameters:
        """Parameters of which each is a random parent's or, with the probability `mutation`, drawn anew.

        What no parent has a value for, as alpha without a window, is drawn too; without parents everything is.
        """
        bred = BredTrial(parents, mutation, rng)
        self.suggest(bred)
        return bred.asked

    def covering(self) -> Iterator[Architecture]:
        """Architectures in which each stage takes each of its values at each width, the others their smallest window."""
        for network in self._first_of_each_width():
            for index, choices in enumerate(self.stages_at(network.embed_dim)):
                for spec in distinct_stages(choices):
                    yield replace(network, stages=(*network.stages[:index], spec, *network.stages[index + 1 :]))

    def _first_of_each_width(self) -> Iterator[Architecture]:
        """A network with the smallest windows for each choice of the whole network's dimensions."""
        for values in itertools.product(*self.network.values()):
            network = dict(zip(self.network, values, strict=True))
            choices = self.stages_at(network["embed_dim"])
            stages = tuple(min(distinct_stages(stage), key=lambda spec: spec.window_size) for stage in choices)
            yield self._architecture(network, stages)

    def _choices(self, active: bool = False) -> dict[str, tuple[Value, ...]]:
        """The choices of every parameter, or only of those that some choice of the others makes matter."""
        choices_of: dict[str, tuple[Value, ...]] = dict(self.network)
        for number, choices in enumerate(self.stages, start=1):
            for dimension in declared_in(choices):
                if not active or activating_choices(dimension, choices):
                    choices_of[f"stage{number}.{dimension.name}"] = choices[dimension.name]
        return choices_of

    def _architecture(self, network: Mapping[str, Any], stages: tuple[StageSpec, ...]) -> Architecture:
        return Architecture(**{"patch_size": self.patch_size, "downsample": self.downsample, **network}, stages=stages)

    def _activating_parameters(self, name: str, seed: Sequence[int]) -> Parameters:
        """A random choice of the dimension that this one depends on, which activates it; {} if there is none."""
        stage, _, kind = name.rpartition(".")
        if not stage:
            return {}
        dimension = next(d for d in dimensions.STAGE_DIMENSIONS if d.name == kind)
        if dimension.depends_on is None:
            return {}
        needed = f"{stage}.{dimension.depends_on}"
        choices = activating_choices(dimension, self.stages[int(stage.removeprefix("stage")) - 1])
        return {needed: DrawnTrial(seed).suggest_categorical(needed, choices)}

    def _pattern(self, width: Value) -> Parameters:
        def nearest(dimension: Dimension[Any], choices: Sequence[Any], index: int) -> Value:
            pattern = dimension.pattern
            value: Value = choices[0] if pattern is None else min(choices, key=lambda choice: abs(choice - pattern[index]))
            return value

        return self._parameters(nearest, {"embed_dim": width})

    def _extreme(self, size: Literal["largest", "smallest"]) -> Parameters:
        def extreme(dimension: Dimension[Any], choices: Sequence[Any], index: int) -> Value:
            value: Value = getattr(dimension, size)(choices)
            return value

        return self._parameters(extreme, {})

    def _parameters(
        self, choose: Callable[[Dimension[Any], Sequence[Any], int], Value], fixed: Mapping[str, Value]
    ) -> Parameters:
        """What a trial of a network is asked.

        choose: gives a dimension's value from its choices, and the index of the stage. fixed: values that are given.
        """
        given = {d.name: choose(d, self.network[d.name], 0) for d in self.network_dimensions}
        for number, choices in enumerate(self.stages, start=1):
            for dimension in declared_in(choices):
                given[f"stage{number}.{dimension.name}"] = choose(dimension, choices[dimension.name], number - 1)
        recorder = GivenTrial({**given, **fixed})
        self.suggest(recorder)
        return recorder.asked


def _suggest(trial: TrialLike, prefix: str, declared: tuple[Dimension[Any], ...], choices: Choices) -> dict[str, Any]:
    """A stage's or the network's values, by dimension."""
    values: dict[str, Any] = {}
    for dimension in in_order_of_asking(declared):
        if dimension.is_active(values):
            answer = _ask(trial, prefix + dimension.name, choices[dimension.name], dimension.is_ordered)
            values[dimension.name] = dimension.kind(answer)
        else:
            values[dimension.name] = dimension.inactive
    return values


def _ask(trial: TrialLike, name: str, choices: Sequence[Value], is_ordered: bool) -> Value:
    """A single choice is not asked. Evenly spaced whole numbers keep their order for the sampler if they have one."""
    if len(choices) == 1:
        return choices[0]
    if is_ordered and all(type(choice) is int for choice in choices):
        steps = {b - a for a, b in itertools.pairwise(choices)}
        if len(steps) == 1:
            return trial.suggest_int(name, int(choices[0]), int(choices[-1]), step=int(steps.pop()))
    answer: Value = trial.suggest_categorical(name, list(choices))
    return answer


def _parse(key: str, declared: Sequence[Dimension[Any]], given: Mapping[str, Any]) -> Choices:
    """The choices of every dimension that the space has. Raises: UserError naming the key and the value."""
    names = [dimension.name for dimension in declared]
    if unknown := set(given) - set(names):
        raise UserError(f"{key}: unknown {', '.join(map(str, unknown))}; known are {', '.join(names)}")
    values = {dimension.name: dimension.default for dimension in declared if dimension.default is not None} | {**given}
    left_out = {dimension.name for dimension in declared if dimension.is_optional and values.get(dimension.name) is None}
    if missing := set(names) - set(values) - left_out:
        raise UserError(f"{key}: {', '.join(sorted(missing))} missing")
    try:
        return {
            dimension.name: dimension.choices(f"{key}.{dimension.name}", values[dimension.name])
            for dimension in declared
            if dimension.name not in left_out
        }
    except ValueError as error:
        raise UserError(str(error)) from error
