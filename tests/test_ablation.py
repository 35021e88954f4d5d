"""The variants that `benchmarks.ablation` trains, and what it shows of them."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from benchmarks.ablation import bases, gain, main, variants
from benchmarks.contenders import Contender, Results
from benchmarks.evidence_table import ARMS, DTYPE, LATENCIES_FILE, TRAINED, Measured, result_file
from models.architecture import Architecture, StageSpec
from search import UserError
from search.latency.base import Latency
from search.latency.estimate import Estimate

HILO = StageSpec(1, 2, 0.5, 4)
ATTENTION = Architecture(16, (StageSpec(1), StageSpec(1), HILO, StageSpec(1, 1, 1.0, 4)), patch_size=2, downsample="conv")
CONVOLUTIONS = replace(ATTENTION, stages=(StageSpec(1),) * 4)


def contender(architecture: Architecture, img_size: int = 64) -> Contender:
    return Contender("base", architecture.to_dict(), "", img_size)


def architectures(contenders: list[Contender]) -> list[Architecture]:
    return [Architecture.from_dict(each.architecture or {}) for each in contenders]


def latency(milliseconds: float) -> Latency:
    return Latency(Estimate(milliseconds, 0.01, 50.0), 20, 5, True, 1.0)


def test_variants_differ_in_attention_alone() -> None:
    changed = variants(contender(ATTENTION))
    assert len({each.key for each in changed}) == len({each.name for each in changed}) == len(changed)
    assert contender(ATTENTION).key not in {each.key for each in changed}
    for architecture in architectures(changed):
        without = replace(
            architecture, stages=tuple(replace(stage, window_size=0).canonical() for stage in architecture.stages)
        )
        assert without.key == CONVOLUTIONS.key


def test_variants_of_a_stage_leave_the_others_as_they_are() -> None:
    for each in variants(contender(ATTENTION)):
        if each.name.startswith("stage 3"):
            (architecture,) = architectures([each])
            assert architecture.stages[3] == ATTENTION.stages[3]
            changed = [
                field.name
                for field in fields(HILO)
                if getattr(architecture.stages[2], field.name) != getattr(HILO, field.name)
            ]
            assert changed in (["window_size"], ["alpha"])


def test_windows_are_smaller_than_their_map() -> None:
    names = [each.name for size in (32, 64) for each in variants(contender(ATTENTION, size)) if "windows of 4" in each.name]
    assert names == ["stage 3: windows of 4"]  # its map has 4 tokens a side at 32 pixels, 8 at 64


def test_networks_without_attention_have_no_variants() -> None:
    with_attention, without = contender(ATTENTION), contender(CONVOLUTIONS)
    arms = {ARMS[0]: [without, with_attention], ARMS[1]: [without, with_attention, without]}
    assert bases(arms) == [with_attention, with_attention]
    with pytest.raises(UserError, match="nothing to take away"):
        bases({ARMS[0]: [without], ARMS[1]: [without]})


def trained(accuracy: float, num_seeds: int, rng: np.random.Generator) -> Measured:
    return Measured("", "", {DTYPE: latency(1.0)}, rng.random((num_seeds, 4000)) < accuracy, accuracy)


def test_gain_is_the_difference_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    base, better = (trained(accuracy, 3, rng) for accuracy in (0.5, 0.6))
    value, low, high = gain(better, base)
    assert low < value < high
    assert low > 0.05
    assert value == pytest.approx(0.1, abs=0.03)
    assert gain(base, base)[0] == 0


def test_gain_of_a_single_seed_has_the_interval_of_its_images() -> None:
    rng = np.random.default_rng(0)
    base, better = (trained(accuracy, 1, rng) for accuracy in (0.5, 0.6))
    value, low, high = gain(better, base)
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * (0.49 / 4000) ** 0.5, rel=0.1)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of a network and its variants, all with two seeds."""
    folder, record = tmp_path / "folder", tmp_path / "record.zip"
    folder.mkdir()
    monkeypatch.chdir(folder)
    results = Results({}, record)
    base = contender(ATTENTION)
    networks = [base, *variants(base)]
    results.save_arms({base.name: networks}, [])
    keys = [replace(each, img_size=size).key for each in networks for size in (64, 224)]
    Path(LATENCIES_FILE).write_text(json.dumps({key: {DTYPE: latency(2.0).summary()} for key in keys}))
    Path(TRAINED).mkdir()
    for each in networks:
        for seed in range(2):
            np.savez_compressed(result_file(each.key, seed), correct=np.array([True, False]), validation=0.5)
    results.pack()
    return record


def test_record_is_shown(record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "argv", ["ablation", "evidence.zip", "--show", "--record", str(record)])
    main()
    printed = capsys.readouterr().out
    assert "as it is" in printed
    assert "stage 4: no attention" in printed
    assert "2.000 (1.00 times)" in printed


@pytest.mark.parametrize("content", ["no archive", None], ids=["broken", "missing"])
def test_file_that_is_no_record_is_named(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evidence.zip"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["ablation", str(file), "--folder", str(tmp_path / "folder")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"error: {file} is not a record of benchmarks.evidence" in capsys.readouterr().err


def test_record_of_another_benchmark_is_refused(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ZipFile(record) as archive:
        assert "options.json" in archive.namelist()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"record\.zip has results of other options; choose another --record"):
        Results({"img_size": 224}, record)
