"""What the sampler knows of limits beside latency: which networks keep them, surely or by prediction.

Parameters and multiply-accumulates are counted. File and memory are predicted by sums of costs, which are fitted to what was
measured as those of latency are. A file grows with the weights and with the operators, that is blocks; memory with the
weights, with the largest map between layers and with the operators. Predicted values only steer proposals: limits are
compared with measured ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from optuna import Study

from models.architecture import Architecture
from models.complexity import cost
from search.latency import block_model
from search.study.limits import COSTS, Limits, exceeded, limits_of
from search.study.targets import Target, targets_of
from search.study.trial import TrialRecord

LEAST_MB = 1e-3  # the fit is relative

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class StudyLimits:
    """The limits of a study.

    Attributes:
        targets: with their limits of latency, file and memory; none before the study was read.
        of_costs: of parameters and multiply-accumulates.
    """

    targets: Mapping[str, Target] = field(default_factory=dict)
    of_costs: Limits = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study) -> Self:
        return cls(targets_of(study), limits_of(study))

    def budget_ms(self, target: str) -> float | None:
        """The latency that a target allows; None without a budget."""
        return self.targets[target].limit_ms if target in self.targets else None

    def are_kept(self, architecture: Architecture) -> bool:
        """Whether a network keeps the limits of parameters and multiply-accumulates, if there are any."""
        return not self.of_costs or not exceeded(self._costs(architecture), self.of_costs)

    def excesses(self, networks: Sequence[Architecture], trials: Sequence[TrialRecord]) -> Vector:
        """The largest ratio of a predicted file or memory to its limit on any target, (networks,); 0 without limits.

        Args:
            networks: to predict.
            trials: finished trials, with what was measured.
        """
        largest = np.zeros(len(networks))
        for name, target in self.targets.items():
            for quantity, limit in target.limits.items():
                measured = [
                    (trial, latency.resources[quantity])
                    for trial in trials
                    if (latency := trial.result.latencies.get(name)) and quantity in latency.resources
                ]
                if measured:
                    inputs = np.stack([self._inputs(trial.architecture) for trial, _ in measured])
                    megabytes = np.maximum([value for _, value in measured], LEAST_MB)
                    others = np.stack([self._inputs(network) for network in networks])
                    largest = np.maximum(largest, others @ block_model.fit(inputs, megabytes) / limit)
        return largest

    def _costs(self, architecture: Architecture) -> dict[str, int]:
        network_input = next(iter(self.targets.values())).network_input
        return dict(zip(COSTS, cost(architecture, **network_input), strict=True))

    def _inputs(self, architecture: Architecture) -> Vector:
        """What the costs multiply: a constant, weights, blocks, those with attention, elements of the largest map, (5,)."""
        blocks = sum(stage.depth for stage in architecture.stages)
        with_attention = sum(stage.depth for stage in architecture.stages if stage.window_size)
        side = architecture.side(next(iter(self.targets.values())).img_size)
        largest_map = max(
            max(1, side // architecture.patch_size // 2**index) ** 2 * dim * stage.mlp_ratio
            for index, (stage, dim) in enumerate(zip(architecture.stages, architecture.dims, strict=True))
        )
        return np.array([1.0, self._costs(architecture)["num_params"], blocks, with_attention, largest_map])
