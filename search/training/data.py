"""Image datasets as uint8 tensors, in memory or mapped into it: decoded once, indexed in batches, augmented per batch.

A search reads the same few thousand images for every network. Batches of a tensor come at 143,000 images/s, formatted rows
of a Hugging Face dataset at 3,500.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, Self

import lightning
import numpy as np
import torch
from torch import Tensor

from models.architecture import check_int
from models.deploy.int8 import NUM_CALIBRATION_IMAGES
from search import UserError
from search.training.augmentation import BatchAugmentation, ShiftAndFlip
from search.training.decoding import Decoder, Levels
from search.training.image_cache import ImageCache, labels_of
from search.training.images import Images
from search.training.normalisation import Normalisation
from search.training.processes import world_size_and_rank
from search.training.splits import Source, split

EXECUTION_KEYS: frozenset[str] = frozenset({"source.path", "cache", "cache_folder"})
"""Keys below the configuration group `data` that only say where the images are stored. Whether the same images are stored at
another place, `contents` tells."""

EVAL_BATCH_SIZE = 256


class SplitData(lightning.LightningDataModule):
    """Square images, with a training and a validation split that both come from the source's training set.

    Args:
        name: Name of the dataset, for reports.
        source: Where the images come from; see `search.training.sources`.
        img_size: Side of the images, in pixels.
        in_chans: 1 for grey images, 3 for colour images.
        train_size: Number of images to train on; None takes all that validation leaves.
        val_size: Number of images to validate on; None takes a fifth of the training set, at most 5,000.
        seed: Seed of the split.
        min_val_size: The smallest `val_size` that is accepted.

    Raises:
        UserError: If the source has too few images or labels that do not fit.
        ValueError: If a setting is out of range; the message names it.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        img_size: int,
        in_chans: int,
        train_size: int | None,
        val_size: int | None,
        seed: int,
        min_val_size: int,
    ) -> None:
        super().__init__()
        check_int("data.img_size", img_size, 1)
        if val_size is not None:
            check_int("data.val_size", val_size, min_val_size)
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
        self.class_names: list[str] = self.splits.label_feature.names
        self.levels = Levels.of(self.splits.train, self.splits.val)

    @property
    def num_train(self) -> int:
        return len(self.splits.train)

    @property
    def num_val(self) -> int:
        return len(self.splits.val)

    @property
    def train_labels(self) -> Tensor:
        """Labels of the training images, (num_train,) int64."""
        return labels_of(self.splits.train)

    def class_counts(self) -> Tensor:
        """Return the number of training images of each class, (num_classes,)."""
        return torch.bincount(self.train_labels, minlength=self.num_classes)


class ImageData(SplitData):
    """Both splits decoded at working size; the test set is read only when its loader is made.

    Args:
        shift: Of `augment=light`: training images are shifted by up to this number of pixels.
        flip: Of every augmentation: half of the training images are mirrored.
        normalisation: What the weights expect that a training starts from; None for the statistics of the training images.
        augment: Changes training images; None for `augment=light`.
        cache: Where decoded images are, "memory" or "disk"; None for what suits their size.
        cache_folder: Of decoded images on the disk.

    The other arguments are those of `SplitData`.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        img_size: int,
        in_chans: int,
        train_size: int | None,
        val_size: int | None,
        seed: int,
        shift: int,
        flip: bool,
        normalisation: Normalisation | None = None,
        augment: BatchAugmentation | None = None,
        cache: str | None = None,
        cache_folder: str = "outputs/.images",
    ) -> None:
        self.augment = augment or ShiftAndFlip(shift, flip)
        self.cache = ImageCache(cache, Path(cache_folder))
        super().__init__(name, source, img_size, in_chans, train_size, val_size, seed, min_val_size=1)
        splits, self.decoder = self.splits, Decoder(in_chans, img_size, self.levels)
        encoded = [(splits.train, splits.train_rows), (splits.val, splits.val_rows)]
        self.train, self.val = self.cache.images(encoded, self.decoder, name)
        self.expected = normalisation
        self.normalisation = normalisation or Normalisation.of(self.train.counts())

    @property
    def num_train(self) -> int:
        return len(self.train.labels)

    @property
    def num_val(self) -> int:
        return len(self.val.labels)

    @property
    def train_labels(self) -> Tensor:
        return self.train.labels

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which trains and validates: without the encoded images."""
        return self.__dict__ | {"splits": None, "source": None}

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that a training on these images depends on."""
        settings = self.augment.fingerprint() | {"num_classes": self.num_classes}
        images = {"train": self.train.digest(), "shape": str(tuple(self.train.images.shape))}
        return {**images, **settings, "normalisation": asdict(self.normalisation)}

    def contents(self) -> dict[str, str]:
        """Describe images and labels, which a study depends on wherever they are stored, by number and digest."""
        splits = {"train": self.train, "val": self.val}
        return {name: f"{len(split.labels)} images, sha256 {split.digest()[:16]}" for name, split in splits.items()}

    def training_images(self, start: int, stop: int) -> Tensor:
        """Return training images from `start` to before `stop`, normalised but not augmented, (B, C, H, W) float32."""
        return self.normalisation.apply(self.train.images[start:stop])

    def train_dataloader(self, batch_size: int = EVAL_BATCH_SIZE) -> Batches:
        """Return shuffled, augmented batches, seeded by torch's current seed; the last incomplete batch is dropped."""
        return Batches(self, self.train, min(batch_size, len(self.train.labels)), torch.initial_seed())

    def val_dataloader(self) -> Batches:
        return Batches(self, self.val, EVAL_BATCH_SIZE)

    def test_dataloader(self) -> Batches:
        """Read the whole test set.

        Raises:
            UserError: If its labels are not those of the training set.
        """
        test_set = self.splits.test_set(self.source)
        (images,) = self.cache.images([(test_set, range(len(test_set)))], self.decoder, str(self.name))
        return Batches(self, images, EVAL_BATCH_SIZE)


class Batches:
    """Iterable over normalised batches: images (B, C, H, W) float32; labels (B,) int64, or (B, num_classes) of mixed images.

    Processes that train together take turns: with two of them the first one gets batches 0, 2, 4 and so on.

    Args:
        data: Whose normalisation and augmentation apply.
        images: What the batches are taken from.
        batch_size: Number of images per batch.
        seed: Shuffle and augment, differently in each epoch; the same seed and epoch give the same batches. None keeps
            the order and does not augment.

    Attributes:
        epoch: Of the next iteration.
        device: Where images are augmented and normalised.
    """

    def __init__(self, data: ImageData, images: Images, batch_size: int, seed: int | None = None) -> None:
        self.data = data
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        total = len(self.images.labels)
        return -(-total // self.batch_size) if self.seed is None else total // self.batch_size // world_size_and_rank()[0]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            yield from self._batches(torch.arange(len(self.images.labels)), None)
            return
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        self.epoch += 1
        order = torch.randperm(len(self.images.labels), generator=generator)
        world_size, rank = world_size_and_rank()
        if world_size > 1:
            batches = order[: len(self) * world_size * self.batch_size].view(-1, self.batch_size)
            order = batches[rank::world_size].flatten()
            generator.manual_seed(epoch_seed(self.seed, self.epoch) + rank)  # of augmentation
        yield from self._batches(order, generator)

    def _batches(self, order: Tensor, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(len(self)):
            indices = order[index * self.batch_size : (index + 1) * self.batch_size]
            images, labels = (x[indices].to(self.device) for x in (self.images.images, self.images.labels))
            if generator is not None:
                images, labels = self.data.augment(images, labels, self.data.num_classes, generator)
            yield self.data.normalisation.apply(images), labels


def calibration_images(data: TrainingImages) -> Tensor:
    """Return the training images that 8-bit integers are calibrated with, normalised, (N, C, H, W) float32."""
    return data.training_images(0, min(NUM_CALIBRATION_IMAGES, data.num_train))


class TrainingImages(Protocol):
    """A dataset that hands out single training images: `ImageData` or `streamed.StreamedData`."""

    @property
    def num_train(self) -> int: ...

    def training_images(self, start: int, stop: int) -> Tensor: ...


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of everything that is random in an epoch."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
