"""Images that no network was chosen by: part of the training images, since a search chooses by the validation images."""

from __future__ import annotations

import copy
from dataclasses import replace

from search.training.data import ImageData
from search.training.normalisation import Normalisation


def hold_out(data: ImageData, count: int) -> ImageData:
    """Make a copy that validates on the last training images, and trains on the others alone.

    Args:
        data: Images in memory.
        count: Number of images to validate on, below that of the training images.
    """
    end, rows, images = data.num_train - count, data.splits.train, data.train
    changed = copy.copy(data)
    numbers = data.splits.train_rows
    changed.splits = replace(
        data.splits,
        train=rows.select(range(end)),
        val=rows.select(range(end, len(rows))),
        train_rows=numbers[:end],
        val_rows=numbers[end:],
    )
    changed.train, changed.val = images.part(0, end), images.part(end, data.num_train)
    changed.normalisation = data.expected or Normalisation.of(changed.train.counts())
    return changed
