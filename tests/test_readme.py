"""The README's commands are the project's commands, and the documents speak of the project alone."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from search.commands.cli import conf_dir
from search.commands.overrides import as_typed
from tests.search.commands.test_conf import compose
from tests.support.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))]


def shell_lines() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", "\n".join([README, *DOCS]), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for line in shell_lines() if line.startswith("make ") for word in line.split()[1:]}
    assert {"search", "test"} <= named <= targets


@pytest.mark.parametrize("line", [line for line in shell_lines() if "-m search." in line and "--help" not in line])
def test_search_commands_compose(line: str) -> None:
    words = shlex.split(line)
    module = words[words.index("-m") + 1]
    overrides = words[words.index(module) + 1 :]
    name = module.removeprefix("search.")
    assert compose(*as_typed(overrides), name="config" if name == "run" else name)


def settings() -> list[str]:
    """The settings in the table of options."""
    table = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    return [code for code in re.findall(r"`([^`]+)`", table) if "=" in code]


@pytest.mark.parametrize("code", settings())
def test_setting_of_the_table_composes(code: str) -> None:
    command, _, rest = code.rpartition(" ... ")
    needed = ["+latency@latency.devices.eager=cpu"] if "latency.devices.eager." in code else []
    assert compose(*needed, *as_typed(rest.split()), name=command.removeprefix("search.") or "config")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_page_is_finished_and_what_it_links_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in linked if not (page.parent / link).exists()] == []
    assert "TODO" not in text


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_code_map_names_what_exists() -> None:
    paths = re.findall(r"^\| `([\w./]+)`", ARCHITECTURE, re.MULTILINE)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_package_is_on_the_map() -> None:
    packages = {path.parent.name for path in (ROOT / "search").glob("*/__init__.py")}
    assert packages == set(re.findall(r"<b>(\w+)</b>", ARCHITECTURE)) - {"models"}


def test_the_way_of_a_trial_is_as_described() -> None:
    way = re.findall(r"^\d\. `(search[\w.]+)`", ARCHITECTURE.partition("## The way of one trial")[2], re.MULTILINE)
    assert len(way) == 7
    for name in way:
        parts = name.split(".")
        length = next(n for n in range(len(parts), 0, -1) if is_module(".".join(parts[:n])))
        value: object = import_module(".".join(parts[:length]))
        for attribute in parts[length:]:
            value = getattr(value, attribute)
        assert callable(value)


def is_module(name: str) -> bool:
    return (ROOT / (name.replace(".", "/") + ".py")).exists()


def test_short_enough_to_read() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-executorch.lock"])
def test_lock_file_pins_versions_and_names_no_address(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"[\w.-]+(\[[\w,-]+\])?==[^ ]+( ;.*)?$", line) for line in lines)


def test_conf_is_beside_the_package() -> None:
    assert conf_dir() == Path(ROOT / "conf")
