"""The model card says what a network was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.architecture import Architecture
from search.results.card import card, measured_with

BODY: dict[str, Any] = {
    "weights": "trained by search.train",
    "expects": {},
    "input_shape": [3, 64, 64],
    "device": {"device": "Known CPU", "num_threads": 1, "batch_size": 1},
    "calibration": {"anchor_ms": 1.0},
    "files": {},
}
TRAINED = {"data": "photos", "train_size": 5000, "max_epochs": 30, "seed": 0, "test_accuracy": 0.8125}
TEACHER = "resnet50 of /models/resnet50.pth, images of 224 pixels, distillation 0.5, sha256 0123456789abcdef"


@pytest.mark.parametrize("teacher", [None, TEACHER])
def test_card_names_the_teacher(architecture: Architecture, teacher: str | None) -> None:
    trained = TRAINED if teacher is None else TRAINED | {"teacher": teacher}
    text = card(Path("network.yaml"), architecture, {}, BODY | {"trained": trained}, {})
    assert "test accuracy 0.8125.\n" in text
    assert (f"- Learned from labels and from a teacher: {TEACHER}.\n" in text) == (teacher is not None)
    assert ("teacher" in text) == (teacher is not None)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({"dtype": "float32", "num_threads": 1, "batch_size": 1}, ""),
        ({"dtype": "int8", "num_threads": 2, "batch_size": 1}, " latency.dtype=int8 latency.num_threads=2"),
        ({}, ""),
    ],
)
def test_card_repeats_the_settings_of_its_measurement(device: dict[str, Any], expected: str) -> None:
    assert measured_with(device) == expected
