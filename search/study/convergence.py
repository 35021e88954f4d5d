"""Whether a search has converged: how much further networks are expected to add to its front.

The sampler predicts how much each network that it proposes adds to the hypervolume. It proposes the best of many, and its
model is wrong, so the predictions are scaled by how much of them the networks of the study did add.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from search.study.front import front, front_hypervolume
from search.study.trial import SAMPLED, TrialRecord

HORIZON = 20  # networks that are looked ahead
MIN_PROPOSALS = 30  # number of predictions that an outlook needs


@dataclass(frozen=True)
class Outlook:
    """What further networks are expected to add.

    Attributes:
        share: expected gain in hypervolume of the next `HORIZON` networks, over that of the search beyond known networks.
    """

    share: float

    def __str__(self) -> str:
        return (
            f"The next {HORIZON} networks are expected to add {self.share:.1%} to the hypervolume that the search has "
            "gained over the known networks, by the sampler's predictions and how much of them came true"
        )


@dataclass
class Convergence:
    """Predictions of a study's sampler, compared with what its networks added.

    Attributes:
        references_ms: latencies up to which the hypervolume counts.
        min_expected_gain: share that further networks must be expected to add, or the search has converged.
    """

    references_ms: Sequence[float]
    min_expected_gain: float = 0.0
    _front: list[TrialRecord] = field(default_factory=list)
    _hypervolume: float = 0.0
    _known: float = 0.0  # hypervolume of the networks that the search began with
    _predicted: list[float] = field(default_factory=list)
    _added: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, trials: Iterable[TrialRecord], references_ms: Sequence[float], min_expected_gain: float = 0.0) -> Self:
        """Compare the trials of a study so far."""
        convergence = cls(references_ms, min_expected_gain)
        for trial in trials:
            convergence.observe(trial)
        return convergence

    def observe(self, trial: TrialRecord) -> None:
        """Add a finished trial, in the order in which trials finish."""
        before = self._hypervolume
        self._front = front([*self._front, trial])
        self._hypervolume = front_hypervolume(self._front, self.references_ms)
        if trial.expected_gain is not None:
            self._predicted.append(trial.expected_gain)
            self._added.append(max(0.0, self._hypervolume - before))
        elif trial.origin != SAMPLED and not self._predicted:
            self._known = self._hypervolume

    @property
    def has_converged(self) -> bool:
        """Whether further networks are expected to add too little."""
        outlook = self.outlook()
        return outlook is not None and outlook.share < self.min_expected_gain

    def outlook(self) -> Outlook | None:
        """What further networks are expected to add; None before enough predictions, or where nothing was gained."""
        gained, predicted = self._hypervolume - self._known, sum(self._predicted)
        if len(self._predicted) < MIN_PROPOSALS or gained <= 0:
            return None
        came_true = sum(self._added) / predicted if predicted > 0 else 0.0
        return Outlook(HORIZON * came_true * statistics.fmean(self._predicted[-HORIZON:]) / gained)
