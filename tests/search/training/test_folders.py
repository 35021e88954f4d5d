"""Folders of images as people have them. Each case was read wrongly, or refused, by Hugging Face's `imagefolder`."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from search import UserError
from search.training import sources
from search.training.folders import read_folder
from tests.support.images import folder_data, write_classes, write_images


def classes(folder: Path, split: str = "train") -> dict[str, int]:
    """Number of images of each class."""
    dataset = read_folder(folder, split)
    names = dataset.features["label"].names
    return {name: dataset["label"][:].count(number) for number, name in enumerate(names)}


def files(folder: Path, split: str) -> set[str]:
    """Images of a split, by name."""
    rows = read_folder(folder, split)["image"]
    return {str(Path(row["path"]).relative_to(folder)) for row in rows}


def test_linked_class_folders_are_read(tmp_path: Path) -> None:
    write_classes(tmp_path / "elsewhere", ["dog"])
    write_classes(tmp_path / "photos/train", ["cat"])
    (tmp_path / "photos/train/dog").symlink_to(tmp_path / "elsewhere/dog", target_is_directory=True)
    (tmp_path / "photos/train/cat/link.png").symlink_to(tmp_path / "elsewhere/dog/0.png")
    assert classes(tmp_path / "photos") == {"cat": 9, "dog": 8}


def test_circle_of_links_ends(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    (tmp_path / "train/cat/again").symlink_to(tmp_path / "train/cat", target_is_directory=True)
    assert classes(tmp_path) == {"cat": 8, "dog": 8}


@pytest.mark.parametrize("split", ["train/", ""])
def test_image_beside_the_classes_is_named(tmp_path: Path, split: str) -> None:
    write_classes(tmp_path / split)
    write_images(tmp_path, [f"{split}stray.png"])
    with pytest.raises(UserError, match=rf"1 image\(s\) lie beside .*{split}stray.png; move each into the folder"):
        read_folder(tmp_path, "train")


def test_images_in_nested_folders_belong_to_the_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_images(tmp_path / "train", ["cat/2024/a.png", "cat/2025/summer/b.png"])
    assert classes(tmp_path) == {"cat": 10, "dog": 8}


@pytest.mark.parametrize("name", ["@eaDir", ".thumbnails", "__MACOSX", "#recycle"])
def test_folders_of_systems_are_no_classes(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "train")
    write_images(tmp_path / "train", [f"{name}/0.png", f"cat/{name}/0.png", "cat/.hidden.png"])
    assert classes(tmp_path) == {"cat": 8, "dog": 8}


def test_other_files_are_no_images(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    for name in ("metadata.csv", "metadata.jsonl", "README.txt", "cat/Thumbs.db", "dog/notes.md"):
        (tmp_path / "train" / name).write_text("file_name,text\n0.png,a cat\n")
    (tmp_path / "train" / "empty").mkdir()
    assert classes(tmp_path) == {"cat": 8, "dog": 8}


def test_classes_without_a_folder_train_are_split_for_good(tmp_path: Path) -> None:
    write_classes(tmp_path, ["ant", "bee"], 20)
    write_images(tmp_path, ["cow/only.png"])
    assert classes(tmp_path) == {"ant": 16, "bee": 16, "cow": 1}
    assert classes(tmp_path, "test")["ant"] == classes(tmp_path, "test")["bee"] == 4
    train, test = files(tmp_path, "train"), files(tmp_path, "test")
    assert not train & test
    assert len(train | test) == 41
    shutil.copytree(tmp_path / "ant", tmp_path / "copy/ant")
    shutil.copytree(tmp_path / "bee", tmp_path / "copy/bee")
    assert files(tmp_path / "copy", "test") == test
    data = folder_data(tmp_path / "copy")
    ((_, labels),) = data.test_dataloader()
    assert labels.tolist() == [0] * 4 + [1] * 4


def test_class_with_one_image_has_one_to_train_on(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_images(tmp_path / "train", ["cow/only.png"])
    data = folder_data(tmp_path)
    assert data.class_names == ["cat", "cow", "dog"]
    assert data.num_train + data.num_val == 17


def test_one_class_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ["cat"])
    with pytest.raises(UserError, match="the training images have one class, cat; a classifier needs two or more"):
        folder_data(tmp_path)


def test_ten_thousand_classes(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    Image.new("L", (16, 16)).save(tmp_path / "0.png")
    for number in range(10_000):
        folder = tmp_path / f"photos/train/{number:05d}"
        folder.mkdir(parents=True)
        for name in ("a.png", "b.png"):
            os.link(tmp_path / "0.png", folder / name)
    dataset = read_folder(tmp_path / "photos", "train")
    assert dataset.features["label"].num_classes == 10_000
    assert len(dataset) == 20_000


@pytest.mark.parametrize(("train", "test"), [("Train", "valid"), ("training", "Testing"), ("train", "validation")])
def test_folders_of_splits_have_many_names(tmp_path: Path, train: str, test: str) -> None:
    write_classes(tmp_path / train, count=3)
    write_classes(tmp_path / test, count=2)
    assert classes(tmp_path) == {"cat": 3, "dog": 3}
    assert classes(tmp_path, "test") == {"cat": 2, "dog": 2}


def test_missing_split_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "test")
    with pytest.raises(UserError, match="has no folder train or training; put the images of that split into one"):
        read_folder(tmp_path, "train")


def test_file_that_cannot_be_read_by_its_name_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    (tmp_path / "train/cat/0.png").rename(tmp_path / "train/cat" / os.fsdecode(b"\xff.png"))
    with pytest.raises(UserError, match=r"udcff.png' has a name that is not UTF-8; rename it"):
        partial(sources.imagefolder, path=str(tmp_path))("train", None)
