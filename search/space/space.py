"""The search space: Optuna trial -> Architecture, and baselines -> parameters to start a study from.

Parameters are the dimensions of dimensions.py that have several choices: `embed_dim` and others of the whole network, and
`stageN.depth`, `stageN.window_size` and others of a stage, N from 1. A value that cannot matter is not asked: alpha where
the window is 0 (no attention) or 1 (plain attention), heads without attention.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from models.architecture import NUM_STAGES, Architecture, StageSpec
from search import UserError
from search.space import dimensions
from search.space.dimensions import Dimension, Value, in_order_of_asking

Parameters = dict[str, Value]
Choices = Mapping[str, tuple[Any, ...]]
Size = Literal["any", "largest", "smallest"]
PATTERN = "LITv2 pattern"  # origin of trials with the depths, windows, alphas and MLP ratios of the published LITv2-S


class TrialLike(Protocol):
    """The part of `optuna.Trial` that a space needs."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Space:
    """All architectures that a search may propose.

    Args:
        stages: for each of the four stages the choices of its dimensions (depth, window_size, alpha, num_heads and others):
            a list, or one value to fix it.
        patch_size: side of the patches that become tokens, in pixels.
        downsample: "dtm" or "conv", see `models.litv2.Downsample`.
        **choices: the choices of the whole network's dimensions, such as embed_dim.

    Raises:
        UserError: naming the stage and the value if a list is empty or a combination cannot be built.
    """

    def __init__(
        self, stages: Sequence[Mapping[str, Any]], patch_size: int, downsample: str, **choices: int | Sequence[int]
    ) -> None:
        if len(stages) != NUM_STAGES:
            raise UserError(f"space.stages has {len(stages)} entries; LITv2 has {NUM_STAGES} stages")
        self.patch_size = patch_size
        self.downsample = downsample
        self.network: Choices = _parse("space", dimensions.NETWORK_DIMENSIONS, choices)
        self.stages: tuple[Choices, ...] = tuple(
            _parse(f"space.stages[{index}]", dimensions.STAGE_DIMENSIONS, stage) for index, stage in enumerate(stages)
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
        network = _suggest(trial, "", dimensions.NETWORK_DIMENSIONS, self.network)
        stages = tuple(
            StageSpec(**_suggest(trial, f"stage{number}.", dimensions.STAGE_DIMENSIONS, choices))
            for number, choices in enumerate(self.stages, start=1)
        )
        return self._architecture(network, stages).canonical()

    def architecture(self, parameters: Mapping[str, Value]) -> Architecture:
        """The architecture of given parameters; those that are fixed may be left out."""
        return self.suggest(_Given(parameters))

    def num_architectures(self) -> int:
        """Number of different networks."""
        of_network = math.prod(map(len, self.network.values()))
        return of_network * math.prod(len(distinct_stages(stage)) for stage in self.stages)

    def baselines(self) -> dict[str, Parameters]:
        """Networks to evaluate first, by name: the LITv2 pattern at every width, as close as possible, and the extremes."""
        patterns = {f"{PATTERN}, width {width}": self._pattern(width) for width in self.network["embed_dim"]}
        named = {**patterns, "smallest": self._extreme("smallest"), "largest": self._extreme("largest")}
        first_name = {self.architecture(parameters).key: name for name, parameters in reversed(named.items())}
        return {name: named[name] for name in named if name in first_name.values()}

    def anchor(self) -> Architecture:
        """The network that latencies are measured against: the LITv2 pattern at the middle width."""
        widths = self.network["embed_dim"]
        return self.architecture(self._pattern(widths[len(widths) // 2]))

    def largest(self) -> Architecture:
        """Every choice at its most expensive: bounds the latencies of a space for the hypervolume."""
        return self.architecture(self._extreme("largest"))

    def smallest(self) -> Architecture:
        """Every choice at its least expensive."""
        return self.architecture(self._extreme("smallest"))

    def sample(self, seed: Sequence[int], size: Size = "any") -> Architecture:
        """A random architecture; the same seed gives the same one.

        Args:
            seed: non-negative integers.
            size: draw everything from its choices, or take the largest or smallest width, depths and MLP ratios.
        """
        return self.suggest(_Drawn(seed, size))

    def searched_dimensions(self) -> dict[str, tuple[Value, ...]]:
        """Every parameter that has several choices, with them, where some choice of the others makes it matter."""
        choices_of: dict[str, tuple[Value, ...]] = dict(self.network)
        for number, choices in enumerate(self.stages, start=1):
            for dimension in dimensions.STAGE_DIMENSIONS:
                if activating_choices(dimension, choices):
                    choices_of[f"stage{number}.{dimension.name}"] = choices[dimension.name]
        return {name: values for name, values in choices_of.items() if len(values) > 1}

    def pair(self, name: str, seed: Sequence[int]) -> tuple[Architecture, Architecture]:
        """Two random architectures that differ in one dimension alone: its lowest and its highest value.

        Args:
            name: one of `searched_dimensions()`.
            seed: non-negative integers.
        """
        fixed = self._activating_parameters(name, seed)
        lowest, *_, highest = self.searched_dimensions()[name]
        low, high = (self.suggest(_Drawn(seed, fixed={**fixed, name: value})) for value in (lowest, highest))
        return low, high

    def child(self, parents: Sequence[Mapping[str, Value]], mutation: float, rng: np.random.Generator) -> Parameters:
        """Parameters of which each is a random parent's or, with the probability `mutation`, drawn anew.

        What no parent has a value for, as alpha without a window, is drawn too; without parents everything is.
        """
        bred = _Bred(parents, mutation, rng)
        self.suggest(bred)
        return bred.asked

    def covering(self) -> Iterator[Architecture]:
        """Architectures in which each stage takes each of its values at each width, the others their smallest window."""
        first = [min(distinct_stages(stage), key=lambda spec: spec.window_size) for stage in self.stages]
        for values in itertools.product(*self.network.values()):
            network = dict(zip(self.network, values, strict=True))
            for index, choices in enumerate(self.stages):
                for spec in distinct_stages(choices):
                    yield self._architecture(network, (*first[:index], spec, *first[index + 1 :]))

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
        return {needed: _Drawn(seed).suggest_categorical(needed, choices)}

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
        given = {d.name: choose(d, self.network[d.name], 0) for d in dimensions.NETWORK_DIMENSIONS}
        for number, choices in enumerate(self.stages, start=1):
            for dimension in dimensions.STAGE_DIMENSIONS:
                given[f"stage{number}.{dimension.name}"] = choose(dimension, choices[dimension.name], number - 1)
        recorder = _Given({**given, **fixed})
        self.suggest(recorder)
        return recorder.asked


def distinct_stages(choices: Choices) -> set[StageSpec]:
    """Every different stage of some choices, in canonical form."""
    ordered = in_order_of_asking(dimensions.STAGE_DIMENSIONS)
    stages: list[dict[str, Any]] = [{}]
    for dimension in ordered:
        stages = [
            {**stage, dimension.name: value}
            for stage in stages
            for value in (choices[dimension.name] if dimension.is_active(stage) else (dimension.inactive,))
        ]
    return {StageSpec(**stage).canonical() for stage in stages}


def activating_choices(dimension: Dimension[Any], choices: Choices) -> list[Value]:
    """Choices, of the dimension that this one depends on, that activate it; [0], not empty, if it depends on none."""
    if dimension.depends_on is None:
        return [0]
    return [value for value in choices[dimension.depends_on] if dimension.is_active({dimension.depends_on: value})]


class _Given:
    """Answers a space's questions from given parameters, and remembers which were asked."""

    def __init__(self, parameters: Mapping[str, Value]) -> None:
        self.parameters = parameters
        self.asked: Parameters = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self._answer(name))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._answer(name)

    def _answer(self, name: str) -> Value:
        self.asked[name] = self.parameters[name]
        return self.asked[name]


class _Drawn:
    """Answers a space's questions at random; an answer depends on the seed and the parameter's name alone."""

    def __init__(self, seed: Sequence[int], size: Size = "any", fixed: Mapping[str, Value] | None = None) -> None:
        self.seed = seed
        self.size = size
        self.fixed = fixed or {}
        every: list[Dimension[Any]] = [*dimensions.NETWORK_DIMENSIONS, *dimensions.STAGE_DIMENSIONS]
        self.sizes = {dimension.name for dimension in every if dimension.is_size}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self.suggest_categorical(name, range(low, high + 1, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name in self.fixed:
            return self.fixed[name]
        if self.size != "any" and name.rpartition(".")[2] in self.sizes:
            return max(choices) if self.size == "largest" else min(choices)
        rng = np.random.default_rng([*self.seed, zlib.crc32(name.encode())])
        return choices[int(rng.integers(len(choices)))]


class _Bred:
    """Answers a space's questions from parents or at random, and remembers the answers."""

    def __init__(self, parents: Sequence[Mapping[str, Value]], mutation: float, rng: np.random.Generator) -> None:
        self.parents = parents
        self.mutation = mutation
        self.rng = rng
        self.asked: Parameters = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self.suggest_categorical(name, range(low, high + 1, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        inherited = [parent[name] for parent in self.parents if name in parent]
        pool = choices if not inherited or self.rng.random() < self.mutation else inherited
        self.asked[name] = pool[int(self.rng.integers(len(pool)))]
        return self.asked[name]


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
    """The choices of every dimension. Raises: UserError naming the key and the value."""
    names = [dimension.name for dimension in declared]
    if unknown := set(given) - set(names):
        raise UserError(f"{key}: unknown {', '.join(map(str, unknown))}; known are {', '.join(names)}")
    values = {dimension.name: dimension.default for dimension in declared if dimension.default is not None} | {**given}
    if missing := set(names) - set(values):
        raise UserError(f"{key}: {', '.join(sorted(missing))} missing")
    try:
        return {
            dimension.name: dimension.choices(f"{key}.{dimension.name}", values[dimension.name]) for dimension in declared
        }
    except ValueError as error:
        raise UserError(str(error)) from error
