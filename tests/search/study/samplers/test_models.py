"""The sampler's models of accuracy and latency: what they learn from, when they look again, and what they predict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from models.architecture import Architecture
from models.complexity import cost
from search.latency import block_model
from search.study.samplers.gaussian_process import Kernel
from search.study.samplers.models import MAX_KERNEL_ROWS, MAX_LATEST_ROWS, MIN_ROWS, AccuracyModel, LatencyModel
from search.study.samplers.row import Features, Row
from search.study.targets import FIRST
from tests.support.known_engine import SPACE, KnownEngine, finished
from tests.support.known_truth import distinct_networks

SCALES = np.ones(len(Features.of(SPACE.anchor(), 32).inputs))


def latency_of(network: Architecture) -> float:
    """Blocks whose costs are no sum: those of the first stages are cheaper in wide networks."""
    summed = KnownEngine().latency(network).latency_ms
    return float(summed * (1.3 if network.embed_dim == 8 and network.stages[0].window_size else 1.0))


def rows_of(networks: Sequence[Architecture]) -> list[Row]:
    engine = KnownEngine()
    return [
        Row.of(finished(number, engine.accuracy(network, 0).accuracy, latency_of(network), network), 32)
        for number, network in enumerate(networks)
    ]


ROWS = rows_of(distinct_networks(700))


def kernel_of(rows: Sequence[Row]) -> Kernel:
    return AccuracyModel.fit(rows, SCALES).process.kernel


def test_kernel_is_fitted_again_for_a_fifth_more_networks() -> None:
    kernels = [(count, kernel_of(ROWS[:count])) for count in range(2, 40)]
    changes = [count for (count, kernel), (_, before) in zip(kernels[1:], kernels, strict=False) if kernel is not before]
    assert 5 < len(changes) < 15
    assert all(after >= 1.2 * before for before, after in pairwise(changes[3:]))


def test_kernel_depends_on_the_first_networks_alone() -> None:
    """An interrupted study goes on as it would have."""
    first = ROWS[:47]  # as many as the kernel of 50 networks is fitted to
    expected = Kernel.fit(np.stack([row.features.inputs for row in first]), np.array([row.accuracy for row in first]))
    for rows in ([*first, *ROWS[47:50]], [*first, *ROWS[100:103]]):
        kernel = kernel_of(rows)
        np.testing.assert_array_equal(kernel.length_scales, expected.length_scales)
        assert (kernel.signal, kernel.noise) == (expected.signal, expected.noise)
    assert kernel_of([ROWS[60], *first[1:], *ROWS[47:50]]).signal != expected.signal


def test_models_learn_from_so_many_networks_at_most() -> None:
    sizes = [len(AccuracyModel.fit(ROWS[:count], SCALES).process.inputs) for count in (600, 700)]
    assert sizes[0] == sizes[1]
    assert MAX_LATEST_ROWS < sizes[0] <= MAX_LATEST_ROWS + MAX_KERNEL_ROWS
    assert kernel_of(ROWS[:600]) is kernel_of(ROWS)


def test_latency_is_predicted_better_than_by_a_sum_of_costs() -> None:
    known, new = ROWS[:60], ROWS[60:160]
    model = LatencyModel.fit(known, SCALES, FIRST)
    predicted = model.predict([row.features for row in new])
    measured = np.array([row.latencies_ms[0] for row in known])
    costs = block_model.fit(np.stack([row.features.blocks for row in known]), measured)
    summed = np.stack([row.features.blocks for row in new]) @ costs
    true = np.array([row.latencies_ms[0] for row in new])
    assert np.abs(np.log(predicted / true)).mean() < 0.5 * np.abs(np.log(summed / true)).mean()


def test_accuracy_is_in_range_and_learnt() -> None:
    model = AccuracyModel.fit(ROWS[:60], SCALES)
    drawn = model.draw([row.features for row in ROWS[60:160]], 64, np.random.default_rng(0))
    assert 0 <= drawn.min() <= drawn.max() <= 1
    true = np.array([row.accuracy for row in ROWS[60:160]])
    assert np.corrcoef(drawn.mean(0), true)[0, 1] > 0.95


def test_kind_of_network_that_was_never_measured_is_not_taken_to_be_slow() -> None:
    """Nothing that was measured has windows; some of it has plain attention."""
    has_windows = [any(stage.window_size > 1 for stage in row.trial.architecture.stages) for row in ROWS]
    known = [row for row, windowed in zip(ROWS, has_windows, strict=True) if not windowed][:20]
    new = [row for row, windowed in zip(ROWS, has_windows, strict=True) if windowed][:50]
    predicted = LatencyModel.fit(known, SCALES, FIRST).predict([row.features for row in new])
    true = np.array([row.latencies_ms[0] for row in new])
    assert np.abs(np.log(predicted / true)).max() < np.log(3)


@pytest.mark.parametrize("count", [1, 2, MIN_ROWS - 1])
def test_few_measurements_are_summed_up_by_the_block_model(count: int) -> None:
    """As on a second target that leaves most networks out."""
    model = LatencyModel.fit(ROWS[:count], SCALES, FIRST)
    new = [row.features for row in ROWS[count:100]]
    expected = np.stack([network.blocks for network in new]) @ model.costs
    assert model.process is None
    np.testing.assert_allclose(model.predict(new), expected)
    np.testing.assert_allclose(model.draw(new, 3, np.random.default_rng(0)), [expected] * 3)


def test_draws_are_about_the_prediction() -> None:
    networks = [row.features for row in ROWS[60:80]]
    for model in (AccuracyModel.fit(ROWS[:60], SCALES), LatencyModel.fit(ROWS[:60], SCALES, FIRST)):
        drawn = model.draw(networks, 2000, np.random.default_rng(0))
        np.testing.assert_allclose(np.median(drawn, axis=0), model.predict(networks), rtol=0.05)
        assert (drawn.std(0) > 0).all()


def test_multiply_accumulates_go_with_those_that_are_counted() -> None:
    counted = [cost(network, 1, 10, 32)[1] for network in distinct_networks(100)]
    summed = [block_model.product_macs(network, 32) for network in distinct_networks(100)]
    ratios = np.array(summed) / counted
    assert np.corrcoef(np.log(counted), np.log(summed))[0, 1] > 0.9
    assert 0.5 < ratios.min() < ratios.max() < 1
