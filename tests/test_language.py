"""The vocabulary of the code is the field's: names of an earlier private vocabulary do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RETIRED = {
    "judge", "judged", "judgement", "underway", "work", "job", "lane", "lanes", "place", "places", "sites", "held",
    "budgeted", "patience", "patiently", "unheld", "said", "found", "one", "own", "made", "lab", "fidelity", "kept", "board",
    "insight", "quick",
}  # fmt: skip
RETIRED_CLASSES = {"Outcome", "Finished", "Step", "Work", "Job", "Lane", "Hold", "Judged", "Fidelity", "Board"}
PHRASES = [
    "mend that", "must bear it", "Never more are begun", "the median bears them", "Hears of", "what trains them is other",
    "} is no folder", "} is no rule", "repeat the command", "would rather have a layer in one piece",
]  # fmt: skip


def python_files() -> list[Path]:
    folders = ("models", "search", "benchmarks", "examples", "tests")
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")]


def names_in(file: Path) -> set[str]:
    """Every name that a file defines or assigns: variables, arguments, functions, classes, attributes of self."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return {name.strip("_") for name in names}


@pytest.mark.parametrize("file", python_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_retired_name(file: Path) -> None:
    assert names_in(file) & (RETIRED | RETIRED_CLASSES) == set()


def test_no_retired_key() -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "conf").rglob("*.yaml"))
    assert set(re.findall(r"^\s*(\w+):", text, re.MULTILINE)) & RETIRED == set()


def test_no_retired_phrase() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "conf").rglob("*.yaml"), *python_files()]
    texts = {page: " ".join(page.read_text(encoding="utf-8").split()) for page in pages if page != Path(__file__)}
    assert [(page.name, phrase) for page, text in texts.items() for phrase in PHRASES if phrase in text] == []
