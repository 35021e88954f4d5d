"""Every fault of benchmarks.faults, twice each: nothing lost, nothing twice, exactly as many trials as asked for."""

from __future__ import annotations

import pytest

from benchmarks.faults import KINDS, CannotBeDone

MESSAGES = {
    "folder read-only": "outputs/faults cannot be written (Read-only file system); make room or change study.name",
    "study's file cut short": "put back a copy, move it away to start anew, or change storage.url",
    "disk full": "fix this and run the command again",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kind", KINDS)
def test_study_survives(kind: str) -> None:
    try:
        tally = KINDS[kind](2)
    except CannotBeDone as error:
        pytest.skip(f"cannot be done here: {error}")
    assert tally.times == 2
    assert tally.after > tally.before
    assert (tally.lost, tally.duplicated, tally.inexact) == (0, 0, 0)
    for message in tally.messages:
        assert MESSAGES.get(kind, "") in message
