"""Mean and standard deviation of images, computed and kept with weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from search import UserError
from search.training.images import count_values
from search.training.metadata import metadata_of
from search.training.normalisation import Normalisation


def test_statistics_are_those_of_the_pixels_on_any_number_of_threads() -> None:
    images = torch.randint(0, 200, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = images.double() / 255
    normalisation = Normalisation.of(count_values(images))
    assert normalisation.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert normalisation.std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=1e-6)
    applied = normalisation.apply(images)
    assert applied.dtype == torch.float32
    torch.testing.assert_close(applied.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert Normalisation.of(count_values(images)) == normalisation
    torch.set_num_threads(threads)


def test_images_of_one_colour_can_be_normalised() -> None:
    assert Normalisation.of(count_values(torch.full((1, 1, 1, 1), 51, dtype=torch.uint8))) == Normalisation((0.2,), (0.001,))


def test_weights_contain_their_normalisation(tmp_path: Path) -> None:
    normalisation, file = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1)}, file, metadata_of("key", dataclasses.asdict(normalisation)))
    assert Normalisation.of_weights(file) == normalisation
    assert Normalisation.from_dict(dataclasses.asdict(normalisation)) == normalisation
    save_file({"weight": torch.zeros(1)}, file)
    assert Normalisation.of_weights(file) is None
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="does not hold weights"):
        Normalisation.of_weights(file)
