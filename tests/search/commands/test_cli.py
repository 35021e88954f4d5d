"""Mistakes at the command line: one line that names the value and the remedy, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.commands import TINY, Command, call


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["study.ntrials=3"], "ntrials"),
        (["data=mnist3000"], "mnist3000"),
        (["+search=gpu_latency"], "gpu_latency"),
        (["latency.num_threads"], "latency.num_threads"),
        (["study.n_trials=0"], "study.n_trials=0 must be a whole number of at least 1"),
        (["study.n_trials=many"], "study.n_trials='many'"),
        (["study.timeout_minutes=-1"], "study.timeout_minutes=-1"),
        (["study.min_expected_gain=2"], "study.min_expected_gain=2"),
        (["latency.budget_ms=-2"], "latency.budget_ms=-2"),
        (["limits.num_params=0"], "limits.num_params=0 must be"),
        (["limits.num_macs=many"], "limits.num_macs='many'"),
        (["limits.file_mb={phone:3}"], "limits.file_mb.phone: there is no latency target of this name; known are first"),
        (["limits.peak_memory_mb={first:-1}"], "limits.peak_memory_mb.first=-1 must be"),
        (["limits.num_params=100"], "limits.num_params=100: no network of the space keeps it, the smallest has"),
        (["limits.num_macs=1e3"], "limits.num_macs=1000: no network of the space keeps it, the smallest has"),
        (["study.name=../escape"], "study.name=../escape"),
        (["space.embed_dim=[]"], "space.embed_dim is empty"),
        (["space.embed_dim=[9]"], "dim=9 is not divisible by num_heads=2"),
        (["space.stages.0.depth=[0]"], "stage 1: depth=0"),
        (["space.stages.2.window_size=[-3]"], "stage 3: window_size=-3"),
        (["space.stages.1.alpha=[1.5]"], "alpha=1.5"),
        (["space.stages=[]"], "space.stages has 0 entries"),
        (["deploy.img_size=8"], "deploy.img_size=8 is below 32"),
        (["train.lr=-1"], "train.lr=-1"),
        (["train.max_epochs=0"], "train.max_epochs=0"),
        (["train.class_weights=inverse"], "train.class_weights=inverse must be null or balanced"),
        (["accuracy.metric=top5"], "accuracy.metric=top5 must be one of top1, balanced, macro_f1, auroc"),
        (["train.optimizer=sgd"], "optimizer"),
        (["latency.num_threads=0"], "latency.num_threads=0"),
        (["data.val_size=0"], "data.val_size=0"),
        (["data=imagefolder", "data.source.path=/no/such"], "data.source.path=/no/such is not a folder"),
        (["data=parquet"], "data.source.path"),
        (["storage.url=nonsense"], "cannot be used"),
        (["storage.url=null"], "storage.url=None must be a database URL"),
        (["study.n_trials=null"], "study.n_trials=None"),
        (["study.n_trials=2.5"], "study.n_trials=2.5"),
        (["study.seed=-1"], "study.seed=-1"),
        (["study.name=null"], "study.name=None"),
        (["deploy.img_size=abc"], "deploy.img_size='abc'"),
        (["deploy.num_classes=-1"], "deploy.num_classes=-1"),
        (["latency.num_threads=1.5"], "latency.num_threads=1.5"),
        (["latency.num_threads=abc"], "latency.num_threads='abc'"),
        (["data.train_size=abc"], "data.train_size='abc'"),
        (["data.shift=-1"], "data.shift=-1"),
        (["space.stages.0.num_heads=0"], "num_heads=0"),
        (["proxy.width_multiplier=0"], "proxy.width_multiplier=0"),
        (["accuracy.num_threads=-1"], "accuracy.num_threads=-1"),
        (["train.accelerator=abacus"], "train.accelerator=abacus"),
        (["sampler.population=3"], "population"),
        (
            ["latency.buget_ms=4"],
            "latency.buget_ms: there is no such key with these choices; did you mean latency.budget_ms or",
        ),
        (
            ["latency.buget_ms=4", "studdy.name=x"],
            "latency.buget_ms: there is no such key with these choices; did you mean latency.budget_ms",
        ),
        (["dat=glyphs"], "dat: there is no such key with these choices; did you mean data?"),
        (["unlike=1"], "unlike: there is no such key with these choices; --help lists all"),
        (["engine.num_parallel=0"], "engine.num_parallel=0"),
        (["engine.num_parallel=2"], "needs accuracy.num_threads"),
        (
            ["engine.num_parallel=999", "accuracy.num_threads=1"],
            "engine.num_parallel=999 trainings of accuracy.num_threads=1",
        ),
        (["engine.max_retries=-1"], "engine.max_retries=-1"),
        (["engine=ray", "accuracy.num_threads=1", "engine.num_cpus=0"], "engine.num_cpus=0"),
        (
            ["latency.dtype=int8", "+latency@latency.devices.phone=onnxruntime"],
            "latency.dtype=int8, latency.devices.phone.dtype=float32: their accuracies do not compare; set int8",
        ),
        (["latency=cpu", "latency.dtype=int8"], "latency.dtype=int8 does not run with cpu; take float32, bfloat16"),
        (["latency.objectives=some"], "latency.objectives=some must be all or first"),
        (["+latency@latency.devices.first=onnxruntime"], "latency.devices.first: this is the name"),
        (
            ["+latency@latency.devices.phone=onnxruntime", "latency.objectives=first"],
            "latency.devices.phone.budget_ms=null: with latency.objectives=first",
        ),
        (["+latency@latency.devices.phone=onnxruntime", "latency.devices.phone.num_threads=0"], "latency.num_threads=0"),
        (["latency=ssh"], "latency.host"),
        (["latency=ssh", "latency.host='-oProxyCommand=ls'"], "latency.host=-oProxyCommand=ls must be a device"),
        (["storage=postgresql"], "storage.url"),
        (
            ["storage=postgresql", "storage.url=postgresql://me:secret@127.0.0.1:1/x"],
            "postgresql://***@127.0.0.1:1/x cannot",
        ),
        (["storage.retry_seconds=-1"], "storage.retry_seconds=-1"),
        (
            [
                "engine=ray",
                "engine.address=auto",
                "accuracy.num_threads=1",
                "storage.url=postgresql://me:secret@localhost/x",
            ],
            "storage.url contains a password",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = [item for item in TINY if item.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    code = call("run", [*tiny, *overrides])
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert error.startswith("error: ")
    assert code == 2


def test_corrected_command_goes_ahead_after_a_mistyped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", [*TINY, "study.n_trials=1", "train.lr=-1"]) == 2
    assert call("run", [*TINY, "study.n_trials=1"]) == 0
    assert "Front of 1 finished trials" in capsys.readouterr().out


def test_corrupt_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/bad").mkdir(parents=True)
    (tmp_path / "outputs/bad/study.db").write_bytes(b"garbage" * 1000)
    assert call("run", ["study.name=bad"]) == 2
    error = capsys.readouterr().err
    assert "outputs/bad/study.db cannot be used" in error
    assert (tmp_path / "outputs/bad/study.db").read_bytes() == b"garbage" * 1000


@pytest.mark.timeout(120)
def test_damaged_images_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    assert call("run", ["data=idx", f"data.source.path={tmp_path}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "train-images-idx3-ubyte.gz cannot be read (BadGzipFile" in error
    assert len(error.splitlines()) == 1
    assert "Traceback" in (tmp_path / "outputs/default/run.log").read_text(encoding="utf-8")


def test_progress_bars_of_libraries_are_for_terminals(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(20):
            folder = tmp_path / "images" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    images = ["data=imagefolder", "data.source.path=images", "data.val_size=4"]
    with Command(tmp_path, "search.run", *images, *[t for t in TINY if "data." not in t], "train.lr=-1") as command:
        output = command.wait()
    assert command.returncode == 2, output
    assert output.splitlines()[-1].startswith("error: train.lr=-1"), output
    assert [line for line in output.splitlines() if "%|" in line or "/s]" in line or "it/s" in line] == []


def test_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("a file in the way", encoding="utf-8")
    assert call("run", []) == 2
    assert "outputs/default cannot be written" in capsys.readouterr().err


def test_train_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", []) == 2
    assert "arch" in capsys.readouterr().err
    assert call("train", [f"arch={tmp_path / 'missing.yaml'}"]) == 2
    assert "missing.yaml cannot be read" in capsys.readouterr().err


def test_non_finite_loss_stops_a_search_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["train.lr=1e30", "train.clip_norm=0.0", "train.max_epochs=4", "study.max_consecutive_failures=2"]
    diverging = [*[t for t in TINY if "max_epochs" not in t], *overrides]
    assert call("run", [*diverging, "accuracy=scratch", "study.name=scratch"]) == 1
    error = capsys.readouterr().err.strip()
    assert "stopped after 2 failed trials in a row" in error
    assert "lower train.lr=1e+30" in error
    assert len(error.splitlines()) == 1
    assert call("run", [*diverging, "accuracy=supernet", "study.name=supernet"]) == 2
    error = capsys.readouterr().err.strip()
    assert "lower train.lr=1e+30" in error
    assert len(error.splitlines()) == 1


def test_help_explains_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", ["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("+search=cpu_latency", "glyphs", "cifar10", "imagefolder", "tpe", "budget_ms", "Resume"):
        assert word in text
