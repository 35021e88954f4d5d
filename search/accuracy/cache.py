"""Accuracies kept in a file as they come, so that a command that was cut off trains nothing twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.architecture import Architecture
from search.accuracy.base import Accuracy, AccuracyEvaluator

log = logging.getLogger(__name__)


class KeptAccuracies:
    """An evaluator and what it found, by network, seed and everything else that accuracies depend on.

    settings: that everything. file: a line for each result; several evaluators may share it.
    """

    def __init__(self, evaluator: AccuracyEvaluator, settings: Mapping[str, Any], file: Path) -> None:
        self.evaluator = evaluator
        self.file = file
        text = json.dumps({**settings, **evaluator.fingerprint()}, sort_keys=True)
        self.settings = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.found = read(file)

    def known(self, architecture: Architecture, seed: int) -> Accuracy | None:
        return self.found.get(self._name(architecture, seed))

    def accuracy(self, architecture: Architecture, seed: int) -> Accuracy:
        """Raises: NonFiniteLoss if training diverges."""
        name = self._name(architecture, seed)
        if name not in self.found:
            self.found[name] = self.evaluator.evaluate(architecture, seed, lambda share: None)
            with self.file.open("a", encoding="utf-8") as file:
                line = json.dumps({"name": name, "accuracy": self.found[name].to_dict()})
                file.write(f"\n{line}\n")  # not at the end of a line that was cut short
        return self.found[name]

    def _name(self, architecture: Architecture, seed: int) -> str:
        return f"{architecture.key} {seed} {self.settings}"


def read(file: Path) -> dict[str, Accuracy]:
    """Results of earlier runs; a line that a kill cut short is left out."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if not line:
            continue
        try:
            entry = json.loads(line)
            found[entry["name"]] = Accuracy(**entry["accuracy"])
        except (ValueError, KeyError, TypeError):
            log.warning("a line of %s cannot be read; its network is trained again", file)
    return found
