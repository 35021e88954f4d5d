"""What of a latency is compared with a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.study.targets import FIRST, BudgetOn, Target
from search.study.trial import status
from tests.support.known_engine import KnownEngine, known_targets, run

NEAR = Latency(Estimate(1.98, 0.01, 100.0), 20, 3, converged=True, seconds=1.0)  # up to 2.02


@pytest.fixture
def target() -> Target:
    return known_targets(KnownEngine(), 2.0)[FIRST]


def test_budget_is_compared_with_the_estimate_or_the_upper_end(target: Target) -> None:
    upper = replace(target, budget_on=BudgetOn.UPPER)
    assert target.keeps_limit(NEAR)
    assert not upper.keeps_limit(NEAR)
    assert replace(upper, limit_ms=2.03).keeps_limit(NEAR)
    assert replace(upper, limit_ms=None).keeps_limit(NEAR)


@pytest.mark.parametrize("budget_on", BudgetOn)
def test_study_keeps_the_choice(target: Target, budget_on: BudgetOn) -> None:
    target = replace(target, budget_on=budget_on)
    assert Target.from_dict(target.to_dict()) == target


def test_trials_are_feasible_by_the_chosen_value(tmp_path: object, target: Target) -> None:
    """The latencies of the known engine are multiples of 0.1, with an upper end 1 % above."""
    url = f"sqlite:///{tmp_path}/study.db"
    upper = {FIRST: replace(target, budget_on=BudgetOn.UPPER)}
    by_estimate = run(url, 25, targets={FIRST: target})
    by_upper = run(url.replace("study", "upper"), 25, targets=upper)
    assert any(trial.result.feasible for trial in by_upper)
    for trials, targets in ((by_estimate, {FIRST: target}), (by_upper, upper)):
        for trial in trials:
            compared = targets[FIRST].budget_on.ms(trial.result.latencies[FIRST])
            assert trial.result.feasible == (compared <= 2.0)
            if not trial.result.feasible:
                words = status(trial.result, targets)
                assert ("the upper end of the 95 % confidence interval" in words) == (targets is upper)
    borderline = {trial.architecture.key for trial in by_estimate if trial.result.latencies_ms == [2.0]}
    borderline &= {trial.architecture.key for trial in by_upper}
    assert borderline
    assert all(trial.result.feasible for trial in by_estimate if trial.architecture.key in borderline)
    assert not any(trial.result.feasible for trial in by_upper if trial.architecture.key in borderline)
