"""`python -m benchmarks.ablation RECORD`: what do attention, its windows and alpha gain in the networks that a search chose?

RECORD is that of `benchmarks.evidence`. Of every network of its front that has attention, and of the authors' pattern at a
middle width, this trains variants that differ in one choice: a stage (or all) without attention, plain attention, other
windows, all heads Hi-Fi, half of them, all Lo-Fi. They are trained by the recipe of the record, with its first seeds, and
measured in turn, at the size of the record's images and at --img-size. Cut off, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import OPTIONS_FILE, Contender, Results, arms_of, each_once, measure, train
from benchmarks.evidence import absolute, config, search_overrides
from benchmarks.evidence_table import (
    ARMS,
    ARMS_FILE,
    DTYPE,
    NUM_RESAMPLES,
    TRAINED,
    Measured,
    read,
    read_latencies,
    resampled,
    result_file,
)
from models.architecture import Architecture
from search import UserError, one_line
from search.accuracy.base import Accuracy
from search.accuracy.paired import paired_difference
from search.commands.cli import build
from search.files import write_bytes
from search.latency.base import Latency
from search.results.significance import Z_95
from search.results.view import make_console
from search.training.data import ImageData

WINDOWS, ALPHAS = (2, 4), (0.0, 0.5, 1.0)
HILO_WINDOW, HILO_ALPHA = 2, 0.5  # of a stage that had plain attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evidence", type=Path, nargs="?", metavar="RECORD", help="of benchmarks.evidence --record")
    parser.add_argument("--folder", type=Path, default=Path("outputs/ablation"), help="where everything is kept")
    parser.add_argument("--record", type=Path, help="file for all results; the folder gets what it lacks from it")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of a network")
    parser.add_argument("--processes", type=int, default=1, help="networks that are trained at a time, each on one thread")
    parser.add_argument("--img-size", type=int, default=224, help="side of the images of the second latency, in pixels")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="time limit for measuring a network")
    parser.add_argument("--show", action="store_true", help="only show what --record has")
    options = parser.parse_args()
    if options.show and options.record is None:
        parser.error("--show needs --record FILE")
    if not options.show and options.evidence is None:
        parser.error("name the RECORD of benchmarks.evidence")
    console = make_console()
    try:
        if options.show:
            show_record(options.record, options.img_size, console)
        else:
            run(options, console)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


def show_record(record: Path, img_size: int, console: Console) -> None:
    """Show the results of a record. Raises: UserError if it is not one of this benchmark."""
    try:
        show(console, zipfile.Path(record), img_size)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{record} is not a record of benchmarks.ablation: {one_line(error)}") from error


def run(options: argparse.Namespace, console: Console) -> None:
    """Choose the variants, measure and train them, and show the result. Raises: UserError if a record cannot be used."""
    settings, arms = read_evidence(options.evidence)
    overrides = search_overrides(settings, [absolute(override) for override in settings["overrides"]])
    evidence = zipfile.Path(options.evidence.resolve())
    record = None if options.record is None else options.record.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    results = Results({"img_size": options.img_size, "max_seconds": options.max_seconds, "evidence": settings}, record)
    cfg = config(settings, overrides)
    data: ImageData = build(cfg.data)
    if not results.arms():
        results.save_arms({base.name: [base, *variants(base)] for base in bases(arms)}, [])
    contenders = each_once(results.arms())
    copy_trained(evidence, contenders, options.seeds)
    larger = [replace(contender, img_size=options.img_size) for contender in contenders]
    measure([(each, DTYPE) for each in [*contenders, *larger]], cfg, data, options.max_seconds, console)
    for of_base in results.arms().values():  # one after the other: what is finished can be shown
        train(of_base, cfg, options.seeds, options.processes, results, console)
    show(console, Path(), options.img_size)


def read_evidence(record: Path) -> tuple[dict[str, Any], dict[str, list[Contender]]]:
    """Return the options and the networks of `benchmarks.evidence`. Raises: UserError if it is not its record."""
    try:
        archive = zipfile.Path(record)
        stored = json.loads((archive / ARMS_FILE).read_text(encoding="utf-8"))
        return json.loads((archive / OPTIONS_FILE).read_text(encoding="utf-8")), arms_of(stored)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{record} is not a record of benchmarks.evidence: {one_line(error)}") from error


def bases(arms: Mapping[str, Sequence[Contender]]) -> list[Contender]:
    """Return the networks whose variants are trained. Raises: UserError if none has attention."""
    front, pattern = arms[ARMS[0]], arms[ARMS[1]]
    chosen = [network for network in front if has_attention(network)]
    chosen += [network for network in pattern[len(pattern) // 2 :][:1] if has_attention(network)]
    if not chosen:
        raise UserError("no network of the front, nor of the pattern, has attention; nothing to take away")
    return chosen


def has_attention(contender: Contender) -> bool:
    return any(stage.window_size for stage in architecture_of(contender).stages)


def architecture_of(contender: Contender) -> Architecture:
    assert contender.architecture is not None
    return Architecture.from_dict(contender.architecture)


def variants(base: Contender) -> list[Contender]:
    """Return what differs in one choice of attention, each network once."""
    architecture = architecture_of(base)
    by_key = {architecture.key: base}
    for change, variant in changes(architecture, base.img_size):
        by_key.setdefault(variant.key, replace(base, name=change, architecture=variant.to_dict()))
    return list(by_key.values())[1:]


def changes(architecture: Architecture, img_size: int) -> Iterator[tuple[str, Architecture]]:
    """Yield each change and the network that has it."""
    stages = architecture.stages
    yield "no attention", replace(architecture, stages=tuple(replace(stage, window_size=0) for stage in stages))
    for number, stage in enumerate(stages):
        if not stage.window_size:
            continue
        side = img_size // (architecture.patch_size * 2**number)
        choices: dict[str, dict[str, Any]] = {"no attention": {"window_size": 0}, "plain attention": {"window_size": 1}}
        if stage.window_size == 1:
            choices["HiLo, windows of 2, half of the heads Lo-Fi"] = {"window_size": HILO_WINDOW, "alpha": HILO_ALPHA}
        else:
            choices |= {f"windows of {size}": {"window_size": size} for size in WINDOWS if size < side}
            choices |= {f"alpha {alpha:g}": {"alpha": alpha} for alpha in ALPHAS}
        for name, values in choices.items():
            changed = (*stages[:number], replace(stage, **values), *stages[number + 1 :])
            yield f"stage {number + 1}: {name}", replace(architecture, stages=changed)


def copy_trained(evidence: zipfile.Path, contenders: Sequence[Contender], num_seeds: int) -> None:
    """Take the trainings that the record of `benchmarks.evidence` has."""
    Path(TRAINED).mkdir(exist_ok=True)
    for name in (result_file(contender.key, seed) for contender in contenders for seed in range(num_seeds)):
        if (evidence / name).exists() and not Path(name).exists():
            write_bytes(Path(name), (evidence / name).read_bytes())


def show(console: Console, folder: Path | zipfile.Path, img_size: int) -> None:
    """Print each network with its variants, and how they differ from it."""
    arms, _ = read(folder)
    latencies = read_latencies(folder)
    for base_name, (base, *others) in arms.items():
        if not others:  # not trained yet
            continue
        table = Table("network", "latency, ms", f"at {img_size} pixels, ms", "test accuracy", "difference", title=base_name)
        larger = {each.key: latencies[f"{each.key.rpartition('@')[0]}@{img_size}"][DTYPE] for each in [base, *others]}
        for network in [base, *others]:
            table.add_row(
                "as it is" if network is base else network.name,
                times(network.latencies[DTYPE], base.latencies[DTYPE]),
                times(larger[network.key], larger[base.key]),
                f"{np.mean(network.accuracies):.4f}",
                "" if network is base else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*gain(network, base)).replace("[", r"\["),
            )
        console.print(table)
        console.print(f"seeds: {len(base.correct)}", highlight=False)


def times(latency: Latency, base: Latency) -> str:
    """A latency, and its ratio to another."""
    ratio = "" if latency is base else f" ({latency.latency_ms / base.latency_ms:.2f} times)"
    return f"{latency.latency_ms:.3f}{ratio}"


def gain(network: Measured, base: Measured) -> tuple[float, float, float]:
    """Difference of test accuracies, with the ends of its 95 % interval by a bootstrap over seeds and test images.

    With a single seed the interval is that of the test images alone, which both classify.
    """
    if len(network.correct) == 1:
        value, error = paired_difference(*(Accuracy.of(each.correct[0], seed=0, seconds=0.0) for each in (network, base)))
        return value, value - Z_95 * error, value + Z_95 * error
    rng, both = np.random.default_rng(0), {"network": network, "base": base}
    draws = [drawn["network"] - drawn["base"] for drawn in (resampled(both, rng) for _ in range(NUM_RESAMPLES))]
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.mean(network.accuracies) - np.mean(base.accuracies)), float(low), float(high)


if __name__ == "__main__":
    main()
