"""Trainings that stop early and continue later (accuracy.halving): after how many epochs they stop, and their files.

Source of the scheme: Li et al., "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

from search import one_line
from search.accuracy.base import Accuracy
from search.files import write_text

log = logging.getLogger(__name__)
MAX_TRAININGS = 32  # whose files are kept; that of a network that was stopped for good is the oldest sooner or later


def rungs_of(num_epochs: int, factor: int) -> tuple[int, ...]:
    """Return the numbers of epochs after which trainings are compared.

    Args:
        num_epochs: Of a whole training.
        factor: Ratio between the epochs of a rung and those of the one before.

    Returns:
        Numbers of epochs, rising: the factor-th part of the whole, of that, and so on.

    Raises:
        ValueError: If a training is too short to be compared before its end.
    """
    rungs, epochs = list[int](), num_epochs // factor
    while epochs >= 1:
        rungs.append(epochs)
        epochs //= factor
    if not rungs:
        raise ValueError(
            f"accuracy.halving={factor} needs trainings of at least {factor} epochs, and these have {num_epochs}; raise "
            "train.max_epochs (and train.max_steps), or lower accuracy.halving"
        )
    return tuple(reversed(rungs))


class PausedTraining:
    """The files of a training that stopped: its state, and its accuracies so far.

    Args:
        folder: Where the files of all such trainings are; it is created.
        name: Identifies the training.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / f"{name}.ckpt"
        self._results_file = folder / f"{name}.json"
        self._results = self._read()

    def result(self, num_epochs: int) -> Accuracy | None:
        """Return the accuracy after some epochs, None if it is not known."""
        return self._results.get(num_epochs)

    @property
    def seconds(self) -> float:
        """Duration of the training so far."""
        return max((accuracy.seconds for accuracy in self._results.values()), default=0.0)

    def save(self, num_epochs: int, accuracy: Accuracy) -> None:
        """Store an accuracy, and remove the files of the oldest trainings."""
        self._results[num_epochs] = accuracy
        body = {str(epochs): result.to_dict() for epochs, result in self._results.items()}
        write_text(self._results_file, json.dumps(body))
        checkpoints = self.checkpoint.parent.glob("*.ckpt")
        oldest_first = sorted(checkpoints, key=lambda file: (_modified(file), file.name))
        for file in oldest_first[:-MAX_TRAININGS]:
            _remove(file)

    def remove(self) -> None:
        """Remove the files of a training that is complete."""
        _remove(self.checkpoint)

    def _read(self) -> dict[int, Accuracy]:
        try:
            body = json.loads(self._results_file.read_text(encoding="utf-8"))
            return {int(epochs): Accuracy(**result) for epochs, result in body.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read (%s); training from the start", self._results_file, one_line(error))
            self.remove()
            return {}


def _modified(file: Path) -> float:
    """When a file was written; long ago if another process has removed it."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint, then its accuracies: without them, a checkpoint would count for any number of epochs."""
    for file in (checkpoint, checkpoint.with_suffix(".json")):
        with contextlib.suppress(OSError):  # another process may read or remove it
            file.unlink(missing_ok=True)
