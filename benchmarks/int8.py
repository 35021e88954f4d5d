"""`python -m benchmarks.int8`: does a score in 8-bit integers agree with the file, and what does rounding cost?

Random networks of the default space, with their shares of its supernet (trained first, unless it is in the cache), on the
validation images of a search: the accuracy in float32, that with the rounding of `models.deploy.int8` in PyTorch, and that
of the int8 file in ONNX Runtime. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import hydra
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import kendalltau

from models.architecture import Architecture
from models.deploy import prepare
from models.deploy.int8 import calibrated
from models.deploy.onnx_int8 import quantise_onnx
from search.accuracy.supernet import SupernetEvaluator
from search.accuracy.trained_supernet import TrainedSupernet
from search.commands.accuracy import evaluator_factory, training_images
from search.commands.cli import build, conf_dir
from search.latency.onnx_session import first_output, open_session
from search.results.deployable import Deployable
from search.results.trained import UNTRAINED, Trained
from search.space.dimensions import describe
from search.space.space import Space
from search.training.data import Batches
from search.training.resizing import resized

BATCH_SIZE = 250


@dataclass(frozen=True)
class Comparison:
    """One network: whether it is right, for each image, in each form; and the sizes of its files in bytes."""

    architecture: Architecture
    float32: NDArray[np.bool_]
    rounded: NDArray[np.bool_]
    file: NDArray[np.bool_]
    float32_bytes: int
    int8_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=12, help="random networks")
    parser.add_argument("--seed", type=int, default=2000, help="of the networks")
    parser.add_argument("overrides", nargs="*", help="of the search, such as data=digits")
    options = parser.parse_args()
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = hydra.compose("config", ["+search=onnx_int8_latency", *options.overrides])
    console, space = Console(), cast(Space, build(cfg.space))
    data = training_images(cfg, None)
    int8 = cast(SupernetEvaluator, evaluator_factory(cfg, data, None)())
    console.print("training the supernet, unless it is in the cache")
    int8.prepare(cfg.study.seed, lambda share: None)
    architectures = [space.sample([options.seed, number]) for number in range(options.networks)]
    show(console, [compare(architecture, int8, cfg.study.seed) for architecture in track(architectures, console=console)])


def compare(architecture: Architecture, int8: SupernetEvaluator, seed: int) -> Comparison:
    """Evaluate a network in each form."""
    float32 = dataclasses.replace(int8, dtype="float32")
    scores = [each.evaluate(architecture, seed, lambda share: None).correct_images() for each in (float32, int8)]
    content, file = onnx_files(architecture, int8, seed)
    is_right = correct_images(file, Batches(int8.data, int8.images, BATCH_SIZE), architecture.img_size)
    assert scores[0] is not None
    assert scores[1] is not None
    return Comparison(architecture, scores[0], scores[1], is_right, len(content), len(file))


def onnx_files(architecture: Architecture, int8: SupernetEvaluator, seed: int) -> tuple[bytes, bytes]:
    """Return a network with its share of the supernet as ONNX, in float32 and in int8."""
    supernet = TrainedSupernet.open(Path(int8.weights_file(seed)))
    trained = Trained(supernet.extract(int8.proxy_of(architecture)), UNTRAINED, {}, {})
    examples = resized(supernet.normalised_images(), architecture.img_size)
    content = Deployable(trained.network, examples, trained).onnx
    return content, quantise_onnx(content, calibrated(prepare(trained.network), torch.split(examples, BATCH_SIZE)).ranges)


def correct_images(file: bytes, batches: Batches, img_size: int | None) -> NDArray[np.bool_]:
    """Return which images an ONNX file classifies correctly in ONNX Runtime, (images,)."""
    session = open_session(file, torch.get_num_threads())
    correct = [
        first_output(session, resized(images, img_size).numpy()).argmax(1) == labels.numpy() for images, labels in batches
    ]
    return np.concatenate(correct)


def show(console: Console, comparisons: list[Comparison]) -> None:
    table = Table(title=f"accuracy on {len(comparisons[0].file):,} validation images", title_justify="left")
    for header in ("network", "float32", "int8 in PyTorch", "int8 file", "float32, MB", "int8, MB"):
        table.add_column(header, justify="left" if header == "network" else "right")
    for network in comparisons:
        accuracies = [f"{correct.mean():.4f}" for correct in (network.float32, network.rounded, network.file)]
        sizes = [f"{size / 1e6:.3f}" for size in (network.float32_bytes, network.int8_bytes)]
        table.add_row(describe(network.architecture), *accuracies, *sizes)
    console.print(table)
    rounded, file, float32 = (
        [float(getattr(network, name).mean()) for network in comparisons] for name in ("rounded", "file", "float32")
    )
    console.print(f"int8 file minus int8 in PyTorch: {differences(file, rounded)}; Kendall's tau {tau(file, rounded):.3f}")
    console.print(f"int8 file minus float32:         {differences(file, float32)}; Kendall's tau {tau(file, float32):.3f}")


def differences(first: list[float], second: list[float]) -> str:
    """Mean difference of accuracies with its standard error over networks, and the largest, in points."""
    points = [100 * (a - b) for a, b in zip(first, second, strict=True)]
    error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else float("nan")
    return f"mean {statistics.fmean(points):+.3f} ±{error:.3f} points, largest {max(map(abs, points)):.2f}"


def tau(first: list[float], second: list[float]) -> float:
    return float(kendalltau(first, second).statistic)


if __name__ == "__main__":
    main()
