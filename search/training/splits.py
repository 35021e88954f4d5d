"""The rows to train on and to validate on, both from the training set of a source, and the test set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from search import UserError
from search.training.labels import check_classes, with_classes, without_images

log = logging.getLogger(__name__)
Source = Callable[[str, int | None], Dataset]
"""Takes a split, "train" or "test", and the number of images wanted (None: all); returns columns `image` and `label`."""

VAL_SHARE, MAX_VAL_SIZE = 0.2, 5000  # of data.val_size=null
NUM_NAMED = 5  # classes that a message names


@dataclass(frozen=True)
class Splits:
    """The rows to train on and the rows to validate on, both from the training set of a source.

    Args:
        train: Rows to train on.
        val: Rows to validate on.
        train_rows: Their numbers in the training set of the source, which messages name.
        val_rows: The same of the rows to validate on.
        label_feature: Names of the classes; labels lie in [0, num_classes).
    """

    train: Dataset
    val: Dataset
    train_rows: NDArray[np.int64]
    val_rows: NDArray[np.int64]
    label_feature: ClassLabel

    @property
    def num_classes(self) -> int:
        return int(self.label_feature.num_classes)

    def test_set(self, source: Source) -> Dataset:
        """Read the whole test set, with its labels numbered as in training.

        Raises:
            UserError: If the test set is empty, or has a class or a label that the training set does not have.
        """
        dataset = with_classes(source("test", None), "test")
        if not len(dataset):
            raise UserError("the test set has no images; add some, or more to each class if there is no folder train")
        names, trained = dataset.features["label"].names, self.label_feature.names
        if names == trained:
            return dataset
        if unknown := sorted(set(names) - set(trained)):
            raise UserError(
                f"the test set has classes that the training set does not have: {', '.join(unknown[:NUM_NAMED])}; remove "
                "them, or add images of them to the training set"
            )
        numbers = {name: number for number, name in enumerate(trained)}
        labels = [numbers[names[label]] for label in dataset["label"][:]]
        return dataset.remove_columns("label").add_column("label", labels, feature=self.label_feature)


def split(source: Source, train_size: int | None, val_size: int | None, seed: int) -> Splits:
    """Split the training set of a source at random.

    Args:
        source: Where the images come from.
        train_size: Number of images to train on; None takes all that validation leaves.
        val_size: Number of images to validate on; None takes a fifth of all, at most 5,000.
        seed: Seed of the split.

    Raises:
        UserError: If the source has too few images, or labels that are not classes.
    """
    wanted = None if train_size is None or val_size is None else train_size + val_size
    dataset = with_classes(source("train", wanted), "training")
    check_classes(dataset)
    if val_size is None:
        val_size = min(round(VAL_SHARE * len(dataset)), MAX_VAL_SIZE)
    if val_size >= len(dataset) or (train_size or 1) + val_size > len(dataset):
        sizes = f"data.val_size={val_size}" + ("" if train_size is None else f" and data.train_size={train_size}")
        raise UserError(
            f"{sizes} need more than the {len(dataset)} images of the training set; lower them, or set data.val_size=null "
            "for a fifth"
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    train_rows, val_rows = order[val_size : None if train_size is None else val_size + train_size], order[:val_size]
    train, feature = dataset.select(train_rows), dataset.features["label"]
    if missing := without_images(train["label"][:], feature.names):
        names = ", ".join(missing[:NUM_NAMED]) + (", ..." if len(missing) > NUM_NAMED else "")
        log.warning("%d of %d classes have no image to train on: %s", len(missing), feature.num_classes, names)
    return Splits(train, dataset.select(val_rows), train_rows, val_rows, feature)
