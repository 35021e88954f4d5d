"""Folders of images as people have them: a folder for each class, with or without folders for the splits.

    FOLDER/train/CLASS/*  and  FOLDER/test/CLASS/*      as ImageNet is distributed
    FOLDER/CLASS/*                                      a fixed fifth of each class is the test set

Hugging Face's `imagefolder` takes the folder that a file lies in for its class, and leaves out links to folders. With it,
nested folders, thumbnails and images beside the classes made classes of their own, and linked classes were missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from search import UserError

log = logging.getLogger(__name__)
SUFFIXES = frozenset(ImageFolder.EXTENSIONS) | {".avif", ".heic", ".heif"}
"""Of files that are images, if only by their name: those that cannot be decoded are named rather than left out."""
SYSTEM_FOLDERS = frozenset(
    {
        "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
        "system volume information", "lost+found",
    }
)  # fmt: skip
"""Thumbnails, bins and snapshots of file servers and systems, in small letters. What begins with a dot is left out too."""
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
"""Names of the folders of a split, in small letters; the first that exists is used."""
TEST_SHARE = 0.2


def read_folder(folder: Path, split: str) -> Dataset:
    """List the images of a split, with the names of their class folders as classes.

    Args:
        folder: Holds folders of classes, or a folder for each split with those.
        split: "train" or "test".

    Raises:
        UserError: If there are no images, or some lie beside the folders of classes.
    """
    splits = _split_folders(folder)
    if split in splits:
        return _dataset(_images_by_class(splits[split]))
    if splits:
        names = " or ".join(SPLITS[split])
        raise UserError(f"data.source.path={folder} has no folder {names}; put the images of that split into one")
    images = _images_by_class(folder)
    if split == "train":
        log.info("%s has no folder train: a fifth of each class is the test set, the same in each run", folder)
    return _dataset({name: _part(files, folder, split) for name, files in images.items()})


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split that has one."""
    folders = {entry.name.lower(): Path(entry.path) for entry in _entries(folder) if entry.is_dir()}
    return {
        split: next(folders[name] for name in names if name in folders)
        for split, names in SPLITS.items()
        if not folders.keys().isdisjoint(names)
    }


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    """All images below each folder of a class, linked and nested ones too, by the name of the class."""
    stray, classes = [], []
    for entry in _entries(folder):
        if entry.is_dir():
            classes.append(Path(entry.path))
        elif _is_image(entry.name):
            stray.append(entry.path)
    if stray:
        raise UserError(
            f"{len(stray)} image(s) lie beside the folders of the classes, such as {stray[0]}; move each into the folder of "
            "its class, or remove it"
        )
    images = {path.name: list(_images_below(path, frozenset())) for path in classes}
    if empty := [name for name, files in images.items() if not files]:
        log.warning("%s: no images in %s; they are no classes", folder, ", ".join(empty[:5]))
    nested = [name for name, files in images.items() if any(file.parent.name != name for file in files)]
    if nested:
        log.info("%s: images in nested folders belong to the classes %s", folder, ", ".join(nested[:5]))
    images = {name: files for name, files in images.items() if files}
    if not images:
        raise UserError(f"data.source.path: {folder} has no images; put them into one folder per class")
    return images


def _images_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Images in a folder and those below, in order of their names. A link to a folder above it is not followed."""
    resolved = folder.resolve()
    if resolved in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _images_below(Path(entry.path), above | {resolved})
        elif _is_image(entry.name):
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, without hidden files and those of systems, in order of names. Raises: UserError."""
    try:
        with os.scandir(folder) as entries:
            wanted = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in SYSTEM_FOLDERS]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror or error}); fix this or remove it") from error
    return sorted(wanted, key=lambda entry: entry.name)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _part(files: list[Path], folder: Path, split: str) -> list[Path]:
    """The part of a class that is a split: by a digest of names, so that it is the same in each run and in each copy."""

    def rank(file: Path) -> bytes:
        return hashlib.sha256(file.relative_to(folder).as_posix().encode(errors="surrogateescape")).digest()

    num_test = round(TEST_SHARE * len(files))  # none of one or two images
    test = set(sorted(files, key=rank)[:num_test])
    return [file for file in files if (file in test) == (split == "test")]


def _dataset(images: Mapping[str, list[Path]]) -> Dataset:
    names = sorted(images)
    files = [os.path.abspath(file) for name in names for file in images[name]]  # noqa: PTH100 - links stay
    labels = [number for number, name in enumerate(names) for _ in images[name]]
    for text in (*names, *files):
        if not _is_utf8(text):
            raise UserError(f"{text!r} has a name that is not UTF-8; rename it")
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=names)})
    rows = {"image": [{"bytes": None, "path": file} for file in files], "label": labels}
    return Dataset.from_dict(rows, features=features)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
