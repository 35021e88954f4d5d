"""What counts as accuracy: top-1, or a metric that does not let frequent classes decide, with its error over images.

Values come from torchmetrics. Their errors need more: each metric is computed from weighted images, of all samples of a
bootstrap at once, and its gradient by the weights says how much each image moves it (the infinitesimal jackknife: Efron,
"Nonparametric Standard Errors and Confidence Intervals", 1981). These deviations of single images are kept, so that networks
can be compared on the same images, as the correctness of single images is kept for top-1 accuracy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, multiclass_f1_score, multiclass_recall

from search import UserError
from search.accuracy.base import Accuracy, Metric

NUM_RESAMPLES = 200  # of the bootstrap: a standard error is then known within 5 %


def check_metric(metric: str) -> None:
    """Raises: ValueError if there is no such metric."""
    if metric not in list(Metric):
        raise ValueError(f"accuracy.metric={metric} must be one of {', '.join(Metric)}")


def accuracy_of(metric: str, logits: Tensor, labels: Tensor, seed: int, seconds: float) -> Accuracy:
    """Make the result of an evaluation from a network's outputs.

    Args:
        metric: One of `Metric`.
        logits: (images, classes).
        labels: (images,).
        seed: Seed of the training.
        seconds: Duration of the evaluation.

    Raises:
        UserError: If the metric is not defined for these labels.
    """
    if metric == Metric.TOP1:
        return Accuracy.of((logits.argmax(1) == labels).numpy(), seed, seconds)
    classes = torch.unique(labels)
    if metric == Metric.AUROC and len(classes) < 2:
        raise UserError("accuracy.metric=auroc needs validation images of several classes, and these are all of one")
    compute, weight = FUNCTIONS[Metric(metric)]
    weighted = weight(logits, labels)
    error, deviations = bootstrap_error(weighted, len(labels)), image_deviations(weighted, len(labels))
    return Accuracy.of_metric(metric, compute(logits, labels), error, deviations, seed, seconds)


Weighted = Callable[[Tensor], Tensor]
"""A metric of images with weights, from (samples, images) to (samples,)."""


def bootstrap_error(weighted: Weighted, num_images: int) -> float:
    """Standard deviation of a metric over samples of as many images with replacement; the same samples every time."""
    drawn = np.random.default_rng(0).multinomial(num_images, np.full(num_images, 1 / num_images), NUM_RESAMPLES)
    return float(weighted(torch.from_numpy(drawn).double()).std())


def image_deviations(weighted: Weighted, num_images: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How far each image moves a metric, (images,): of a mean over images it is each image's value less the mean."""
    weights = torch.ones(1, num_images, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(weighted(weights).sum(), weights)
    return np.asarray(num_images * gradient[0].numpy(), np.float64)


def _recall(logits: Tensor, labels: Tensor) -> float:
    """Balanced accuracy: the mean recall of the classes that occur."""
    recalls = multiclass_recall(logits.argmax(1), labels, logits.shape[1], average=None)
    return float(recalls[torch.unique(labels)].mean())


def _f1(logits: Tensor, labels: Tensor) -> float:
    """Mean F1 score of the classes that occur or are predicted."""
    return float(multiclass_f1_score(logits.argmax(1), labels, logits.shape[1], average="macro"))


def _mean_auroc(logits: Tensor, labels: Tensor) -> float:
    """Mean area under the ROC curve of each class that occurs against all others."""
    scores = logits.double().softmax(1)
    areas = [binary_auroc(scores[:, label], (labels == label).long()) for label in torch.unique(labels)]
    return float(torch.stack(areas).mean())


def _balanced(logits: Tensor, labels: Tensor) -> Weighted:
    true = F.one_hot(labels, logits.shape[1]).double()
    hits = true * (logits.argmax(1) == labels)[:, None]
    return lambda weights: _mean_ratio(weights @ hits, weights @ true)


def _macro_f1(logits: Tensor, labels: Tensor) -> Weighted:
    predicted, num_classes = logits.argmax(1), logits.shape[1]
    true = F.one_hot(labels, num_classes).double()
    both = true + F.one_hot(predicted, num_classes)
    hits = true * (predicted == labels)[:, None]
    return lambda weights: _mean_ratio(2 * (weights @ hits), weights @ both)


def _auroc(logits: Tensor, labels: Tensor) -> Weighted:
    scores = logits.double().softmax(1)
    classes = torch.unique(labels).tolist()
    ranks = {label: torch.unique(scores[:, label], return_inverse=True)[1] for label in classes}

    def weighted(weights: Tensor) -> Tensor:
        wins, pairs = zip(*(_pairs(weights, ranks[label], labels == label) for label in classes), strict=True)
        return _mean_ratio(torch.stack(wins, 1), torch.stack(pairs, 1))

    return weighted


def _pairs(weights: Tensor, ranks: Tensor, is_positive: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of the pairs of a positive and a negative image, (samples,): of those in the right order, and of all.

    Ties count half. ranks: of the images' scores, (images,), equal where scores are.
    """
    positive, negative = weights * is_positive, weights * ~is_positive
    of_rank = torch.zeros(len(weights), int(ranks.max()) + 1, dtype=weights.dtype).index_add(1, ranks, negative)
    below = of_rank.cumsum(1) - of_rank / 2
    return (positive * below[:, ranks]).sum(1), positive.sum(1) * negative.sum(1)


def _mean_ratio(parts: Tensor, totals: Tensor) -> Tensor:
    """Mean over the classes that a sample has of part over total, (samples,); both (samples, classes)."""
    occurs = totals > 0
    ratios = torch.where(occurs, parts / torch.where(occurs, totals, 1.0), 0.0)
    return ratios.sum(1) / occurs.sum(1).clamp(min=1)


FUNCTIONS: dict[Metric, tuple[Callable[[Tensor, Tensor], float], Callable[[Tensor, Tensor], Weighted]]] = {
    Metric.BALANCED: (_recall, _balanced),
    Metric.MACRO_F1: (_f1, _macro_f1),
    Metric.AUROC: (_mean_auroc, _auroc),
}
"""From logits and labels to the value of each metric, and to its form for weighted images."""
