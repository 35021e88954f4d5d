"""`python -m benchmarks.conversion space=small`: what does it cost to convert a network to ONNX, and does the way matter?

Random networks of a space are converted by PyTorch's exporter (`models.deploy.onnx.export_onnx`), as `search.export` does,
and recorded (`record_onnx`), as a search does, one right after the other. Shown are the seconds of each way, of all that
precedes timing in a search (building, preparing, recording, comparing outputs, loading), and of timing: processor time,
which other processes do not change. For some of the networks both files are compared: their outputs, the operators of the
graphs that ONNX Runtime makes of them, and their latencies, timed in turn.

Overrides are those of a search: `space=litv2_s deploy.img_size=224`, `space.patch_size=2 data.img_size=64`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import hydra
import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from models.architecture import Architecture
from models.deploy import prepare
from models.deploy.onnx import export_onnx, record_onnx
from models.litv2 import build as build_network
from search.commands.cli import build, conf_dir, target_of
from search.latency.base import Calibration
from search.latency.onnx_session import open_session
from search.latency.protocol import Run
from search.latency.target import Network, PairedTarget
from search.space.space import Space

Result = TypeVar("Result")


@dataclass(frozen=True)
class Converted:
    """A network converted in both ways, with the seconds of each."""

    recorded: bytes
    exported: bytes
    x: Tensor
    recorded_seconds: float
    exported_seconds: float


@dataclass(frozen=True)
class Compared:
    """Both files of a network.

    Attributes:
        difference: Largest difference of their outputs, relative to the largest output.
        same_operators: True if ONNX Runtime makes graphs with the same number of each operator of them.
        ratio: Latency of the recorded file over that of the exported one.
        timing_seconds: Seconds that timing took, for each of them.
    """

    difference: float
    same_operators: bool
    ratio: float
    timing_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--compared", type=int, default=8, help="of how many both files are compared (default 8)")
    parser.add_argument("--seed", type=int, default=6, help="of drawing the networks (default 6)")
    parser.add_argument("overrides", nargs="*", help="of the configuration, as space=small")
    arguments = parser.parse_args()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose("config", ["latency=onnxruntime", *arguments.overrides])
    space: Space = build(config.space)
    target: PairedTarget = target_of(config.latency, img_size=config.deploy.img_size, in_chans=1, num_classes=100)()
    calibration = target.calibrate(space.anchor())
    networks = draw(space, arguments.networks, arguments.seed)
    # First, for what the exporter leaves in memory slows down the search of garbage that precedes each timing.
    ready_seconds = [timed(partial(target.make_ready, as_measured(network, target)))[1] for network in networks]
    converted = [convert(network, target) for network in track(networks, "converting")]
    compared = []
    for index, files in enumerate(track(converted[: arguments.compared], "comparing")):
        compared.append(compare(files, index % 2 == 1, target, calibration))
    show(ready_seconds, converted, compared, target)


def draw(space: Space, number: int, seed: int) -> list[Architecture]:
    """Different random architectures of a space."""
    networks: dict[str, Architecture] = {}
    for index in range(100 * number):
        architecture = space.sample([seed, index])
        networks[architecture.key] = architecture
        if len(networks) == number:
            break
    return list(networks.values())


def as_measured(architecture: Architecture, target: PairedTarget) -> Network:
    """A network as the target of a search takes it."""
    settings = target.settings
    make = partial(build_network, architecture, in_chans=settings.in_chans, num_classes=settings.num_classes)
    side = architecture.side(settings.img_size)
    return Network(make, (settings.in_chans, side, side))


def convert(architecture: Architecture, target: PairedTarget) -> Converted:
    """Convert a network in both ways."""
    network = as_measured(architecture, target)
    model, x = prepare(network.build()), torch.rand(target.settings.batch_size, *network.input_shape)
    recorded, recorded_seconds = timed(lambda: record_onnx(model, x))
    exported, exported_seconds = timed(lambda: export(model, x))
    return Converted(recorded, exported, x, recorded_seconds, exported_seconds)


def export(model: nn.Module, x: Tensor) -> bytes:
    """Convert a network as `search.export` does, to a file for any number of images."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, torch.cat([x, x]), path, any_batch=True)  # torch takes a batch of 1 for a constant
        return path.read_bytes()


def compare(files: Converted, exported_first: bool, target: PairedTarget, calibration: Calibration) -> Compared:
    """Compare both files of a network, which are timed in turn, one or the other first."""
    contents = [files.recorded, files.exported][:: -1 if exported_first else 1]
    ready = [target.ready(loader(content, files.x, target)) for content in contents]
    latencies, seconds = timed(lambda: target.time(ready, calibration))
    first, second = (latency.latency_ms for latency in latencies)
    return Compared(
        difference(files),
        operators(files.recorded) == operators(files.exported),
        second / first if exported_first else first / second,
        seconds / len(ready),
    )


def timed(action: Callable[[], Result]) -> tuple[Result, float]:
    """What an action returns, and the processor time that it takes."""
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def loader(content: bytes, x: Tensor, target: PairedTarget) -> Callable[[], Run]:
    """A function that loads a copy of an ONNX file."""

    def load() -> Run:
        session = open_session(content, target.settings.num_threads)
        feed = {"x": x.numpy().copy()}
        return lambda: session.run(None, feed)

    return load


def difference(files: Converted) -> float:
    """Largest difference of the outputs of both files, relative to the largest output."""
    recorded, exported = (outputs(content, files.x) for content in (files.recorded, files.exported))
    return float(np.abs(recorded - exported).max()) / (float(np.abs(exported).max()) or 1.0)


def outputs(content: bytes, x: Tensor) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = open_session(content, 1).run(None, {"x": x.numpy()})[0]
    return result


def operators(content: bytes) -> Counter[str]:
    """How many of each operator the graph has that ONNX Runtime makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return Counter(f"{node.domain}.{node.op_type}" for node in onnx.load(path).graph.node)


def show(
    ready_seconds: list[float], converted: Sequence[Converted], compared: Sequence[Compared], target: PairedTarget
) -> None:
    """Print the tables."""
    console, device, settings = Console(width=120), target.fingerprint(), target.settings
    console.print(
        f"{len(converted)} network(s) of {settings.img_size} pixels on {device['device']}, {settings.num_threads} thread(s)"
    )
    table = Table("seconds a network")
    for header in ("first", "median of the others", "lowest", "highest"):
        table.add_column(header, justify="right")
    rows = {
        "torch.onnx.export": [files.exported_seconds for files in converted],
        "record_onnx": [files.recorded_seconds for files in converted],
        "all that precedes timing, with record_onnx": ready_seconds,
        "timing": [files.timing_seconds for files in compared],
    }
    for name, (first, *others) in rows.items():
        later = others or [first]
        table.add_row(name, *(f"{value:.2f}" for value in (first, statistics.median(later), min(later), max(later))))
    console.print(table)
    ratios = [files.ratio for files in compared]
    mean = math.exp(statistics.mean(map(math.log, ratios)))
    console.print(
        f"recorded against exported files of {len(compared)} network(s): outputs differ by at most "
        f"{max(files.difference for files in compared):.0e}, {sum(files.same_operators for files in compared)} have the "
        f"same operators in ONNX Runtime; ratio of latencies {mean:.3f} in the mean, {min(ratios):.3f} to {max(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
