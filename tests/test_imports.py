"""Who may import whom, read from the syntax trees; no file is exempt."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = {"run", "check", "confirm", "measure", "export", "train", "report", "dashboard"}
PACKAGES = {"commands", "space", "study", "latency", "accuracy", "training", "engine", "results"}
LAYERS = [
    {"models", "search.files"},
    {"search.space"},
    {"search.latency", "search.training"},
    {"search.accuracy"},
    {"search.engine"},
    {"search.study"},
    {"search.results"},
    {"search.commands"},
    {f"search.{name}" for name in ENTRY_POINTS},
]
"""From the lowest; each imports from lower ones only."""
FORBIDDEN = {
    "models": {"search", "hydra", "omegaconf", "lightning", "optuna", "datasets"},
    "models.architecture": {"torch", "torchvision", "timm", "numpy"},
    "search.space": {"torch", "optuna"},
    "search.latency": {"optuna", "lightning"},
    "search.accuracy": {"optuna", "search.latency"},
    "search.training": {"optuna", "search.latency"},
    "search.study.pareto": {"torch", "optuna"},
    "search.study.evaluate": {"torch", "optuna", "lightning"},
}


def modules() -> dict[str, set[str]]:
    """Module -> every module and name that it imports, anywhere in its text."""
    imports = {}
    for file in [*ROOT.glob("models/**/*.py"), *ROOT.glob("search/**/*.py")]:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        imported = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        imports[name] = imported
    return imports


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(module: str) -> int | None:
    """None for what is not of this project, and for `search` itself: its two errors are for everyone."""
    return next((index for index, layer in enumerate(LAYERS) if any(is_below(module, package) for package in layer)), None)


def test_search_holds_entry_points_packages_and_how_files_are_written() -> None:
    paths = [path for path in (ROOT / "search").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    names = {path.stem for path in paths if path.stem != "__init__"}
    assert names == ENTRY_POINTS | PACKAGES | {"files"}


def test_imports_go_downwards() -> None:
    broken = [
        f"{module} imports {name}"
        for module, names in modules().items()
        for name in names
        if (level := layer_of(module)) is not None and (other := layer_of(name)) is not None
        if other > level
        or (other == level and not any(is_below(module, package) and is_below(name, package) for package in LAYERS[level]))
    ]
    assert not broken


def test_imports_form_no_cycle() -> None:
    imports = modules()
    graph = {
        module: {
            name for name in names if name in imports and not is_below(module, name)
        }  # packages come before their parts
        for module, names in imports.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_keeps_its_distance(package: str) -> None:
    broken = [
        f"{module} imports {name}"
        for module, names in modules().items()
        if is_below(module, package)
        for name in names
        if any(is_below(name, forbidden) for forbidden in FORBIDDEN[package])
    ]
    assert not broken


def test_only_commands_use_hydra() -> None:
    users = {m for m, names in modules().items() if any(is_below(n, "hydra") or is_below(n, "omegaconf") for n in names)}
    assert users
    assert all(is_below(module, "search.commands") for module in users)


def test_only_the_ray_engine_uses_ray() -> None:
    assert {module for module, names in modules().items() if any(is_below(n, "ray") for n in names)} == {"search.engine.ray"}


def test_modules_are_short_or_say_why() -> None:
    long = [
        str(file.relative_to(ROOT))
        for file in [*ROOT.glob("models/**/*.py"), *ROOT.glob("search/**/*.py")]
        if len(file.read_text(encoding="utf-8").splitlines()) > 350
        and "Longer than other modules" not in "".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:20])
    ]
    assert not long
