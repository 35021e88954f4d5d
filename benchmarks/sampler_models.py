"""`python -m benchmarks.sampler_models benchmarks/tables/default.json.gz`: how well do the sampler's models predict?

They are fitted to the known networks and to random ones of a recorded table (tables.py), and predict all the others: scores
and latencies as recorded, not as interpolated. "ridge" is ridge regression on the same inputs, "block model" a sum of costs
over blocks (search/latency/block_model.py). An error is the root mean square of an accuracy, or of a latency's logarithm;
beside it stands Kendall's tau. Networks of which a search recorded no latency, since they were probably dominated, are
neither learnt from nor predicted in the rows of latency.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Columns
from sklearn.linear_model import RidgeCV

from benchmarks.peers import positive
from benchmarks.tables import Network, Table, TableError
from search import UserError
from search.accuracy.base import Accuracy
from search.latency import block_model
from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.study.samplers.models import LEAST_MS, AccuracyModel, LatencyModel
from search.study.samplers.row import Features, Row, scales
from search.study.targets import FIRST
from search.study.trial import SAMPLED, TrialRecord, TrialResult

PRECISIONS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the weights of ridge regression, to choose from

Vector = NDArray[np.float64]
Predict = Callable[[Sequence[Row], Sequence[Row]], Vector]
"""Learns from rows, and predicts accuracies or logarithms of latencies of others."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[9, 16, 24, 40, 80, 120], help="networks to learn from")
    parser.add_argument("--repetitions", type=positive, default=8, help="other random networks each time")
    given = parser.parse_args(arguments)
    try:
        table = Table.read(given.table)
        columns = Columns("model", *(f"after {count}" for count in given.counts))
        for name, errors in compare(table, given.counts, given.repetitions).items():
            columns.add_row(name, *(f"{error:.4f}, {tau:.2f}" for error, tau in errors))
    except UserError as error:
        parser.error(str(error))
    Console(width=140).print(columns)


def compare(table: Table, counts: Sequence[int], repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """Error and tau of each model after so many networks, in the mean over repetitions.

    Raises:
        UserError: if that is too few networks, or more than were measured.
    """
    img_size = table.config["images"]["img_size"]
    rows = [row_of(table, number, network, img_size) for number, network in enumerate(table.networks)]
    measured = [row for row, network in zip(rows, table.networks, strict=True) if network.latency_ms is not None]
    if min(counts) < block_model.MIN_NETWORKS or max(counts) >= len(measured):
        raise UserError(f"--counts must be from {block_model.MIN_NETWORKS} to {len(measured) - 1}, which were measured")
    known = {table.space.architecture(parameters).key for parameters in table.space.baselines().values()}
    units = scales(table.space, lambda network: Features.of(network, img_size).inputs)

    def process_of_accuracy(first: Sequence[Row], others: Sequence[Row]) -> Vector:
        return AccuracyModel.fit(first, units).predict([row.features for row in others])

    def process_of_latency(first: Sequence[Row], others: Sequence[Row]) -> Vector:
        return np.log(LatencyModel.fit(first, units, FIRST).predict([row.features for row in others]))

    return {
        "accuracy: Gaussian process": errors_of(process_of_accuracy, rows, known, accuracies, counts, repetitions),
        "accuracy: ridge": errors_of(ridge, rows, known, accuracies, counts, repetitions),
        "latency: Gaussian process": errors_of(process_of_latency, measured, known, log_latencies, counts, repetitions),
        "latency: block model": errors_of(sum_of_costs, measured, known, log_latencies, counts, repetitions),
    }


def row_of(table: Table, number: int, network: Network, img_size: int) -> Row:
    """A recorded network, as a trial."""
    architecture = table.space.architecture(network.parameters)
    latencies = {}
    if network.latency_ms is not None:
        latencies[FIRST] = Latency(Estimate(network.latency_ms, 0.01, 100.0), 20, 6, True, network.measure_seconds)
    result = TrialResult(latencies, Accuracy(network.accuracy, 1000, 0, network.score_seconds), True)
    return Row.of(TrialRecord(number, architecture, result, *table.cost(architecture), SAMPLED), img_size)


def errors_of(
    predict: Predict,
    rows: Sequence[Row],
    known: set[str],
    values_of: Callable[[Sequence[Row]], Vector],
    counts: Sequence[int],
    repetitions: int,
) -> list[tuple[float, float]]:
    """Error and tau of a model for each count. known: keys of networks that a search begins with."""
    errors = []
    for count in counts:
        repeated = []
        for seed in range(repetitions):
            order = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
            order.sort(key=lambda row: row.trial.architecture.key not in known)
            first, others = order[:count], order[count:]
            error = TableError.of(predict(first, others), values_of(others))
            repeated.append((error.deviation, error.tau))
        deviation, tau = np.mean(repeated, axis=0)
        errors.append((float(deviation), float(tau)))
    return errors


def accuracies(rows: Sequence[Row]) -> Vector:
    return np.array([row.accuracy for row in rows])


def log_latencies(rows: Sequence[Row]) -> Vector:
    return np.log([row.latencies_ms[0] for row in rows])


def ridge(first: Sequence[Row], others: Sequence[Row]) -> Vector:
    known, new = (np.stack([row.features.inputs for row in rows]) for rows in (first, others))
    units = np.where(known.std(0) > 0, known.std(0), 1.0)
    model = RidgeCV(PRECISIONS).fit(known / units, accuracies(first))
    predicted: Vector = model.predict(new / units)
    return predicted


def sum_of_costs(first: Sequence[Row], others: Sequence[Row]) -> Vector:
    blocks, new = (np.stack([row.features.blocks for row in rows]) for rows in (first, others))
    costs = block_model.fit(blocks, np.exp(log_latencies(first)))
    return np.log(np.maximum(new @ costs, LEAST_MS))


if __name__ == "__main__":
    main()
