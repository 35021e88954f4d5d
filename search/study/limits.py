"""Limits beside latency: parameters, multiply-accumulates, file and memory. A network over one of them is infeasible.

Parameters and multiply-accumulates follow from the architecture: a network over their limits is neither measured nor
trained. The size of the ONNX file and the peak memory are found by measuring on a target, like its latency.
"""

from __future__ import annotations

from collections.abc import Mapping

import optuna

LIMITS = "limits"  # attribute of a study: those of COSTS
COSTS = ("num_params", "num_macs")
"""What follows from the architecture."""
RESOURCES = ("file_mb", "peak_memory_mb")
"""What measuring on a target finds, in millions of bytes."""

Limits = Mapping[str, float]
"""The largest value that is allowed, by quantity; quantities without a limit are left out."""
Values = Mapping[str, float]
"""The values of a network, by quantity; those that are not known are left out."""


def exceeded(values: Values, limits: Limits) -> list[str]:
    """The quantities of a network that are over their limits."""
    return [name for name, limit in limits.items() if name in values and values[name] > limit]


def excesses(values: Values, limits: Limits) -> list[float]:
    """How far each limit is exceeded, relative to it, as Optuna's constraints: at most 0 if it is kept.

    0 for what is not known: samplers compare lists of equal length.
    """
    return [values[name] / limit - 1 if name in values else 0.0 for name, limit in limits.items()]


def describe(name: str, value: float) -> str:
    """A value, in words."""
    if name == "num_params":
        return f"{value:,.0f} parameters"
    if name == "num_macs":
        return f"{value:,.0f} multiply-accumulates"
    return f"{'a file' if name == 'file_mb' else 'a peak memory'} of {value:.3g} MB"


def setting(name: str, limit: float) -> str:
    """A limit as it is given on the command line."""
    return f"limits.{name}={limit:.12g}"


def save_limits(study: optuna.Study, limits: Limits) -> None:
    """Store the limits of COSTS with a study."""
    study.set_user_attr(LIMITS, dict(limits))


def limits_of(study: optuna.Study) -> dict[str, float]:
    """The limits of COSTS that a study has."""
    return dict(study.user_attrs.get(LIMITS, {}))
