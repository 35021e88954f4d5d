"""Images at another size than the data have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from search.training.resizing import resized


@pytest.mark.parametrize("img_size", [None, 32])
def test_images_of_the_size_of_the_data_are_left_alone(img_size: int | None) -> None:
    images = torch.rand(2, 3, 32, 32)
    assert resized(images, img_size) is images


def test_every_pixel_counts() -> None:
    """Stripes of a pixel become their mean; without antialiasing only some of them would be seen."""
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1.0
    assert torch.allclose(resized(stripes, 8), torch.full((1, 1, 8, 8), 0.5), atol=0.02)
    assert resized(torch.rand(5, 3, 64, 64), 24).shape == (5, 3, 24, 24)


def test_images_are_resized_as_pillow_does_it() -> None:
    """Deployed programs decode images at the network's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((20, 20), Image.Resampling.BILINEAR))
    assert np.abs(resized(torch.tensor(pixels)[None, None].float(), 20)[0, 0].numpy() - expected).max() < 1.5
