"""The sampler's model of failure: what failed networks have in common, learnt from few of them."""

from __future__ import annotations

import numpy as np

from search.study.samplers.failure_model import FailureModel, inputs_of
from tests.support.known_engine import SPACE


def test_kind_of_network_that_fails_is_told_from_the_others() -> None:
    networks = [SPACE.sample([index]) for index in range(120)]
    has_windows = np.array([any(stage.window_size > 1 for stage in network.stages) for network in networks])
    inputs = np.stack([inputs_of(network, 32) for network in networks])
    scales = np.maximum(inputs.std(0), 1e-9)
    model = FailureModel.fit(inputs[:20], has_windows[:20], scales)
    predicted = model.predict(inputs[20:])
    assert 0 < has_windows[20:].mean() < 1
    assert predicted[has_windows[20:]].min() > predicted[~has_windows[20:]].max()
    assert predicted[has_windows[20:]].mean() > 0.8
    assert predicted[~has_windows[20:]].mean() < 0.3


def test_one_failure_among_many_makes_no_network_certain_to_fail() -> None:
    networks = [SPACE.sample([index]) for index in range(60)]
    inputs = np.stack([inputs_of(network, 32) for network in networks])
    scales = np.where(inputs.std(0) > 1e-9, inputs.std(0), 1.0)
    predicted = FailureModel.fit(inputs[:30], np.arange(30) == 3, scales).predict(inputs[30:])
    assert np.median(predicted) < 0.1
    assert predicted.max() < 0.9
