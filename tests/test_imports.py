"""Who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = {
    "search.commands.cli",
    "search.run",
    "search.export",
    "search.train",
    "search.commands.run",
    "search.commands.train",
}
ENTRY_POINTS |= {
    "search.measure",
    "search.commands.measure",
    "search.check",
    "search.commands.check",
    "search.confirm",
    "search.commands.confirm",
    "search.report",
    "search.dashboard",
    "search.commands.targets",
    "search.commands.standalone",
}
FORBIDDEN = {
    "models": {"search", "hydra", "omegaconf", "lightning", "optuna", "datasets"},
    "models.architecture": {"torch", "torchvision", "timm", "numpy"},
    "search.latency": {"optuna", "lightning", "search.accuracy", "search.study.coordinator", "search.study.evaluate"},
    "search.accuracy": {"optuna", "search.latency", "search.study.coordinator", "search.study.evaluate"},
    "search.study.pareto": {"torch", "optuna"},
    "search.space.space": {"torch", "optuna"},
    "search.study.evaluate": {"optuna", "torch", "lightning"},
    "search": {"ray"},
}


def modules() -> dict[str, set[str]]:
    """Module -> everything that it imports, anywhere in its text."""
    found = {}
    for file in [*ROOT.glob("models/**/*.py"), *ROOT.glob("search/**/*.py")]:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        imported = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[name] = imported
    return found


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_keeps_its_distance(package: str) -> None:
    broken = [
        f"{module} imports {name}"
        for module, names in modules().items()
        if below(module, package) and module != "search.engine.ray"
        for name in names
        if any(below(name, forbidden) for forbidden in FORBIDDEN[package])
    ]
    assert not broken


def test_only_entry_points_use_hydra() -> None:
    broken = [m for m, names in modules().items() if any(below(n, "hydra") or below(n, "omegaconf") for n in names)]
    assert set(broken) <= ENTRY_POINTS
