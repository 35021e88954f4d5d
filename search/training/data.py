"""Images as in-memory uint8 tensors behind a LightningDataModule: decoded once, batched by index, augmented per batch.

Rows of a formatted Hugging Face dataset come far slower than batches of a tensor, and a search reads the same few thousand
images for every network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image
from PIL import Image as PillowImage
from PIL import ImageOps, UnidentifiedImageError
from PIL.Image import Resampling
from torch import Tensor

from models.architecture import check_int
from search import UserError

Source = Callable[[str, int | None], Dataset]
"""Takes a split, "train" or "test", and how many images are wanted (None: all); returns columns `image` and `label`."""
EVAL_BATCH = 256  # images; also of a training that does not say how many it takes


@dataclass(frozen=True)
class Splits:
    """Rows to train on and rows to validate on, both from the training set of a source.

    num_classes: labels are below it. labels: the feature of that column.
    """

    train: Dataset
    val: Dataset
    num_classes: int
    labels: Any

    def test(self, source: Source) -> Dataset:
        """All of the test set, with the labels of training. Raises: UserError if it has others."""
        dataset = source("test", None)
        feature, trained = dataset.features["label"], self.labels
        if isinstance(feature, ClassLabel) and isinstance(trained, ClassLabel) and feature.names != trained.names:
            if unknown := set(feature.names) - set(trained.names):
                raise UserError(f"the test set has classes that training has not: {', '.join(sorted(unknown)[:5])}")
            check_labels(dataset, feature.num_classes, "test")
            number = [trained.names.index(name) for name in feature.names]
            labels = [number[label] for label in dataset["label"][:]]
            dataset = dataset.remove_columns("label").add_column("label", labels, feature=trained)
        check_labels(dataset, self.num_classes, "test")
        return dataset


def split(source: Source, train_size: int | None, val_size: int, seed: int) -> Splits:
    """Cut the training set of a source at random.

    train_size: null takes all that validation leaves.
    Raises: UserError if the source has too few images, or labels that are no class numbers.
    """
    dataset = source("train", None if train_size is None else train_size + val_size)
    if val_size >= len(dataset) or (train_size or 1) + val_size > len(dataset):
        wanted = "" if train_size is None else f" and data.train_size={train_size}"
        raise UserError(f"data.val_size={val_size}{wanted} need more than the {len(dataset)} images of the training set")
    order = np.random.default_rng(seed).permutation(len(dataset))
    end = None if train_size is None else val_size + train_size
    train, val = dataset.select(order[val_size:end]), dataset.select(order[:val_size])
    return Splits(train, val, _count_classes(dataset), dataset.features["label"])


@dataclass(frozen=True)
class Images:
    """images: (N, C, H, W) uint8. labels: (N,) int64."""

    images: Tensor
    labels: Tensor


class SplitData(lightning.LightningDataModule):
    """A training and a validation split of a source's training set, of square images.

    name: of the dataset, for reports. source: where the images come from, see sources.py. img_size: side of the images, in
    pixels. in_chans: 1 for grey, 3 for colour. train_size, val_size: images of each split; train_size null takes all that
    validation leaves. seed: of the split. least_val_size: below which validation is refused.
    Raises: UserError if the source has too few images or labels that do not fit, ValueError naming a setting.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        img_size: int,
        in_chans: int,
        train_size: int | None,
        val_size: int,
        seed: int,
        least_val_size: int,
    ) -> None:
        super().__init__()
        check_int("data.img_size", img_size, 1)
        check_int("data.val_size", val_size, least_val_size)
        check_int("data.seed", seed, 0)
        if train_size is not None:
            check_int("data.train_size", train_size, 1)
        if in_chans not in (1, 3):
            raise UserError(f"data.in_chans={in_chans} must be 1 (grey) or 3 (colour)")
        self.name = name
        self.source = source
        self.img_size = img_size
        self.in_chans = in_chans
        self.splits = split(source, train_size, val_size, seed)
        self.num_classes = self.splits.num_classes

    @property
    def num_train(self) -> int:
        return len(self.splits.train)

    @property
    def num_val(self) -> int:
        return len(self.splits.val)

    def broken(self, error: Exception) -> UserError:
        """What to say of an image that cannot be decoded."""
        return UserError(f"an image of data={self.name} cannot be decoded ({error}); mend or remove it")


class ImageData(SplitData):
    """Both splits in memory; the test set is only read where it is asked for.

    shift: augmentation by moving up to so many pixels. flip: augmentation by mirroring.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        img_size: int,
        in_chans: int,
        train_size: int | None,
        val_size: int,
        seed: int,
        shift: int,
        flip: bool,
    ) -> None:
        check_int("data.shift", shift, 0)
        super().__init__(name, source, img_size, in_chans, train_size, val_size, seed, least_val_size=1)
        self.shift = shift
        self.flip = flip
        self.val = self._decode(self.splits.val)
        self.train = self._decode(self.splits.train)
        pixels = self.train.images.float() / 255
        self.mean = pixels.mean((0, 2, 3), keepdim=True)
        self.std = pixels.std((0, 2, 3), keepdim=True).clamp_min(1e-3)

    def normalisation(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel, of values in [0, 1]."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    def fingerprint(self) -> dict[str, str | int | bool]:
        """What a training on these images depends on."""
        digest = hashlib.sha256()
        for tensor in (self.train.images, self.train.labels):
            digest.update(tensor.numpy().tobytes())
        settings = {"shift": self.shift, "flip": self.flip, "num_classes": self.num_classes}
        return {"train": digest.hexdigest(), "shape": str(tuple(self.train.images.shape)), **settings}

    def train_dataloader(self, batch_size: int = EVAL_BATCH) -> Batches:
        """Shuffled and augmented by torch's seed at this moment, the last incomplete batch left out."""
        return Batches(self, self.train, min(batch_size, len(self.train.labels)), torch.initial_seed())

    def val_dataloader(self) -> Batches:
        return Batches(self, self.val, EVAL_BATCH)

    def test_dataloader(self) -> Batches:
        """All of the test set. Raises: UserError if its labels are not those of training."""
        images = self._decode(self.splits.test(self.source))
        return Batches(self, images, EVAL_BATCH)

    def _decode(self, dataset: Dataset) -> Images:
        """Decode images, resized on their shorter side and cropped to the middle."""
        rows = dataset.cast_column("image", Image())
        size = (self.img_size, self.img_size)
        images = torch.empty(len(rows), self.in_chans, *size, dtype=torch.uint8)
        try:
            for target, image in zip(images, rows["image"], strict=True):
                fitted = ImageOps.fit(converted(image, self.in_chans), size, Resampling.BILINEAR)
                pixels = np.array(fitted).reshape(*size, self.in_chans)
                target.copy_(torch.from_numpy(pixels).permute(2, 0, 1))  # (C, H, W)
        except (UnidentifiedImageError, OSError) as error:
            raise self.broken(error) from error
        return Images(images, torch.tensor(rows["label"][:], dtype=torch.int64))


class Batches:
    """Iterable over normalised batches: images (B, C, H, W) float32, labels (B,).

    seed: shuffle and augment, each epoch otherwise; the same seed and epoch give the same batches. None: in order, as
    they are.
    """

    def __init__(self, data: ImageData, images: Images, batch_size: int, seed: int | None = None) -> None:
        self.data = data
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0  # the next one

    def __len__(self) -> int:
        total = len(self.images.labels)
        return -(-total // self.batch_size) if self.seed is None else total // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            yield from self._batches(torch.arange(len(self.images.labels)), None)
            return
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        self.epoch += 1
        yield from self._batches(torch.randperm(len(self.images.labels), generator=generator), generator)

    def _batches(self, order: Tensor, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            images = self.images.images[chosen]
            if generator is not None:
                images = augment(images, self.data.shift, self.data.flip, generator)
            yield (images.float() / 255 - self.data.mean) / self.data.std, self.images.labels[chosen]


def epoch_seed(seed: int, epoch: int) -> int:
    """Of what is random in an epoch."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Move each image by up to `shift` pixels each way, filling with its border, and mirror half of them.

    images: (B, C, H, W). Returns the same shape.
    """
    batch, _, height, width = images.shape
    if shift:
        rows = torch.randint(-shift, shift + 1, (batch, 1), generator=generator) + torch.arange(height)
        columns = torch.randint(-shift, shift + 1, (batch, 1), generator=generator) + torch.arange(width)
        rows, columns = rows.clamp_(0, height - 1), columns.clamp_(0, width - 1)
        index = torch.arange(batch)[:, None, None]
        images = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(batch, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images


def converted(image: PillowImage.Image, in_chans: int) -> PillowImage.Image:
    """An image in grey or in colour, with 8 bits a channel."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow would cut them off at 255
        image = PillowImage.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L" if in_chans == 1 else "RGB")


def check_labels(dataset: Dataset, num_classes: int, split: str) -> None:
    """Raises: UserError naming a label that is none of the classes."""
    for label in dataset["label"][:]:
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise UserError(f"the {split} set has label {label}; it must have class numbers from 0 to {num_classes - 1}")


def _count_classes(dataset: Dataset) -> int:
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        check_labels(dataset, feature.num_classes, "training")
        return int(feature.num_classes)
    labels = dataset["label"][:]
    if not labels or not all(isinstance(label, int) and label >= 0 for label in labels):
        raise UserError(f"column `label` holds {feature}; it must hold class numbers from 0")
    return int(max(labels)) + 1
