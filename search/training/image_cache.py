"""Where decoded images are: in memory, or in files that are mapped into it, for processes and searches to share.

A file has a name by everything that the images depend on, and is written whole or not at all. So a second search on the same
images starts from it, and one on other images, or at another size, writes another. Files may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from search.files import replacing, write_text
from search.training.decoding import Decoder, Failure, in_batches, undecodable
from search.training.images import Facts, Images, count_values, open_images

log = logging.getLogger(__name__)
VERSION = 1  # raise it with every change of decoding that moves pixels
KINDS = ("memory", "disk")
MAX_BYTES_IN_MEMORY = 256 * 2**20  # of data.cache=null: each process that trains has a copy
Rows = tuple[Dataset, Sequence[int] | NDArray[np.int64]]
"""Encoded images with their labels, and their numbers for messages."""


class Incomplete(Exception):
    """Some images of a file cannot be decoded."""


@dataclass(frozen=True)
class ImageCache:
    """Decodes images, or takes them from where they were decoded before.

    Args:
        kind: "memory", "disk", or None for what suits their size.
        folder: Of the files on the disk.

    Raises:
        ValueError: If there is no such kind.
    """

    kind: str | None
    folder: Path

    def __post_init__(self) -> None:
        if self.kind not in (None, *KINDS):
            raise ValueError(f"data.cache={self.kind} must be memory, disk, or null for what suits the size of the images")

    def images(self, splits: Sequence[Rows], decoder: Decoder, data: str) -> list[Images]:
        """Return the images of several splits at working size.

        Args:
            splits: Encoded images.
            decoder: Makes working images of them.
            data: Name of the dataset, for messages.

        Raises:
            UserError: If images cannot be decoded; the message names those of all splits.
        """
        num_images = sum(len(dataset) for dataset, _ in splits)
        num_bytes = num_images * int(np.prod(decoder.shape))
        on_disk = self.kind == "disk" or (self.kind is None and num_bytes > MAX_BYTES_IN_MEMORY)
        failures: list[Failure] = []
        decoded = [
            self._from_disk(rows, decoder, failures) if on_disk else _in_memory(rows, decoder, failures) for rows in splits
        ]
        if failures:
            raise undecodable(failures, num_images, data)
        return [images for images in decoded if images is not None]

    def _from_disk(self, rows: Rows, decoder: Decoder, failures: list[Failure]) -> Images | None:
        """Map images from their file, which is written if there is none; None if some cannot be decoded."""
        dataset, _ = rows
        folder = self.folder.resolve()
        file = folder / f"{key_of(dataset, decoder)}.npy"
        labels = labels_of(dataset)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{file.stem}.lock"):  # another search may be writing it
            if not is_whole(file, (len(dataset), *decoder.shape)):
                try:
                    write_images(file, rows, labels, decoder, failures)
                except Incomplete:
                    return None
            else:
                log.info("using the %s decoded images in %s", f"{len(dataset):,}", file)
        return open_images(file, labels, facts=read_facts(file))


def _in_memory(rows: Rows, decoder: Decoder, failures: list[Failure]) -> Images:
    dataset, numbers = rows
    images = torch.empty(len(dataset), *decoder.shape, dtype=torch.uint8)
    start = 0
    for pixels, failed in decoder.decode(dataset, numbers):
        images[start : start + len(pixels)] = torch.from_numpy(pixels)
        start += len(pixels)
        failures += failed
    return Images(images, labels_of(dataset))


def write_images(file: Path, rows: Rows, labels: Tensor, decoder: Decoder, failures: list[Failure]) -> None:
    """Decode images into a file, with the facts about them beside it.

    Raises:
        Incomplete: If some cannot be decoded; they are added to the failures, and nothing is written.
        SearchStopped: If the file cannot be written.
    """
    dataset, numbers = rows
    shape = (len(dataset), *decoder.shape)
    log.info("decoding %s images once, to %.1f GB in %s", f"{len(dataset):,}", np.prod(shape) / 1e9, file)
    digest, counts, num_failures = hashlib.sha256(), torch.zeros(shape[1], 256, dtype=torch.int64), len(failures)
    with replacing(file) as new:
        with new.open("wb") as written:
            np.lib.format.write_array_header_1_0(written, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for pixels, failed in decoder.decode(dataset, numbers):
                failures += failed
                if len(failures) == num_failures:
                    written.write(pixels.data)
                    digest.update(pixels.reshape(-1).data)
                    counts += count_values(torch.from_numpy(pixels))
        if len(failures) > num_failures:
            raise Incomplete
    digest.update(labels.numpy().data)
    facts = Facts(digest.hexdigest(), tuple(map(tuple, counts.tolist())))
    write_text(file.with_suffix(".json"), json.dumps(asdict(facts)) + "\n")


def is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file of images is there and complete: the facts beside it are written last."""
    try:
        read_facts(file)
        return bool(np.load(file, mmap_mode="r").shape == shape)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_facts(file: Path) -> Facts:
    """Read the facts beside a file of images."""
    facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    return Facts(facts["digest"], tuple(map(tuple, facts["counts"])))


def key_of(dataset: Dataset, decoder: Decoder) -> str:
    """Return a digest of everything that working images depend on."""
    settings = {"version": VERSION, "rows": rows_digest(dataset, with_times=True), "decoder": asdict(decoder)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def labels_of(dataset: Dataset) -> Tensor:
    """Return the labels of a dataset, (N,) int64."""
    return torch.tensor(dataset["label"][:], dtype=torch.int64)


def rows_digest(dataset: Dataset, with_times: bool = False) -> str:
    """Return a SHA-256 of labels and images, without decoding them.

    Of an image inside the dataset's own files (parquet, hub) the bytes count; of one in a file, its folder, name and size.
    To read millions of files takes as long as an epoch.

    Args:
        dataset: Encoded images with their labels.
        with_times: Whether the times of change of files count too. They differ in each copy of a folder.
    """
    digest = hashlib.sha256(np.asarray(dataset["label"][:], dtype=np.int64).tobytes())
    for image in chain.from_iterable(in_batches(dataset)):
        if image is None or (image["bytes"] is None and image["path"] is None):
            content = b""
        else:
            content = _file_facts(Path(image["path"]), with_times) if image["bytes"] is None else image["bytes"]
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _file_facts(file: Path, with_times: bool) -> bytes:
    """Folder, name and size of an image's file."""
    try:
        stat = file.stat()
    except OSError:  # a path inside an archive is not a file
        return f"{file.parent.name}/{file.name} 0".encode()
    time = f" {stat.st_mtime_ns} {stat.st_ino}" if with_times else ""
    return f"{file.parent.name}/{file.name} {stat.st_size}{time}".encode()
