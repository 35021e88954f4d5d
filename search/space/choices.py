"""The choices of a space for one stage, by dimension: which stages they allow, and how many heads these have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.architecture import StageSpec, check_int
from search import UserError
from search.space import dimensions
from search.space.dimensions import Dimension, Value, in_order_of_asking

Choices = Mapping[str, tuple[Any, ...]]
HEADS = "num_heads"


def declared_in(choices: Choices) -> list[Dimension[StageSpec]]:
    """The dimensions of a stage that its choices list."""
    return [dimension for dimension in dimensions.STAGE_DIMENSIONS if dimension.name in choices]


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


def check_head_dim(head_dim: int, widths: Sequence[int], stages: Sequence[Mapping[str, Any]]) -> None:
    """Raises: UserError if heads of so many channels do not fit the widths, or their number is given too."""
    try:
        check_int("space.head_dim", head_dim, 1)
    except ValueError as error:
        raise UserError(str(error)) from error
    for width in widths:
        if width % head_dim:
            raise UserError(f"space.embed_dim={width} is not divisible by space.head_dim={head_dim}; change one of them")
    for index, stage in enumerate(stages):
        if HEADS in stage:
            raise UserError(f"space.stages[{index}].{HEADS}: leave it out; with space.head_dim the width decides it")
