"""Schedules: how many epochs a training has, by epochs and by steps."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest

from models.architecture import Architecture
from models.litv2 import build
from search.training import sources
from search.training.data import ImageData
from search.training.schedule import duration_text, epochs_within
from search.training.task import ImageClassification, fit
from tests.search.training.test_task import SETTINGS


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "steps_per_epoch", "expected"),
    [(8, None, 100, 8), (8, 1000, 100, 8), (8, 799, 100, 7), (8, 50, 100, 1), (8, 100, 0, 8)],
)
def test_number_of_epochs(max_epochs: int, max_steps: int | None, steps_per_epoch: int, expected: int) -> None:
    assert epochs_within(max_epochs, max_steps, steps_per_epoch) == expected


def test_duration_is_described_as_it_is_limited() -> None:
    assert duration_text({"max_epochs": 8}) == "8 epochs"
    assert duration_text({"max_epochs": 8, "max_steps": 1000}) == "at most 8 epochs or 1,000 steps"


def test_training_ends_before_its_largest_number_of_steps(architecture: Architecture) -> None:
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 64, 100, 0, 2, False)
    settings = dataclasses.replace(SETTINGS, max_epochs=9, max_steps=5)
    task = ImageClassification(build(architecture, in_chans=1, num_classes=100), settings, 100)
    assert fit(task, data, lambda share: None) == 2
    assert task.global_step == 4  # two batches an epoch


def test_largest_number_of_steps_has_a_range() -> None:
    with pytest.raises(ValueError, match=r"train\.max_steps=0 must be a whole number of at least 1"):
        dataclasses.replace(SETTINGS, max_steps=0)
