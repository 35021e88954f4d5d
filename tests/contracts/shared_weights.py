"""Contract of evaluators that share weights.

The test module of an evaluator defines the fixtures `evaluator` and `other_evaluator`, equal but for their caches, and
imports these tests.
"""

from __future__ import annotations

from models.architecture import Architecture
from search.accuracy.base import AccuracyEvaluator, SharedWeights, with_shared_weights


def test_has_the_role_of_shared_weights(evaluator: AccuracyEvaluator) -> None:
    assert isinstance(evaluator, SharedWeights)


def test_nothing_is_packed_before_training(other_evaluator: SharedWeights) -> None:
    assert other_evaluator.pack(0) is None
    assert not other_evaluator.weights_file(0).exists()


def test_packed_weights_give_the_same_accuracies_elsewhere(
    evaluator: AccuracyEvaluator, other_evaluator: AccuracyEvaluator, architecture: Architecture
) -> None:
    assert isinstance(evaluator, SharedWeights)
    evaluator.prepare(0, lambda share: None)
    packed = evaluator.pack(0)
    assert packed is not None
    unpacked = with_shared_weights(lambda: other_evaluator, 0, packed)
    assert isinstance(unpacked, SharedWeights)
    unpacked.prepare(0, refuse_training)
    assert unpacked.weights_file(0).exists()
    expected = evaluator.evaluate(architecture, 0, lambda share: None)
    assert unpacked.evaluate(architecture, 0, lambda share: None).accuracy == expected.accuracy


def refuse_training(share: float) -> None:
    raise AssertionError("the weights were trained again")
