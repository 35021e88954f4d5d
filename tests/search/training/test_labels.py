"""Labels of every kind as classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Value

from search import UserError
from search.training import sources
from search.training.labels import with_classes
from tests.support.images import source_data


def labelled(labels: Sequence[Any], feature: Value | None = None) -> Dataset:
    images = sources.from_arrays(np.zeros((len(labels), 16, 16), np.uint8), [0] * len(labels), ["one"])
    return images.remove_columns("label").add_column("label", list(labels), feature=feature)


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        ([0, 1, 2, 1], [0, 1, 2, 1], ["0", "1", "2"]),
        ([1, 2, 3, 2], [0, 1, 2, 1], ["1", "2", "3"]),
        ([7, 1_000_000, 7, 20], [0, 2, 0, 1], ["7", "20", "1000000"]),
        (["dog", "cat", "dog"], [1, 0, 1], ["cat", "dog"]),
        ([2.0, 1.0, 2.0], [1, 0, 1], ["1", "2"]),
        ([True, False, True], [1, 0, 1], ["False", "True"]),
    ],
)
def test_classes_are_the_labels_that_occur(labels: list[Any], numbers: list[int], names: list[str]) -> None:
    dataset = with_classes(labelled(labels), "training")
    assert dataset["label"][:] == numbers
    assert dataset.features["label"].names == names


def test_named_classes_stay_as_they_are() -> None:
    dataset = labelled([2, 0, 2], ClassLabel(names=["a", "b", "c"]))
    assert with_classes(dataset, "training") is dataset


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None], r"the training set has label None in row 2; .* correct or remove that row"),
        ([0, -1, 1], r"label -1 in row 1"),
        ([0.0, 0.37, 1.0], r"label 0.37 in row 1"),
        ([0.0, float("nan"), 1.0], r"label nan in row 1"),
        (["a", None, "b"], r"label None in row 1"),
        ([[0], [1], [1]], r"column `label` of the training set holds List"),
    ],
)
def test_what_is_no_class_is_named_with_its_row(labels: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_classes(labelled(labels), "training")


def test_column_of_names_of_files_is_refused() -> None:
    def source(split: str, num_images: int | None) -> Dataset:
        return labelled([f"{number}.png" for number in range(9)])

    message = r"each of the 9 training images has a class of its own \(0.png, .*, \.\.\.\); choose .* data.source.label"
    with pytest.raises(UserError, match=message):
        source_data(source)


def test_test_labels_without_names_follow_those_of_training() -> None:
    def source(split: str, num_images: int | None) -> Dataset:
        return labelled([10, 20, 30] * 4 if split == "train" else [30, 30, 20])

    data = source_data(source)
    assert data.class_names == ["10", "20", "30"]
    ((_, labels),) = data.test_dataloader()
    assert labels.tolist() == [2, 2, 1]


def test_class_without_a_training_image_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def source(split: str, num_images: int | None) -> Dataset:
        return labelled([0, 2] * 5, ClassLabel(names=["ant", "bee", "cow"]))

    source_data(source)
    assert "1 of 3 classes have no image to train on: bee" in caplog.text
