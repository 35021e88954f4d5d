"""The dimensions of the search space, each declared once.

A declaration says all that the project needs to know of a dimension: its name and choices, when it matters, how it enters
the block model of latency and the sampler's models, and how it is shown. To add one, declare it here and teach
the model itself the new field of `StageSpec` or `Architecture` (models/architecture.py, models/litv2.py);
docs/extending.md has an example.

Source of the dimensions and of LITv2-S's values: "Fast Vision Transformers with HiLo Attention", Sec. 3 and 5.1, arXiv
2205.13213.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from models.architecture import MAX_IMG_SIZE, NUM_STAGES, Architecture, StageSpec, check_int, count_hidden
from search.space.drawing import draw_blocks, draw_heads, draw_windows

Value = bool | int | float
Costs = Mapping[str, float]
Spec = TypeVar("Spec", StageSpec, Architecture)


def _always(chosen: Mapping[str, Value]) -> bool:
    return True


def _accept(name: str, choice: Value) -> None:
    """Leave the check to `Architecture`, which refuses what cannot be built."""


@dataclass(frozen=True, eq=False)  # a declaration is only equal to itself
class Dimension(Generic[Spec]):
    """One choice of a search: of a stage (a field of `StageSpec`) or of the whole network (a field of `Architecture`).

    Attributes:
        name: the field, and the key in conf/space.
        kind: type of its values.
        default: value of a space that does not list any; None makes the key required, unless the dimension is optional.
        is_optional: whether a space that does not list any values is without the dimension: its networks have None.
        pattern: the value of LITv2-S in each stage, which the baselines come as close to as a space allows; None takes
            the first choice.
        check: raises ValueError for a choice that no network can have; gets the key and the choice.
        depends_on: the dimension whose choice decides whether this one matters; it is asked first.
        is_active: whether this one matters, given the values chosen so far.
        inactive: value where it does not matter.
        is_ordered: whether evenly spaced whole numbers are ordered for the sampler; categories otherwise.
        is_size: whether the largest and smallest networks of a supernet's training take its extremes.
        largest, smallest: the choice in the most and least expensive network of a space.
        costs: multiples of named costs that one block of a stage (stage, width, side of its map in tokens), or a network
            (architecture, width, side of its image in pixels), adds to the block model; always the same names.
        accuracy_inputs: what the sampler's models get of it, on scales on which accuracy is nearly linear; as many numbers
            for all networks of a space.
        text: how it is shown in a one-line description, "" for nothing.
        column: header on the model card, and `cell` the text below it.
        draw: SVG part of the picture of a stage (stage, side of its map); None shows a value other than the default as text.
    """

    name: str
    kind: Callable[[Any], Value] = float
    default: Value | None = None
    is_optional: bool = False
    pattern: Sequence[Value] | None = None
    check: Callable[[str, Value], None] = _accept
    depends_on: str | None = None
    is_active: Callable[[Mapping[str, Value]], bool] = _always
    inactive: Value = 0
    is_ordered: bool = True
    is_size: bool = False
    largest: Callable[[Sequence[Any]], Any] = max
    smallest: Callable[[Sequence[Any]], Any] = min
    costs: Callable[[Spec, int, int], Costs] | None = None
    accuracy_inputs: Callable[[Spec], tuple[float, ...]] | None = None
    text: Callable[[Spec], str] | None = None
    column: str | None = None
    cell: Callable[[Spec], str] | None = None
    draw: Callable[[StageSpec, int], str] | None = None

    def value(self, spec: Spec) -> Value:
        """This dimension's value in a stage or network."""
        value: Value = getattr(spec, self.name)
        return value

    def choices(self, key: str, given: object) -> tuple[Value, ...]:
        """The choices of a space, in rising order.

        Args:
            key: where they stand in the configuration, for messages.
            given: a list of values, or a single one that fixes the dimension.

        Raises:
            ValueError: if there are none, or one has the wrong type or range.
        """
        values = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
        if not values:
            raise ValueError(f"{key} is empty; list at least one value")
        for value in values:
            if self.kind is bool and not isinstance(value, bool):
                raise ValueError(f"{key}: {value!r} is not true or false")
            if self.kind is not bool and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{key}: {value!r} is not a number")
            self.check(key, value)
        return tuple(sorted(set(values)))

    def describe(self, spec: Spec) -> str:
        """Part of a one-line description; by default the value where it is not the default."""
        if self.text is not None:
            return self.text(spec)
        return "" if self.value(spec) in (self.default, self.inactive) else f" {self.name}={self.value(spec)}"

    def card_cell(self, spec: Spec) -> str:
        """The text below `column` on the model card."""
        return f"{self.value(spec)}" if self.cell is None else self.cell(spec)

    def inputs(self, spec: Spec) -> tuple[float, ...]:
        """What the sampler's models get; by default the value itself."""
        return (float(self.value(spec)),) if self.accuracy_inputs is None else self.accuracy_inputs(spec)


def _first(choices: Sequence[Value]) -> Value:
    return choices[0]


def _check_img_size(key: str, size: Value) -> None:
    check_int(key, size, 1, MAX_IMG_SIZE)


def _check_alpha(key: str, alpha: Value) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"{key}={alpha} must be in [0, 1]")


def _check_heads(key: str, heads: Value) -> None:
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"{key}={heads} must be a whole number of at least 1")


def _most_expensive_window(windows: Sequence[int]) -> int:
    """Global attention is quadratic in the map and costs most; without any, the smallest window does."""
    return min((window for window in windows if window), default=0)


def _least_expensive_window(windows: Sequence[int]) -> int:
    return 0 if 0 in windows else max(windows)


def _attention_costs(stage: StageSpec, dim: int, side: int) -> Costs:
    """Multiply-accumulates of projections and scores, and which kinds of attention a block has."""
    tokens, window = side**2, stage.window_size
    lo = stage.lo_heads / stage.num_heads if window else 0.0
    hi = 1.0 - lo if window else 0.0
    windows = math.ceil(side / window) ** 2 if window else 0
    return {
        "plain attention": float(window == 1),
        "Hi-Fi": float(window > 1 and hi > 0),
        "Lo-Fi": float(window > 1 and lo > 0),
        "products": dim * dim * (tokens * (3 * hi + hi + lo + lo) + 2 * windows * lo),
        "scores": stage.num_heads * tokens * (hi * window**2 + lo * windows),
    }


def _mlp_costs(stage: StageSpec, dim: int, side: int) -> Costs:
    """Matrix products; depthwise convolution and activation."""
    hidden = count_hidden(dim, stage.mlp_ratio)
    return {"products": 2.0 * side**2 * dim * hidden, "elements": float(side**2 * hidden)}


def _stem_costs(network: Architecture, dim: int, side: int) -> Costs:
    """Products of the patch embedding, of colour images. Without several image sizes only the width would move them."""
    if network.img_size is None:
        return {}
    return {"patch merging": float((side // network.patch_size) ** 2 * 3 * network.patch_size**2 * dim)}


def _attention_text(stage: StageSpec) -> str:
    return {0: "conv", 1: "msa"}.get(stage.window_size, f"w{stage.window_size}")


STAGE_DIMENSIONS: tuple[Dimension[StageSpec], ...] = (
    Dimension(
        "depth",
        kind=int,
        pattern=(2, 2, 6, 2),
        is_size=True,
        costs=lambda stage, dim, side: {"blocks": 1.0},  # norms, residuals, the calls themselves
        accuracy_inputs=lambda stage: (math.log(stage.depth),),
        text=lambda stage: f"{stage.depth}x",
        column="blocks",
        draw=draw_blocks,
    ),
    Dimension(
        "window_size",
        kind=int,
        pattern=(0, 0, 2, 1),
        is_ordered=False,  # no attention, plain attention and HiLo are three kinds, not three sizes
        largest=_most_expensive_window,
        smallest=_least_expensive_window,
        costs=_attention_costs,
        accuracy_inputs=lambda stage: (
            float(stage.window_size == 0),
            float(stage.window_size == 1),
            math.log(stage.window_size) if stage.window_size > 1 else 0.0,
        ),
        text=_attention_text,
        column="window",
        draw=draw_windows,
    ),
    Dimension(
        "alpha",
        pattern=(0.9,) * NUM_STAGES,
        check=_check_alpha,
        depends_on="window_size",
        is_active=lambda chosen: chosen["window_size"] > 1,
        inactive=0.0,
        smallest=max,  # Lo-Fi heads are the cheaper ones
        accuracy_inputs=lambda stage: (stage.lo_heads / stage.num_heads - 0.5 if stage.window_size > 1 else 0.0,),
        text=lambda stage: f" lo {stage.lo_heads}/{stage.num_heads}" if stage.window_size > 1 else "",
        column="Lo-Fi heads",
        cell=lambda stage: str(stage.lo_heads),
        draw=draw_heads,
    ),
    Dimension(
        "num_heads",
        kind=int,
        check=_check_heads,
        depends_on="window_size",
        is_active=lambda chosen: chosen["window_size"] > 0,
        inactive=1,
        largest=_first,
        smallest=_first,
        accuracy_inputs=lambda stage: (math.log(stage.num_heads) if stage.window_size else 0.0,),
        text=lambda stage: "",  # shown with alpha
        column="heads",
        cell=lambda stage: str(stage.num_heads if stage.window_size else 0),
        draw=lambda stage, side: "",  # drawn with alpha
    ),
    Dimension(
        "mlp_ratio",
        default=4.0,
        pattern=(4.0,) * NUM_STAGES,
        is_size=True,
        costs=_mlp_costs,
        column="MLP ratio",
        cell=lambda stage: f"{stage.mlp_ratio:g}",
    ),
)

NETWORK_DIMENSIONS: tuple[Dimension[Architecture], ...] = (
    Dimension(
        "embed_dim",
        kind=int,
        is_size=True,
        accuracy_inputs=lambda network: (math.log(network.embed_dim), math.log(network.embed_dim) ** 2),
        text=lambda network: f"{network.embed_dim}{': ' if network.img_size is None else ' '}",
    ),
    Dimension(
        "img_size",
        kind=int,
        is_optional=True,
        pattern=(224,),
        check=_check_img_size,
        costs=_stem_costs,
        accuracy_inputs=lambda network: (
            () if network.img_size is None else (math.log(network.img_size), math.log(network.img_size) ** 2)
        ),
        text=lambda network: "" if network.img_size is None else f"at {network.img_size} pixels: ",
    ),
)


@lru_cache
def in_order_of_asking(dimensions: tuple[Dimension[Any], ...]) -> tuple[Dimension[Any], ...]:
    """Those that others depend on come first."""
    needed = {dimension.depends_on for dimension in dimensions}
    return tuple(sorted(dimensions, key=lambda dimension: dimension.name not in needed))


def describe(architecture: Architecture) -> str:
    """One line a person can read: width, then each stage's depth and attention."""
    network = "".join(dimension.describe(architecture) for dimension in NETWORK_DIMENSIONS)
    stages = ("".join(dimension.describe(stage) for dimension in STAGE_DIMENSIONS) for stage in architecture.stages)
    return network + ", ".join(stages)


def accuracy_inputs(architecture: Architecture) -> list[float]:
    """What the sampler's models get of a network."""
    inputs = [value for dimension in NETWORK_DIMENSIONS for value in dimension.inputs(architecture)]
    for stage in architecture.stages:
        inputs += [value for dimension in STAGE_DIMENSIONS for value in dimension.inputs(stage)]
    return inputs
