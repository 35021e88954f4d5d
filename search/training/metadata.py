"""What files of weights say about themselves: text by key, in the metadata of safetensors and of ONNX files.

Reading it needs no torch, whose import is four fifths of an export's time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

ARCHITECTURE_KEY = "architecture"  # key of the network that the weights are of
NORMALISATION_KEY = "normalisation"  # of the images that they expect, as JSON
CLASS_NAMES_KEY = "class_names"  # in the order of the outputs, as JSON
SUPERNET_KEY = "supernet"  # digest of the supernet that they were taken from; in the file of a supernet, its description


def metadata_of(
    architecture: str,
    normalisation: Mapping[str, Any] | None,
    class_names: Sequence[str] = (),
    supernet: str | None = None,
) -> dict[str, str]:
    """Return the metadata of a file of weights.

    Args:
        architecture: Key of the network.
        normalisation: Of the images that it expects, as plain data; None if that is not known.
        class_names: Name of each class, in the order of the outputs; none if that is not known.
        supernet: Digest of the supernet that the weights were taken from, if they were.
    """
    metadata = {ARCHITECTURE_KEY: architecture}
    if normalisation is not None:
        metadata[NORMALISATION_KEY] = json.dumps(normalisation)
    if class_names:
        metadata[CLASS_NAMES_KEY] = json.dumps(list(class_names))
    if supernet is not None:
        metadata[SUPERNET_KEY] = supernet
    return metadata


def read_metadata(file: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file. Raises: OSError or SafetensorError if the file is not whole."""
    with safe_open(file, "np") as weights:
        return weights.metadata() or {}


def class_names_of(file: Path) -> list[str]:
    """Read the names of the classes, in the order of the outputs; none if a file does not have them."""
    text = read_metadata(file).get(CLASS_NAMES_KEY) if file.suffix == ".safetensors" else None
    return [] if text is None else [str(name) for name in json.loads(text)]
