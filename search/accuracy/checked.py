"""What `search.check` has measured of a search's scores: how far they are from accuracies of trainings."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
INT8 = "int8"
CHECK_FILE = "check.json"
SECTIONS = ("space", "data", "train", "accuracy", "proxy")
"""Sections of the configuration that scores depend on."""
MIN_SLOPE = 0.1  # scores that hardly follow accuracies are uncertain, not infinitely so


@dataclass(frozen=True)
class Checked:
    """How far scores are from accuracies of long trainings.

    Args:
        residual: Standard deviation over networks of the difference between a trained accuracy and its best prediction from
            the score, beyond the errors from images and seeds.
        seed_noise: Standard deviation over seeds of one network's trained accuracy.
        num_networks: Number of networks that were trained.
        num_seeds: Number of trainings of each of them.
        slope: Change of the trained accuracy per change of the score, of this prediction.
    """

    residual: float
    seed_noise: float
    num_networks: int
    num_seeds: int = 2
    slope: float = 1.0

    @property
    def score_error(self) -> float:
        """The residual on the scale of scores."""
        return self.residual / max(self.slope, MIN_SLOPE)


def read_checked(file: Path, settings: Mapping[str, Any]) -> Checked | None:
    """Read the results of a check.

    Args:
        file: The check's results.
        settings: Of the study that wants to use them.

    Returns:
        None if there is no check, or it was made with another space, other data, another evaluator, other training, or
        accuracies in another dtype.
    """
    if not file.exists():
        return None
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        checked = body["settings"]
        if (
            not all(_contains(checked[section], settings[section]) for section in SECTIONS if section in settings)
            or ("space" in settings and checked["space"].get("img_size") != settings["space"].get("img_size"))
            or is_int8(checked) != is_int8(settings)
        ):
            log.info("%s was made with other settings and is not used", file)
            return None
        quality = body["quality"]
        return Checked(
            residual=float(quality["residual"]),
            seed_noise=float(quality["seed_noise"]),
            num_networks=int(quality["num_networks"]),
            num_seeds=int(quality.get("num_seeds", 2)),
            slope=float(quality.get("slope", 1.0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s cannot be read or is of an earlier version; run search.check again to use it", file)
        return None


def is_int8(settings: Mapping[str, Any]) -> bool:
    """Whether accuracies are those of networks in 8-bit integers, as latencies are."""
    return bool(settings.get("latency", {}).get("dtype") == INT8)


def _contains(checked: Any, wanted: Any) -> bool:
    """Whether the check has all settings of a study; it may have more, such as paths, which results do not depend on."""
    if isinstance(wanted, Mapping) and isinstance(checked, Mapping):
        return all(key in checked and _contains(checked[key], value) for key, value in wanted.items())
    return bool(checked == wanted)
