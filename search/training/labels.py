"""Labels as datasets have them (numbers with or without gaps, whole floats, text) as classes with a number and a name."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, Value

from search import UserError

NUM_NAMED = 5  # classes or rows that a message names
KINDS = ("int", "uint", "bool", "float", "string", "large_string")
"""How the types begin that labels may have."""


def with_classes(dataset: Dataset, split: str) -> Dataset:
    """Return a dataset whose column `label` has the type `ClassLabel`, which names the classes.

    Labels that have no names yet are numbered in their order, and named as they are: 1, 2, 5 become 0, 1, 2 with the names
    "1", "2", "5". So no class is without images because a number is not used.

    Args:
        dataset: With the columns `image` and `label`.
        split: Name of the dataset in messages.

    Raises:
        UserError: If a label is not a class; the message names the row.
    """
    feature, labels = dataset.features["label"], dataset["label"][:]
    if isinstance(feature, ClassLabel):
        _check_numbers(labels, feature, split)
        return dataset
    if not (isinstance(feature, Value) and feature.dtype.startswith(KINDS)):
        raise UserError(f"column `label` of the {split} set holds {feature}; it must hold class numbers or names")
    classes = [_class_of(label, row, split) for row, label in enumerate(labels)]
    names: list[Any] = sorted(set(classes))
    numbers = {name: number for number, name in enumerate(names)}
    column = [numbers[label] for label in classes]
    return dataset.remove_columns("label").add_column(
        "label", column, feature=ClassLabel(names=[str(name) for name in names])
    )


def check_classes(dataset: Dataset) -> None:
    """Raises: UserError if a training set has fewer than two classes, or as many as images."""
    names, labels = dataset.features["label"].names, dataset["label"][:]
    if len(names) < 2:
        raise UserError(
            f"the training images have {f'one class, {names[0]}' if names else 'no class'}; a classifier needs two or more, "
            "and a folder of images one folder for each of them"
        )
    if len(set(labels)) == len(labels) > 2:
        raise UserError(
            f"each of the {len(labels):,} training images has a class of its own ({_shortened(names)}); choose the "
            "column of the classes with data.source.label, or add images to each"
        )


def without_images(labels: Sequence[int], names: Sequence[str]) -> list[str]:
    """Names of the classes that have no image."""
    present = set(labels)
    return [name for number, name in enumerate(names) if number not in present]


def _check_numbers(labels: Sequence[Any], feature: ClassLabel, split: str) -> None:
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < feature.num_classes:
            raise UserError(
                f"the {split} set has label {label} in row {row}; labels must be class numbers from 0 to "
                f"{feature.num_classes - 1}: correct or remove that row"
            )


def _class_of(label: Any, row: int, split: str) -> Hashable:
    """The class that a label is of. Raises: UserError if it is none."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if label is None or isinstance(label, float) or (isinstance(label, int) and label < 0):
        raise UserError(
            f"the {split} set has label {label} in row {row}; labels must be class numbers from 0, or names: correct or "
            "remove that row"
        )
    return label if isinstance(label, int | str) else str(label)


def _shortened(names: Sequence[Any]) -> str:
    return ", ".join(str(name) for name in names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
