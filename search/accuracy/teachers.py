"""Trained networks that others learn from, from the keys `teacher.*`: models of timm, and networks that search.train wrote.

Only tensors and text are read from a file: `.pth` files load with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from models.architecture import check_int, check_number
from models.litv2 import LITv2
from search import UserError, one_line
from search.accuracy.initial_weights import InitialWeights
from search.files import sha256
from search.training.metadata import class_names_of
from search.training.normalisation import Normalisation
from search.training.teacher import Teacher

STUDENTS = ("all", "largest")
RGB = 3


class Task(Protocol):
    """The images and classes of `ImageData` and `StreamedData`."""

    in_chans: int
    img_size: int
    num_classes: int
    class_names: list[str]
    normalisation: Normalisation


@dataclass(frozen=True)
class TeacherSettings:
    """Which trained network others learn from, if any.

    Args:
        model: Name of a model of timm; None if the file says what its weights are of.
        weights: File of weights, .pth or .safetensors.
        pretrained: Whether timm downloads weights.
        img_size: Side that images are resized to, in pixels. None leaves them as they are, unless the model takes images of
            its own size alone, or timm's weights are for that size.
        distillation: Weight of its outputs in the targets, in [0, 1]; the labels have the rest.
        students: Which networks of a step of a supernet learn from it, one of `STUDENTS`.

    Raises:
        UserError: If there is no such file or model.
        ValueError: If settings do not fit together; the message names them.
    """

    model: str | None = None
    weights: str | None = None
    pretrained: bool = False
    img_size: int | None = None
    distillation: float = 0.5
    students: str = "all"

    def __post_init__(self) -> None:
        check_number("teacher.distillation", self.distillation, 0, 1)
        if self.img_size is not None:
            check_int("teacher.img_size", self.img_size, 1)
        if self.students not in STUDENTS:
            raise ValueError(f"teacher.students={self.students} must be one of {', '.join(STUDENTS)}")
        if self.model is None and self.pretrained:
            raise ValueError("teacher.pretrained=true needs a model of timm: set teacher.model=NAME")
        if self.model is not None and self.pretrained == (self.weights is not None):
            raise ValueError(f"teacher.model={self.model} needs either teacher.weights=FILE or teacher.pretrained=true")
        if self.model is not None and not timm.is_model(self.model):
            raise UserError(f"teacher.model={self.model} is not a model of timm {timm.__version__}; see timm.list_models()")
        if self.weights is not None and not Path(self.weights).is_file():
            raise UserError(
                f"teacher.weights={self.weights}: there is no such file; name a .pth or .safetensors file of weights"
            )

    @property
    def is_set(self) -> bool:
        """Whether there is a teacher."""
        return self.model is not None or self.weights is not None

    def to_dict(self) -> dict[str, Any] | None:
        """Return what results depend on as plain data, the file by its digest; None without a teacher."""
        if not self.is_set:
            return None
        weights = "pretrained" if self.weights is None else f"sha256 {sha256(Path(self.weights))[:16]}"
        return {key: value for key, value in asdict(self).items() if key != "pretrained"} | {"weights": weights}


@dataclass(frozen=True)
class _Trained:
    """A network with weights: its name for people, what it expects, and what its outputs are."""

    network: nn.Module
    name: str
    normalisation: Normalisation | None
    num_classes: int
    class_names: list[str]
    img_size: int | None


def read_teacher(settings: TeacherSettings, task: Task) -> Teacher | None:
    """Read a teacher for the classes of some images; None if the settings name none.

    Raises:
        UserError: If its weights cannot be read, or are for other classes.
    """
    if not settings.is_set:
        return None
    trained = _exported(settings, task) if settings.model is None else _of_timm(settings, settings.model, task)
    _check_classes(trained, task)
    network = trained.network.eval().requires_grad_(False)
    return Teacher(
        network,
        trained.name,
        _digest(network) if settings.weights is None else sha256(Path(settings.weights))[:16],
        trained.normalisation or task.normalisation,
        task.normalisation,
        trained.img_size,
        settings.distillation,
        settings.students == "all",
    )


def _check_classes(trained: _Trained, task: Task) -> None:
    """Raises: UserError if a network tells other classes apart than those of the images."""
    if trained.num_classes != task.num_classes:
        raise UserError(
            f"the teacher {trained.name} has {trained.num_classes} classes, and the images have {task.num_classes}; name "
            "a teacher that was trained on these classes"
        )
    pairs = zip(trained.class_names, task.class_names, strict=False)
    if differing := [f"{number} is {have}, not {want}" for number, (have, want) in enumerate(pairs) if have != want]:
        raise UserError(
            f"the teacher {trained.name} has other classes than the images, although also {task.num_classes}: class "
            f"{differing[0]} ({len(differing)} differ); name a teacher that was trained on these classes"
        )


def _exported(settings: TeacherSettings, task: Task) -> _Trained:
    """A network that search.train or an export wrote, or an official checkpoint."""
    file = Path(str(settings.weights))
    try:
        weights = InitialWeights.read(file)
    except UserError as error:
        raise UserError(f"teacher.weights: {error}; if they are of a model of timm, set teacher.model=NAME") from error
    if not isinstance(weights.weights, LITv2):
        raise UserError(f"teacher.weights={file} is a supernet; name the file of one network, such as an exported one")
    names, normalisation = class_names_of(file), weights.normalisation
    if normalisation is None:  # as init takes such weights: for images as they are given
        normalisation = task.normalisation.for_channels(weights.weights.in_chans)
    name = f"{file} ({weights.name})"
    return _Trained(weights.weights, name, normalisation, weights.weights.num_classes, names, settings.img_size)


def _of_timm(settings: TeacherSettings, model: str, task: Task) -> _Trained:
    """A model of timm, with weights of a file or of the hub."""
    cfg = get_pretrained_cfg(model) or PretrainedCfg()
    side = settings.img_size
    if side is None and (cfg.fixed_input_size or settings.pretrained):
        side = cfg.input_size[-1]
    arguments: dict[str, Any] = {"img_size": side} if cfg.fixed_input_size else {}
    name = model if settings.weights is None else f"{model} of {settings.weights}"

    def trained(network: nn.Module, num_classes: int, in_chans: int = RGB) -> _Trained:
        normalisation = Normalisation(tuple(cfg.mean), tuple(cfg.std)).for_channels(in_chans)
        return _Trained(network, name, normalisation, num_classes, [], side)

    if settings.weights is None:
        _check_classes(trained(nn.Identity(), cfg.num_classes), task)  # before a download
        try:
            return trained(timm.create_model(model, pretrained=True, **arguments), cfg.num_classes)
        except Exception as error:  # from the hub, or the model
            raise UserError(
                f"teacher.model={model}: its weights cannot be downloaded ({one_line(error)}); name a file that has them "
                "with teacher.weights"
            ) from error
    state = _state(settings.weights)
    num_classes, in_chans = _size(state, cfg.classifier, 0, task.num_classes), _size(state, cfg.first_conv, 1, RGB)
    _check_classes(trained(nn.Identity(), num_classes), task)
    try:
        network = timm.create_model(model, num_classes=num_classes, in_chans=in_chans, **arguments)
        network.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"teacher.weights={settings.weights} does not fit {model}: {one_line(error)[:300]}") from error
    return trained(network, num_classes, in_chans)


def _state(file: str) -> dict[str, Tensor]:
    """Tensors of a file by name. Raises: UserError if it cannot be read without running code."""
    try:
        state: dict[str, Tensor] = load_state_dict(file, weights_only=True)
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise TypeError("it holds something else than tensors")
    except Exception as error:  # from pickle, zip, safetensors or torch, depending on what is in the file
        raise UserError(
            f"teacher.weights={file} does not hold weights that can be read without running code "
            f"({one_line(error)[:120]}); name a .pth file of tensors alone, or a .safetensors file"
        ) from error
    return state


def _size(state: dict[str, Tensor], layers: Any, axis: int, default: int) -> int:
    """Size of the weight of a layer along an axis; of the first one, if timm names several."""
    layer = layers[0] if isinstance(layers, tuple | list) else layers
    weight = state.get(f"{layer}.weight")
    return default if weight is None else weight.shape[axis]


def _digest(network: nn.Module) -> str:
    """Digest of weights that are not in a file of the user's."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
