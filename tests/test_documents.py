"""Every command of the documents, run in its order, with less of everything: the tutorial's from an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.detection import main as detect
from models.litv2 import LITv2
from tests.support.commands import ROOT, TINY, call

pytestmark = pytest.mark.slow
SIZES = [item for item in TINY if item.startswith("data.")]
QUICK = ["latency.max_seconds=0.3", "latency.calibration_seconds=0.3"]
LESS = {
    "run": [*TINY, "study.n_trials=4", "latency.budget_ms=1000"],
    "report": ["watch=null"],
    "export": QUICK,
    "train": [*SIZES, "train.max_epochs=1"],
    "measure": QUICK,
    "confirm": [*TINY, "study.n_trials=4", "latency.budget_ms=1000", "confirm.num_seeds=1", "confirm.train.max_epochs=1"],
    "check": [
        *SIZES, "train.max_epochs=1", "check.long.max_epochs=1", "check.num_architectures=3", "check.effects_minutes=0",
    ],
}  # fmt: skip
OF_PHOTOS = ["data.img_size=32", "space.embed_dim=[16]"]
OF_IMAGENET = ["data.img_size=64", "train.batch_size=8", "recipe.augmentation.num_workers=0"]


def commands(text: str) -> list[list[str]]:
    """The words of each `python -m`, and of the search behind `make search`.

    All but search.dashboard, which never ends; tests/browser looks at it.
    """
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    lines = blocks.replace("make search", "python -m search.run +search=cpu_latency").splitlines()
    lines_of_words = [shlex.split(line, comments=True) for line in lines]
    return [words for words in lines_of_words if words[:2] == ["python", "-m"] and words[2] != "search.dashboard"]


def run(words: list[str]) -> None:
    """One command, with less of everything."""
    if words[2] == "examples.detection":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*words[2:], "--steps", "2"])
            detect()
        return
    name = words[2].removeprefix("search.")
    less = LESS[name] + (OF_IMAGENET if "recipe=imagenet" in words else [])
    if "+search=photos" in words:
        less = [extra for extra in less if not extra.startswith("space.")] + OF_PHOTOS
    keys = {extra.split("=")[0] for extra in less}
    arguments = [word for word in words[3:] if word.split("=")[0] not in keys] + less
    expected = (0, 3, 4) if name == "check" else (0,)  # with so little of everything a check may have any answer
    assert call(name, arguments) in expected, words


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder but for the images that the documents take for the reader's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    for number in range(300):
        for split in ("train", "test") if number < 30 else ("train",):
            file = tmp_path / "images" / split / f"kind{number % 3}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    yield tmp_path
    os.chdir(ROOT)


@pytest.mark.parametrize("page", ["tutorial", "photos"])
def test_page_leads_to_an_onnx_file(page: str, empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    torch.save(LITv2().state_dict(), "litv2_s.pth")
    picked = "trial-00023"  # as the text has it, until a command prints one
    for words in commands(text):
        run([word.replace("trial-00023", picked).replace("=FOLDER", "=images") for word in words])
        printed = capsys.readouterr().out
        if match := re.search(r"picked.*: .*(trial-\d+)\.yaml", printed):
            picked = match[1]
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(block.replace("trial-00023", picked).replace("photo.jpg", "images/train/kind0/0.png"), names)
    assert np.isfinite(np.asarray(names["logits"])).all()


def test_commands_for_one_machine_run(empty: Path) -> None:
    """The commands of the page on scaling; those that need another machine are in the tests of ssh, Ray and PostgreSQL."""
    text = (ROOT / "docs/scaling.md").read_text(encoding="utf-8").replace("\\\n", " ")
    elsewhere = ("latency=ssh", "engine=ray", "storage=postgresql", "postgresql://")
    here = [words for words in commands(text) if not any(word.startswith(elsewhere) for word in words[3:])]
    here = [words for words in here if "storage.url" not in " ".join(words)]
    assert len(here) == 4
    for words in here:
        budgets = [word for word in words if word.endswith("budget_ms=5")]
        run([word if word not in budgets else word.replace("=5", "=1000") for word in words])


def test_int8_page_leads_to_int8_files(empty: Path) -> None:
    search, *others = commands((ROOT / "docs/int8.md").read_text(encoding="utf-8"))
    run(search)
    member = sorted(Path("outputs/int8/pareto").glob("trial-*.yaml"))[0].stem
    for words in others:
        run([word.replace("trial-00023", member) for word in words])
    assert list(Path("outputs/int8/deploy").glob("*/model.int8.onnx"))
    assert Path(f"outputs/int8/pareto/{member}.int8.safetensors").exists()


@pytest.mark.parametrize("page", ["accuracy", "extending", "images", "latency", "training"])
def test_commands_of_a_page_run(empty: Path, page: str) -> None:
    run(["python", "-m", "search.run", "+search=cpu_latency"])
    member = sorted(Path("outputs/default/pareto").glob("trial-*.yaml"))[0].stem
    (supernet,) = (folder.name for folder in Path("outputs/.supernets").iterdir())
    torch.save(LITv2().state_dict(), "litv2_s.pth")
    for words in commands((ROOT / f"docs/{page}.md").read_text(encoding="utf-8")):
        here = [word.replace("=FOLDER", "=images").replace("data=cifar10", "data=digits") for word in words]
        here = [word.replace("0123456789abcdef", supernet) for word in here]
        run([re.sub(r"trial-\d+", member, word) for word in here])
