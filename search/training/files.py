"""Files of a full training, beside that of the architecture: initial weights, checkpoint, trained weights, result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from models.deploy.int8 import FLOAT32
from models.litv2 import LITv2
from search.files import write_bytes, write_text
from search.training.data import ImageData
from search.training.metadata import metadata_of
from search.training.normalisation import Normalisation
from search.training.recipe import Recipe
from search.training.streamed import StreamedData
from search.training.task import TrainSettings
from search.training.teacher import Teacher


@dataclass(frozen=True)
class TrainingResult:
    """Accuracies of a trained network, and how it was trained.

    Args:
        test_accuracy: Top-1 accuracy on the test set, in [0, 1].
        validation_accuracy: The same on the validation split; None without one.
        max_epochs: Number of epochs.
        train_size: Number of training images.
        seed: Seed of initialisation and training.
        data: Name of the dataset.
        init: Weights that the training started from.
        recipe: Augmentation, regularisation and hardware.
        normalisation: Mean and standard deviation of each channel.
        seconds: Duration of the training.
        weights_sha256: Digest of the file of the weights that these accuracies are of.
        search_accuracy: Accuracy that the search gave the network on the same validation split; None if there is none.
        class_names: Name of each class, in the order of the outputs.
        teacher: Network whose outputs the training learned from; None if there is none.
        metric: What the search counted as accuracy.
        test_metric: Value and standard error of the metric on the test set; None if it is top-1 accuracy.
        validation_metric: The same on the validation split; None without one.
    """

    test_accuracy: float
    validation_accuracy: float | None
    max_epochs: int
    train_size: int
    seed: int
    data: str
    init: str
    recipe: Recipe
    normalisation: Normalisation
    seconds: float
    weights_sha256: str
    search_accuracy: float | None = None
    class_names: list[str] = field(default_factory=list)
    teacher: str | None = None
    metric: str = "top1"
    test_metric: Mapping[str, float] | None = None
    validation_metric: Mapping[str, float] | None = None

    @property
    def gap(self) -> float | None:
        """Validation accuracy, by the search's metric, minus that of the search."""
        value = self.validation_accuracy if self.validation_metric is None else self.validation_metric["value"]
        return None if value is None or self.search_accuracy is None else value - self.search_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; what is known of the search only if there is something."""
        result = asdict(self) | {"seconds": round(self.seconds, 1)}
        del result["search_accuracy"]
        if self.teacher is None:
            del result["teacher"]
        if self.test_metric is None:
            result = {key: value for key, value in result.items() if key not in ("test_metric", "validation_metric")}
        return result if self.gap is None else result | {"search_accuracy": self.search_accuracy, "gap": self.gap}

    def save(self, file: Path) -> None:
        """Write the result as JSON."""
        write_text(file, json.dumps(self.to_dict(), indent=2) + "\n")


def weights_file(architecture: Path, dtype: str = FLOAT32) -> Path:
    """The file of a network's trained weights, beside that of its architecture; those trained for int8 have their own."""
    return architecture.with_suffix(".safetensors" if dtype == FLOAT32 else f".{dtype}.safetensors")


def result_file(architecture: Path, dtype: str = FLOAT32) -> Path:
    """The file of what search.train reports about these weights."""
    return architecture.with_suffix(".result.json" if dtype == FLOAT32 else f".{dtype}.result.json")


def save_weights(model: LITv2, normalisation: Normalisation, file: Path, class_names: Sequence[str] = ()) -> None:
    """Write the weights of a model, with its architecture, and the images and classes that they are for."""
    write_weights(model, metadata_of(model.architecture.key, asdict(normalisation), class_names), file)


def write_weights(model: nn.Module, metadata: Mapping[str, str], file: Path) -> None:
    """Write weights with what `search.training.metadata` describes. Equal ones give equal files."""
    write_bytes(file, serialised({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, metadata))


def serialised(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file whose bytes depend on its contents alone: `save` gives metadata no fixed order."""
    content = save(dict(weights), dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")  # https://github.com/huggingface/safetensors#format
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def checkpoint_file(
    architecture_file: Path,
    model: nn.Module,
    seed: int,
    settings: TrainSettings,
    recipe: Recipe,
    data: ImageData | StreamedData,
    *,
    img_size: int | None = None,
    teacher: Teacher | None = None,
) -> Path:
    """Name the file of a training's state by everything the training depends on, so that no other one resumes from it.

    Args:
        architecture_file: File of the architecture; the checkpoint lies beside it.
        model: With the weights that the training starts from.
        seed: Seed of the training.
        settings: Optimiser and schedule.
        recipe: Augmentation, regularisation and hardware.
        data: Images to train on.
        img_size: Side of the images that the model gets; None for that of the data.
        teacher: Network that the training learns from.
    """
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    depends_on = {"seed": seed, "train": settings.to_dict(), "recipe": asdict(recipe), "data": data.fingerprint()}
    if img_size is not None:
        depends_on["img_size"] = img_size
    if teacher is not None:
        depends_on["teacher"] = teacher.fingerprint
    digest.update(json.dumps(depends_on, sort_keys=True).encode())
    return architecture_file.with_suffix(f".{digest.hexdigest()[:12]}.ckpt")
