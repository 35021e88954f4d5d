"""Images that no network was chosen by: part of the training images, since a search chooses by the validation images."""

from __future__ import annotations

import copy
from dataclasses import replace

from search.training.data import ImageData, Images
from search.training.normalisation import Normalisation


def hold_out(data: ImageData, count: int) -> ImageData:
    """Make a copy that validates on the last training images, and trains on the others alone.

    Args:
        data: Images in memory.
        count: Number of images to validate on, below that of the training images.
    """
    end, rows, images = data.num_train - count, data.splits.train, data.train
    changed = copy.copy(data)
    changed.splits = replace(data.splits, train=rows.select(range(end)), val=rows.select(range(end, len(rows))))
    changed.train = Images(images.images[:end], images.labels[:end])
    changed.val = Images(images.images[end:], images.labels[end:])
    changed.normalisation = data.expected or Normalisation.of(changed.train.images)
    return changed
