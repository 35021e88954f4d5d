"""A study as the sections of a report read it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.accuracy.checked import CHECK_FILE, Checked, read_checked
from search.study.front import evaluated, front, front_probability
from search.study.targets import Target, img_size_of, targets_of
from search.study.trial import TrialRecord, finished_trials

log = logging.getLogger(__name__)
PEERS_FILE = "peers.json"  # models of timm that search.report has measured


@dataclass(frozen=True)
class StudyData:
    """A study with what is derived from it, computed once.

    Attributes:
        folder: the study's, outputs/NAME.
    """

    study: optuna.Study
    folder: Path

    @cached_property
    def attrs(self) -> dict[str, Any]:
        return self.study.user_attrs

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The configuration that the study's results depend on."""
        settings: Mapping[str, Any] = self.attrs["settings"]
        return settings

    @cached_property
    def targets(self) -> dict[str, Target]:
        return targets_of(self.study)

    @cached_property
    def img_size(self) -> int:
        """Side of the deployed network's input, in pixels."""
        return img_size_of(self.targets)

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """All finished trials."""
        return finished_trials(self.study)

    @cached_property
    def raw_trials(self) -> list[FrozenTrial]:
        """All trials, whatever became of them, as Optuna stores them."""
        return self.study.get_trials(deepcopy=False)

    @cached_property
    def evaluated(self) -> list[TrialRecord]:
        """Different networks that have an accuracy and keep the limits."""
        return evaluated(self.trials)

    @cached_property
    def members(self) -> list[TrialRecord]:
        """The front."""
        return front(self.trials)

    @cached_property
    def checked(self) -> Checked | None:
        """What `search.check` has measured of the study's scores, if it has."""
        return read_checked(self.folder / CHECK_FILE, self.settings)

    @cached_property
    def front_probability(self) -> dict[str, float]:
        """The probability of each network to be on the front, by its key."""
        return front_probability(self.trials, self.checked)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a file that another command wrote to the study's folder; None if there is none or it cannot be read."""
        file = self.folder / name
        try:
            body: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        except (OSError, ValueError):
            log.warning("%s cannot be read and is left out", file)
            return None
        return body
