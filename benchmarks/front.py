"""`python -m benchmarks.front STUDY`: do the members of an exported front differ on images that nothing was chosen on?

Each member has its share of the supernet's weights, as it was scored, and classifies images of the test split, which no
search reads. Neighbours on the front are compared image by image.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file

from models.architecture import Architecture
from models.litv2 import build as build_network
from search.accuracy.base import Accuracy
from search.accuracy.paired import paired_difference
from search.commands.cli import build
from search.results.architecture_file import network_input, read
from search.results.export import shared_weights_file
from search.results.significance import Z_95
from search.results.view import make_console
from search.space.dimensions import describe
from search.study.storage import existing_folder
from search.training.normalisation import Normalisation


@dataclass(frozen=True)
class Member:
    """A member of the front.

    Args:
        name: Of its file.
        architecture: The network.
        latency_ms: Its latency in the search.
        score: Its accuracy in the search.
        test: Its accuracy on images of the test split.
    """

    name: str
    architecture: Architecture
    latency_ms: float
    score: float
    test: Accuracy

    @property
    def has_attention(self) -> bool:
        return any(stage.window_size for stage in self.architecture.stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of an exported study with accuracy=supernet")
    parser.add_argument("--images", type=int, default=20000, help="rendered images of the test split (default: 20000)")
    arguments = parser.parse_args()
    folder = existing_folder(arguments.study)
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    images, labels = test_images(cfg, arguments.images)
    files = sorted((folder / "pareto").glob("trial-*.yaml"))
    members = [classify(file, images, labels) for file in track(files, "classifying", console=make_console())]
    report(sorted(members, key=lambda each: each.latency_ms))


def test_images(cfg: DictConfig, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Render images of the test split, (N, C, H, W) uint8, and their labels."""
    source = build(cfg.data.source)
    rows = source("test", number).with_format("numpy")[:number]
    images = torch.stack([torch.as_tensor(image) for image in rows["image"]])
    return images[:, None], torch.as_tensor(rows["label"])


@torch.inference_mode()
def classify(file: Path, images: torch.Tensor, labels: torch.Tensor) -> Member:
    """Classify the images by a member of the front."""
    architecture, facts = read(file)
    of_network = network_input(facts)
    network = build_network(architecture, in_chans=of_network.in_chans, num_classes=of_network.num_classes)
    weights = shared_weights_file(file)
    network.load_state_dict(load_file(weights))
    network.eval()
    normalisation = Normalisation.of_weights(weights)
    assert normalisation is not None, f"{weights} was not written by search.export"
    batches = zip(torch.split(images, 500), torch.split(labels, 500), strict=True)
    correct = torch.cat([network(normalisation.apply(x)).argmax(1) == y for x, y in batches])
    return Member(
        name=file.stem,
        architecture=architecture,
        latency_ms=facts["targets"]["first"]["latency"]["latency_ms"],
        score=facts["accuracy"]["validation"],
        test=Accuracy.of(correct.numpy(), seed=0, seconds=0.0),
    )


def report(members: list[Member]) -> None:
    """Print each member beside the next faster one."""
    table = Table("member", "latency, ms", "score", "test", "more than the one above", "network")
    told_apart = 0
    for above, each in zip([None, *members], members, strict=False):
        gain = ""
        if above is not None:
            difference, error = paired_difference(each.test, above.test)
            told_apart += abs(difference) > Z_95 * error
            gain = f"{difference:+.4f} ±{Z_95 * error:.4f}"
        values = (
            f"{each.latency_ms:.3f}",
            f"{each.score:.4f}",
            f"{each.test.accuracy:.4f}",
            gain,
            describe(each.architecture),
        )
        table.add_row(each.name, *values)
    make_console().print(table)
    attention = sum(each.has_attention for each in members)
    print(f"{told_apart} of {len(members) - 1} neighbours differ in accuracy at 95 %")
    print(f"{attention} of {len(members)} members have attention")


if __name__ == "__main__":
    main()
