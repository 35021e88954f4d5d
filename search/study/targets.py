"""The latency targets of a study: on each, latency is an objective or has to keep a limit. Any number; none is special."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import optuna

from models.architecture import Architecture
from search.latency.base import Calibration, Latency
from search.study.limits import Limits, describe, exceeded, excesses, setting

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
        limits: those of file and memory.
    """

    calibration: Calibration
    role: Role = Role.OBJECTIVE
    limit_ms: float | None = None
    device: Mapping[str, Any] = field(default_factory=dict)
    reference_ms: float | None = None
    budget_on: BudgetOn = BudgetOn.ESTIMATE
    limits: Limits = field(default_factory=dict)

    @property
    def is_objective(self) -> bool:
        return self.role is Role.OBJECTIVE

    @property
    def img_size(self) -> int:
        """Side of the deployed network's input, in pixels, where a network has none of its own."""
        return int(self.device["input_size"].split("x")[-1])

    @property
    def network_input(self) -> dict[str, int]:
        """Images and classes of the deployed network."""
        in_chans = int(self.device["input_size"].split("x")[0])
        return {"in_chans": in_chans, "num_classes": int(self.device["num_classes"]), "img_size": self.img_size}

    @property
    def input_text(self) -> str:
        """The input of networks, in words."""
        if self.calibration.anchor.img_size is None:
            return str(self.device["input_size"])
        return f"of {self.network_input['in_chans']} channel(s) and the size that each network has"

    def device_for(self, architecture: Architecture) -> dict[str, Any]:
        """The device as it measured a network: with the size of its images, where the network has one of its own."""
        if (side := architecture.img_size) is None:
            return dict(self.device)
        return {**self.device, "input_size": f"{self.network_input['in_chans']}x{side}x{side}"}

    def keeps_limit(self, latency: Latency) -> bool:
        """Whether a network's latency, file and memory are within the limits that there are."""
        return self.keeps_budget(latency) and not exceeded(latency.resources, self.limits)

    def keeps_budget(self, latency: Latency) -> bool:
        """Whether a latency is within the budget, if there is one."""
        return self.limit_ms is None or self.budget_on.ms(latency) <= self.limit_ms

    def excess(self, latency: Latency, where: str) -> str:
        """What of a network is over a limit, in words; empty if nothing is.

        where: names this target if there are several.
        """
        if not self.keeps_budget(latency):
            return f"latency {self.budget_on.describe(latency)}{where} is over the budget of {self.limit_ms:g} ms"
        over = exceeded(latency.resources, self.limits)
        return ", ".join(
            f"{describe(name, latency.resources[name])}{where}, over {setting(name, self.limits[name])}" for name in over
        )

    def resource_excesses(self, latency: Latency | None) -> list[float]:
        """How far each limit of file and memory is exceeded, relative to it; 0 for a network that was not measured."""
        return excesses({} if latency is None else latency.resources, self.limits)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "role": str(self.role),
            "limit_ms": self.limit_ms,
            "reference_ms": self.reference_ms,
            "budget_on": str(self.budget_on),
            "limits": dict(self.limits),
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
            data.get("limits", {}),
        )


def targets_of(study: optuna.Study) -> dict[str, Target]:
    """The targets of a study, by name; none before anything was calibrated."""
    return {name: Target.from_dict(data) for name, data in study.user_attrs.get(TARGETS, {}).items()}


def save_targets(study: optuna.Study, targets: Mapping[str, Target]) -> None:
    """Store the targets with a study."""
    study.set_user_attr(TARGETS, {name: target.to_dict() for name, target in targets.items()})


def img_size_of(targets: Mapping[str, Target]) -> int:
    """Side of the input of networks that have none of their own, in pixels; the same on all targets of a study."""
    return next(iter(targets.values())).img_size


def objectives(targets: Mapping[str, Target]) -> list[str]:
    """Names of the targets whose latency is an objective."""
    return [name for name, target in targets.items() if target.is_objective]


def references_ms(targets: Mapping[str, Target]) -> list[float]:
    """Latencies up to which the hypervolume counts, of each objective."""
    references = [target.reference_ms for target in targets.values() if target.is_objective]
    assert None not in references, "not calibrated"
    return [reference for reference in references if reference is not None]
