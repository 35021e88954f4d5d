"""Accuracies on the same images: what is stored of them, and their differences against simulated truth."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from search.accuracy.base import Accuracy
from search.accuracy.paired import draw_accuracies, image_error, paired_difference
from tests.support.known_truth import correctness

TRUE = np.array([0.80, 0.81])


def pair(rng: np.random.Generator, num_images: int = 1000) -> tuple[Accuracy, Accuracy]:
    first, second = (Accuracy.of(right, 0, 1.0) for right in correctness(TRUE, num_images, rng))
    return first, second


@pytest.mark.parametrize("num_images", [1, 7, 8, 3001])
def test_single_images_are_kept(num_images: int) -> None:
    right = np.random.default_rng(0).random(num_images) < 0.7
    accuracy = Accuracy.of(right, 3, 1.5)
    assert accuracy.accuracy == right.mean()
    assert (accuracy.num_images, accuracy.seed, accuracy.seconds) == (num_images, 3, 1.5)
    read = Accuracy(**json.loads(json.dumps(accuracy.to_dict())))
    assert read == accuracy
    assert (read.correct_images() == right).all()
    assert len(read.correct or "") <= num_images / 6 + 4


def test_people_do_not_see_single_images() -> None:
    accuracy, _ = pair(np.random.default_rng(0))
    assert "correct" not in accuracy.summary()
    assert Accuracy(**accuracy.summary()) == replace(accuracy, correct=None)
    assert accuracy.correct is not None
    assert accuracy.correct not in repr(accuracy)


def test_error_of_a_difference_is_its_standard_deviation_over_samples_of_images() -> None:
    rng = np.random.default_rng(0)
    values = [paired_difference(*reversed(pair(rng))) for _ in range(400)]
    differences, errors = np.array(values).T
    assert differences.mean() == pytest.approx(0.01, abs=0.002)
    assert errors.mean() == pytest.approx(differences.std(), rel=0.1)
    independent = math.hypot(*(accuracy.standard_error for accuracy in pair(rng)))
    assert errors.mean() < 0.8 * independent


@pytest.mark.parametrize("images", [None, 500])
def test_accuracies_that_cannot_be_paired_err_independently(images: int | None) -> None:
    rng = np.random.default_rng(0)
    first, second = pair(rng)
    second = replace(second, correct=None) if images is None else pair(rng, images)[1]
    _, error = paired_difference(first, second)
    assert error == pytest.approx(math.hypot(first.standard_error, second.standard_error))


def test_draws_have_the_covariance_of_the_accuracies() -> None:
    rng = np.random.default_rng(0)
    networks = [[accuracy] for accuracy in pair(rng)]
    draws = draw_accuracies(networks, 0.0, 20_000, rng)
    assert draws.mean(0) == pytest.approx([seeds[0].accuracy for seeds in networks], abs=5e-4)
    assert draws.std(0) == pytest.approx([seeds[0].standard_error for seeds in networks], rel=0.03)
    difference, error = paired_difference(networks[0][0], networks[1][0])
    assert (draws[:, 0] - draws[:, 1]).std() == pytest.approx(error, rel=0.03)
    assert (draws[:, 0] - draws[:, 1]).mean() == pytest.approx(difference, abs=5e-4)


def test_draws_contain_other_errors_and_networks_without_images() -> None:
    rng = np.random.default_rng(0)
    networks = [[Accuracy(0.5, 10_000, 0, 1.0)], [Accuracy(0.5, 10_000, 0, 1.0)]]
    draws = draw_accuracies(networks, [0.0, 0.02], 20_000, rng)
    assert draws.std(0) == pytest.approx([0.005, math.hypot(0.005, 0.02)], rel=0.03)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.05


def test_several_seeds_share_the_error_of_the_images() -> None:
    right = np.arange(1000) < 800
    seeds = [Accuracy.of(right, 0, 1.0), Accuracy.of(right, 1, 1.0)]
    assert image_error(seeds) == pytest.approx(seeds[0].standard_error)
    opposite = [Accuracy.of(right, 0, 1.0), Accuracy.of(~right, 1, 1.0)]
    assert image_error(opposite) == 0.0
    old = [replace(accuracy, correct=None) for accuracy in seeds]
    assert image_error(old) == pytest.approx(seeds[0].standard_error)
