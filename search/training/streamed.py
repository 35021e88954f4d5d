"""Images decoded whenever they are used, by worker processes, with timm's augmentations: for what memory does not hold.

Every image of every epoch is augmented from a seed of its own, so a training that was cut off goes on to the same weights,
whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import UnidentifiedImageError
from timm.data import create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from models.architecture import check_int, check_number
from search import UserError
from search.latency.machine import allowed_cores
from search.training.data import EVAL_BATCH, Source, SplitData, converted, epoch_seed

GREY_MEAN, GREY_STD = 0.449, 0.226  # ImageNet's, over its channels

Loader = DataLoader[tuple[Tensor, int]]
Broken = Callable[[Exception], UserError]


@dataclass(frozen=True)
class Augmentation:
    """What happens to an image before the network sees it; names and meanings are those of timm.data.create_transform.

    auto_augment: policy such as rand-m9-mstd0.5-inc1, which is RandAugment; null for none. color_jitter: its strength where
    there is no policy. erasing: probability of random erasing. min_scale: smallest share of the image that the random crop
    takes. crop_pct: share of the image that evaluation looks at. num_workers: processes that decode, one on a core at most.
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
    """The splits of `search.training.data.ImageData`, with images that stay where they are until a batch needs them.

    flip: whether images are mirrored. val_size: may be 0. Grey and colour images are normalised with ImageNet's mean and
    standard deviation, as official checkpoints expect.
    Raises: UserError if the source has too few images, or a setting makes no sense.
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
        flip: bool,
        augmentation: Augmentation,
    ) -> None:
        super().__init__(name, source, img_size, in_chans, train_size, val_size, seed, least_val_size=0)
        self.augmentation = augmentation
        self.mean = IMAGENET_DEFAULT_MEAN if in_chans == 3 else (GREY_MEAN,)
        self.std = IMAGENET_DEFAULT_STD if in_chans == 3 else (GREY_STD,)
        self.train_transform = self._transform(True, flip)
        self.eval_transform = self._transform(False, flip)

    def normalisation(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel, of values in [0, 1]."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def fingerprint(self) -> dict[str, Any]:
        """What a training on these images depends on: their labels stand for them, since reading them all takes hours."""
        labels = np.asarray(self.splits.train["label"][:], dtype=np.int64)
        return {
            "train": hashlib.sha256(labels.tobytes()).hexdigest(),
            "img_size": self.img_size,
            "augmentation": asdict(self.augmentation) | {"num_workers": None},
        }

    def train_dataloader(self, batch_size: int = EVAL_BATCH) -> Loader:
        """Shuffled and augmented by torch's seed at this moment, the last incomplete batch left out."""
        rows = self._rows(self.splits.train, self.train_transform, torch.initial_seed())
        return self._loader(rows, min(batch_size, len(rows)), sampler=EpochOrder(rows), drop_last=True)

    def val_dataloader(self) -> Loader:
        return self._loader(self._rows(self.splits.val, self.eval_transform, None), EVAL_BATCH)

    def test_dataloader(self) -> Loader:
        """All of the test set. Raises: UserError if its labels are not those of training."""
        return self._loader(self._rows(self.splits.test(self.source), self.eval_transform, None), EVAL_BATCH)

    def _loader(self, rows: Rows, batch_size: int, **options: Any) -> Loader:
        """Its workers get seeds that nothing depends on, drawn from a generator that nothing else draws from."""
        options |= {"pin_memory": torch.cuda.is_available(), "generator": torch.Generator()}
        num_workers = min(self.augmentation.num_workers, len(allowed_cores()))
        return DataLoader(rows, batch_size, num_workers=num_workers, **options)

    def _rows(self, dataset: Dataset, transform: Any, seed: int | None) -> Rows:
        return Rows(dataset.cast_column("image", Image()), transform, self.in_chans, seed, self.broken)

    def _transform(self, training: bool, flip: bool) -> Any:
        """timm's, for three channels: grey images get three equal ones, of which `Rows` keeps one."""
        chosen = self.augmentation
        channels = 3 // self.in_chans
        try:
            return create_transform(
                self.img_size,
                is_training=training,
                scale=(chosen.min_scale, 1.0),
                hflip=0.5 if flip else 0.0,
                color_jitter=chosen.color_jitter,
                auto_augment=chosen.auto_augment,
                interpolation=chosen.interpolation,
                mean=self.mean * channels,
                std=self.std * channels,
                re_prob=chosen.erasing,
                re_mode="pixel",
                crop_pct=chosen.crop_pct,
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise UserError(
                f"recipe.augmentation: timm takes no auto_augment={chosen.auto_augment} with "
                f"interpolation={chosen.interpolation} ({type(error).__name__}: {error})"
            ) from error


class Rows(TorchDataset[tuple[Tensor, int]]):
    """Decoded and augmented images (C, H, W) float32 with their labels. seed: None for a transform without chance.

    broken: what to raise for an image that cannot be decoded.
    """

    def __init__(self, dataset: Dataset, transform: Any, in_chans: int, seed: int | None, broken: Broken) -> None:
        self.dataset = dataset
        self.transform = transform
        self.in_chans = in_chans
        self.seed = seed
        self.broken = broken
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            row = self.dataset[index]
            image = converted(row["image"], self.in_chans).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise self.broken(error) from error
        if self.seed is None:
            return self.transform(image)[: self.in_chans], row["label"]
        with drawing_from(epoch_seed(self.seed, self.epoch) + index):
            return self.transform(image)[: self.in_chans], row["label"]


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """All generators that augmentations draw from start at a seed, and afterwards go on where they were."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class EpochOrder(Sampler[int]):
    """A new order in each epoch, of which Lightning tells; of several processes each gets its share."""

    def __init__(self, rows: Rows) -> None:
        assert rows.seed is not None
        self.rows = rows
        self.seed = rows.seed

    def set_epoch(self, epoch: int) -> None:
        self.rows.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows) // _processes()[0]

    def __iter__(self) -> Iterator[int]:
        number, rank = _processes()
        order = np.random.default_rng(epoch_seed(self.seed, self.rows.epoch)).permutation(len(self.rows))
        yield from order[rank : len(self) * number : number].tolist()


def _processes() -> tuple[int, int]:
    """How many train together, and which of them this is."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_world_size(), distributed.get_rank()) if ready else (1, 0)
