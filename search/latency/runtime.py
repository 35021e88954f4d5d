"""Runtimes: how a network is converted, what that needs, and how the result is checked against PyTorch.

Each runtime is one module of this package with a `RUNTIME` and a constructor of its target.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from search.latency.protocol import Run

NetworkT = TypeVar("NetworkT")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARITY = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2, "int8": 0.2}
"""Largest allowed difference of a converted network's outputs from eager float32, relative to the largest output.

LITv2 in int8 is compared with the same rounding in PyTorch. Most networks agree within 1e-4, but a number that lies between
two steps may be rounded to either, and outputs of deep networks then differ by hundredths."""
PYTORCH = ("torch", "torchvision", "timm")


class ConversionError(RuntimeError):
    """A runtime cannot take a model, or computes other outputs than PyTorch."""


@dataclass(frozen=True)
class Converted:
    """A network converted for a runtime of this machine.

    Attributes:
        load: Returns a copy that is ready to run.
        parity: Largest difference of its outputs from eager PyTorch's, relative to the largest output; None if nothing was
            converted.
        file_bytes: Size of the file that it is loaded from; None if there is no such file.
    """

    load: Callable[[], Run]
    parity: float | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Runtime(Generic[NetworkT]):
    """A way to run networks; NetworkT is what a host loads, `Converted` on this machine.

    Attributes:
        name: The target's name in `latency=NAME`.
        backend: How networks run, in words; part of the fingerprint.
        convert: Converts a model in evaluation mode. Its arguments are the model, an input of shape (B, C, H, W) in float32
            that the network will run on, the dtype and the number of threads. Raises ConversionError if the runtime cannot
            take the model or computes something else.
        dtypes: The values that `latency.dtype` may have.
        packages: Required packages, whose versions are part of the fingerprint.
        extra: The project's extra that installs them; empty if every installation has them.
        loads_copies: False if a converted network exists once, so that loading it again returns the same one.
        runs_files: True if files of search.export can be timed beside networks of this runtime in this process.
        convert_file: Makes what the host loads from the content of an ONNX file, an input and the file's dtype; None if the
            host runs no such files by itself.
        autotunes: True if it runs the layers of `models.deploy` as they were written, on a CPU, so that their kernels are
            worth choosing.
    """

    name: str
    backend: str
    convert: Callable[[nn.Module, Tensor, str, int], NetworkT]
    dtypes: tuple[str, ...] = ("float32",)
    packages: tuple[str, ...] = PYTORCH
    extra: str = ""
    loads_copies: bool = True
    runs_files: bool = True
    convert_file: Callable[[bytes, Tensor, str], NetworkT] | None = None
    autotunes: bool = False


class Form(NamedTuple):
    """A runtime, and the dtype that a network has in it."""

    runtime: Runtime[Any]
    dtype: str


def require(package: str, target: str, extra: str) -> None:
    """Check that a package is installed.

    Args:
        package: Name of the package.
        target: The setting that needs it, such as "latency=openvino".
        extra: The project's extra that installs it, or an empty text.

    Raises:
        ValueError: If it is not; says what to install.
    """
    try:
        version(package)
    except PackageNotFoundError:
        install = f"'hilo-nas[{extra}]'" if extra else package
        raise ValueError(f"{target} needs the package {package}, which is not installed: pip install {install}") from None


def check_form(form: Form, dtype_setting: str, runtime_setting: str) -> None:
    """Check that a runtime can be used.

    Args:
        form: The runtime and the dtype.
        dtype_setting: What the user set the dtype by, for the message.
        runtime_setting: What the user chose the runtime by.

    Raises:
        ValueError: If the runtime does not have the dtype, or one of its packages is missing.
    """
    runtime, dtype = form
    if dtype not in runtime.dtypes:
        raise ValueError(f"{dtype_setting} does not run with {runtime.name}; take {', '.join(runtime.dtypes)}")
    for package in runtime.packages:
        require(package, runtime_setting, runtime.extra)


def check_parity(target: str, model: nn.Module, x: Tensor, output: Tensor, dtype: str) -> float:
    """Compare the output of a converted network for the first image with eager float32.

    Args:
        target: Name for the error message.
        model: The network before conversion.
        x: Inputs, (B, C, H, W).
        output: Outputs of the converted network for x, or for its first image.
        dtype: Key of `PARITY`, which sets the limit.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        ConversionError: If they differ by more than the dtype explains.
    """
    with torch.inference_mode():
        expected = model(x[:1])
    scale = float(expected.abs().max()) or 1.0  # a head that starts at zero
    difference = float((output[:1].float().cpu() - expected).abs().max()) / scale
    if not difference <= PARITY[dtype]:  # also if it is nan
        raise ConversionError(
            f"{target} computes something else than PyTorch: outputs differ by {difference:.1e}, more than {PARITY[dtype]:g}"
        )
    return difference


def eager_copy(model: nn.Module, x: Tensor, dtype: torch.dtype, device: str = "cpu") -> Callable[[], Tensor]:
    """Return a run of a copy of a model in PyTorch eager mode."""
    copied, inputs = copy.deepcopy(model).to(device, dtype), x.to(device, dtype, copy=True)

    def run() -> Tensor:
        with torch.inference_mode():
            output: Tensor = copied(inputs)
            return output

    return run
