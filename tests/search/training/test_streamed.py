"""Images that are decoded when a batch needs them."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from search import UserError
from search.training import glyphs, sources
from search.training.data import ImageData
from search.training.normalisation import Normalisation
from search.training.streamed import Augmentation, StreamedData

AUGMENTATION = Augmentation("rand-m7-mstd0.5-inc1", 0.0, 0.3, 0.5, 1.0, "bilinear", 0)
GLYPHS = partial(sources.glyphs, seed=0)


def streamed(augmentation: Augmentation = AUGMENTATION, **changes: Any) -> StreamedData:
    settings: dict[str, Any] = {
        "name": "glyphs", "source": GLYPHS, "img_size": 32, "in_chans": 1, "train_size": 48, "val_size": 16, "seed": 0,
        "flip": False,
    }  # fmt: skip
    return StreamedData(**{**settings, **changes}, augmentation=augmentation)


def epochs(data: StreamedData, *numbers: int) -> list[torch.Tensor]:
    """All images of some epochs, as a training gets them."""
    torch.manual_seed(3)
    batches = data.train_dataloader(16)
    images_by_epoch = []
    for number in numbers:
        batches.sampler.set_epoch(number)  # type: ignore[attr-defined]
        images_by_epoch.append(torch.cat([images for images, _ in batches]))
    return images_by_epoch


def test_splits_are_those_of_images_in_memory() -> None:
    data = streamed()
    memory = ImageData("glyphs", GLYPHS, 32, 1, 48, 16, 0, 0, False)
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert torch.equal(labels, memory.val.labels)
    images = torch.cat([images for images, _ in data.val_dataloader()])
    pixels = images * data.normalisation.std[0] + data.normalisation.mean[0]
    torch.testing.assert_close(pixels, memory.val.images / 255, atol=1e-4, rtol=0)


def test_training_images_and_classes_are_those_of_images_in_memory() -> None:
    """What is measured of weights that a training starts from does not depend on augmentation."""
    data = streamed()
    memory = ImageData("glyphs", GLYPHS, 32, 1, 48, 16, 0, 2, True, normalisation=data.normalisation)
    torch.testing.assert_close(data.training_images(8, 20), memory.training_images(8, 20), atol=1e-4, rtol=0)
    assert torch.equal(data.class_counts(), memory.class_counts())
    assert data.class_counts().shape == (data.num_classes,)
    assert data.class_counts().sum() == 48


def test_an_epoch_depends_neither_on_earlier_ones_nor_on_the_number_of_workers() -> None:
    data = streamed()
    first, second = epochs(data, 0, 1)
    assert not torch.equal(first, second)
    assert torch.equal(second, epochs(data, 1)[0])
    workers = streamed(replace(AUGMENTATION, num_workers=2))
    assert torch.equal(second, epochs(workers, 1)[0])
    assert first.shape == (48, 1, 32, 32)


def test_fingerprint_follows_the_images_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training must not resume on other images, but on a copy of them, whose files have other times of change."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    for number in range(24):
        file = tmp_path / "here/train" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(file)
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)

    def fingerprint(name: str) -> dict[str, Any]:
        source = partial(sources.imagefolder, path=str(tmp_path / name))
        return streamed(source=source, train_size=None, val_size=4).fingerprint()

    before = fingerprint("here")
    assert fingerprint("there") == before
    for file in (tmp_path / "here/train/a").iterdir():  # other images of the same names and classes
        Image.fromarray(rng.integers(0, 255, (31, 32), np.uint8)).save(file)
    assert fingerprint("here") != before


def test_fingerprint_follows_images_inside_the_dataset() -> None:
    def inverted(split: str, num_images: int | None) -> Dataset:
        images, labels = glyphs.render(64, seed=0)
        return sources.from_arrays(255 - images, labels, list(glyphs.CHARACTERS))

    assert streamed().fingerprint() == streamed().fingerprint()
    assert streamed(source=inverted).fingerprint() != streamed().fingerprint()


def test_images_are_normalised_as_weights_expect() -> None:
    expected = Normalisation((0.2,), (0.4,))
    usual, given = streamed(), streamed(normalisation=expected)
    assert usual.normalisation == Normalisation.imagenet(1)
    (images, _), (others, _) = next(iter(usual.val_dataloader())), next(iter(given.val_dataloader()))
    pixels = images * usual.normalisation.std[0] + usual.normalisation.mean[0]
    torch.testing.assert_close(others * 0.4 + 0.2, pixels)
    assert given.fingerprint() != usual.fingerprint()


def test_augmentation_does_not_change_the_state_of_global_generators() -> None:
    data = streamed()
    batches = iter(data.train_dataloader(16))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    next(batches)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_every_image_is_used_once_in_an_epoch() -> None:
    data = streamed()
    order = list(data.train_dataloader(16).sampler)
    assert sorted(order) == list(range(48))


def test_colour_images_have_three_channels() -> None:
    images, _ = next(iter(streamed(in_chans=3, flip=True).train_dataloader(16)))
    assert images.shape == (16, 3, 32, 32)


def test_image_that_cannot_be_decoded_is_reported_with_a_remedy() -> None:
    def broken(split: str, num_images: int | None) -> Dataset:
        rows = {"image": [{"bytes": b"no image", "path": None}] * 4, "label": [0, 1, 0, 1]}
        features = sources.glyphs("train", 4, 0).features
        return Dataset.from_dict(rows, features=features)

    data = streamed(source=broken, train_size=2, val_size=1)
    with pytest.raises(UserError, match=r"data=glyphs cannot be decoded: row \d \(not an image.*repair or remove them"):
        next(iter(data.train_dataloader(16)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentation": replace(AUGMENTATION, auto_augment="no-such")}, "auto_augment=no-such"),
        ({"in_chans": 2}, "data.in_chans=2"),
        ({"val_size": 64, "train_size": None, "source": partial(sources.digits)}, None),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert streamed(**settings).num_train == 4000 - 64
        return
    with pytest.raises((UserError, ValueError), match=message):
        streamed(**settings)
