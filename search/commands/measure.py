"""One run of the latency lab: models by name or file, measured in turn, as a table and as JSON."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

import models.litv2  # noqa: F401  registers its variants with timm
from models.architecture import Architecture, StageSpec, check_int
from models.complexity import count_macs, count_params
from models.litv2 import build as build_network
from search import SearchStopped, UserError, one_line
from search.commands.cli import construct, set_up_logging, target_of
from search.latency.base import Calibration, Latency
from search.latency.target import Network, PairedTarget
from search.results import architecture_file
from search.results.deployment import FORMATS, check_runs_files, measure_again, read_facts
from search.results.view import latency_text, make_console

log = logging.getLogger(__name__)

# What everything is timed beside: a few milliseconds, every kind of block.
ANCHOR = Architecture(32, (StageSpec(1), StageSpec(1), StageSpec(2, 2, 0.5, 4), StageSpec(1, 1, 1.0, 8)), downsample="conv")
ANCHOR_SHAPE = (3, 224, 224)
NUM_CLASSES = 1000


@dataclass(frozen=True)
class Candidate:
    """A model to measure. make: builds it, on whatever device is the default."""

    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]

    def network(self) -> Network:
        return Network(self._announced, self.input_shape)

    def _announced(self) -> nn.Module:
        log.info("preparing %s", self.name)
        return self.make()

    def cost(self) -> tuple[int, int]:
        """Parameters and multiply-accumulates, counted without allocating it."""
        with torch.device("meta"):
            model = self.make().eval()
        return count_params(model), count_macs(model, self.input_shape)


def main(cfg: DictConfig) -> None:
    """Raises: UserError if what is asked for cannot be, SearchStopped if a model cannot be measured."""
    console = make_console()
    set_up_logging(console, None)
    if cfg.deployed is not None:
        measure_deployed(Path(str(cfg.deployed)), cfg.latency, console)
        return
    img_size = cfg.latency.input_size
    if img_size is not None:
        construct(lambda: check_int("latency.input_size", img_size, 1))
    output = output_path(cfg.output)
    candidates = [from_timm(name, img_size) for name in _listed(cfg.model)]
    candidates += [from_file(Path(name), img_size) for name in _listed(cfg.arch)]
    if not candidates:
        raise UserError(
            "nothing to measure: name a timm model (model=litv2_s), an exported architecture (arch=FILE) or its deployable "
            "files (deployed=FOLDER)"
        )
    in_chans, side, _ = ANCHOR_SHAPE
    target: PairedTarget = construct(target_of(cfg.latency, img_size=side, in_chans=in_chans, num_classes=NUM_CLASSES))
    costs = [checked_cost(candidate) for candidate in candidates]
    calibration, latencies = time_all(target, candidates)
    console.print(latency_table(target, candidates, costs, latencies))
    for candidate, latency in zip(candidates, latencies, strict=True):
        if latency.warning:
            log.warning("%s: %s", candidate.name, latency.warning)
    if output is not None:
        output.write_text(json.dumps(as_data(target, calibration, candidates, costs, latencies)), encoding="utf-8")
        console.print(f"saved in {output}", soft_wrap=True)


def measure_deployed(folder: Path, latency: DictConfig, console: Console) -> None:
    """Measure the files of an export again and hold them against their card.

    Raises: UserError if the folder holds no card, or one of another device.
    """
    facts = read_facts(folder)
    in_chans, side, _ = facts["input_shape"]
    make_target = target_of(latency, img_size=side, in_chans=in_chans, num_classes=facts["device"]["num_classes"])
    table = Table(title=f"{folder}: with the calibration of its card", title_justify="left")
    for header in ("file", "card, ms [95 %]", "now", "ratio"):
        table.add_column(header, justify="left" if header == "file" else "right", no_wrap=True)
    target: PairedTarget = construct(make_target)
    check_runs_files(target)
    for name, (said, found) in measure_again(folder, target).items():
        texts = (escape(latency_text(one)) for one in (said, found))
        table.add_row(FORMATS[name].file, *texts, f"{found.latency_ms / said.latency_ms:.3f}")
    console.print(table)


def time_all(target: PairedTarget, candidates: list[Candidate]) -> tuple[Calibration, list[Latency]]:
    """Calibrate, then measure all in turn. Raises: SearchStopped naming what cannot be measured."""
    try:
        log.info("calibrating the anchor network for %g s", target.settings.calibration_seconds)
        calibration = target.calibrate(ANCHOR)
        ready = [target.make_ready(candidate.network()) for candidate in candidates]
        log.info("timing %d model(s) in turn, %g s each at most", len(candidates), target.settings.max_seconds)
        return calibration, target.time(ready, calibration)
    except Exception as error:  # whatever a runtime raises
        raise SearchStopped(f"{one_line(error)}; leave that model out, or choose another latency=") from error


def checked_cost(candidate: Candidate) -> tuple[int, int]:
    """Raises: UserError if a model does not take its input."""
    try:
        return candidate.cost()
    except Exception as error:  # whatever a model raises
        shape = "x".join(map(str, candidate.input_shape))
        raise UserError(
            f"{candidate.name} does not take an input of {shape} ({one_line(error)}); set latency.input_size"
        ) from error


def from_timm(name: str, img_size: int | None) -> Candidate:
    """A registered timm model with random weights. Raises: UserError if there is none of this name."""
    try:
        config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:
        raise UserError(f"model={name}: {one_line(error)}") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; timm.list_models() has the names"
        raise UserError(f"model={name} is not registered with timm{hint}")
    in_chans, side, _ = config.input_size
    size = img_size or side
    fixed: dict[str, Any] = {"img_size": size} if config.fixed_input_size and size != side else {}
    return Candidate(name, partial(timm.create_model, name, **fixed), (in_chans, size, size))


def from_file(path: Path, img_size: int | None) -> Candidate:
    """An exported architecture, for the images and classes it was searched for. Raises: UserError if it cannot be read."""
    architecture, facts = architecture_file.read(path)
    try:
        in_chans, side, _ = (int(part) for part in facts["device"]["input_size"].split("x"))
        num_classes = int(facts["device"]["num_classes"])
    except (KeyError, TypeError, ValueError, AttributeError):
        in_chans, side, num_classes = ANCHOR_SHAPE[0], ANCHOR_SHAPE[1], NUM_CLASSES
    size = img_size or side
    return Candidate(
        path.stem, partial(build_network, architecture, in_chans=in_chans, num_classes=num_classes), (in_chans, size, size)
    )


def output_path(value: Any) -> Path | None:
    """Raises: UserError if a file of this name cannot be written."""
    if value is None:
        return None
    path = Path(str(value))
    if not path.parent.is_dir():
        raise UserError(f"output={path}: there is no folder {path.parent}; make it first")
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise UserError(f"output={path} cannot be written ({error.strerror}); choose another file") from error
    return path


def latency_table(
    target: PairedTarget, candidates: list[Candidate], costs: list[tuple[int, int]], latencies: list[Latency]
) -> Table:
    device = target.fingerprint()
    title = f"{device['backend']} on {device['device']}: {target.settings.dtype}, batch {target.settings.batch_size}"
    table = Table(title=f"{title}, {target.settings.num_threads} thread(s)", title_justify="left")
    table.add_column("model", overflow="fold")
    for header in ("input", "median, ms", "95 % interval", "ratio", "images/s", "MACs", "params", "memory"):
        table.add_column(header, justify="right", no_wrap=True)
    converted = any(latency.parity is not None for latency in latencies)
    if converted:
        table.add_column("prepared", justify="right")
        table.add_column("parity", justify="right")
    for candidate, (num_params, num_macs), latency in zip(candidates, costs, latencies, strict=True):
        cells = [
            candidate.name,
            "x".join(map(str, candidate.input_shape)),
            f"{latency.latency_ms:.3f}",
            escape(f"[{latency.low_ms:.3f}, {latency.high_ms:.3f}]"),
            f"{latency.latency_ms / latencies[0].latency_ms:.2f}x",
            f"{throughput(latency, target):,.1f}",
            f"{num_macs / 1e6:,.1f} M",
            f"{num_params / 1e6:,.2f} M",
            "-" if latency.peak_bytes is None else f"{latency.peak_bytes / 2**20:,.1f} MiB",
        ]
        if converted:
            cells += [f"{latency.prepare_seconds:.1f} s", f"{latency.parity:.0e}"]
        table.add_row(*cells)
    return table


def throughput(latency: Latency, target: PairedTarget) -> float:
    """Images a second."""
    return target.settings.batch_size / latency.latency_ms * 1e3


def as_data(
    target: PairedTarget,
    calibration: Calibration,
    candidates: list[Candidate],
    costs: list[tuple[int, int]],
    latencies: list[Latency],
) -> dict[str, Any]:
    """Everything as plain data, raw times included. The device's input size and classes are the anchor's."""
    device = target.fingerprint()
    anchor = {key: device.pop(key) for key in ("input_size", "num_classes")}
    return {
        "device": device,
        "anchor": anchor,
        "calibration": calibration.to_dict(),
        "models": [
            {
                "name": candidate.name,
                "input_shape": candidate.input_shape,
                "parameters": num_params,
                "multiply_accumulates": num_macs,
                "images_per_second": throughput(latency, target),
                "latency": latency.summary(),
                "rounds": [asdict(one) for one in latency.rounds],
            }
            for candidate, (num_params, num_macs), latency in zip(candidates, costs, latencies, strict=True)
        ],
    }


def _listed(value: Any) -> list[str]:
    """One or several, as given at the command line."""
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, ListConfig) else [str(value)]
