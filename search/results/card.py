"""The model card of deployable files, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.architecture import Architecture
from search.accuracy.base import Metric, metric_name
from search.results.templating import render
from search.space import dimensions
from search.space.dimensions import describe

FILE_HEADER = ("file", "MB", "ms", "95 % CI", "test accuracy", "max. difference from PyTorch's outputs", "use")
DEFAULTS = {"dtype": "float32", "num_threads": 1, "batch_size": 1}  # of latency, which measurements compare by


def card(
    source: Path, architecture: Architecture, facts: Mapping[str, Any], body: Mapping[str, Any], uses: Mapping[str, str]
) -> str:
    """Describe deployable files to people.

    Args:
        source: the exported architecture that they were made from.
        facts: about the network, from `source`.
        body: facts about the deployable files, as in card.json.
        uses: how to run each of them.
    """
    search_accuracy, trained = _search_accuracy(facts), body["trained"]
    return render(
        "card.md.jinja",
        description=describe(architecture),
        facts=facts,
        search_accuracy=search_accuracy,
        metric=metric_name((search_accuracy or {}).get("metric", Metric.TOP1)),
        trained_metric=metric_name(trained["metric"]) if trained.get("test_metric") else "",
        body=body,
        stage_header=stage_header(),
        stage_rows=stage_rows(architecture),
        file_header=FILE_HEADER,
        file_rows=_file_rows(body["files"], uses),
        int8_files=[file for file in body["files"].values() if "float32_layers" in file],
        float16_files=[file for name, file in body["files"].items() if name.endswith("_float16")],
        bfloat16_file=body["files"].get("openvino_bfloat16"),
        has_openvino=any(name.startswith("openvino") for name in body["files"]),
        source=source,
        settings=measured_with(body["device"]),
    )


def measured_with(device: Mapping[str, Any]) -> str:
    """The settings of a measurement that are not the default, as overrides."""
    return "".join(f" latency.{name}={device[name]}" for name, value in DEFAULTS.items() if device.get(name, value) != value)


def stage_header() -> list[str]:
    """Headings of `stage_rows`."""
    return ["stage", "width", *(dimension.column for dimension in dimensions.STAGE_DIMENSIONS if dimension.column)]


def stage_rows(architecture: Architecture) -> list[list[str]]:
    """A row for each stage: its number, its width, and its dimensions."""
    return [
        [
            str(number),
            str(dim),
            *(dimension.card_cell(stage) for dimension in dimensions.STAGE_DIMENSIONS if dimension.column),
        ]
        for number, (stage, dim) in enumerate(zip(architecture.stages, architecture.dims, strict=True), start=1)
    ]


def _search_accuracy(facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The search's accuracy, if the file has it with its error and its data."""
    accuracy = facts.get("accuracy")
    is_complete = isinstance(accuracy, dict) and {"validation", "standard_error", "data"} <= set(accuracy)
    return accuracy if is_complete else None


def _file_rows(files: Mapping[str, Any], uses: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for name, file in files.items():
        latency = file["latency"]
        interval = f"[{latency['low_ms']:.3f}, {latency['high_ms']:.3f}]"
        accuracy = f"{file['test_accuracy']:.4f}" if "test_accuracy" in file else "-"
        size, milliseconds = f"{file['bytes'] / 1e6:.2f}", f"{latency['latency_ms']:.3f}"
        cells = [size, milliseconds, interval, accuracy, f"{file['parity']:.0e}"]
        rows.append([f"`{file['file']}`", *cells, f"`{uses[name]}`"])
    return rows
