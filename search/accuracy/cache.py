"""Accuracies in a file, one line per result, so that a command that was killed does not train any network twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.architecture import Architecture
from search.accuracy.base import Accuracy, AccuracyEvaluator, SharedWeights, digest_of

log = logging.getLogger(__name__)


class AccuracyCache:
    """An evaluator with the results it has given so far.

    Args:
        evaluator: Evaluates what is not in the cache.
        settings: Plain data that accuracies depend on, beside architecture, seed, shared weights and the evaluator's
            fingerprint.
        file: Holds the results; several caches may share it.
    """

    def __init__(self, evaluator: AccuracyEvaluator, settings: Mapping[str, Any], file: Path) -> None:
        self.evaluator = evaluator
        self.file = file
        text = json.dumps({**settings, **evaluator.fingerprint()}, sort_keys=True)
        self.settings_digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.accuracies = read_accuracies(file)
        self.weights: dict[int, str] = {}  # digests of shared weights, by seed

    def get(self, architecture: Architecture, seed: int) -> Accuracy | None:
        """Return a cached accuracy, or None if the architecture was not evaluated with this seed and these settings."""
        return self.accuracies.get(self._name(architecture, seed))

    def evaluate(self, architecture: Architecture, seed: int) -> Accuracy:
        """Return the cached accuracy, or evaluate the architecture and add the result to the file.

        Raises:
            NonFiniteLoss: If training diverges.
        """
        name = self._name(architecture, seed)
        if name not in self.accuracies:
            self.accuracies[name] = self.evaluator.evaluate(architecture, seed, lambda share: None)
            self._append(name)
        return self.accuracies[name]

    def _append(self, name: str) -> None:
        line = json.dumps({"name": name, "accuracy": self.accuracies[name].to_dict()})
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # a line break first: the last line may have been cut short

    def _name(self, architecture: Architecture, seed: int) -> str:
        if isinstance(self.evaluator, SharedWeights) and seed not in self.weights:
            self.evaluator.prepare(seed, lambda share: None)
            self.weights[seed] = digest_of(self.evaluator.pack(seed) or b"")
        return f"{architecture.key} {seed} {self.settings_digest} {self.weights.get(seed, '')}".rstrip()


def read_accuracies(file: Path) -> dict[str, Accuracy]:
    """Read the results of earlier runs by name; a line that a kill cut short is left out."""
    accuracies = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if not line:
            continue
        try:
            entry = json.loads(line)
            accuracies[entry["name"]] = Accuracy(**entry["accuracy"])
        except (ValueError, KeyError, TypeError):
            log.warning("a line of %s cannot be read; its network is trained again", file)
    return accuracies
