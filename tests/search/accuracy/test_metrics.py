"""Metrics other than top-1 accuracy: their values against torchmetrics', their errors against simulated truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc, multiclass_f1_score

from search import UserError
from search.accuracy.base import Accuracy, Metric, metric_name
from search.accuracy.metrics import FUNCTIONS, accuracy_of, check_metric
from search.accuracy.paired import draw_accuracies, image_error, paired_difference

OTHERS = [Metric.BALANCED, Metric.MACRO_F1, Metric.AUROC]
CLASS_SHARES = np.array([0.7, 0.2, 0.1])


def outputs(
    rng: np.random.Generator, num_images: int = 400, skills: tuple[float, ...] = (1.0,)
) -> tuple[list[Tensor], Tensor]:
    """Logits of networks, and labels: some classes are rare, and some images are hard for all networks."""
    labels = rng.choice(len(CLASS_SHARES), num_images, p=CLASS_SHARES)
    true = np.eye(len(CLASS_SHARES))[labels]
    shared = rng.normal(size=true.shape)
    logits = [1.5 * skill * true + 0.8 * shared + 0.6 * rng.normal(size=true.shape) for skill in skills]
    return [torch.from_numpy(values).float() for values in logits], torch.from_numpy(labels)


def results(metric: str, rng: np.random.Generator, **kwargs: object) -> list[Accuracy]:
    logits, labels = outputs(rng, **kwargs)  # type: ignore[arg-type]
    return [accuracy_of(metric, values, labels, 0, 1.0) for values in logits]


def test_top1_is_what_it_was() -> None:
    (logits,), labels = outputs(np.random.default_rng(0))
    accuracy = accuracy_of("top1", logits, labels, 3, 1.5)
    assert accuracy == Accuracy.of((logits.argmax(1) == labels).numpy(), 3, 1.5)
    assert set(accuracy.to_dict()) == {"accuracy", "num_images", "seed", "seconds", "correct"}
    assert accuracy.standard_error == math.sqrt(accuracy.accuracy * (1 - accuracy.accuracy) / 400)


@pytest.mark.parametrize("metric", OTHERS)
def test_values_are_those_of_torchmetrics(metric: Metric) -> None:
    (logits,), labels = outputs(np.random.default_rng(1))
    expected = {
        Metric.BALANCED: lambda: multiclass_accuracy(logits, labels, 3, average="macro"),
        Metric.MACRO_F1: lambda: multiclass_f1_score(logits, labels, 3, average="macro"),
        Metric.AUROC: lambda: multiclass_auroc(logits, labels, 3, average="macro"),
    }[metric]()
    accuracy = accuracy_of(metric, logits, labels, 0, 1.0)
    assert accuracy.accuracy == pytest.approx(float(expected), abs=1e-6)
    assert accuracy.metric == metric
    weighted = FUNCTIONS[metric][1](logits, labels)
    assert float(weighted(torch.ones(1, 400).double())[0]) == pytest.approx(accuracy.accuracy, abs=1e-6)


@pytest.mark.parametrize("metric", OTHERS)
def test_weights_are_repetitions(metric: Metric) -> None:
    (logits,), labels = outputs(np.random.default_rng(2), 60)
    counts = torch.from_numpy(np.random.default_rng(3).integers(0, 4, 60))
    compute, weight = FUNCTIONS[metric]
    expected = compute(logits.repeat_interleave(counts, 0), labels.repeat_interleave(counts))
    assert float(weight(logits, labels)(counts[None].double())[0]) == pytest.approx(expected, abs=1e-6)


def test_classes_without_images_do_not_count() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, -1.0], [0.0, 1.0, 3.0, -1.0], [3.0, 0.0, 1.0, -1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    assert accuracy_of("balanced", logits, labels, 0, 1.0).accuracy == pytest.approx((1 + 0.5) / 2)
    assert accuracy_of("macro_f1", logits, labels, 0, 1.0).accuracy == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert accuracy_of("auroc", logits, labels, 0, 1.0).accuracy <= 1


def test_area_under_the_curve_needs_two_classes() -> None:
    with pytest.raises(UserError, match="accuracy.metric=auroc needs validation images of several classes"):
        accuracy_of("auroc", torch.zeros(5, 3), torch.ones(5, dtype=torch.int64), 0, 1.0)


@pytest.mark.parametrize("metric", OTHERS)
def test_standard_error_is_the_deviation_over_samples_of_images(metric: Metric) -> None:
    """By bootstrap, and by the deviations of single images that are kept for comparisons."""
    rng = np.random.default_rng(4)
    accuracies = [accuracy for _ in range(150) for accuracy in results(metric, rng)]
    true = float(np.std([accuracy.accuracy for accuracy in accuracies]))
    assert np.mean([accuracy.standard_error for accuracy in accuracies]) == pytest.approx(true, rel=0.1)
    assert np.mean([image_error([accuracy]) for accuracy in accuracies]) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("metric", OTHERS)
def test_error_of_a_difference_is_its_deviation_over_samples_of_images(metric: Metric) -> None:
    rng = np.random.default_rng(5)
    pairs = [results(metric, rng, skills=(1.0, 1.1)) for _ in range(150)]
    differences, errors = np.array([paired_difference(second, first) for first, second in pairs]).T
    assert errors.mean() == pytest.approx(differences.std(), rel=0.12)
    independent = math.hypot(*(accuracy.standard_error for accuracy in pairs[0]))
    assert errors.mean() < 0.85 * independent


@pytest.mark.parametrize("metric", OTHERS)
def test_draws_have_the_errors_of_the_metric(metric: Metric) -> None:
    rng = np.random.default_rng(6)
    networks = [[accuracy] for accuracy in results(metric, rng, skills=(1.0, 1.1))]
    draws = draw_accuracies(networks, 0.0, 20_000, rng)
    assert draws.mean(0) == pytest.approx([seeds[0].accuracy for seeds in networks], abs=1e-3)
    assert draws.std(0) == pytest.approx([image_error(seeds) for seeds in networks], rel=0.03)
    _, error = paired_difference(networks[0][0], networks[1][0])
    assert (draws[:, 0] - draws[:, 1]).std() == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("metric", OTHERS)
def test_result_is_plain_data_and_repeatable(metric: Metric) -> None:
    (logits,), labels = outputs(np.random.default_rng(7))
    first, second = (accuracy_of(metric, logits, labels, 0, 1.0) for _ in range(2))
    assert first == second
    assert Accuracy(**json.loads(json.dumps(first.to_dict()))) == first
    summary = first.summary()
    assert summary["metric"] == metric
    assert not {"correct", "deviations"} & set(summary)
    values = first.image_values()
    assert values is not None
    assert values.mean() == pytest.approx(first.accuracy, abs=1e-6)
    assert len(first.deviations or "") < 18_000
    assert first.name == metric_name(metric)


def test_rare_class_counts_as_much_as_a_frequent_one() -> None:
    labels = torch.tensor([0] * 95 + [1] * 5)
    always_first = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    assert accuracy_of("top1", always_first, labels, 0, 1.0).accuracy == pytest.approx(0.95)
    assert accuracy_of("balanced", always_first, labels, 0, 1.0).accuracy == pytest.approx(0.5)
    assert accuracy_of("auroc", always_first, labels, 0, 1.0).accuracy == pytest.approx(0.5)


def test_unknown_metric_is_named() -> None:
    with pytest.raises(ValueError, match=r"accuracy.metric=top5 must be one of top1, balanced, macro_f1, auroc"):
        check_metric("top5")
