"""A network with the weights that search.train left beside its file, and what they are known to be."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.architecture import Architecture
from models.deploy.int8 import FLOAT32
from models.litv2 import LITv2, build
from search import UserError, one_line
from search.files import sha256
from search.results.architecture_file import network_input
from search.training.files import result_file, weights_file
from search.training.metadata import CLASS_NAMES_KEY, NORMALISATION_KEY, metadata_of, read_metadata
from search.training.normalisation import Normalisation

log = logging.getLogger(__name__)
UNTRAINED = "random, untrained"


@dataclass(frozen=True)
class Trained:
    """A network with weights.

    Attributes:
        origin: where the weights come from, for people.
        metadata: of their file, as `search.training.metadata` describes it; the deployed files get it too.
        result: what search.train reported about them.
    """

    network: LITv2
    origin: str
    metadata: Mapping[str, str]
    result: Mapping[str, Any]

    @property
    def is_trained(self) -> bool:
        """False for random weights."""
        return self.origin != UNTRAINED

    def normalisation(self, file: Path) -> Normalisation:
        """Normalisation of its images. Raises: UserError, naming the file, if that is not known."""
        if NORMALISATION_KEY not in self.metadata:
            raise UserError(f"{file} does not say how its images are normalised; train again with search.train")
        return Normalisation.from_dict(json.loads(self.metadata[NORMALISATION_KEY]))

    def expects(self) -> dict[str, Any]:
        """Normalisation of images and names of classes, as far as they are known."""
        return {key: json.loads(self.metadata[key]) for key in (NORMALISATION_KEY, CLASS_NAMES_KEY) if key in self.metadata}


def trained_network(file: Path, architecture: Architecture, facts: Mapping[str, Any], dtype: str = FLOAT32) -> Trained:
    """Build the network with the weights that search.train left beside its file, or else with random ones.

    Args:
        file: of the architecture.
        architecture: the network.
        facts: about it.
        dtype: that it was trained for.
    """
    weights, report = weights_file(file, dtype), result_file(file, dtype)
    if not weights.exists():
        log.warning("there is no %s: the files get random weights; train first with search.train arch=%s", weights, file)
        in_chans, _, num_classes = network_input(architecture, facts)
        network = build(architecture, in_chans=in_chans, num_classes=num_classes).eval()
        return Trained(network, UNTRAINED, metadata_of(architecture.key, facts.get(NORMALISATION_KEY)), {})
    try:
        network = network_with(architecture, load_file(weights))
        metadata, result = read_metadata(weights), result_of(weights, report)
        if NORMALISATION_KEY not in metadata and NORMALISATION_KEY in result:  # weights of version 0.1
            metadata |= metadata_of(architecture.key, result[NORMALISATION_KEY])
        return Trained(network, f"trained by search.train, {weights.name}", metadata, result)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{weights} cannot be read ({one_line(error)}); train again with search.train arch={file}"
        ) from error


def network_with(architecture: Architecture, state: Mapping[str, Tensor]) -> LITv2:
    """Build a network in evaluation mode; channels and classes are those of the weights."""
    in_chans = state["patch_embed.proj.weight"].shape[1]
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    network = build(architecture, in_chans=in_chans, num_classes=num_classes)
    network.load_state_dict(state)
    return network.eval()


def result_of(weights: Path, report: Path) -> Mapping[str, Any]:
    """What search.train reported about weights; nothing, with a warning, if its report is of other ones.

    Raises:
        ValueError, OSError: if the report cannot be read.
    """
    result = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    if not isinstance(result, dict):
        raise ValueError(f"{report} is not a result of search.train")
    if result.get("weights_sha256") == sha256(weights):
        return result
    log.warning(
        "%s: the card gets no accuracy of %s; run search.train to its end",
        f"{report} is of other weights" if result else f"there is no {report}",
        weights,
    )
    return {}
