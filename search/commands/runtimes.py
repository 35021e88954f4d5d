"""Runtimes of this machine by name, which search.measure compares in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.deploy.int8 import FLOAT32
from search import UserError
from search.commands.cli import construct
from search.latency import cpu, cpu_compiled, executorch, onnxruntime, openvino
from search.latency.runtime import Form, Runtime, check_form
from search.latency.target import PairedTarget

RUNTIMES: dict[str, Runtime[Any]] = {
    module.RUNTIME.name: module.RUNTIME for module in (cpu, cpu_compiled, onnxruntime, openvino, executorch)
}


def runtimes_of(names: Sequence[str], target: PairedTarget) -> list[Form]:
    """The runtimes to measure models in: those of `runtimes`, or else the one of latency.

    Args:
        names: of runtimes, such as "cpu" and "onnxruntime:int8"; none for the one of latency.
        target: times them.

    Raises:
        UserError: if they cannot be used.
    """
    if not names:
        return [Form(target.runtime, target.settings.dtype)]
    if not target.runtime.runs_files:
        raise UserError(f"runtimes={','.join(names)} run on this machine's CPU, and latency={target.runtime.name} does not")
    if target.settings.dtype != FLOAT32:
        raise UserError(f"latency.dtype={target.settings.dtype} beside runtimes: name it there, as onnxruntime:int8")
    return [construct(form_of, name=name) for name in names]


def form_of(name: str) -> Form:
    """A runtime of this machine from its name, such as `openvino`, or `openvino:int8` in another dtype than float32.

    Raises:
        ValueError: if there is none of that name, or it does not have the dtype.
    """
    runtime, _, dtype = name.partition(":")
    if runtime not in RUNTIMES:
        raise ValueError(f"runtimes={runtime} is unknown; choose from {', '.join(RUNTIMES)}, in int8 as onnxruntime:int8")
    form = Form(RUNTIMES[runtime], dtype or FLOAT32)
    check_form(form, f"runtimes={name}", f"runtimes={name}")
    return form


def form_name(form: Form) -> str:
    """A runtime as `runtimes` names it."""
    return form.runtime.name if form.dtype == FLOAT32 else f"{form.runtime.name}:{form.dtype}"
