"""`python -m benchmarks.front STUDY`: do the members of a front differ on images that nothing was chosen on?

Each member has its share of the supernet's weights, as it was scored, and classifies images of the test split, which no
search reads. Neighbours on the front are compared image by image. Export the study first.
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

import models.deploy
from models.litv2 import build as build_network
from search.accuracy.base import Accuracy
from search.accuracy.paired import paired_difference
from search.commands.cli import build
from search.results.export import member_name, shared_weights_file
from search.results.picking import pick
from search.results.significance import Z_95
from search.results.view import make_console
from search.space.dimensions import describe
from search.study.front import front
from search.study.storage import existing_folder, reading
from search.study.targets import FIRST
from search.study.trial import TrialRecord, finished_trials
from search.training.normalisation import Normalisation

BATCH_SIZE = 256


@dataclass(frozen=True)
class Member:
    """A member of the front.

    Args:
        trial: Its trial in the search.
        test: Its accuracy on images of the test split.
    """

    trial: TrialRecord
    test: Accuracy

    @property
    def has_attention(self) -> bool:
        return any(stage.window_size for stage in self.trial.architecture.stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of an exported study with accuracy=supernet")
    parser.add_argument("--images", type=int, default=20000, help="rendered images of the test split (default: 20000)")
    parser.add_argument("--pick", default="front", help="members to compare, by a rule of search.export (default: all)")
    arguments = parser.parse_args()
    folder = existing_folder(arguments.study)
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    with reading(folder.name, cfg.storage.url) as study:
        trials = pick(front(finished_trials(study)), arguments.pick)
    images, labels = test_images(cfg, arguments.images)
    classifying = track(trials, "classifying", console=make_console())
    report([classify(trial, folder / "pareto", images, labels) for trial in classifying])


def test_images(cfg: DictConfig, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Render images of the test split, (N, C, H, W) uint8, and their labels."""
    source = build(cfg.data.source)
    rows = source("test", number).with_format("numpy")[:number]
    images = torch.stack([torch.as_tensor(image) for image in rows["image"]])
    return images[:, None], torch.as_tensor(rows["label"])


@torch.inference_mode()
def classify(trial: TrialRecord, pareto: Path, images: torch.Tensor, labels: torch.Tensor) -> Member:
    """Classify the images by a member of the front."""
    weights = shared_weights_file(pareto / member_name(trial))
    normalisation = Normalisation.of_weights(weights)
    assert normalisation is not None, f"{weights} was not written by search.export"
    num_classes = int(labels.max()) + 1
    network = build_network(trial.architecture, in_chans=images.shape[1], num_classes=num_classes)
    network.load_state_dict(load_file(weights))
    prepared = models.deploy.prepare_in_place(network.eval())
    batches = zip(torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True)
    correct = torch.cat([prepared(normalisation.apply(x)).argmax(1) == y for x, y in batches])
    return Member(trial, Accuracy.of(correct.numpy(), seed=0, seconds=0.0))


def report(members: list[Member]) -> None:
    """Print each member beside the next faster one."""
    table = Table("trial", "latency, ms", "score", "test", "more than the one above", "network")
    higher = lower = 0
    for above, each in zip([None, *members], members, strict=False):
        gain = ""
        if above is not None:
            difference, error = paired_difference(each.test, above.test)
            higher += difference > Z_95 * error
            lower += difference < -Z_95 * error
            gain = f"{difference:+.4f} ±{Z_95 * error:.4f}"
        trial = each.trial
        latency = trial.result.latencies[FIRST]
        values = (str(trial.number), f"{latency.latency_ms:.3f}", f"{trial.accuracy:.4f}", f"{each.test.accuracy:.4f}", gain)
        table.add_row(*values, describe(trial.architecture))
    console = make_console()
    console.print(table)
    steps, attention = len(members) - 1, sum(each.has_attention for each in members)
    console.print(f"of {steps} steps to the next member, {higher} surely raise accuracy and {lower} lower it (95 %)")
    console.print(f"{attention} of {len(members)} members have attention")


if __name__ == "__main__":
    main()
