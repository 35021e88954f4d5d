"""The latency targets of a study: on each, latency is an objective or has to keep a limit. Any number; none is special."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import optuna

from search.latency.base import Calibration, Latency

FIRST = "first"  # name of the target that the keys latency.* configure
TARGETS = "targets"  # attribute of a study


class BudgetOn(StrEnum):
    """What of a latency is compared with a limit."""

    ESTIMATE = "estimate"
    UPPER = "upper"  # end of its 95 % confidence interval

    def ms(self, latency: Latency) -> float:
        """Milliseconds that are compared with a limit."""
        return latency.latency_ms if self is BudgetOn.ESTIMATE else latency.high_ms

    def describe(self, latency: Latency) -> str:
        """These milliseconds, in words."""
        interval = "" if self is BudgetOn.ESTIMATE else " (the upper end of the 95 % confidence interval)"
        return f"{self.ms(latency):.3g} ms{interval}"


class Role(StrEnum):
    """What a target's latency is in a search."""

    OBJECTIVE = "objective"
    CONSTRAINT = "constraint"


@dataclass(frozen=True)
class Target:
    """A latency target as a study sees it.

    Attributes:
        calibration: the anchor's own latency on it.
        role: whether latency is minimised, or only has to keep the limit.
        limit_ms: latency above which a network is infeasible and not worth training, or None.
        device: the fingerprint of the target: device, runtime, versions and settings.
        reference_ms: latency up to which the hypervolume counts.
        budget_on: what of a latency is compared with the limit.
    """

    calibration: Calibration
    role: Role = Role.OBJECTIVE
    limit_ms: float | None = None
    device: Mapping[str, Any] = field(default_factory=dict)
    reference_ms: float | None = None
    budget_on: BudgetOn = BudgetOn.ESTIMATE

    @property
    def is_objective(self) -> bool:
        return self.role is Role.OBJECTIVE

    @property
    def img_size(self) -> int:
        """Side of the deployed network's input, in pixels."""
        return int(self.device["input_size"].split("x")[-1])

    def keeps_limit(self, latency: Latency) -> bool:
        """Whether a latency is within the limit, if there is one."""
        return self.limit_ms is None or self.budget_on.ms(latency) <= self.limit_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "role": str(self.role),
            "limit_ms": self.limit_ms,
            "reference_ms": self.reference_ms,
            "budget_on": str(self.budget_on),
            "device": dict(self.device),
            "calibration": self.calibration.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(
            Calibration.from_dict(data["calibration"]),
            Role(data["role"]),
            data["limit_ms"],
            data["device"],
            data["reference_ms"],
            BudgetOn(data["budget_on"]),
        )


def targets_of(study: optuna.Study) -> dict[str, Target]:
    """The targets of a study, by name; none before anything was calibrated."""
    return {name: Target.from_dict(data) for name, data in study.user_attrs.get(TARGETS, {}).items()}


def save_targets(study: optuna.Study, targets: Mapping[str, Target]) -> None:
    """Store the targets with a study."""
    study.set_user_attr(TARGETS, {name: target.to_dict() for name, target in targets.items()})


def img_size_of(targets: Mapping[str, Target]) -> int:
    """Side of the deployed network's input, in pixels; the same on all targets of a study."""
    return next(iter(targets.values())).img_size


def objectives(targets: Mapping[str, Target]) -> list[str]:
    """Names of the targets whose latency is an objective."""
    return [name for name, target in targets.items() if target.is_objective]


def references_ms(targets: Mapping[str, Target]) -> list[float]:
    """Latencies up to which the hypervolume counts, of each objective."""
    references = [target.reference_ms for target in targets.values() if target.is_objective]
    assert None not in references, "not calibrated"
    return [reference for reference in references if reference is not None]
