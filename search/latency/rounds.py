"""The times of one round. A module of its own, since devices over ssh get it too: see `remote.access.MODULES`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """One round of timing: each run of the candidate lies between two runs of the anchor.

    Attributes:
        candidate_ms: One time for each run of the candidate.
        anchor_ms: One time for each run of the anchor; one more than candidate_ms has.
    """

    candidate_ms: tuple[float, ...]
    anchor_ms: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Each candidate time over the mean of the anchor times before and after it."""
        pairs = zip(self.anchor_ms, self.anchor_ms[1:])  # noqa: B905
        return tuple(c / ((a + b) / 2) for c, (a, b) in zip(self.candidate_ms, pairs))  # noqa: B905
