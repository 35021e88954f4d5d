"""Contract of accuracy evaluators. The test module of an evaluator defines a fixture `evaluator` and imports these tests."""

from __future__ import annotations

import json

from models.architecture import Architecture
from search.accuracy.base import Accuracy, AccuracyEvaluator


def test_accuracy_is_a_fraction_with_a_standard_error(evaluator: AccuracyEvaluator, architecture: Architecture) -> None:
    result = evaluator.evaluate(architecture, seed=0, progress=lambda share: None)
    assert 0 <= result.accuracy <= 1
    assert 0 <= result.standard_error < 0.5
    assert result.seconds > 0
    assert Accuracy(**result.to_dict()) == result
    correct = result.correct_images()
    assert correct is not None
    assert len(correct) == result.num_images
    assert correct.mean() == result.accuracy


def test_fingerprint_is_plain_data(evaluator: AccuracyEvaluator) -> None:
    assert json.loads(json.dumps(evaluator.fingerprint())) == evaluator.fingerprint()
    assert isinstance(evaluator.scores_before_measuring, bool)


def test_same_seed_same_accuracy(evaluator: AccuracyEvaluator, architecture: Architecture) -> None:
    first, second = (evaluator.evaluate(architecture, 3, lambda share: None) for _ in range(2))
    assert first.accuracy == second.accuracy


def test_progress_runs_from_zero_to_one(evaluator: AccuracyEvaluator, architecture: Architecture) -> None:
    shares: list[float] = []
    evaluator.evaluate(architecture, 0, shares.append)
    assert shares
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
