"""The limits of a search beside latency: from their configuration to what a study stores; refused if nothing keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig

from models.architecture import Architecture, check_number
from models.complexity import cost
from search import UserError
from search.commands.cli import plain
from search.latency.base import Latency
from search.space import Space
from search.study.limits import COSTS, RESOURCES, Limits, describe, exceeded, setting
from search.study.targets import Target
from search.study.trial import on

SMALLER = "add smaller choices to the space (space.embed_dim, depths)"
NOT_MEASURED = {
    "file_mb": "it runs no file; take latency=onnxruntime, executorch or ssh, or limit the weights with limits.num_params",
    "peak_memory_mb": "its memory is not known; take another latency=, or limit the weights with limits.num_params",
}


def check_limits(cfg: DictConfig, targets: Mapping[str, object]) -> None:
    """Raises: ValueError naming the first limit that makes no sense."""
    for name, value in plain(cfg.limits).items():
        limits = value if name in RESOURCES and isinstance(value, dict) else {None: value}
        for target, limit in limits.items():
            key = f"limits.{name}" if target is None else f"limits.{name}.{target}"
            if target is not None and target not in targets:
                raise ValueError(f"{key}: there is no latency target of this name; known are {', '.join(targets)}")
            if limit is not None:
                check_number(key, limit, 1e-6)


def cost_limits(cfg: DictConfig) -> dict[str, float]:
    """The limits of parameters and multiply-accumulates that there are."""
    return {name: cfg.limits[name] for name in COSTS if cfg.limits[name] is not None}


def resource_limits(cfg: DictConfig, target: str) -> dict[str, float]:
    """The limits of file and memory on a target; a number is the limit on all of them."""
    values: dict[str, Any] = {name: plain(cfg.limits)[name] for name in RESOURCES}
    limits = {name: value.get(target) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: limit for name, limit in limits.items() if limit is not None}


def check_costs(limits: Limits, space: Space, network_input: Mapping[str, int]) -> None:
    """Raises: UserError naming the limit of parameters or multiply-accumulates that no network of the space keeps.

    network_input: images and classes of the deployed network, as `models.complexity.cost` takes them.
    """
    for name, limit in limits.items():
        count = partial(_count, index=COSTS.index(name), network_input=network_input)
        least = count(space.cheapest(count))
        if least > limit:
            raise UserError(
                f"{setting(name, limit)}: no network of the space keeps it, the smallest has {describe(name, least)}; "
                f"raise it, or {SMALLER}"
            )


def _count(architecture: Architecture, index: int, network_input: Mapping[str, int]) -> int:
    return cost(architecture, **network_input)[index]


def check_smallest(target: Target, smallest: Latency, name: str, names: Mapping[str, object], budget_key: str) -> None:
    """Check that the smallest network of the space keeps a target's limits.

    Args:
        smallest: its measurement.
        name: of the target, and `names` those of all.
        budget_key: the configuration key of the target's budget.

    Raises:
        UserError: naming the limit that no network keeps, or that cannot be compared on this target.
    """
    where = on(name, names)
    if target.limit_ms is not None and smallest.low_ms > target.limit_ms:
        raise UserError(
            f"{budget_key}={target.limit_ms:g}: no network of the space keeps it, the smallest takes "
            f"{smallest.latency_ms:.3g} ms [{smallest.low_ms:.3g}, {smallest.high_ms:.3g}]{where}; raise it, or {SMALLER}"
        )
    for quantity, limit in target.limits.items():
        if quantity not in smallest.resources:
            target_text = where or " on this target"
            raise UserError(f"{setting(quantity, limit)} cannot be checked{target_text}: {NOT_MEASURED[quantity]}")
    for quantity in exceeded(smallest.resources, target.limits):
        raise UserError(
            f"{setting(quantity, target.limits[quantity])}: no network of the space keeps it{where}, the smallest has "
            f"{describe(quantity, smallest.resources[quantity])}; raise it, or {SMALLER}"
        )
