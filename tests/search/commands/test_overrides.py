"""Names and paths on the command line are taken as typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from search.commands.cli import conf_dir
from search.commands.overrides import LISTS, NAMES, PATHS, as_typed
from tests.support.commands import call


def composed(command: str, *overrides: str) -> Any:
    """The configuration that a command gets for these words of a shell."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config" if command == "run" else command, as_typed(overrides))


@pytest.mark.parametrize(
    "name",
    ["2024_05_01", "1.10", "1_0", "1e3", "0x10", "007", "true", "no", "nan", "-1", "Prüfung", "a-b.c"],
)
def test_name_is_taken_as_typed(name: str) -> None:
    cfg = composed("run", f"study.name={name}")
    assert cfg.study.name == name
    assert cfg.storage.url == f"sqlite:///outputs/{name}/study.db"


@pytest.mark.parametrize(
    "path",
    [
        "/data/a=b", "/daten/Prüfung", "/data/a (copy)", "[old]/x", "a,b", "/data/{x}", "/data/x: y", "it's", 'the "new"',
        "back\\slash\\", "'", "2024_05_01", "true", "1e3", "a b", " a", "(a)", "$HOME", "a#b", "!x", "@x", "&|;<>*?%",
    ],
)  # fmt: skip
def test_path_is_taken_as_typed(path: str) -> None:
    assert composed("run", "data=imagefolder", f"data.source.path={path}").data.source.path == path
    assert composed("train", f"arch={path}.yaml", f"init={path}").arch == f"{path}.yaml"
    assert composed("measure", f"deployed={path}", f"output={path}").output == path


def test_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert composed("run", "data=idx", "data.source.path=~/a,b").data.source.path == "/home/me/a,b"
    assert composed("train", "arch=~/a.yaml").arch == "/home/me/a.yaml"
    assert composed("train", "arch=~nobody-of-this-name/a.yaml").arch == "~nobody-of-this-name/a.yaml"
    assert composed("run", "latency=ssh", "latency.host=pi", "latency.python=~/x").latency.python == "~/x", "the device's"


def test_quotes_null_and_references_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert composed("run", "study.name='1.10'").study.name == "1.10"
    assert composed("run", 'study.name="1.10"').study.name == "1.10"
    assert composed("measure", "arch=null").arch is None
    monkeypatch.setenv("IMAGES", "/images")
    assert composed("run", "data=idx", "data.source.path=${oc.env:IMAGES}/a").data.source.path == "/images/a"
    assert composed("run", "study.n_trials=3").study.n_trials == 3


def test_several_files_are_a_list() -> None:
    cfg = composed("measure", "arch=[a=b.yaml, 1_0.yaml]", "model=[litv2_s,resnet50]")
    assert list(cfg.arch) == ["a=b.yaml", "1_0.yaml"]
    assert list(cfg.model) == ["litv2_s", "resnet50"]


def test_devices_of_any_name_have_names_and_paths() -> None:
    overrides = ["+latency@latency.devices.phone=ssh", "latency.devices.phone.host=1_0", "latency.devices.phone.port=22"]
    phone = composed("run", *overrides, "latency.devices.phone.identity_file=a,b").latency.devices.phone
    assert (phone.host, phone.identity_file, phone.port) == ("1_0", "a,b", 22)


def test_rule_of_a_pick_needs_no_quotes() -> None:
    assert composed("export", "pick=latency.phone<=5ms").pick == "latency.phone<=5ms"


def test_sweep_takes_values_between_commas_as_typed() -> None:
    assert as_typed(["-m", "study.name=1_0,1.10"]) == ["-m", "study.name='1_0','1.10'"]
    assert as_typed(["-m", "study.name=choice(a,b)", "arch=[a,b],[c]"]) == ["-m", "study.name=choice(a,b)", "arch=[a,b],[c]"]


def test_every_text_of_the_configuration_that_names_something_is_listed() -> None:
    """A new key that ends like those listed is a name or a path, too."""
    endings = {key.rpartition(".")[2] for key in (*NAMES, *PATHS)}
    keys = set()
    for file in conf_dir().rglob("*.yaml"):
        group = "teacher" if file.stem == "teacher" else file.parent.relative_to(conf_dir()).as_posix().strip(".")
        if group not in ("hydra", "search"):
            keys |= {f"{group}.{key}".strip(".") for key in flat(OmegaConf.to_container(OmegaConf.load(file)))}
    assert {key for key in keys if key.rpartition(".")[2] in endings} - {*NAMES, *PATHS} == set()
    assert {*LISTS} <= {*NAMES, *PATHS}


def flat(node: Any, path: str = "") -> list[str]:
    """The dotted keys of plain data."""
    if not isinstance(node, dict):
        return [path]
    return [key for name, value in node.items() for key in flat(value, f"{path}.{name}".strip("."))]


def test_command_takes_a_file_with_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a=b, [ü] (1).yaml"
    assert call("train", [f"arch={file}"]) == 2
    assert f"arch={file} cannot be read (No such file or directory)" in capsys.readouterr().err


def test_name_that_a_file_gives_as_a_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "mine.yaml").write_text("# @package _global_\nstudy: {name: 2024_05_01}\n", encoding="utf-8")
    assert call("run", ["--config-dir", str(tmp_path), "+search=mine"]) == 2
    assert "study.name=20240501 is not text; write it in quotes in the YAML file" in capsys.readouterr().err
