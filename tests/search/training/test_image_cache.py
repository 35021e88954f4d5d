"""Decoded images that processes and searches share."""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from search import SearchStopped, UserError
from search.training import decoding, image_cache, sources
from search.training.data import ImageData
from search.training.held_out import hold_out
from tests.support.images import folder_data, write_classes, write_images

CONTENTS_BEFORE = {
    "train": "4000 images, sha256 f141f800667e699e", "val": "6000 images, sha256 24ab9a43812ea6a1",
}  # fmt: skip


def glyphs(folder: Path, cache: str | None, **changes: Any) -> ImageData:
    settings: dict[str, Any] = {
        "name": "glyphs", "source": partial(sources.glyphs, seed=0), "img_size": 32, "in_chans": 1, "train_size": 300,
        "val_size": 100, "seed": 0, "shift": 2, "flip": False,
    }  # fmt: skip
    return ImageData(**{**settings, **changes}, cache=cache, cache_folder=str(folder))


def decoded_files(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.npy")}


@pytest.fixture
def num_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images that are decoded, in its only item."""
    count, decode = [0], decoding.decode

    def counted(row: Any) -> Any:
        count[0] += 1
        return decode(row)

    monkeypatch.setattr(decoding, "decode", counted)
    return count


def test_images_on_the_disk_are_those_in_memory(tmp_path: Path) -> None:
    memory, disk = glyphs(tmp_path, "memory"), glyphs(tmp_path, "disk")
    assert memory.train.file is None
    assert disk.train.file is not None
    assert len(decoded_files(tmp_path)) == 2
    for split in ("train", "val"):
        assert torch.equal(getattr(memory, split).images, getattr(disk, split).images)
        assert torch.equal(getattr(memory, split).labels, getattr(disk, split).labels)
    assert memory.contents() == disk.contents()
    assert memory.fingerprint() == disk.fingerprint()
    torch.manual_seed(1)
    expected = [images for images, _ in memory.train_dataloader(32)]
    torch.manual_seed(1)
    assert all(torch.equal(*pair) for pair in zip(expected, (i for i, _ in disk.train_dataloader(32)), strict=True))


def test_default_images_are_those_of_version_0_1() -> None:
    """Studies compare this digest, so it must not change with how images are decoded and stored."""
    assert glyphs(Path(), None, train_size=4000, val_size=6000).contents() == CONTENTS_BEFORE


def test_second_search_decodes_nothing(tmp_path: Path, num_decoded: list[int]) -> None:
    def source(split: str, num_images: int | None) -> Dataset:
        return sources.glyphs(split, 400, seed=0)

    glyphs(tmp_path, "disk", source=source)
    assert num_decoded == [400]
    glyphs(tmp_path, "disk", source=source, shift=0)
    assert num_decoded == [400]
    glyphs(tmp_path, "disk", source=source, train_size=200)  # the same images to validate on
    assert num_decoded == [600]
    glyphs(tmp_path, "disk", source=source, img_size=16)
    assert num_decoded == [1000]


def test_size_chooses_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert glyphs(tmp_path, None).train.file is None
    monkeypatch.setattr(image_cache, "MAX_BYTES_IN_MEMORY", 400 * 32 * 32 - 1)
    assert glyphs(tmp_path, None).train.file is not None
    with pytest.raises(ValueError, match="data.cache=ram must be memory, disk, or null"):
        glyphs(tmp_path, "ram")


def test_changed_file_is_decoded_again(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos/train")
    write_images(tmp_path / "photos/train", ["cat/0.bmp"])
    before = folder_data(tmp_path / "photos", cache="disk", cache_folder=str(tmp_path / "cache"))
    file = tmp_path / "photos/train/cat/0.bmp"
    size = file.stat().st_size
    write_images(tmp_path / "photos/train", ["cat/0.bmp"], brightness=101)
    assert file.stat().st_size == size  # only the time of change differs
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    after = folder_data(tmp_path / "photos", cache="disk", cache_folder=str(tmp_path / "cache"))
    assert before.contents() != after.contents()


def test_processes_get_the_name_of_the_file(tmp_path: Path) -> None:
    data = glyphs(tmp_path, "disk")
    packed = pickle.dumps(data)
    assert len(packed) < 20_000
    assert len(pickle.dumps(glyphs(tmp_path, "memory"))) > 400 * 32 * 32
    received: ImageData = pickle.loads(packed)
    assert received.train.file == data.train.file
    assert torch.equal(received.train.images, data.train.images)
    assert received.fingerprint() == data.fingerprint()
    assert (received.num_train, received.num_val) == (300, 100)
    held_out = hold_out(data, 50)
    again: ImageData = pickle.loads(pickle.dumps(held_out))
    assert torch.equal(again.val.images, data.train.images[250:])
    assert torch.equal(again.class_counts(), torch.bincount(data.train.labels[:250], minlength=data.num_classes))
    assert again.contents() == held_out.contents() == hold_out(glyphs(tmp_path, "memory"), 50).contents()
    assert copy.copy(data).splits is data.splits
    assert data.train.file is not None
    data.train.file.unlink()
    with pytest.raises(UserError, match="cannot be read on this machine .*; set data.cache_folder to a folder"):
        pickle.loads(packed)


@pytest.mark.parametrize("damage", ["cut short", "no facts", "broken facts"])
def test_incomplete_file_is_written_again(tmp_path: Path, num_decoded: list[int], damage: str) -> None:
    data = glyphs(tmp_path, "disk")
    file = data.train.file
    assert file is not None
    content, digest = file.read_bytes(), data.train.digest()
    if damage == "cut short":
        file.write_bytes(content[:-1])
    elif damage == "no facts":
        file.with_suffix(".json").unlink()
    else:
        file.with_suffix(".json").write_text("{")
    again = glyphs(tmp_path, "disk")
    assert num_decoded == [700]
    assert again.train.digest() == digest
    assert file.read_bytes() == content


def test_nothing_is_left_of_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos/train")
    (tmp_path / "photos/train/cat/broken.png").write_text("text")
    with pytest.raises(UserError, match=r"1 of 17 images .*broken.png \(not an image"):
        folder_data(tmp_path / "photos", cache="disk", cache_folder=str(tmp_path / "cache"))
    assert len(decoded_files(tmp_path / "cache")) <= 1  # the split without it
    (tmp_path / "photos/train/cat/broken.png").unlink()
    folder_data(tmp_path / "photos", cache="disk", cache_folder=str(tmp_path / "cache"))


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache.np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(SearchStopped, match="cannot be written .No space left on device."):
        glyphs(tmp_path, "disk")
    assert not [file for file in tmp_path.iterdir() if not file.name.endswith(".lock")]


def test_searches_that_start_together_decode_once(tmp_path: Path, num_decoded: list[int]) -> None:
    with ThreadPoolExecutor(3) as pool:
        digests = list(pool.map(lambda _: glyphs(tmp_path, "disk").train.digest(), range(3)))
    assert len(set(digests)) == 1
    assert num_decoded == [400]


def test_pictures_larger_than_a_piece_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = glyphs(tmp_path, "memory")
    monkeypatch.setattr("search.training.images.IMAGES_AT_A_TIME", 7)
    monkeypatch.setattr(decoding, "ROWS_AT_A_TIME", 7)
    for cache in ("memory", "disk"):
        data = glyphs(tmp_path, cache)
        assert data.normalisation == expected.normalisation
        assert data.contents() == expected.contents()


def test_images_are_decoded_in_order_on_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "num_available_cores", lambda: 8)
    images = np.stack([np.full((16, 16), number % 256, np.uint8) for number in range(600)])
    source = sources.from_arrays(images, [number % 2 for number in range(600)], ["a", "b"])
    data = ImageData("many", lambda split, count: source, 16, 1, None, 100, 0, 0, False)
    rows = np.concatenate([data.splits.train_rows, data.splits.val_rows])
    got = torch.cat([data.train.images, data.val.images])[:, 0, 0, 0]
    assert got.tolist() == [int(row) % 256 for row in rows]
