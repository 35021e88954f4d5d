"""Images at another size than the data have: one function for trainings, scores, batch statistics and teachers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resized(images: Tensor, img_size: int | None) -> Tensor:
    """Resize images with antialiasing, as Pillow does: every pixel counts, however small the result is.

    Args:
        images: Normalised, (B, C, H, W).
        img_size: Side of the result, in pixels; None leaves them as they are.
    """
    if img_size is None or tuple(images.shape[-2:]) == (img_size, img_size):
        return images
    return F.interpolate(images, (img_size, img_size), mode="bilinear", antialias=True)
