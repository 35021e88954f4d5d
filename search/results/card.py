"""A model card in Markdown: what lies beside deployable files, for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.architecture import Architecture
from search.space.dimensions import describe


def card(
    file: Path, architecture: Architecture, facts: Mapping[str, Any], body: Mapping[str, Any], uses: Mapping[str, str]
) -> str:
    """file, facts: the exported architecture's. body: what was measured of the files beside it. uses: how to run each."""
    device, files = body["device"], body["files"]
    macs = f"{facts.get('multiply_accumulates', 0) / 1e6:,.1f} M multiply-accumulates"
    channels, height, width = body["input_shape"]
    lines = [
        f"# LITv2 {describe(architecture)}",
        "",
        "A vision transformer with HiLo attention (arXiv 2205.13213), found by a search for accuracy and measured latency.",
        "",
        f"- Weights: {body['weights']}.",
        *accuracies(facts.get("accuracy", {}), body["trained"]),
        f"- {facts.get('parameters', 0):,} parameters, {macs}.",
        f"- Input: (batch, {channels}, {height}, {width}) float32, any batch. Output: logits. {normalised(body['trained'])}",
        "- Licence: the code is Apache-2.0; weights are also subject to the terms of the data that they were trained on.",
        "",
        *stages(architecture),
        "",
        "## Latency",
        "",
        f"On {device['device']}, {device['num_threads']} thread(s), batch {device['batch_size']}: median of runs paired",
        f"with an anchor network of {body['calibration']['anchor_ms']:.3f} ms; 95 % interval of another such measurement.",
        "",
        *latencies(files, uses),
        "",
        "Measure again, with the folder of this file: `python -m search.measure deployed=FOLDER`. Written by",
        f"`python -m search.export study.name={facts.get('study', 'NAME')} format=[{','.join(files)}]` from `{file}`.",
    ]
    return "\n".join(lines) + "\n"


def normalised(trained: Mapping[str, Any]) -> str:
    """What to do to pixels before the network sees them."""
    if "normalisation" not in trained:
        return "Normalise pixels as in training."
    mean, std = (", ".join(f"{value:.4f}" for value in trained["normalisation"][key]) for key in ("mean", "std"))
    return f"Divide pixels by 255, subtract the mean ({mean}), divide by the standard deviation ({std})."


def accuracies(searched: Mapping[str, Any], trained: Mapping[str, Any]) -> list[str]:
    """What the search said, and what training gave."""
    lines = []
    if {"validation", "standard_error", "data"} <= set(searched):
        said = f"{searched['validation']:.4f} ± {searched['standard_error']:.4f}"
        lines.append(f"- Score in the search: {said} on {searched['data']}; it ranks networks.")
    if trained:
        how = f"{trained['train_size']:,} images, {trained['max_epochs']} epochs, seed {trained['seed']}"
        lines.append(f"- Trained on {trained['data']} ({how}): test accuracy {trained['test_accuracy']:.4f}.")
    return lines


def stages(architecture: Architecture) -> list[str]:
    rows = ["| stage | blocks | width | window | Hi-Fi heads | Lo-Fi heads | MLP ratio |", "|---|---|---|---|---|---|---|"]
    for number, (stage, dim) in enumerate(zip(architecture.stages, architecture.dims, strict=True), start=1):
        hi_heads = stage.num_heads - stage.lo_heads if stage.window_size else 0
        cells = (number, stage.depth, dim, stage.window_size, hi_heads, stage.lo_heads, f"{stage.mlp_ratio:g}")
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def latencies(files: Mapping[str, Any], uses: Mapping[str, str]) -> list[str]:
    rows = ["| file | ms | interval | outputs differ from PyTorch's by | use |", "|---|---|---|---|---|"]
    for name, one in files.items():
        found = one["latency"]
        interval = f"[{found['low_ms']:.3f}, {found['high_ms']:.3f}]"
        cells = (f"`{one['file']}`", f"{found['latency_ms']:.3f}", interval, f"{one['parity']:.0e}", f"`{uses[name]}`")
        rows.append(f"| {' | '.join(cells)} |")
    return rows
