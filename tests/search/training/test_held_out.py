"""Images kept aside of the training set: nothing trains on them."""

from __future__ import annotations

from functools import partial

import torch

from search.training import sources
from search.training.data import ImageData
from search.training.held_out import hold_out


def test_the_last_training_images_are_validated_on_and_not_trained_on() -> None:
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 192, 100, 0, 2, False)
    before = data.contents()
    changed = hold_out(data, 42)
    assert (changed.num_train, changed.num_val) == (150, 42)
    assert torch.equal(torch.cat([changed.train.images, changed.val.images]), data.train.images)
    assert torch.equal(torch.cat([changed.train.labels, changed.val.labels]), data.train.labels)
    assert [label for _, labels in changed.val_dataloader() for label in labels] == list(data.train.labels[150:])
    assert changed.splits.val["label"][:] == data.splits.train["label"][150:]
    assert changed.fingerprint()["train"] != data.fingerprint()["train"]
    assert changed.normalisation != data.normalisation
    assert data.contents() == before
    assert (data.num_train, data.num_val) == (192, 100)
