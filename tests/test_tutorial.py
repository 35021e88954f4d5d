"""Every command of the tutorial, run in its order in an empty folder, with less of everything."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT, TINY, call

pytestmark = pytest.mark.slow
TEXT = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
SIZES = [item for item in TINY if item.startswith("data.")]
QUICK = ["latency.max_seconds=0.3", "latency.calibration_seconds=0.3"]
LESS = {
    "run": [*TINY, "study.n_trials=4", "latency.budget_ms=1000"],
    "report": ["watch=null"],
    "export": QUICK,
    "train": [*SIZES, "train.max_epochs=1"],
    "measure": QUICK,
    "check": [
        *SIZES, "train.max_epochs=1", "check.long.max_epochs=1", "check.num_architectures=3", "check.effects_minutes=0",
    ],
}  # fmt: skip
TASKS = {"run": "run", "report": "report", "export": "export", "train": "train", "measure": "run", "check": "run"}


def commands() -> list[list[str]]:
    """The words of each `python -m search.NAME`, and of the search behind `make search`.

    All but search.dashboard, which never ends; tests/browser looks at it.
    """
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
    lines = blocks.replace("make search", "python -m search.run +search=cpu_latency").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python -m search.") and "search.dashboard" not in line]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder but for the images that the last section takes for the reader's own."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(300):
        file = tmp_path / "images/train" / f"kind{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    yield tmp_path
    os.chdir(ROOT)


def test_commands_lead_to_an_onnx_file(
    empty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", empty / "cache")
    picked = "trial-00023"  # as the text has it, until a command prints one
    for words in commands():
        name = words[2].removeprefix("search.")
        given = [word.replace("trial-00023", picked) for word in words[3:]]
        keys = {extra.split("=")[0] for extra in LESS[name]}
        arguments = [word for word in given if word.split("=")[0] not in keys] + LESS[name]
        task = getattr(import_module(f"search.{name}"), TASKS[name])
        assert call(task, "config" if name == "run" else name, arguments) == 0, words
        printed = capsys.readouterr().out
        if found := re.search(r"picked: .*(trial-\d+)\.yaml", printed):
            picked = found[1]
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(block.replace("trial-00023", picked), names)
    assert np.isfinite(np.asarray(names["logits"])).all()
