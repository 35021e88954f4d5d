"""Image datasets larger than memory: worker processes decode images when they are used, with timm's augmentations.

Each image of each epoch is augmented from its own seed, so that a training that is killed and resumed gives the same
weights, whatever the number of workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from models.architecture import check_int, check_number
from search import UserError
from search.training.data import EVAL_BATCH_SIZE, SplitData, epoch_seed
from search.training.decoding import (
    Levels,
    Undecodable,
    convert_image,
    decode,
    encoded,
    name_of,
    num_available_cores,
    undecodable,
)
from search.training.image_cache import Rows, rows_digest
from search.training.normalisation import Normalisation
from search.training.processes import world_size_and_rank
from search.training.splits import Source

Loader = DataLoader[tuple[Tensor, int]]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, and how images are cropped; names as in `timm.data.create_transform`.

    Args:
        auto_augment: A policy of timm such as rand-m9-mstd0.5-inc1, which is RandAugment; None for none.
        color_jitter: Strength of the colour jitter that is used without a policy.
        erasing: Probability of random erasing, in [0, 1].
        min_scale: Smallest fraction of the image's area that the random crop takes, in [0.01, 1].
        crop_pct: Fraction of the image's side that is evaluated, in [0.01, 1].
        interpolation: How images are resized.
        num_workers: Number of processes that decode images; limited to the available cores.
    """

    auto_augment: str | None
    color_jitter: float
    erasing: float
    min_scale: float
    crop_pct: float
    interpolation: str
    num_workers: int

    def __post_init__(self) -> None:
        check_number("recipe.augmentation.color_jitter", self.color_jitter, 0)
        check_number("recipe.augmentation.erasing", self.erasing, 0, 1)
        for name in ("min_scale", "crop_pct"):
            check_number(f"recipe.augmentation.{name}", getattr(self, name), 0.01, 1)
        check_int("recipe.augmentation.num_workers", self.num_workers, 0)


class StreamedData(SplitData):
    """The splits of `search.training.data.ImageData`, decoded when a batch needs them.

    Args:
        val_size: Number of images to validate on; may be 0.
        flip: Whether half of the training images are mirrored.
        augmentation: The other random changes.
        normalisation: What the weights expect that a training starts from; None for ImageNet's.

    The other arguments are those of `SplitData`.

    Raises:
        UserError: If the source has too few images, or timm refuses a setting.
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
        flip: bool,
        augmentation: Augmentation,
        normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__(name, source, img_size, in_chans, train_size, val_size, seed, min_val_size=0)
        self.augmentation = augmentation
        self.normalisation = normalisation or Normalisation.imagenet(in_chans)
        self.train_transform = self._transform(True, flip)
        self.eval_transform = self._transform(False, flip)

    def fingerprint(self) -> dict[str, Any]:
        """Return what a training on these images depends on; see `image_cache.rows_digest`."""
        return {
            "train": rows_digest(self.splits.train),
            "img_size": self.img_size,
            "augmentation": asdict(self.augmentation) | {"num_workers": None},
            "normalisation": asdict(self.normalisation),
        }

    def training_images(self, start: int, stop: int) -> Tensor:
        """Return training images from `start` to before `stop`, normalised but not augmented, (B, C, H, W) float32."""
        images = self._transformed((self.splits.train, self.splits.train_rows), self.eval_transform, None)
        return torch.stack([images[index][0] for index in range(start, stop)])

    def train_dataloader(self, batch_size: int = EVAL_BATCH_SIZE) -> Loader:
        """Return shuffled, augmented batches, seeded by torch's current seed; the last incomplete batch is dropped."""
        rows = self.splits.train, self.splits.train_rows
        images = self._transformed(rows, self.train_transform, torch.initial_seed())
        return self._loader(images, min(batch_size, len(images)), sampler=EpochSampler(images), drop_last=True)

    def val_dataloader(self) -> Loader:
        rows = self.splits.val, self.splits.val_rows
        return self._loader(self._transformed(rows, self.eval_transform, None), EVAL_BATCH_SIZE)

    def test_dataloader(self) -> Loader:
        """Read the whole test set.

        Raises:
            UserError: If its labels are not those of the training set.
        """
        test_set = self.splits.test_set(self.source)
        rows = test_set, range(len(test_set))
        return self._loader(self._transformed(rows, self.eval_transform, None), EVAL_BATCH_SIZE)

    def _loader(self, images: TransformedImages, batch_size: int, **options: Any) -> Loader:
        """A generator of its own: workers draw their seeds from it, not from that of the training."""
        options |= {"pin_memory": torch.cuda.is_available(), "generator": torch.Generator()}
        num_workers = min(self.augmentation.num_workers, num_available_cores())
        return StreamedLoader(images, batch_size, num_workers=num_workers, **options)

    def _transformed(self, rows: Rows, transform: Any, seed: int | None) -> TransformedImages:
        return TransformedImages(rows, transform, self.in_chans, seed, self.levels, str(self.name))

    def _transform(self, training: bool, flip: bool) -> Any:
        """Make timm's transform for three channels; grey images get three equal ones, and one is kept."""
        settings = self.augmentation
        num_copies = 3 // self.in_chans
        try:
            return create_transform(
                self.img_size,
                is_training=training,
                scale=(settings.min_scale, 1.0),
                hflip=0.5 if flip else 0.0,
                color_jitter=settings.color_jitter,
                auto_augment=settings.auto_augment,
                interpolation=settings.interpolation,
                mean=self.normalisation.mean * num_copies,
                std=self.normalisation.std * num_copies,
                re_prob=settings.erasing,
                re_mode="pixel",
                crop_pct=settings.crop_pct,
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise UserError(
                f"recipe.augmentation: timm does not accept auto_augment={settings.auto_augment} with "
                f"interpolation={settings.interpolation} ({type(error).__name__}: {error})"
            ) from error


class TransformedImages(TorchDataset[tuple[Tensor, int]]):
    """Decoded and transformed images (C, H, W) float32, with their labels.

    Args:
        rows: Encoded images and labels, and their numbers for messages.
        transform: From a Pillow image to a tensor, (3, H, W).
        in_chans: Number of channels that are kept, 1 or 3.
        seed: Seed of a random transform; None for a deterministic one.
        levels: Of images of more than 8 bits.
        data: Name of the dataset, for messages.
    """

    def __init__(
        self,
        rows: Rows,
        transform: Any,
        in_chans: int,
        seed: int | None,
        levels: Levels,
        data: str,
    ) -> None:
        self.dataset, self.numbers = encoded(rows[0]), rows[1]
        self.transform = transform
        self.in_chans = in_chans
        self.seed = seed
        self.levels = levels
        self.data = data
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.dataset[index]
        try:
            image = convert_image(decode(row["image"]), self.in_chans, self.levels).convert("RGB")
        except Undecodable as error:
            name = name_of(row["image"], int(self.numbers[index]))
            raise undecodable([(name, error)], len(self), self.data) from error
        if self.seed is None:
            return self.transform(image)[: self.in_chans], row["label"]
        with seeded_generators(epoch_seed(self.seed, self.epoch) + index):
            return self.transform(image)[: self.in_chans], row["label"]


class StreamedLoader(DataLoader[tuple[Tensor, int]]):
    """Raises a user's mistake as it is: torch puts the traceback of the process that decodes into its message."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed all generators that augmentations draw from, and restore their state afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class EpochSampler(Sampler[int]):
    """A new random order in each epoch, divided among the processes that train together. Lightning calls `set_epoch`."""

    def __init__(self, images: TransformedImages) -> None:
        assert images.seed is not None
        self.images = images
        self.seed = images.seed

    def set_epoch(self, epoch: int) -> None:
        self.images.epoch = epoch

    def __len__(self) -> int:
        return len(self.images) // world_size_and_rank()[0]

    def __iter__(self) -> Iterator[int]:
        world_size, rank = world_size_and_rank()
        order = np.random.default_rng(epoch_seed(self.seed, self.images.epoch)).permutation(len(self.images))
        yield from order[rank : len(self) * world_size : world_size].tolist()
