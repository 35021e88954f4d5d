"""Images of every kind, and those that cannot be decoded, from files and from rows."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps

from search import UserError
from search.training.decoding import convert_image
from search.training.streamed import Augmentation, StreamedData
from tests.support.images import brightness_of, folder_data, parquet_data, source_data, write_classes

PLAIN = Augmentation(None, 0.0, 0.0, 1.0, 1.0, "bilinear", 0)


def png(brightness: int = 100) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), brightness).save(buffer, "png")
    return buffer.getvalue()


def write_arrays(folder: Path, arrays: list[np.ndarray[Any, Any]], suffix: str = "tiff") -> None:
    """Write images, half of them for each of two classes."""
    for number, array in enumerate(arrays):
        file = folder / "train" / "ab"[number % 2] / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)


def flat(value: float, dtype: Any) -> np.ndarray[Any, Any]:
    return np.full((16, 16), value, dtype)


def grey_levels(folder: Path) -> list[int]:
    return [grey for (grey,) in brightness_of(folder_data(folder))]


def broken_files(folder: Path) -> dict[str, str]:
    """Write images that cannot be decoded. Returns the reason of each, by name."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "jpeg")
    (folder / "truncated.jpg").write_bytes(buffer.getvalue()[:1000])
    (folder / "checksum.png").write_bytes(png()[:30] + bytes([png()[30] ^ 1]) + png()[31:])  # of the header
    (folder / "changed.png").write_bytes(png()[:-20] + bytes([png()[-20] ^ 1]) + png()[-19:])
    (folder / "text.png").write_text("this is text")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "gone.png").symlink_to("/no/such.png")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return {
        "truncated.jpg": "truncated", "checksum.png": "not an image", "changed.png": "broken data stream",
        "text.png": "not an image", "empty.jpg": "not an image",
        "photo.heic": "not an image", "gone.png": "no such file", "huge.png": "more than 178,956,970 pixels: scale it down",
    }  # fmt: skip


def test_images_that_cannot_be_decoded_are_named_all_at_once(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    reasons = broken_files(tmp_path / "train/cat")
    expected = rf"^{len(reasons)} of 24 images of data=photos cannot be decoded: .*; repair or remove them$"
    with pytest.raises(UserError, match=expected) as caught:
        folder_data(tmp_path, val_size=2)
    for name, reason in reasons.items():
        caught.match(rf"train/cat/{name} \(.*{reason}")


def test_long_list_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    write_classes(tmp_path / "train")
    for number in range(30):
        (tmp_path / f"train/cat/broken{number}.png").write_text("text")
    with pytest.raises(UserError, match=r"30 of .* and 20 more, which the log names"):
        folder_data(tmp_path)
    assert all(f"broken{number}.png" in caplog.text for number in range(30))


def rows(images: list[Any]) -> Any:
    """A source of images in a parquet file's form."""

    def source(split: str, num_images: int | None) -> Dataset:
        columns = {"image": images, "label": [number % 2 for number in range(len(images))]}
        return Dataset.from_dict(columns, Features({"image": ImageFeature(), "label": Value("int64")}))

    return source


def test_null_and_broken_rows_are_named() -> None:
    images = [{"bytes": png(), "path": None} for _ in range(10)]
    source = rows([*images, None, {"bytes": b"text", "path": None}, {"bytes": b"text", "path": "cat.png"}])
    with pytest.raises(UserError, match="^3 of 13 images") as caught:
        source_data(source, val_size=5)
    for text in ("row 10 \\(no image\\)", "row 11 \\(not an image", "cat.png \\(not an image"):
        caught.match(text)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("image", [None, {"bytes": b"text", "path": None}])
def test_broken_row_of_streamed_images_is_named(image: Any, num_workers: int) -> None:
    source = rows([image] * 8)
    data = StreamedData("photos", source, 16, 3, None, 2, 0, False, replace(PLAIN, num_workers=num_workers))
    assert data.fingerprint()
    with pytest.raises(UserError, match=r"^1 of 6 images of data=photos cannot be decoded: row \d \("):
        next(iter(data.train_dataloader(4)))


def test_grey_images_of_16_bits_keep_their_range(tmp_path: Path) -> None:
    write_arrays(tmp_path, [flat(256 * grey + 200, np.uint16) for grey in (0, 1, 2, 3, 100, 255)], "png")
    assert grey_levels(tmp_path) == [0, 1, 2, 3, 100, 255]


def test_twelve_bits_in_sixteen_keep_their_levels(tmp_path: Path) -> None:
    write_arrays(tmp_path, [flat(16 * grey, np.uint16) for grey in range(250)], "png")
    assert grey_levels(tmp_path) == list(range(250))


def test_integers_of_32_bits_keep_their_levels(tmp_path: Path) -> None:
    write_arrays(tmp_path, [flat(256 * grey, np.int32) for grey in range(250)])
    assert grey_levels(tmp_path) == list(range(250))


def test_negative_integers_are_spread(tmp_path: Path) -> None:
    write_arrays(tmp_path, [flat(value, np.int32) for value in (-1000, -500, 0, 500, 1000)])
    assert grey_levels(tmp_path) == [0, 63, 127, 191, 255]


@pytest.mark.parametrize(("scale", "offset"), [(1 / 255, 0.0), (1.0, 0.0), (100.0, -12750.0)])
def test_floats_keep_their_levels(tmp_path: Path, scale: float, offset: float) -> None:
    write_arrays(tmp_path, [flat(grey * scale + offset, np.float32) for grey in range(256)])
    assert grey_levels(tmp_path) == list(range(256))


def test_floats_that_are_not_finite_are_named(tmp_path: Path) -> None:
    write_arrays(tmp_path, [flat(value, np.float32) for value in (0.1, 0.2, np.nan, 0.4, 0.5)])
    with pytest.raises(UserError, match=r"train/a/2.tiff \(values that are not finite\)"):
        folder_data(tmp_path)


def test_test_images_have_the_levels_of_training(tmp_path: Path) -> None:
    write_arrays(tmp_path, [flat(value, np.uint16) for value in (0, 1600, 3200, 4000)], "png")
    write_arrays(tmp_path / "dark", [flat(160, np.uint16)] * 2, "png")
    (tmp_path / "dark/train").rename(tmp_path / "test")
    data = folder_data(tmp_path)
    ((images, _),) = data.test_dataloader()
    expected = data.normalisation.apply(np_to_images(10))
    assert images[0, 0, 0, 0] == expected[0, 0, 0, 0]


def np_to_images(grey: int) -> Any:
    import torch

    return torch.full((1, 1, 1, 1), grey, dtype=torch.uint8)


def colours(folder: Path, image: Image.Image, suffix: str, **options: Any) -> list[list[int]]:
    """The colours that five copies of an image get."""
    for number in range(5):
        file = folder / "train" / "ab"[number % 2] / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, **options)
    return brightness_of(folder_data(folder, in_chans=3))


def test_palettes_give_their_colours(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 60)).quantize(4)
    assert colours(tmp_path, image, "png") == [[200, 30, 60]] * 5
    assert colours(tmp_path, image, "png", transparency=bytes([255, 0, 0, 0])) == [[200, 30, 60]] * 5


def test_cmyk_and_other_modes_give_their_colours(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    (colour, *_) = colours(tmp_path, red.convert("CMYK"), "jpg", quality=100)
    assert np.abs(np.array(colour) - (254, 0, 0)).max() <= 3
    for mode, suffix in (("L", "png"), ("1", "png"), ("LA", "png"), ("RGBA", "png")):
        grey = Image.new("L", (16, 16), 255).convert(mode)
        folder = tmp_path / mode
        assert colours(folder, grey, suffix) == [[255] * 3] * 5


def test_image_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # the upper half, which the camera's orientation puts to the right
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(5):
        file = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file))).transpose(2, 0, 1)
    data = folder_data(tmp_path, in_chans=3)
    assert (data.train.images.numpy() == expected).all()
    assert expected[0, 0].tolist() == [0] * 8 + [255] * 8


def test_pgm_of_16_bits_keeps_its_range() -> None:
    pgm = b"P5 2 1 65535\n" + np.array([256 * 7, 256 * 200], ">u2").tobytes()
    assert np.asarray(convert_image(Image.open(io.BytesIO(pgm)), 1)).tolist() == [[7, 200]]


def write_parquet(folder: Path, images: list[Any], kind: Any, name: str = "train.parquet") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    labels = [["cat", "dog"][number % 2] for number in range(len(images))]
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": labels}), folder / name)


def parquet_kinds() -> dict[str, Any]:
    import pyarrow as pa

    encoded = [png(grey) for grey in range(10)]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return {
        "bytes and path": ([{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(encoded)], struct),
        "bytes alone": (encoded, pa.binary()),
        "large bytes": (encoded, pa.large_binary()),
        "paths": ([f"images/{number}.png" for number in range(10)], pa.string()),
    }


@pytest.mark.parametrize("kind", ["bytes and path", "bytes alone", "large bytes", "paths"])
def test_parquet_files_hold_images_in_many_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images, arrow_type = parquet_kinds()[kind]
    for number in range(10):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / f"images/{number}.png").write_bytes(png(number))
    write_parquet(tmp_path, images, arrow_type)
    data = parquet_data(tmp_path)
    assert [grey for (grey,) in brightness_of(data)] == list(range(10))
    assert data.class_names == ["cat", "dog"]


def test_parquet_row_without_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images, arrow_type = parquet_kinds()["bytes and path"]
    write_parquet(tmp_path, [*images[:4], None, *images[5:]], arrow_type)
    with pytest.raises(UserError, match=r"cannot be decoded: row 4 \(no image\); repair or remove them"):
        parquet_data(tmp_path)


@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("test", ["test-0.parquet", "validation-00000-of-00001.parquet", "val.parquet"])
def test_parquet_files_of_the_test_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, test: str) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images, arrow_type = parquet_kinds()["bytes alone"]
    write_parquet(tmp_path / folder, images, arrow_type, "train-00000-of-00001.parquet")
    write_parquet(tmp_path / folder, images[:3], arrow_type, test)
    data = parquet_data(tmp_path)
    ((_, labels),) = data.test_dataloader()
    assert labels.tolist() == [0, 1, 0]


def test_parquet_folder_without_the_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no file train\*.parquet, nor has its folder data; name the files"):
        parquet_data(tmp_path)
