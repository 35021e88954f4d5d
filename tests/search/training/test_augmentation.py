"""Random changes of batches of training images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from models.architecture import Architecture
from models.elastic import Bounds, ElasticLITv2
from models.litv2 import build
from search.accuracy.supernet import SupernetTraining
from search.training import sources
from search.training.augmentation import PhotoAugmentation, ShiftAndFlip
from search.training.data import ImageData
from search.training.task import ImageClassification, TrainSettings, fit

PHOTO = PhotoAugmentation(0.35, True, 0.4, 0.4, 0.4, 0.2, 1.0)
CROP = PhotoAugmentation(0.35, False, 0.0, 0.0, 0.0, 0.0, 0.0)
LABELS = torch.arange(16) % 5
DIGEST_BEFORE = "e0fffcd321f59693"

SETTINGS = TrainSettings(
    max_epochs=2, batch_size=16, lr=2e-3, weight_decay=0.05, warmup=0.2, label_smoothing=0.1, clip_norm=1.0,
    drop_path_rate=0.0, accelerator="cpu",
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(channels: int = 3, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (16, channels, side, side), dtype=torch.uint8, generator=generator(1))


def test_light_moves_and_mirrors() -> None:
    images = torch.zeros(64, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 4] = 255
    moved, _ = ShiftAndFlip(2, False)(images, LABELS, 5, generator())
    spots = {tuple(spot[2:].tolist()) for spot in moved.nonzero()}
    assert all(2 <= y <= 6 and 2 <= x <= 6 for y, x in spots)
    assert len(spots) > 10
    ramp = torch.arange(4, dtype=torch.uint8).expand(64, 1, 4, 4)
    mirrored, _ = ShiftAndFlip(0, True)(ramp, LABELS, 5, generator())
    assert {tuple(row) for row in mirrored[:, 0, 0].tolist()} == {(0, 1, 2, 3), (3, 2, 1, 0)}


def batches_digest(augment: ShiftAndFlip | PhotoAugmentation | None, shift: int = 2, flip: bool = True) -> str:
    """Of two epochs of training batches."""
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 64, 100, 0, shift, flip, augment=augment)
    torch.manual_seed(5)
    loader, digest = data.train_dataloader(16), hashlib.sha256()
    for _ in range(2):
        for images, labels in loader:
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()[:16]


def test_light_is_the_default_bit_by_bit() -> None:
    """The digest is that of the version before there was a choice."""
    assert batches_digest(None) == DIGEST_BEFORE
    assert batches_digest(ShiftAndFlip(2, True)) == DIGEST_BEFORE
    assert batches_digest(ShiftAndFlip(0, False)) != DIGEST_BEFORE


def test_none_changes_nothing() -> None:
    images = noise()
    augmented, labels = ShiftAndFlip(0, False)(images, LABELS, 5, generator())
    assert augmented is images
    assert labels is LABELS


@pytest.mark.parametrize("channels", [1, 3])
def test_photo_depends_on_its_generator_alone(channels: int) -> None:
    images = noise(channels)
    torch.manual_seed(1)
    first = PHOTO(images, LABELS, 5, generator())
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = PHOTO(images, LABELS, 5, generator())
    other = PHOTO(images, LABELS, 5, generator(1))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == images.shape
    assert first[0].min() >= 0
    assert first[0].max() <= 255
    assert first[1].shape == (16, 5)
    torch.testing.assert_close(first[1].sum(1), torch.ones(16))


def test_photo_without_changes_returns_the_images() -> None:
    images = noise()
    augmented, labels = replace(CROP, min_scale=1.0)(images, LABELS, 5, generator())
    assert labels is LABELS
    # Only the ratio of the sides is random: images are stretched, not cut elsewhere.
    assert augmented.shape == images.shape


def test_crops_are_those_of_torchvision() -> None:
    """A crop of the left upper quarter: compared inside, since torchvision repeats the border of the crop."""
    images = noise(3, 16)
    drawn = torch.tensor([[(0.25 - 0.2) / 0.8] * 16, [0.5] * 16, [0.0] * 16, [0.0] * 16, [1.0] * 16])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, generator: drawn)
        cropped = replace(CROP, min_scale=0.2)._crop(images.float(), generator())
    expected = V.resized_crop(images.float(), 0, 0, 8, 8, [16, 16], antialias=False)
    torch.testing.assert_close(cropped[..., :-1, :-1], expected[..., :-1, :-1], atol=1e-3, rtol=0)


def test_colours_change_as_in_torchvision() -> None:
    images = noise().float()
    for name, change in (
        ("brightness", V.adjust_brightness), ("contrast", V.adjust_contrast), ("saturation", V.adjust_saturation),
    ):  # fmt: skip
        augment = replace(CROP, **{name: 0.4})
        jittered = augment._jitter(images, generator())
        index = ("brightness", "contrast", "saturation").index(name)
        factors = 1 + 0.4 * (2 * torch.rand(3, 16, generator=generator())[index] - 1)
        for image, result, factor in zip(images, jittered, factors, strict=True):
            torch.testing.assert_close(result / 255, change(image / 255, float(factor)), atol=2e-3, rtol=0)


def test_crops_stay_inside_and_both_sides_occur() -> None:
    ramp = torch.arange(32, dtype=torch.float32).expand(256, 1, 32, 32)
    cropped, _ = replace(CROP, flip=True)(ramp, torch.zeros(256, dtype=torch.int64), 5, generator())
    rising = cropped[:, 0, 0, -1] > cropped[:, 0, 0, 0]
    assert 64 < rising.sum() < 192
    width = (cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]).abs() / 31
    assert width.min() > 0.35**0.5 * 0.75**0.5 - 0.05
    assert width.max() <= 1


def test_each_batch_gets_mixup_or_cutmix() -> None:
    """Of images that are all 0 or all 255: mixup makes other values, CutMix does not."""
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(8)[:, None, None, None].expand(16, 3, 32, 32)
    mix = replace(CROP, mixup=1.0, cutmix=1.0)
    kinds = set()
    for seed in range(20):
        mixed, probabilities = mix(images, LABELS, 5, generator(seed))
        kinds.add(bool(((mixed > 1) & (mixed < 254)).any()))
        assert not torch.equal(probabilities.argmax(1), LABELS) or probabilities.max() <= 1
    assert kinds == {True, False}
    one_of_them, probabilities = replace(CROP, mixup=1.0)(images, LABELS, 5, generator())
    share = one_of_them[1, 0, 0, 0] / 255
    torch.testing.assert_close(probabilities[1, LABELS[1]], share, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"min_scale": 0.0}, "augment.min_scale=0"), ({"mixup": -1.0}, "augment.mixup=-1"), ({"contrast": 2.0}, "contrast=2")],
)
def test_settings_out_of_range_are_named(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PHOTO, **change)


def test_fingerprint_follows_the_augmentation() -> None:
    assert ShiftAndFlip(2, True).fingerprint() == {"shift": 2, "flip": True}
    assert PHOTO.fingerprint() != replace(PHOTO, mixup=0.0).fingerprint()


def trained(make_task: Any) -> list[Tensor]:
    """Weights after two epochs with mixed labels."""
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 64, 100, 0, 0, False, augment=PHOTO)
    torch.manual_seed(3)
    task = make_task(data.num_classes)
    fit(task, data, lambda share: None)
    return [parameter.detach() for parameter in task.parameters()]


def test_trainings_take_mixed_labels_and_repeat(architecture: Architecture) -> None:
    def network(num_classes: int) -> ImageClassification:
        return ImageClassification(build(architecture, in_chans=1, num_classes=num_classes), SETTINGS, num_classes)

    def supernet(num_classes: int) -> ImageClassification:
        elastic = ElasticLITv2(Bounds.of([architecture]), 1, num_classes, 0.0)
        return SupernetTraining(elastic, SETTINGS, num_classes, lambda step: [architecture] * 2)

    for make_task in (network, supernet):
        first, again = trained(make_task), trained(make_task)
        assert all(map(torch.equal, first, again))
        assert all(parameter.isfinite().all() for parameter in first)
