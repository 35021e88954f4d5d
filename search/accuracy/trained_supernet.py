"""A trained supernet in a file, with all that its networks need beside it: images for batch statistics, normalisation.

A network that is scored and one that is exported come from the same function: the exported one is what the search scored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.architecture import Architecture
from models.elastic import Bounds, ElasticLITv2, recalibrate
from models.litv2 import LITv2
from models.shares import StageOrder
from search import UserError, one_line
from search.files import write_bytes
from search.training.files import serialised, write_weights
from search.training.metadata import SUPERNET_KEY, metadata_of, read_metadata
from search.training.normalisation import Normalisation
from search.training.resizing import resized

IMAGES = "calibration_images"


@dataclass(frozen=True)
class TrainedSupernet:
    """Shared weights, and what each network's batch statistics are computed from.

    Args:
        elastic: The weights.
        images: Training images, (N, C, H, W) uint8.
        normalisation: Of the images that the weights were trained on.
    """

    elastic: ElasticLITv2
    images: Tensor
    normalisation: Normalisation

    def extract(self, architecture: Architecture, device: torch.device | str = "cpu") -> LITv2:
        """Return a network with its share of the weights and batch statistics of its own, in evaluation mode.

        Raises:
            ValueError: If the weights do not hold the network.
        """
        network = self.elastic.extract(architecture).to(device).eval()
        recalibrate(network, [resized(self.normalised_images().to(device), architecture.img_size)])
        return network

    def normalised_images(self) -> Tensor:
        """Return the training images as the networks get them, (N, C, H, W) float32."""
        return self.normalisation.apply(self.images)

    def save_share(self, architecture: Architecture, path: Path, digest: str) -> None:
        """Write the weights of one network, with their normalisation, its key and the digest of this supernet's file."""
        metadata = metadata_of(architecture.key, asdict(self.normalisation), supernet=digest)
        write_weights(self.extract(architecture), metadata, path)

    def save(self, path: Path) -> None:
        """Write a file, completely or not at all. Equal supernets give equal files."""
        weights = self.elastic.weights
        description = {
            "bounds": asdict(self.elastic.bounds),
            "order": None if self.elastic.order is None else [asdict(stage) for stage in self.elastic.order],
            "in_chans": weights.in_chans,
            "num_classes": weights.num_classes,
            "normalisation": asdict(self.normalisation),
        }
        tensors = {**self.elastic.state_dict(), IMAGES: self.images.contiguous()}
        write_bytes(path, serialised(tensors, {SUPERNET_KEY: json.dumps(description)}))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: If the file is missing or incomplete.
        """
        try:
            shape = json.loads(read_metadata(path)[SUPERNET_KEY])
            normalisation = Normalisation.from_dict(shape.pop("normalisation"))
            bounds, order = Bounds.from_dict(shape.pop("bounds")), shape.pop("order", None)
            if order is not None:
                order = tuple(map(StageOrder.from_dict, order))
            elastic, tensors = ElasticLITv2(bounds, **shape, order=order), load_file(path)
            images = tensors.pop(IMAGES)
            elastic.load_state_dict(tensors)
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the supernet {path} cannot be read ({one_line(error)}); the next search trains it again"
            ) from error
        return cls(elastic.eval(), images, normalisation)
