"""The package works installed, outside its checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support.commands import LIMIT_SECONDS, ROOT, TINY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_configurations_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    in_checkout = {f"search/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    assert in_checkout == {name for name in names if name.endswith(".yaml")}
    templates = {f"search/results/templates/{file.name}" for file in (ROOT / "search/results/templates").iterdir()}
    assert templates == {name for name in names if name.endswith(".jinja")}
    assert {name.split("/")[0] for name in names} == {"models", "search", "hilo_nas-0.2.0.dist-info"}


def test_installed_package_composes_its_configuration_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    shown = subprocess.run(
        [sys.executable, "-m", "search.run", "+search=cpu_latency", "--cfg", "job"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    asked = yaml.safe_load((ROOT / "conf/search/cpu_latency.yaml").read_text(encoding="utf-8"))["study"]["n_trials"]
    assert f"n_trials: {asked}" in shown.stdout
    code = "from search.commands.cli import conf_dir; print(conf_dir())"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert where.stdout.strip() == str(target / "search" / "conf")


def test_console_script_works_beside_other_packages_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    """In a folder that has a `models` and a `search` of its own; worker processes import the installed ones too."""
    target, script, folder = tmp_path / "site", tmp_path / "bin" / "hilo-nas", tmp_path / "folder"
    zipfile.ZipFile(wheel).extractall(target)
    (entry_points,) = target.glob("*.dist-info/entry_points.txt")
    assert "hilo-nas = search.commands.cli:hilo_nas" in entry_points.read_text(encoding="utf-8")
    script.parent.mkdir()
    script.write_text(  # as installers write it
        "import sys\n\nfrom search.commands.cli import hilo_nas\n\nif __name__ == '__main__':\n    sys.exit(hilo_nas())\n",
        encoding="utf-8",
    )
    for name in ("models", "search"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('another {name}')\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), "run", "+search=cpu_latency", "study.n_trials=1", *TINY],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((folder / "outputs/default/pareto").glob("*.yaml"))
