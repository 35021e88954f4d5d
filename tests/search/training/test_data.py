"""Images of every source, their splits, batches and augmentation."""

from __future__ import annotations

import gzip
import shutil
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
from search.training.data import EXECUTION_KEYS, ImageData
from search.training.glyphs import CHARACTERS, Difficulty, render
from search.training.splits import Source


def make(source: Source, **kwargs: Any) -> ImageData:
    arguments: dict[str, Any] = {
        "name": "test", "img_size": 16, "in_chans": 1, "train_size": 30, "val_size": 10, "seed": 0, "shift": 2,
        "flip": False,
    }  # fmt: skip
    return ImageData(source=source, **{**arguments, **kwargs})


def numbered(split: str, num_images: int | None, size: int = 16, total: int = 50) -> Dataset:
    """A source whose image i has brightness i and label i % 5; the test split is brighter by 100."""
    offset = 100 if split == "test" else 0
    images = np.stack([np.full((size, size), i + offset, np.uint8) for i in range(total)])
    return sources.from_arrays(images, [i % 5 for i in range(total)], list("abcde"))


def ids(images: torch.Tensor) -> list[int]:
    return sorted(int(image.max()) for image in images)


def test_splits_are_disjoint_and_have_the_requested_sizes() -> None:
    data = make(numbered)
    train, val = ids(data.train.images), ids(data.val.images)
    assert (len(train), len(val)) == (30, 10)
    assert not set(train) & set(val)
    assert data.num_classes == 5


def test_validation_stays_when_the_training_set_grows() -> None:
    assert ids(make(numbered).val.images) == ids(make(numbered, train_size=5).val.images)


def test_images_keep_their_labels() -> None:
    data = make(numbered, train_size=None)
    assert len(data.train.labels) == 40
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert int(image.max()) % 5 == label


def test_test_split_is_read_only_when_its_loader_is_made() -> None:
    splits_read: list[str] = []

    def source(split: str, num_images: int | None) -> Dataset:
        splits_read.append(split)
        return numbered(split, num_images)

    data = make(source)
    list(data.train_dataloader(8))
    list(data.val_dataloader())
    assert splits_read == ["train"]
    list(data.test_dataloader())
    assert splits_read == ["train", "test"]


def test_batches_are_normalised_and_complete() -> None:
    data = make(numbered)
    images, labels = (torch.cat(column) for column in zip(*data.val_dataloader(), strict=True))
    assert images.shape == (10, 1, 16, 16)
    assert labels.tolist() == data.val.labels.tolist()
    everything = data.normalisation.apply(data.train.images)
    assert everything.mean().abs() < 1e-4
    assert everything.std() == pytest.approx(1, abs=1e-4)
    assert len(list(data.train_dataloader(8))) == len(data.train_dataloader(8)) == 3


def test_seed_decides_order_and_epochs_differ() -> None:
    data = make(numbered, shift=0)

    def epochs(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        loader = data.train_dataloader(8)
        return [[int(x) for _, labels in loader for x in labels] for _ in range(2)]

    assert epochs(1) == epochs(1)
    assert epochs(1) != epochs(2)
    assert epochs(1)[0] != epochs(1)[1]


def test_other_sizes_are_scaled_and_cropped() -> None:
    def wide(split: str, num_images: int | None) -> Dataset:
        images = np.zeros((20, 20, 40), np.uint8)
        images[:, :, 10:30] = 200
        return sources.from_arrays(images, [0, 1] * 10, ["a", "b"])

    data = make(wide, train_size=10, val_size=5)
    assert data.train.images.shape == (10, 1, 16, 16)
    assert (data.train.images[..., 1:-1] == 200).all()  # the bright middle, but for its smoothed edge


def test_glyphs_repeat_for_a_seed_and_cover_every_character() -> None:
    first, labels = render(3000, 0)
    again, _ = render(3000, 0)
    other, _ = render(10, 1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:10], other)
    assert set(labels) == set(range(len(CHARACTERS)))
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 100


def test_noisy_glyphs_are_fainter_and_noisier() -> None:
    easy, labels = render(200, 0)
    hard, same_labels = render(200, 0, Difficulty(noise=0.3))
    faint, _ = render(200, 0, Difficulty(min_contrast=0.0, noise=0.0))
    clean, _ = render(200, 0, Difficulty(noise=0.0))
    assert np.array_equal(labels, same_labels)
    corners = np.s_[:, :2, :2]  # never ink: what varies there is noise, cut off below black
    assert hard[corners].std() == pytest.approx(2 * easy[corners].std(), rel=0.1)
    assert np.median(faint.max(axis=(1, 2))) < 0.8 * np.median(clean.max(axis=(1, 2)))


@pytest.mark.parametrize("key", ["max_rotation", "min_contrast", "noise"])
def test_difficulty_out_of_range_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=rf"data.source.{key}=-1 must be a number from 0"):
        Difficulty(**{key: -1})


def test_glyphs_source_separates_train_and_test() -> None:
    source = partial(sources.glyphs, seed=0)
    train, test = source("train", 20), source("test", None)
    assert len(train) == 20
    assert len(test) == sources.NUM_TEST_GLYPHS
    assert not {row["bytes"] for row in _encoded(train)} & {row["bytes"] for row in _encoded(test)}
    with pytest.raises(UserError, match="train_size=null"):
        source("train", None)


def _encoded(dataset: Dataset) -> Any:
    from datasets import Image as ImageFeature

    return dataset.cast_column("image", ImageFeature(decode=False))["image"]


def test_digits_need_no_network() -> None:
    data = make(sources.digits, img_size=28, train_size=100, val_size=50)
    assert data.num_classes == 10
    assert len(sources.digits("test", None)) == sources.NUM_TEST_DIGITS


def write_idx(folder: Path, prefix: str, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_idx_folder(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 28, 28))
    write_idx(tmp_path, "train", images, np.arange(40) % 10)
    data = make(partial(sources.idx, path=str(tmp_path)), img_size=28, train_size=20)
    assert data.num_classes == 10
    assert {image.numpy().tobytes() for image in data.train.images} <= {x.astype(np.uint8).tobytes() for x in images}
    with pytest.raises(UserError, match="t10k-images"):
        data.test_dataloader()
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x28short"))
    with pytest.raises(UserError, match="cut short"):
        make(partial(sources.idx, path=str(tmp_path)))


def write_image_folder(folder: Path, num_images: int) -> None:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for i in range(num_images):
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / label / f"{i}.png")


@pytest.mark.parametrize(
    "content",
    [b"not a gzip file", gzip.compress(bytes(100))[:20], gzip.compress(bytes(1000))[:-9] + bytes(9)],
    ids=["other", "cut short", "changed"],
)
def test_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz cannot be read \(.+\); replace it"):
        sources.idx("train", None, str(tmp_path))


def test_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without a home folder."""
    numbered("train", None).to_parquet(tmp_path / "train-0.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/dev/null/cache")
    with pytest.raises(UserError, match=r"cannot be loaded \(NotADirectoryError.*HF_HOME=FOLDER moves it"):
        sources.parquet("train", None, str(tmp_path), "image", "label")


def test_image_folder(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", 12)
    data = make(partial(sources.imagefolder, path=str(tmp_path)), in_chans=3, train_size=None, val_size=4)
    assert data.train.images.shape == (20, 3, 16, 16)
    assert data.num_classes == 2
    with pytest.raises(UserError, match="has no folder test or testing or val"):
        data.test_dataloader()


def test_execution_keys_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "here" / "train", 12)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (
        make(partial(sources.imagefolder, path=str(tmp_path / name)), in_chans=3, train_size=None, val_size=4)
        for name in ("here", "there")
    )
    assert {"source.path", "cache", "cache_folder"} == EXECUTION_KEYS
    assert here.fingerprint() == there.fingerprint()


def test_another_image_in_the_folder_is_other_contents(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", 12)

    def contents() -> dict[str, str]:
        source = partial(sources.imagefolder, path=str(tmp_path))
        return make(source, in_chans=3, train_size=None, val_size=4).contents()

    before = contents()
    assert contents() == before
    assert before["train"].startswith("20 images, sha256 ")
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "train/cat/zzz.png")
    assert contents()["train"].startswith("21 images, sha256 ")


def test_other_fonts_are_other_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade of matplotlib, whose fonts are drawn."""
    source = partial(sources.glyphs, seed=0)
    before = make(source).contents()
    assert make(source).contents() == before
    fonts = glyphs._fonts()
    monkeypatch.setattr(glyphs, "_fonts", lambda: fonts[::-1])
    after = make(source).contents()
    assert all(after[split] != before[split] for split in ("train", "val"))


def test_names_of_files_and_classes_do_not_choose_the_split(tmp_path: Path) -> None:
    """ImageNet's files are named ILSVRC2012_val_00000293.JPEG, and other datasets have a class `train`."""
    folder = tmp_path / "pictures [all]"
    write_image_folder(folder / "train", 12)
    (folder / "train/dog").rename(folder / "train/train")
    write_image_folder(folder / "val", 3)
    (folder / "val/dog").rename(folder / "val/train")
    for file in (folder / "val").rglob("*.png"):
        file.rename(file.with_name(f"ILSVRC2012_val_{file.stem}.png"))
    data = make(partial(sources.imagefolder, path=str(folder)), in_chans=3, train_size=None, val_size=4)
    assert (data.num_classes, data.num_train) == (2, 20)
    ((_, labels),) = data.test_dataloader()
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="train has no images"):
        sources.imagefolder("train", None, str(tmp_path))


def test_classes_that_differ_in_case_alone_stay_apart() -> None:
    def source(split: str, num_images: int | None) -> Dataset:
        images = np.zeros((40 if split == "train" else 3, 16, 16), np.uint8)
        if split == "train":
            return sources.from_arrays(images, [i % 3 for i in range(40)], ["A", "a", "b"])
        return sources.from_arrays(images, [0, 1, 0], ["A", "b"])

    ((_, labels),) = make(source, train_size=None).test_dataloader()
    assert labels.tolist() == [0, 2, 0]


@pytest.mark.parametrize("label", [-1, None])
@pytest.mark.parametrize("split", ["training", "test"])
def test_labels_that_are_not_classes_are_named(split: str, label: int | None) -> None:
    def source(name: str, num_images: int | None) -> Dataset:
        dataset = numbered(name, num_images)
        if (name == "test") != (split == "test"):
            return dataset
        features = dataset.features["label"]
        return dataset.remove_columns("label").add_column("label", [label, *[0] * 49], feature=features)

    with pytest.raises(UserError, match=f"the {split} set has label {label}"):
        make(source).test_dataloader()


def test_test_labels_follow_the_names_of_training(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", 12)
    write_image_folder(tmp_path / "test", 3)
    shutil.rmtree(tmp_path / "test" / "cat")  # its only class, dog, is number 0 there
    data = make(partial(sources.imagefolder, path=str(tmp_path)), in_chans=3, train_size=None, val_size=4)
    ((_, labels),) = data.test_dataloader()
    assert labels.tolist() == [1, 1, 1]
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    with pytest.raises(UserError, match="classes that the training set does not have: wolf"):
        data.test_dataloader()


def test_parquet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    numbered("train", None).to_parquet(tmp_path / "train-0.parquet")
    source = partial(sources.parquet, path=str(tmp_path), image="image", label="label")
    assert ids(make(source, train_size=None).train.images) == ids(make(numbered, train_size=None).train.images)
    with pytest.raises(UserError, match="no column 'picture'; it has image, label"):
        make(partial(sources.parquet, path=str(tmp_path), image="picture", label="label"))


@pytest.mark.parametrize("source", [sources.imagefolder, sources.idx])
def test_missing_folder_is_named(source: Any) -> None:
    with pytest.raises(UserError, match=r"data.source.path=/no/such is not a folder"):
        make(partial(source, path="/no/such"))


def test_unreachable_hub_fails_at_once_and_names_local_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _no_network)
    source = partial(sources.hub, path="uoft-cs/cifar10", train="train", test="test", image="img", label="label")
    with pytest.raises(UserError, match=r"cifar10.*data=glyphs.*data=imagefolder.*HF_HUB_OFFLINE=1"):
        make(source)


def _no_network(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("no route")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_size": 60}, "data.val_size=60"),
        ({"train_size": 45}, r"data.train_size=45 need more than the 50 images"),
        ({"train_size": 0}, "data.train_size=0"),
        ({"in_chans": 2}, "data.in_chans=2"),
        ({"img_size": 0}, "data.img_size=0"),
        ({"shift": -1}, "data.shift=-1"),
        ({"train_size": 2.5}, "data.train_size=2.5"),
    ],
)
def test_impossible_sizes_name_the_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        make(numbered, **change)
