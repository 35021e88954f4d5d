"""What a search has told apart, of simulated studies whose networks are truly equal or truly different."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.accuracy.paired import paired_difference
from search.results import significance as module
from search.results.significance import Monitor, in_words, significance, significance_text
from search.results.view import LogView
from search.study.coordinator import SearchProgress
from search.study.trial import TrialRecord
from tests.support.known_engine import SPACE, finished

NUM_KNOWN = 6
REFERENCE_MS = 6.0
NUM_IMAGES = 1000  # of `finished`


def different_networks() -> Iterator[Architecture]:
    seen = set()
    for number in count():
        network = SPACE.sample([number])
        if network.key not in seen:
            seen.add(network.key)
            yield network


def simulate(effect: float, seed: int, num_networks: int = 60) -> list[TrialRecord]:
    """A study in which the best network is better than the smallest one by `effect`; half of that is known beforehand."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate([np.linspace(0, 1, NUM_KNOWN), rng.random(num_networks - NUM_KNOWN)])
    merits = np.concatenate([np.zeros(NUM_KNOWN), rng.random(num_networks - NUM_KNOWN)])
    return [
        finished(
            number,
            rng.binomial(NUM_IMAGES, 0.75 + effect * (size + merit) / 2) / NUM_IMAGES,
            (1 + 4 * size) * float(np.exp(rng.normal(0, 0.01))),
            network,
            origin="known" if number < NUM_KNOWN else "sampled",
        )
        for number, size, merit, network in zip(range(num_networks), sizes, merits, different_networks(), strict=False)
    ]


@pytest.fixture
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_DRAWS", 60)


def test_study_whose_networks_are_equal_has_told_nothing_apart() -> None:
    text = " ".join(significance_text(simulate(0.0, seed=0), [REFERENCE_MS]))
    assert "This search has told nothing apart" in text
    assert "no more than noise gives" in text
    for remedy in ("data.val_size", "harder data", "data.img_size", "space.embed_dim"):
        assert remedy in text


def test_study_with_real_differences_says_how_many() -> None:
    trials = simulate(0.2, seed=0)
    result = significance(trials, [REFERENCE_MS])
    assert result is not None
    assert not result.tells_nothing_apart
    assert result.share_beyond_noise > 0.7
    text = " ".join(in_words(result))
    assert "told nothing apart" not in text
    steps = f"{result.num_told_apart} of the {result.num_members - 1} steps in accuracy"
    assert f"The front has {result.num_members} members: {steps}" in text
    assert (
        f"over the {NUM_KNOWN} known networks is {result.gain:.4f}; {result.share_beyond_noise:.0%} of it is beyond" in text
    )


def test_front_of_the_smallest_network_alone_is_told_nothing_apart() -> None:
    known = [
        finished(number, 0.77, 1.0 + number, network)
        for number, network in zip(range(3), different_networks(), strict=False)
    ]
    trials = [replace(trial, origin="known") for trial in known]
    result = significance(trials, [REFERENCE_MS])
    assert result is not None
    assert (result.num_members, result.gain) == (1, 0.0)
    assert result.tells_nothing_apart
    assert not any("steps in accuracy" in line for line in in_words(result))


@pytest.mark.usefixtures("_few_draws")
def test_equal_networks_are_seldom_told_apart_and_different_ones_are() -> None:
    equal = [significance(simulate(0.0, seed), [REFERENCE_MS]) for seed in range(40)]
    assert sum(result is not None and result.tells_nothing_apart for result in equal) >= 34
    assert sum(result is not None and result.gain > result.noise_limit for result in equal) <= 5  # 2 are expected
    different = [significance(simulate(0.1, seed), [REFERENCE_MS]) for seed in range(10)]
    assert not any(result is None or result.tells_nothing_apart for result in different)


def test_neighbours_are_counted_by_the_error_of_their_difference() -> None:
    """0.02 is within the error of two accuracies of 1,000 images (1.96 * 0.019), 0.05 is not."""
    accuracies = (0.70, 0.75, 0.77, 0.82)
    trials = [
        finished(number, accuracy, 1.0 + number, network)
        for number, (accuracy, network) in enumerate(zip(accuracies, different_networks(), strict=False))
    ]
    result = significance(trials, [REFERENCE_MS])
    assert result is not None
    assert (result.num_members, result.num_told_apart) == (4, 2)


def test_errors_on_the_same_images_tell_more_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = simulate(0.1, seed=0)
    independent = significance(trials, [REFERENCE_MS])

    def paired(first: Accuracy, second: Accuracy) -> tuple[float, float]:
        difference, error = paired_difference(first, second)
        return difference, error / 4

    monkeypatch.setattr(module, "paired_difference", paired)
    alike = significance(trials, [REFERENCE_MS])
    assert independent is not None
    assert alike is not None
    assert alike.num_told_apart > independent.num_told_apart
    assert alike.noise < independent.noise / 2
    assert alike.gain == independent.gain


def test_nothing_finished_says_nothing() -> None:
    assert significance_text([], [REFERENCE_MS]) == []


def test_several_objectives_are_compared_by_accuracy() -> None:
    trials = [
        finished(
            number,
            0.5 + 0.1 * number,
            1.0 + number,
            network,
            origin="known" if number < 2 else "sampled",
            other=3.0 - number / 10,
        )
        for number, network in zip(range(5), different_networks(), strict=False)
    ]
    result = significance(trials, [REFERENCE_MS, REFERENCE_MS])
    assert result is not None
    assert result.num_told_apart == 4
    assert result.gain > result.noise_limit


PROGRESS = SearchProgress(1, 60, 1, 0.5, 1.0)


@pytest.mark.parametrize(("effect", "num_warnings"), [(0.0, 1), (0.2, 0)])
def test_running_search_is_warned_once(effect: float, num_warnings: int, caplog: pytest.LogCaptureFixture) -> None:
    view = LogView(monitor=Monitor([REFERENCE_MS]))
    with caplog.at_level(logging.WARNING):
        for trial in simulate(effect, seed=0):
            view.trial_finished(trial, PROGRESS)
            if trial.number < 28:
                assert not caplog.records
    warnings = [record.getMessage() for record in caplog.records if "told nothing apart" in record.getMessage()]
    assert len(warnings) == num_warnings
    assert all("after 30 networks: " in warning for warning in warnings)
