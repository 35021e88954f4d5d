"""`python -m search.measure deployed=FOLDER`: the files of an export, here beside their card, or on another device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search import BUGS, SearchStopped, UserError, one_line
from search.commands.cli import construct, target_of
from search.latency.base import Latency
from search.latency.target import PairedTarget
from search.results.deployment import check_runs_files, measure_again, measure_elsewhere, read_facts
from search.results.formats import FORMATS
from search.results.tables import latency_text


def measure_deployed(folder: Path, latency: DictConfig, trusted: bool, console: Console) -> None:
    """Measure the files of an export again, and compare them with their card; or on another device, with each other.

    Args:
        trusted: whether files may be loaded that can run code.

    Raises:
        UserError: if the folder has no card, or one of another device.
    """
    facts = read_facts(folder)
    in_chans, side, _ = facts["input_shape"]
    make_target = target_of(latency, img_size=side, in_chans=in_chans, num_classes=facts["device"]["num_classes"])
    target: PairedTarget = construct(make_target)
    if target.runtime.convert_file is not None:
        try:
            latencies = measure_elsewhere(folder, target)
        except (UserError, *BUGS):
            raise
        except Exception as error:  # whatever the device answers
            raise SearchStopped(f"{one_line(error)}; check the device, or export the files again") from error
        console.print(device_table(folder, latencies, target))
        return
    table = Table(title=f"{folder}: with the calibration of its card", title_justify="left")
    for header in ("file", "card, ms [95 % CI]", "now, ms [95 % CI]", "ratio [95 % CI]"):
        table.add_column(header, justify="left" if header == "file" else "right", no_wrap=True)
    check_runs_files(target)
    for name, (of_card, now) in measure_again(folder, target, trusted).items():
        texts = (escape(latency_text(latency)) for latency in (of_card, now))
        table.add_row(FORMATS[name].file, *texts, escape(str(now.estimate.over(of_card.estimate))))
    console.print(table)


def device_table(folder: Path, latencies: Mapping[str, Latency], target: PairedTarget) -> Table:
    """Files of an export on another device, and how fast each is there against the first."""
    device = target.fingerprint()
    table = Table(title=f"{folder} on {device['device']}, {target.settings.num_threads} thread(s)", title_justify="left")
    for header in ("file", "ms [95 % CI]", "ratio [95 % CI]", "difference from here"):
        table.add_column(header, justify="left" if header == "file" else "right", no_wrap=True)
    first = next(iter(latencies.values()))
    for name, latency in latencies.items():
        ratio = escape(str(latency.estimate.over(first.estimate)))
        table.add_row(FORMATS[name].file, escape(latency_text(latency)), ratio, f"{latency.parity:.0e}")
    return table
