"""The search space: Optuna trial -> Architecture, and known networks -> parameters to start a study from.

Parameters are `stageN.depth`, `stageN.window_size` and `stageN.alpha`, N from 1, and where a space lists several values
`embed_dim`, `stageN.num_heads` and `stageN.mlp_ratio`. A value that cannot matter is not asked: alpha where the window is 0
(no attention) or 1 (plain attention), heads without attention.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from models.architecture import NUM_STAGES, Architecture, StageSpec
from search import UserError

Value = int | float
Parameters = dict[str, Value]
Size = Literal["any", "largest", "smallest"]
SIZE_PARAMETERS = ("embed_dim", "depth", "mlp_ratio")

# What the authors chose for LITv2-S: Sec. 5.1, arXiv 2205.13213.
LITV2_DEPTHS = (2, 2, 6, 2)
LITV2_WINDOW_SIZES = (0, 0, 2, 1)
LITV2_ALPHA = 0.9
NEEDS_WINDOW = {"alpha": 1, "num_heads": 0}  # parameters of a stage that matter with a window above these
PATTERN = "LITv2 pattern"  # origin of the trials that try it


class Asks(Protocol):
    """The part of `optuna.Trial` that a space needs."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class StageChoices:
    """The values that one stage may take."""

    depth: tuple[int, ...]
    window_size: tuple[int, ...]
    alpha: tuple[float, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]

    def distinct(self) -> set[StageSpec]:
        """Every different stage, in canonical form."""
        return {
            StageSpec(depth, window, alpha, heads, ratio).canonical()
            for depth in self.depth
            for window in self.window_size
            for alpha in (self.alpha if window > 1 else (0.0,))
            for heads in (self.num_heads if window else (1,))
            for ratio in self.mlp_ratio
        }


class Space:
    """All architectures that a search may propose.

    embed_dim, and in each of the four stages depth, window_size, alpha, num_heads and mlp_ratio: a list of choices, or
    one value to fix it.
    Raises: UserError naming the stage and the value if a list is empty or a combination cannot be built.
    """

    def __init__(
        self,
        embed_dim: int | Sequence[int],
        stages: Sequence[Mapping[str, Any]],
        patch_size: int,
        downsample: str,
    ) -> None:
        if len(stages) != NUM_STAGES:
            raise UserError(f"space.stages has {len(stages)} entries; LITv2 has {NUM_STAGES} stages")
        self.embed_dim: tuple[int, ...] = _choices("space.embed_dim", embed_dim)
        self.patch_size = patch_size
        self.downsample = downsample
        self.stages = tuple(_stage_choices(f"space.stages[{i}]", stage) for i, stage in enumerate(stages))
        try:
            list(self.covering())
        except ValueError as error:
            raise UserError(f"space: {error}") from error

    def suggest(self, trial: Asks) -> Architecture:
        """The architecture that a trial's parameters stand for, in canonical form."""
        embed_dim = _ask(trial, "embed_dim", self.embed_dim)
        stages = tuple(_suggest_stage(trial, f"stage{n}", stage) for n, stage in enumerate(self.stages, start=1))
        return Architecture(int(embed_dim), stages, self.patch_size, self.downsample).canonical()

    def num_architectures(self) -> int:
        """Number of different networks."""
        return len(self.embed_dim) * math.prod(len(stage.distinct()) for stage in self.stages)

    def known(self) -> dict[str, Parameters]:
        """Networks to try first: the LITv2 pattern at every width, as close as the space allows, and the space's ends."""
        patterns = {f"{PATTERN}, width {width}": self._pattern(width) for width in self.embed_dim}
        named = {**patterns, "smallest": self._smallest(), "largest": self._largest()}
        first = {self.architecture(parameters).key: origin for origin, parameters in reversed(named.items())}
        return {origin: named[origin] for origin in named if origin in first.values()}

    def anchor(self) -> Architecture:
        """The network that latencies are measured against: the LITv2 pattern at the middle width."""
        return self.architecture(self._pattern(self.embed_dim[len(self.embed_dim) // 2]))

    def largest(self) -> Architecture:
        """Every choice at its most expensive: bounds the latencies of a space for the hypervolume."""
        return self.architecture(self._largest())

    def sample(self, seed: Sequence[int], size: Size = "any") -> Architecture:
        """A random architecture; the same seed gives the same one.

        size: draw everything from its choices, or take the largest or smallest width, depths and MLP ratios.
        """
        return self.suggest(_Drawn(seed, size))

    def dimensions(self) -> dict[str, tuple[Value, ...]]:
        """Every parameter that has several choices, with them; alpha where some window is above 1, heads above 0."""
        choices: dict[str, tuple[Value, ...]] = {"embed_dim": self.embed_dim}
        for number, stage in enumerate(self.stages, start=1):
            for kind, values in vars(stage).items():
                if kind not in NEEDS_WINDOW or max(stage.window_size) > NEEDS_WINDOW[kind]:
                    choices[f"stage{number}.{kind}"] = values
        return {name: values for name, values in choices.items() if len(values) > 1}

    def pair(self, dimension: str, seed: Sequence[int]) -> tuple[Architecture, Architecture]:
        """Two random architectures that differ in one dimension alone: its lowest and its highest value."""
        stage, _, kind = dimension.rpartition(".")
        needed: dict[str, Value] = {}
        if kind in NEEDS_WINDOW:
            windows = [w for w in self.stages[int(stage.removeprefix("stage")) - 1].window_size if w > NEEDS_WINDOW[kind]]
            needed[f"{stage}.window_size"] = _Drawn(seed).suggest_categorical(f"{stage}.window_size", windows)
        lowest, *_, highest = self.dimensions()[dimension]
        low, high = (self.suggest(_Drawn(seed, fixed={**needed, dimension: value})) for value in (lowest, highest))
        return low, high

    def child(self, parents: Sequence[Mapping[str, Value]], mutation: float, rng: np.random.Generator) -> Parameters:
        """Parameters of which each is a random parent's or, with the probability `mutation`, drawn anew.

        What no parent has a value for, as alpha without a window, is drawn too; without parents everything is.
        """
        bred = _Bred(parents, mutation, rng)
        self.suggest(bred)
        return bred.asked

    def covering(self) -> Iterator[Architecture]:
        """Architectures in which each stage takes each of its values at each width, while the others are at their first."""
        first = [min(stage.distinct(), key=lambda spec: spec.window_size) for stage in self.stages]
        for width in self.embed_dim:
            for index, choices in enumerate(self.stages):
                for spec in choices.distinct():
                    stages = (*first[:index], spec, *first[index + 1 :])
                    yield Architecture(width, stages, self.patch_size, self.downsample)

    def architecture(self, parameters: Mapping[str, Value]) -> Architecture:
        """The architecture of given parameters; those that are fixed may be left out."""
        return self.suggest(_Given(parameters))

    def _pattern(self, width: int) -> Parameters:
        nearest = [
            {
                "depth": _nearest(stage.depth, depth),
                "window_size": _nearest(stage.window_size, window),
                "alpha": _nearest(stage.alpha, LITV2_ALPHA),
                "mlp_ratio": _nearest(stage.mlp_ratio, 4.0),
            }
            for stage, depth, window in zip(self.stages, LITV2_DEPTHS, LITV2_WINDOW_SIZES, strict=True)
        ]
        return self._parameters(width, nearest)

    def _largest(self) -> Parameters:
        # Global attention is quadratic in the map and costs most; without any, the smallest window does.
        windows = [min((w for w in stage.window_size if w), default=0) for stage in self.stages]
        most = [
            {"depth": max(s.depth), "window_size": window, "alpha": max(s.alpha), "mlp_ratio": max(s.mlp_ratio)}
            for s, window in zip(self.stages, windows, strict=True)
        ]
        return self._parameters(max(self.embed_dim), most)

    def _smallest(self) -> Parameters:
        windows = [0 if 0 in stage.window_size else max(stage.window_size) for stage in self.stages]
        least = [
            {"depth": min(s.depth), "window_size": window, "alpha": max(s.alpha), "mlp_ratio": min(s.mlp_ratio)}
            for s, window in zip(self.stages, windows, strict=True)
        ]
        return self._parameters(min(self.embed_dim), least)

    def _parameters(self, width: int, stages: Sequence[Mapping[str, Value]]) -> Parameters:
        """What a trial of this network is asked; heads are each stage's first choice."""
        given: Parameters = {"embed_dim": width}
        for number, (choices, values) in enumerate(zip(self.stages, stages, strict=True), start=1):
            given |= {f"stage{number}.{kind}": value for kind, value in values.items()}
            given[f"stage{number}.num_heads"] = choices.num_heads[0]
        recorder = _Given(given)
        self.suggest(recorder)
        return recorder.asked


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

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self.suggest_categorical(name, range(low, high + 1, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name in self.fixed:
            return self.fixed[name]
        if self.size != "any" and name.rpartition(".")[2] in SIZE_PARAMETERS:
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


def _suggest_stage(trial: Asks, name: str, choices: StageChoices) -> StageSpec:
    # Categorical whatever its spacing: no attention, plain attention and HiLo are three kinds, not three sizes.
    window = int(_ask(trial, f"{name}.window_size", choices.window_size, ordered=False))
    return StageSpec(
        depth=int(_ask(trial, f"{name}.depth", choices.depth)),
        window_size=window,
        alpha=float(_ask(trial, f"{name}.alpha", choices.alpha)) if window > 1 else 0.0,
        num_heads=int(_ask(trial, f"{name}.num_heads", choices.num_heads)) if window else 1,
        mlp_ratio=float(_ask(trial, f"{name}.mlp_ratio", choices.mlp_ratio)),
    )


def _ask(trial: Asks, name: str, choices: Sequence[Value], ordered: bool = True) -> Value:
    """A single choice is not asked. Evenly spaced whole numbers keep their order for the sampler if they have one."""
    if len(choices) == 1:
        return choices[0]
    steps = {b - a for a, b in itertools.pairwise(choices)}
    if ordered and len(steps) == 1 and all(isinstance(c, int) for c in choices) and choices[1] > choices[0]:
        return trial.suggest_int(name, int(choices[0]), int(choices[-1]), step=int(choices[1] - choices[0]))
    return trial.suggest_categorical(name, list(choices))  # type: ignore[no-any-return]


def _choices(name: str, value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not values:
        raise UserError(f"{name} is empty; list at least one value")
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise UserError(f"{name}: {item!r} is not a number")
    return tuple(sorted(set(values)))


def _stage_choices(name: str, stage: Mapping[str, Any]) -> StageChoices:
    defaults: dict[str, Any] = {"mlp_ratio": 4.0}
    keys = ("depth", "window_size", "alpha", "num_heads", "mlp_ratio")
    if unknown := set(stage) - set(keys):
        raise UserError(f"{name}: unknown {', '.join(map(str, unknown))}; known are {', '.join(keys)}")
    given = {**defaults, **stage}
    if missing := set(keys) - set(given):
        raise UserError(f"{name}: {', '.join(sorted(missing))} missing")
    choices = {key: _choices(f"{name}.{key}", given[key]) for key in keys}
    for heads in choices["num_heads"]:
        if not isinstance(heads, int) or heads < 1:
            raise UserError(f"{name}.num_heads={heads} must be a whole number of at least 1")
    for alpha in choices["alpha"]:
        if not 0 <= alpha <= 1:
            raise UserError(f"{name}.alpha={alpha} must be in [0, 1]")
    return StageChoices(**choices)


def _nearest(choices: Sequence[Value], wanted: Value) -> Value:
    return min(choices, key=lambda choice: abs(choice - wanted))
