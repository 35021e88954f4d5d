"""`python -m benchmarks.convergence benchmarks/tables/default.json.gz`: when do searches end, and what do they miss?

Simulated searches on a recorded table, as in benchmarks.peers, go on for `--trials` networks. It is noted where each would
have ended by `study.min_expected_gain`, and how good its front was there and at the end, by true values.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.peers import gains, our_search, positive, read_table, reference_ms
from search import UserError
from search.study.convergence import Convergence
from search.study.trial import TrialRecord

LIMITS = (0.005, 0.01, 0.02, 0.03, 0.05)  # of study.min_expected_gain


@dataclass(frozen=True)
class SearchTrace:
    """A search after each network.

    Attributes:
        shares: what the next networks were expected to add, as in `Outlook`; None before that was known.
        gains: of the true front, as in `Table.gain`.
        seconds: since the start.
    """

    shares: list[float | None]
    gains: list[float]
    seconds: list[float]

    def end(self, limit: float) -> int:
        """The number of networks after which it would have ended; all if it would not."""
        ends = (number for number, share in enumerate(self.shares, 1) if share is not None and share < limit)
        return next(ends, len(self.shares))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="file that benchmarks.record wrote")
    parser.add_argument("--trials", type=positive, default=150, help="networks of a search (default 150)")
    parser.add_argument("--seeds", type=positive, default=10, help="searches (default 10)")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        traces = [trace(options.table, seed, options.trials) for seed in range(options.seeds)]
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    show(traces, Console(width=140))


def trace(file: Path, seed: int, num_trials: int) -> SearchTrace:
    """Search a table. Raises: UserError if it cannot be read."""
    table = read_table(file)
    convergence, shares = Convergence([reference_ms(table)]), list[float | None]()

    def observe(trial: TrialRecord) -> None:
        convergence.observe(trial)
        outlook = convergence.outlook()
        shares.append(None if outlook is None else outlook.share)

    evaluated = our_search(table, seed, num_trials, observe)
    return SearchTrace(shares, gains(table, evaluated).tolist(), [network.seconds for network in evaluated])


def show(traces: Sequence[SearchTrace], console: Console) -> None:
    """Print where searches would have ended at each limit."""
    table = RichTable("study.min_expected_gain", "ends after", "gain there", "at the end", "largest loss", "of the time")
    for limit in LIMITS:
        ends = [each.end(limit) for each in traces]
        there = [each.gains[end - 1] for each, end in zip(traces, ends, strict=True)]
        last = [each.gains[-1] for each in traces]
        time_shares = [each.seconds[end - 1] / each.seconds[-1] for each, end in zip(traces, ends, strict=True)]
        table.add_row(
            f"{limit:g}",
            f"{statistics.median(ends):g} ({min(ends)} to {max(ends)})",
            f"{statistics.fmean(there):.3f}",
            f"{statistics.fmean(last):.3f}",
            f"{max(end - at for at, end in zip(there, last, strict=True)):+.3f}",
            f"{statistics.fmean(time_shares):.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
