"""`python -m search.measure`: the latency of models given by name or by file, measured in turn, as a table and as JSON."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from omegaconf import DictConfig
from rich.markup import escape
from rich.table import Table
from torch import nn

import models.litv2  # noqa: F401  registers its variants with timm
from models.architecture import Architecture, StageSpec, check_int
from models.complexity import count_macs, count_params
from models.litv2 import build as build_network
from search import BUGS, SearchStopped, UserError, one_line
from search.commands.cli import construct, listed, set_up_logging, target_of
from search.commands.measure_files import measure_deployed
from search.commands.runtimes import form_name, runtimes_of
from search.files import write_text
from search.latency.base import Calibration, Latency
from search.latency.runtime import Form
from search.latency.target import Network, PairedTarget
from search.results import architecture_file
from search.results.architecture_file import IMAGENET, network_input
from search.results.view import make_console

log = logging.getLogger(__name__)

# The network that all models are timed beside: it takes a few milliseconds and has every kind of block.
ANCHOR = Architecture(32, (StageSpec(1), StageSpec(1), StageSpec(2, 2, 0.5, 4), StageSpec(1, 1, 1.0, 8)), downsample="conv")
REPEATED = (ANCHOR, replace(ANCHOR, embed_dim=16), replace(ANCHOR, embed_dim=64))  # show how well the target repeats


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    Attributes:
        build: builds it, on whatever device is the default.
        input_shape: of an input, (C, H, W).
    """

    name: str
    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]

    def network(self) -> Network:
        """The model as a latency target takes it."""
        return Network(self._log_and_build, self.input_shape)

    def _log_and_build(self) -> nn.Module:
        log.info("preparing %s", self.name)
        return self.build()

    def cost(self) -> tuple[int, int]:
        """Parameters and multiply-accumulates, counted without allocating weights."""
        with torch.device("meta"):
            model = self.build().eval()
        return count_params(model), count_macs(model, self.input_shape)


@dataclass(frozen=True)
class Measured:
    """A model with its cost and its latency. form: the runtime and the dtype that it was measured in."""

    candidate: Candidate
    form: Form
    num_params: int
    num_macs: int
    latency: Latency


def main(cfg: DictConfig) -> None:
    """Measure models, or the files of an export.

    Raises:
        UserError: if what is asked for cannot be done.
        SearchStopped: if a model cannot be measured.
    """
    console = make_console()
    set_up_logging(console, None)
    if cfg.deployed is not None:
        construct(check_trusted, value=cfg.trusted)
        if cfg.runtimes is not None:
            raise UserError(
                "runtimes= is for models, and deployed= is for files, which have their own; leave one of them out"
            )
        measure_deployed(Path(str(cfg.deployed)), cfg.latency, cfg.trusted, console)
        return
    img_size = cfg.latency.input_size
    if img_size is not None:
        construct(lambda: check_int("latency.input_size", img_size, 1))
    output = output_path(cfg.output)
    candidates = [from_timm(name, img_size) for name in listed(cfg.model)]
    candidates += [from_file(Path(name), img_size) for name in listed(cfg.arch)]
    if not candidates:
        raise UserError(
            "nothing to measure: name a timm model (model=litv2_s), an exported architecture (arch=FILE) or its deployable "
            "files (deployed=FOLDER)"
        )
    target: PairedTarget = construct(target_of(cfg.latency, **IMAGENET._asdict()))
    forms = runtimes_of(listed(cfg.runtimes), target)
    costs = [checked_cost(candidate) for candidate in candidates]
    turns = [(candidate, form) for candidate in candidates for form in forms]
    calibration, latencies = time_all(target, turns)
    costs_of_turns = [cost for cost in costs for _ in forms]
    measured = [
        Measured(candidate, form, *cost, latency)
        for (candidate, form), cost, latency in zip(turns, costs_of_turns, latencies, strict=True)
    ]
    console.print(latency_table(target, measured))
    for model in measured:
        if model.latency.warning:
            log.warning("%s: %s", model.candidate.name, model.latency.warning)
    if len(forms) > 1:
        for candidate in candidates:
            console.print(fastest_text([model for model in measured if model.candidate is candidate]), soft_wrap=True)
    if output is not None:
        write_text(output, json.dumps(results(target, calibration, measured)))
        console.print(f"saved in {output}", soft_wrap=True)


def fastest_text(measured: Sequence[Measured]) -> str:
    """Which runtime is the fastest for a model, and which ones may be as fast."""
    fastest = min(measured, key=lambda model: model.latency.latency_ms)
    level = [model for model in measured if model is not fastest and model.latency.low_ms < fastest.latency.high_ms]
    text = f"{fastest.candidate.name} is the fastest in {form_name(fastest.form)}"
    return text + (f", perhaps level with {', '.join(form_name(model.form) for model in level)}" if level else "")


def time_all(target: PairedTarget, turns: Sequence[tuple[Candidate, Form]]) -> tuple[Calibration, list[Latency]]:
    """Calibrate the anchor, then measure all candidates in turn, each in its form.

    Raises:
        UserError: if the target repeats too badly for latency.tolerance.
        SearchStopped: naming what cannot be measured.
    """
    with naming_failures("omit that model, or choose another latency="):
        log.info("calibrating the anchor network and how well this target repeats")
        calibration = target.calibrate(ANCHOR, REPEATED)
        ready = [target.make_ready(candidate.network(), form) for candidate, form in turns]
        log.info("timing %d model(s) in turn, %g s each at most", len(turns), target.settings.max_seconds)
        return calibration, target.time(ready, calibration)


@contextmanager
def naming_failures(remedy: str) -> Iterator[None]:
    """End what a model or its runtime raises in one line with a remedy. Raises: SearchStopped; bugs as they are."""
    try:
        yield
    except BUGS:
        raise
    except Exception as error:  # whatever a runtime raises
        raise SearchStopped(f"{one_line(error)}; {remedy}") from error


def checked_cost(
    candidate: Candidate, setting: str = "", images: str = "an input", remedy: str = "set latency.input_size"
) -> tuple[int, int]:
    """Count the cost of a model.

    Args:
        setting: names the model, as in "report.peers=".
        images: what it gets, in words.
        remedy: what to do if it does not take them.

    Raises:
        UserError: if it does not take its input.
    """
    try:
        return candidate.cost()
    except Exception as error:  # whatever a model raises
        shape = "x".join(map(str, candidate.input_shape))
        raise UserError(
            f"{setting}{candidate.name} does not take {images} of {shape} ({one_line(error)}); {remedy}"
        ) from error


def from_timm(name: str, img_size: int | None, setting: str = "model") -> Candidate:
    """A registered timm model with random weights. Raises: UserError if no model has the name that a setting gives."""
    try:
        config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:
        raise UserError(f"{setting}={name}: {one_line(error)}") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() has the names"
        raise UserError(f"{setting}={name} is not registered with timm{hint}")
    in_chans, side, _ = config.input_size
    size = img_size or side
    fixed: dict[str, Any] = {"img_size": size} if config.fixed_input_size and size != side else {}
    return Candidate(name, partial(timm.create_model, name, **fixed), (in_chans, size, size))


def from_file(path: Path, img_size: int | None) -> Candidate:
    """An exported architecture, for the images and classes it was searched for. Raises: UserError if it cannot be read."""
    architecture, facts = architecture_file.read(path)
    in_chans, side, num_classes = network_input(architecture, facts)
    size = img_size or side
    build = partial(build_network, architecture, in_chans=in_chans, num_classes=num_classes)
    return Candidate(path.stem, build, (in_chans, size, size))


def check_trusted(value: object) -> None:
    """Raises: ValueError unless the value is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"trusted={value} must be true or false")


def output_path(value: Any) -> Path | None:
    """The file for the results, if any. Raises: UserError if it cannot be written."""
    if value is None:
        return None
    path = Path(str(value))
    if not path.parent.is_dir():
        raise UserError(f"output={path}: there is no folder {path.parent}; create it first")
    is_replaced = path.is_file() or not path.exists()
    if path.is_dir() or not os.access(path.parent if is_replaced else path, os.W_OK):
        raise UserError(f"output={path} cannot be written; choose another file")
    return path


def latency_table(target: PairedTarget, measured: list[Measured]) -> Table:
    """The models as rows, with latency, throughput and cost."""
    device = target.fingerprint()
    forms = {form_name(model.form) for model in measured}
    form, many = measured[0].form, len(forms) > 1
    subject = device["device"] if many else f"{form.runtime.backend} on {device['device']}: {form.dtype}"
    title = f"{subject}, batch {target.settings.batch_size}, {target.settings.num_threads} thread(s)"
    table = Table(title=title, title_justify="left")
    table.add_column("model", overflow="fold")
    if many:
        table.add_column("runtime", no_wrap=True)
    for header in ("input", "median, ms", "95 % CI", "ratio", "images/s", "MACs", "params", "memory"):
        table.add_column(header, justify="right", no_wrap=True)
    are_converted = any(model.latency.parity is not None for model in measured)
    if are_converted:
        table.add_column("prepared", justify="right")
        table.add_column("parity", justify="right")
    for model in measured:
        latency = model.latency
        cells = [
            model.candidate.name,
            *([form_name(model.form)] if many else []),
            "x".join(map(str, model.candidate.input_shape)),
            f"{latency.latency_ms:.3f}",
            escape(f"[{latency.low_ms:.3f}, {latency.high_ms:.3f}]"),
            f"{latency.latency_ms / measured[0].latency.latency_ms:.2f}x",
            f"{throughput(latency, target):,.1f}",
            f"{model.num_macs / 1e6:,.1f} M",
            f"{model.num_params / 1e6:,.2f} M",
            "-" if latency.peak_bytes is None else f"{latency.peak_bytes / 2**20:,.1f} MiB",
        ]
        if are_converted:
            cells += [f"{latency.prepare_seconds:.1f} s", "-" if latency.parity is None else f"{latency.parity:.0e}"]
        table.add_row(*cells)
    return table


def throughput(latency: Latency, target: PairedTarget) -> float:
    """Images per second."""
    return target.settings.batch_size / latency.latency_ms * 1e3


def results(target: PairedTarget, calibration: Calibration, measured: list[Measured]) -> dict[str, Any]:
    """All results as plain data, raw times included."""
    device = target.fingerprint()
    anchor = {key: device.pop(key) for key in ("input_size", "num_classes")}
    return {
        "device": device,
        "anchor": anchor,
        "calibration": calibration.to_dict(),
        "models": [
            {
                "name": model.candidate.name,
                "runtime": model.form.runtime.name,
                "dtype": model.form.dtype,
                "backend": model.form.runtime.backend,
                "versions": {package: version(package) for package in model.form.runtime.packages},
                "input_shape": model.candidate.input_shape,
                "parameters": model.num_params,
                "multiply_accumulates": model.num_macs,
                "images_per_second": throughput(model.latency, target),
                "latency": model.latency.summary(),
                "rounds": [asdict(timed) for timed in model.latency.rounds],
            }
            for model in measured
        ],
    }
