"""A trained network in the form that its files compute: in float32, or in 8-bit integers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from torch import Tensor

from models.deploy import prepare
from models.deploy.int8 import Int8Network, calibrated, calibration_batches, float_layers, without_sensitive_layers
from models.deploy.onnx import NEWEST, OnnxVersions, export_onnx
from models.deploy.onnx_int8 import quantise_onnx
from models.litv2 import LITv2
from search.results.deployed_images import DeployedImages
from search.results.trained import Trained

log = logging.getLogger(__name__)
TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant


@dataclass(frozen=True)
class Deployable:
    """A network as files of one dtype compute it.

    Attributes:
        network: A LITv2, or for int8 an `Int8Network`.
        examples: Of its input, (N, C, H, W).
        trained: Where the weights come from.
        float_layers: Names of the linear layers of an int8 network that stay in float32.
        versions: Of its ONNX file.
    """

    network: LITv2 | Int8Network
    examples: Tensor
    trained: Trained
    float_layers: Sequence[str] = ()
    versions: OnnxVersions = NEWEST

    @cached_property
    def onnx(self) -> bytes:
        """The content of its ONNX file, for any number of images; exporting takes seconds."""
        form = self.network.network if isinstance(self.network, Int8Network) else prepare(self.network)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            export_onnx(form, self.examples[:TRACED_BATCH], file, any_batch=True, versions=self.versions)
            model = onnx.load(file)
        for node in model.graph.node:  # where in this project each operator comes from: half of a small file
            del node.metadata_props[:]
        content = bytes(model.SerializeToString())
        return quantise_onnx(content, self.network.ranges) if isinstance(self.network, Int8Network) else content


def int8_network(
    trained: Trained, images: DeployedImages, side: int, file: Path, versions: OnnxVersions = NEWEST
) -> Deployable:
    """Round a network to 8-bit integers, but for its most sensitive layers."""
    examples = images.calibration(trained.normalisation(file), side)
    batches = calibration_batches(examples)
    rounded = calibrated(prepare(trained.network), batches)
    if trained.is_trained:
        log.info("int8: looking for layers that rounding would change the classes of images by")
        rounded = without_sensitive_layers(rounded, batches)
    names = float_layers(rounded, examples[:1])
    listed = f": {', '.join(names)}" if names else ""
    log.info("int8: %d of %d linear layers stay in float32%s", len(names), len(rounded.ranges), listed)
    return Deployable(rounded, examples, trained, names, versions)
