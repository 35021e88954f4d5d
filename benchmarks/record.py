"""`python -m benchmarks.record FILE data=noisy_glyphs space=fine`: record a table of a space, to compare samplers on.

Three searches share a supernet. One draws networks at random, so that the table covers the space; the others are the default
one and an evolutionary one, so that it is dense near the front wherever a search may come from. None of them measures
networks that are probably dominated. Cut off, the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from benchmarks.commands import run_command
from benchmarks.tables import Network, Table
from search import UserError
from search.study.front import evaluated
from search.study.storage import reading
from search.study.targets import FIRST, targets_of
from search.study.trial import TrialRecord, finished_trials

SEARCHES = {"random": ["sampler=random"], "nsga2": ["sampler=nsga2"], "default": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="of the table, such as benchmarks/tables/default.json.gz")
    parser.add_argument("--folder", type=Path, help="where the searches are kept (default outputs/record/TABLE)")
    parser.add_argument("--random", type=int, default=300, help="networks that are drawn at random (default 300)")
    parser.add_argument("--nsga2", type=int, default=120, help="networks of the evolutionary search (default 120)")
    parser.add_argument("--default", type=int, default=120, help="networks of the default search (default 120)")
    parser.add_argument("overrides", nargs="*", help="of the searches, such as data=cifar10 space=fine")
    options = parser.parse_intermixed_args()
    console = Console(width=160)
    folder = (options.folder or Path("outputs/record") / options.file.name.removesuffix(".json.gz")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    common = ["+search=cpu_latency", "study.min_expected_gain=null", *options.overrides]
    commands = {
        name: [*common, *settings, f"study.name={name}", f"study.n_trials={getattr(options, name)}"]
        for name, settings in SEARCHES.items()
    }
    try:
        for overrides in commands.values():
            search(folder, overrides, console)
        table = record(folder, commands)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    table.write(options.file)
    show(table, console)
    console.print(f"saved {options.file}", soft_wrap=True, highlight=False)


def search(folder: Path, overrides: list[str], console: Console) -> None:
    """Run a search; its output goes to a file. Raises: UserError if it fails."""
    try:
        run_command("run", overrides, folder, console)
    except UserError as error:
        raise UserError(f"{error}; if the folder has searches of other overrides, choose another --folder") from error


def record(folder: Path, commands: dict[str, list[str]]) -> Table:
    """Make the table of finished searches.

    Latencies are measured as ratios to one anchor network, which each study calibrates anew: were the machine a tenth slower
    then, so would they be. In the table all have the calibration of the first study.
    """
    networks: dict[str, Network] = {}
    anchor_ms: float | None = None
    for name in commands:
        with reading(name, f"sqlite:///{folder}/outputs/{name}/study.db") as study:
            target, versions = targets_of(study)[FIRST], study.user_attrs["versions"]
            anchor_ms = anchor_ms or target.calibration.anchor_ms
            for trial in evaluated(finished_trials(study)):
                network = network_of(trial, scale=anchor_ms / target.calibration.anchor_ms)
                if network.latency_ms is not None or trial.architecture.key not in networks:
                    networks[trial.architecture.key] = network
    cfg = OmegaConf.load(folder / "outputs" / "default" / "config.yaml")
    provenance = {
        "commands": [f"python -m search.run {shlex.join(overrides)}" for overrides in commands.values()],
        "device": dict(target.device),
        "versions": versions,
    }
    config = {"space": OmegaConf.to_container(cfg.space), "images": target.network_input}
    return Table.fitted(provenance, config, list(networks.values()))


def network_of(trial: TrialRecord, scale: float) -> Network:
    """The network of a trial that has an accuracy. scale: of latencies, to another calibration of the anchor."""
    latency, accuracy = trial.result.latencies[FIRST], trial.result.accuracy
    assert accuracy is not None
    return Network(
        parameters=trial.parameters,
        accuracy=accuracy.accuracy,
        score_seconds=accuracy.seconds,
        latency_ms=scale * latency.latency_ms if latency.measured else None,
        measure_seconds=latency.seconds + latency.prepare_seconds if latency.measured else 0.0,
    )


def show(table: Table, console: Console) -> None:
    """Print what the table holds, and how well it interpolates."""
    errors = table.errors()
    measured = sum(network.latency_ms is not None for network in table.networks)
    accuracy, latency = errors["accuracy"], errors["latency"]
    console.print(
        f"{len(table.networks)} networks, {measured} measured. Networks left out of the interpolation: accuracy within "
        f"{accuracy.deviation:.4f} (root mean square; tau {accuracy.tau:.2f}), latency within {latency.deviation:.1%} "
        f"(tau {latency.tau:.2f}). The best known front has {len(table.best)} networks.",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
