"""What may answer a space's questions in place of an Optuna trial: given parameters, random draws, parents."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from search.space import dimensions
from search.space.dimensions import Dimension, Value

Parameters = dict[str, Value]
Size = Literal["any", "largest", "smallest"]


class TrialLike(Protocol):
    """The part of `optuna.Trial` that a space needs."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class GivenTrial:
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


class DrawnTrial:
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


class CountedTrial:
    """Answers a space's questions by the numbers of the choices, the first where none is given; counts the choices.

    Attributes:
        chosen: the number of each answer, in the order of asking.
        counts: how many choices there were.
    """

    def __init__(self, choose: Sequence[int]) -> None:
        self.choose = choose
        self.chosen: list[int] = []
        self.counts: list[int] = []
        self.asked: Parameters = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self.suggest_categorical(name, range(low, high + 1, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        position = len(self.chosen)
        self.chosen.append(self.choose[position] if position < len(self.choose) else 0)
        self.counts.append(len(choices))
        self.asked[name] = choices[self.chosen[-1]]
        return self.asked[name]


class BredTrial:
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
