"""Accuracies on the same images err alike: what is hard for one network is hard for the next.

Their differences are therefore surer than two independent errors would make them. Each network's correctness, image by
image, gives the covariance of all accuracies; for other metrics than top-1 accuracy it is how far each image moves them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.accuracy.base import Accuracy

Array = NDArray[np.float64]


def paired_difference(first: Accuracy, second: Accuracy) -> tuple[float, float]:
    """Compare two networks.

    Args:
        first: Accuracy of a network.
        second: Accuracy of another network, on the same images if there are as many of them.

    Returns:
        First minus second, and the standard error of that over validation images. If the single images are not known, or
        their numbers differ, the errors are taken as independent.
    """
    of_first, of_second = first.image_values(), second.image_values()
    difference = first.accuracy - second.accuracy
    if of_first is None or of_second is None or len(of_first) != len(of_second):
        return difference, math.hypot(first.standard_error, second.standard_error)
    differences = of_first - of_second
    return difference, float(differences.std()) / math.sqrt(len(differences))


def mean_accuracy(seeds: Sequence[Accuracy]) -> float:
    """Return the mean accuracy of a network's trainings."""
    return float(np.mean([accuracy.accuracy for accuracy in seeds]))


def image_error(seeds: Sequence[Accuracy]) -> float:
    """Return the standard error over validation images of a network's mean accuracy.

    Args:
        seeds: Accuracies of a network, one for each training, all on the same images.
    """
    values = _mean_values(seeds)
    if values is None:
        mean = mean_accuracy(seeds)
        return math.sqrt(mean * (1 - mean) / seeds[0].num_images)
    return float(values.std()) / math.sqrt(len(values))


def draw_accuracies(
    networks: Sequence[Sequence[Accuracy]], other_error: float | Sequence[float], num_draws: int, rng: np.random.Generator
) -> Array:
    """Draw accuracies that could be the true ones, given the errors of the measured ones.

    The part of the errors that comes from the images has the covariance that their values of single images show. A
    network whose single images are not known errs by itself.

    Args:
        networks: Accuracies of each network, one for each training, on the same images for all of them.
        other_error: Standard deviation of what each network errs by beside that, independently of all others.
        num_draws: Number of draws.
        rng: Source of randomness.

    Returns:
        Accuracies, (draws, networks).
    """
    means = np.array([mean_accuracy(seeds) for seeds in networks])
    draws = means + rng.normal(size=(num_draws, len(networks))) * np.asarray(other_error, float)
    columns_of: dict[int, list[int]] = defaultdict(list)  # by number of images: only the same ones can be paired
    known: dict[int, Array] = {}
    for column, seeds in enumerate(networks):
        values = _mean_values(seeds)
        if values is None:
            draws[:, column] += rng.normal(size=num_draws) * image_error(seeds)
        else:
            known[column] = values
            columns_of[len(values)].append(column)
    for num_images, columns in columns_of.items():
        deviations = np.stack([known[column] for column in columns]).astype(np.float32)  # (networks, images)
        deviations -= deviations.mean(1, keepdims=True)
        weights = rng.standard_normal((num_images, num_draws), dtype=np.float32)
        draws[:, columns] += (deviations @ weights).T / num_images  # covariance: that of the means over the images
    result: Array = draws
    return result


def _mean_values(seeds: Sequence[Accuracy]) -> Array | None:
    """What each image contributes to the mean accuracy of a network's trainings, (images,); None if that is not known."""
    of_seeds = [accuracy.image_values() for accuracy in seeds]
    known = [images for images in of_seeds if images is not None]
    if len(known) < len(of_seeds) or len({len(images) for images in known}) != 1:
        return None
    mean: Array = np.stack(known).mean(0)
    return mean
