"""Weights that exist: read from a file, adapted to images and classes, and given to what starts from them.

A file is an official checkpoint of LITv2, a network that `search.train` or an export wrote, or the supernet of an earlier
study. Only tensors and text are read from it: `.pth` files load with `weights_only=True`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from models.architecture import Architecture
from models.elastic import Bounds, ElasticLITv2
from models.importance import Measure, importance
from models.inheritance import continued, supernet_of
from models.litv2 import LITv2, build, checkpoint_filter_fn
from search import UserError, one_line
from search.accuracy.trained_supernet import TrainedSupernet
from search.files import sha256
from search.space.dimensions import describe
from search.training.data import ImageData
from search.training.metadata import ARCHITECTURE_KEY, NORMALISATION_KEY, SUPERNET_KEY, read_metadata
from search.training.normalisation import Normalisation
from search.training.streamed import StreamedData

PUBLISHED: dict[str, dict[str, Any]] = {
    "LITv2-S": {},
    "LITv2-M": {"depths": (2, 2, 18, 2)},
    "LITv2-B": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
"""The networks of the paper, which their shapes tell apart: official checkpoints do not say how many heads they have."""
HEAD, FIRST_CONV, COUNTER = "head.weight", "patch_embed.proj.weight", "num_batches_tracked"
PREFIXES = ("module.", "model.")  # of parameters, by DistributedDataParallel and by LightningModules
RGB = 3
MEASURE: Measure = "activation"  # level with magnitude, and never far wrong: docs/accuracy.md
NUM_MEASURING_IMAGES, MEASURING_BATCH_SIZE = 64, 8  # of LITv2-S at 224 pixels they take about 1 GiB at a time
State = dict[str, Tensor]


class Task(Protocol):
    """What weights are adapted to: the images and classes of `ImageData` and `StreamedData`."""

    in_chans: int
    num_classes: int


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from.

    Attributes:
        file: Where they were read from.
        digest: Of the file; results depend on it.
        weights: A network, or a supernet.
        normalisation: Of the images that they expect; None if that is not known.
        name: What they are, for people.
    """

    file: Path
    digest: str
    weights: LITv2 | ElasticLITv2
    normalisation: Normalisation | None
    name: str

    @classmethod
    def read(cls, file: Path, architecture: Architecture | None = None) -> Self:
        """Read a file of weights.

        Args:
            file: Its path.
            architecture: Of the weights, where the file does not say it.

        Raises:
            UserError: If the file cannot be read, or does not hold weights of a LITv2.
        """
        if file.suffix == ".yaml":
            raise UserError(f"{file} is an architecture; name its weights, such as {file.with_suffix('.safetensors')}")
        if not file.is_file():
            raise UserError(f"there is no {file} to start from; name a .pth or .safetensors file of weights")
        metadata, digest = _metadata(file), sha256(file)[:16]
        if SUPERNET_KEY in metadata and ARCHITECTURE_KEY not in metadata:
            supernet = TrainedSupernet.open(file)
            return cls(file, digest, supernet.elastic, supernet.normalisation, "a supernet")
        state = _state(file)
        name, known = _known_architecture(file, metadata, state)
        if (known := known or architecture) is None:
            raise UserError(
                f"{file} does not say of which network its weights are, and they are not those of {', '.join(PUBLISHED)}; "
                "name a file that search.train wrote, or an official checkpoint"
            )
        network = _network(file, state, known)
        normalisation = Normalisation.of_weights(file) if NORMALISATION_KEY in metadata else None
        if name in PUBLISHED and normalisation is None:
            normalisation = Normalisation.imagenet(network.in_chans)
        return cls(file, digest, network, normalisation, f"{name}, {describe(known)}")

    @property
    def network_kind(self) -> dict[str, int | str]:
        """What networks have in common that share weights."""
        like = self.weights.bounds if isinstance(self.weights, ElasticLITv2) else self.weights.architecture
        return {"patch_size": like.patch_size, "downsample": like.downsample}

    @property
    def _module(self) -> LITv2:
        """The module that has the weights."""
        return self.weights.weights if isinstance(self.weights, ElasticLITv2) else self.weights

    @property
    def _bounds(self) -> Bounds:
        return self.weights.bounds if isinstance(self.weights, ElasticLITv2) else Bounds.of([self.weights.architecture])

    def normalisation_for(self, in_chans: int) -> Normalisation | None:
        """Return the normalisation of images that the adapted weights expect; None if it is not known."""
        return None if self.normalisation is None else self.normalisation.for_channels(in_chans)

    def check(self, bounds: Bounds) -> None:
        """Check that networks within some bounds can start from the weights.

        Raises:
            UserError: If they have other patches, or another layer between stages.
        """
        wanted = {key: getattr(bounds, key) for key in self.network_kind}
        if wanted != self.network_kind:
            have, want = (" ".join(f"{key}={value}" for key, value in kind.items()) for kind in (self.network_kind, wanted))
            raise UserError(
                f"the weights in {self.file} are for {have} and do not fit networks of {want}; set "
                + " ".join(f"space.{key}={value}" for key, value in self.network_kind.items())
            )

    def summary(self, task: Task, bounds: Bounds) -> str:
        """Describe in one line what is loaded, left out, adapted and made new.

        Args:
            task: Images and classes that the weights are adapted to.
            bounds: Of the networks that start from them.
        """
        module, before = self._module, self._bounds
        notes = [f"{self.file} (sha256 {self.digest}): {len(module.state_dict())} tensors of {self.name}"]
        if module.num_classes != task.num_classes:
            old = f"its head for {module.num_classes} classes is left out, and one" if module.num_classes else "a head"
            notes.append(f"{old} for {task.num_classes} classes is new")
        if module.in_chans != task.in_chans:
            notes.append(f"the first convolution is adapted from {module.in_chans} to {task.in_chans} channels")
        new = []
        for number, (stage, wanted) in enumerate(zip(before.stages, bounds.stages, strict=True), start=1):
            if wanted.head_dim and not stage.head_dim:
                new.append(f"attention in stage {number}")
            if wanted.depth > stage.depth:
                new.append(f"{wanted.depth - stage.depth} more block(s) in stage {number}")
        if bounds.embed_dim > before.embed_dim:
            new.append(f"the channels beyond width {before.embed_dim}")
        if new:
            notes.append(f"new: {', '.join(new)}")
        return "starting from " + "; ".join(notes)

    def supernet(
        self, architectures: Sequence[Architecture], task: Task, batches: Iterable[Tensor], drop_path_rate: float
    ) -> ElasticLITv2:
        """Make a supernet that contains the weights, adapted to images and classes.

        Args:
            architectures: Networks that share the weights.
            task: Their images and classes.
            batches: Some of the images, normalised, by which it is measured what is important.
            drop_path_rate: Stochastic depth of each network in training.

        Raises:
            UserError: If the networks cannot start from the weights.
        """
        self.check(Bounds.of(architectures))
        adapted = copy.deepcopy(self)
        adapt_first_conv(adapted._module, task.in_chans)
        if isinstance(adapted.weights, ElasticLITv2):
            adapt_head(adapted._module, task.num_classes)
            return continued(adapted.weights, architectures, drop_path_rate)
        scores = importance(adapted.weights, MEASURE, batches)
        adapt_head(adapted._module, task.num_classes)
        return supernet_of(adapted.weights, architectures, scores, drop_path_rate)

    def network(self, architecture: Architecture, task: Task, batches: Iterable[Tensor], drop_path_rate: float) -> LITv2:
        """Make a network with its share of the weights, or with all of them if they are its own.

        The arguments, and what is raised, are those of `supernet`.
        """
        if isinstance(self.weights, ElasticLITv2) or self.weights.architecture.weights_key != architecture.weights_key:
            return self.supernet([architecture], task, batches, drop_path_rate).extract(architecture)
        adapted = copy.deepcopy(self.weights)
        adapt_first_conv(adapted, task.in_chans)
        adapt_head(adapted, task.num_classes)
        network = build(architecture, in_chans=task.in_chans, num_classes=task.num_classes, drop_path_rate=drop_path_rate)
        network.load_state_dict(adapted.state_dict())
        return network


def measuring_batches(data: ImageData | StreamedData) -> Iterator[Tensor]:
    """Yield training images, normalised, by which it is measured what is important in weights."""
    count = min(NUM_MEASURING_IMAGES, data.num_train)
    for start in range(0, count, MEASURING_BATCH_SIZE):
        yield data.training_images(start, min(count, start + MEASURING_BATCH_SIZE))


def adapt_head(network: LITv2, num_classes: int) -> None:
    """Replace the head by a new one where the number of classes differs."""
    if network.num_classes != num_classes:
        network.reset_classifier(num_classes)


def adapt_first_conv(network: LITv2, in_chans: int) -> None:
    """Adapt the first convolution to the channels of the images, as timm does; grey weights are spread over colours."""
    if network.in_chans == in_chans:
        return
    weight = network.patch_embed.proj.weight.detach()
    if network.in_chans != RGB:
        weight = weight.mean(1, keepdim=True).expand(-1, RGB, -1, -1) * (network.in_chans / RGB)
    network.patch_embed.proj.weight = nn.Parameter(adapt_input_conv(in_chans, weight).contiguous())
    network.patch_embed.proj.in_channels = network.in_chans = in_chans


def _metadata(file: Path) -> Mapping[str, str]:
    """Metadata of a safetensors file; none of other files."""
    if file.suffix != ".safetensors":
        return {}
    try:
        return read_metadata(file)
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error


def _state(file: Path) -> State:
    """Tensors of a file by the names of LITv2's parameters, in float32. Raises: UserError if it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # official checkpoints may hold their arguments
                state = checkpoint_filter_fn(torch.load(file, map_location="cpu", weights_only=True), nn.Identity())
        state = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except Exception as error:  # from pickle, zip or torch, depending on what is in the file
        raise _unreadable(file, error) from error
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if FIRST_CONV not in state or state[FIRST_CONV].ndim != 4:
        raise UserError(f"{file} does not hold weights of a LITv2: it has no convolution {FIRST_CONV}")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _unreadable(file: Path, error: BaseException) -> UserError:
    reason = one_line(error)
    return UserError(
        f"{file} does not hold weights that can be read without running code ({reason[:120]}); name a .pth file of tensors "
        "alone, or a .safetensors file"
    )


def _known_architecture(file: Path, metadata: Mapping[str, str], state: State) -> tuple[str, Architecture | None]:
    """The architecture that a file says, or that of a published network of the same shapes, with its name."""
    if ARCHITECTURE_KEY in metadata:
        try:
            return "a network", Architecture.from_key(metadata[ARCHITECTURE_KEY])
        except ValueError as error:
            raise UserError(f"{file} holds weights of a network that cannot be built: {error}") from error
    for name, arguments in PUBLISHED.items():
        with torch.device("meta"):
            network = LITv2(in_chans=state[FIRST_CONV].shape[1], num_classes=0, **arguments)
        if _shapes(network.state_dict()) == _shapes(
            {key: value for key, value in state.items() if not key.startswith("head.")}
        ):
            return name, network.architecture
    return "a network", None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items() if not name.endswith(COUNTER)}


def _network(file: Path, state: State, architecture: Architecture) -> LITv2:
    """Build the network that has some weights. Raises: UserError if they are of another one, or not finite."""
    with torch.device("meta"):
        num_classes = state[HEAD].shape[0] if HEAD in state else 0
        network = build(architecture, in_chans=state[FIRST_CONV].shape[1], num_classes=num_classes)
    expected, shapes = _shapes(network.state_dict()), _shapes(state)
    if differing := [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]:
        name = differing[0]
        want, have = (str(tuple(s[name])) if name in s else "missing" for s in (expected, shapes))
        raise UserError(
            f"{file} does not hold weights of this network, {describe(architecture)}: {name} is {have} in the file and "
            f"{want} in the network ({len(differing)} differ)"
        )
    counters = {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if name.endswith(COUNTER)}
    network.load_state_dict(counters | state, assign=True)
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"{file} holds weights that are not finite ({broken[0]}); name the file of a training that converged"
        )
    return network.eval().requires_grad_()
