"""From a front to files that run elsewhere: every format computes what PyTorch does and is measured as it is."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load, load_file, save, save_file

from models.architecture import Architecture
from models.litv2 import LITv2, build
from search.accuracy.initial_weights import InitialWeights
from search.commands import export
from search.commands.cli import build as build_node
from search.latency.runtime import PARITY
from search.results import architecture_file
from search.results.deployment import BATCHES
from search.results.export import origin_of_share
from search.results.formats import FORMATS
from search.results.trained import network_with, trained_network
from search.study.locks import export_lock, training_lock
from search.training.data import ImageData
from search.training.files import TrainingResult
from search.training.glyphs import CHARACTERS
from search.training.metadata import read_metadata
from search.training.normalisation import Normalisation
from tests.support.commands import TINY, Command, call

EXPORT = ["study.name=first", "latency.max_seconds=0.3", "latency.calibration_seconds=0.3"]
OLDER = ["onnx.opset=18", "onnx.ir_version=9"]
DEPLOY = [*EXPORT, "pick=knee", "format=[yaml,safetensors,torch_export,onnx,onnx_float16,onnx_int8]", *OLDER]
WRITTEN = {name: kind for name, kind in FORMATS.items() if not kind.package}
INT8 = ["init=trained", "train.quantise=int8", "train.lr=1e-4"]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the deployed knee of a small study, after a short training."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("user"))
    assert call("run", ["+search=cpu_latency", "study.name=first", "study.n_trials=3", *TINY]) == 0
    assert call("export", [*EXPORT, "pick=knee"]) == 0
    for file in Path("outputs/first/pareto").glob("*.yaml"):
        assert call("train", [f"arch={file}", *TINY[:2], "train.max_epochs=1"]) == 0
        assert call("train", [f"arch={file}", *TINY[:2], "train.max_epochs=1", *INT8]) == 0
    assert call("export", DEPLOY) == 0
    (folder,) = Path("outputs/first/deploy").iterdir()
    yield folder
    os.chdir(before)


def test_command_knows_every_format() -> None:
    assert ("yaml", *FORMATS) == export.FORMATS


def test_every_file_computes_what_was_trained(deployed: Path) -> None:
    architecture, _ = architecture_file.read(deployed / "architecture.yaml")
    trained = Path("outputs/first/pareto") / f"{deployed.name}.safetensors"
    network = network_with(architecture, load_file(trained))
    fine_tuned = network_with(architecture, load_file(trained.with_suffix(".int8.safetensors")))
    for name, kind in WRITTEN.items():
        compute, is_int8 = kind.load(deployed / kind.file, 1), kind.dtype == "int8"
        for batch in (*BATCHES, 5):
            x = torch.rand(batch, 1, 32, 32)
            with torch.inference_mode():
                expected = (fine_tuned if is_int8 else network)(x)
            limit = 0.1 if is_int8 else PARITY[kind.dtype]
            torch.testing.assert_close(compute(x), expected, rtol=0, atol=limit * float(expected.abs().max()), msg=name)


def test_onnx_files_have_the_versions_that_were_asked_for(deployed: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx"):
        written = onnx.load(deployed / name)
        assert [entry.version for entry in written.opset_import if not entry.domain] == [18]
        assert written.ir_version == 9


def test_int8_files_are_smaller_and_have_their_own_accuracy(deployed: Path) -> None:
    files = json.loads((deployed / "card.json").read_text(encoding="utf-8"))["files"]
    card = (deployed / "README.md").read_text(encoding="utf-8")
    session = onnxruntime.InferenceSession(deployed / "model.int8.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    with Path("outputs/first/config.yaml").open(encoding="utf-8") as file:
        data = build_data(yaml.safe_load(file)["data"])
    test = data.test_dataloader().images
    images = Normalisation.from_dict(json.loads(metadata["normalisation"])).apply(test.images)
    is_right = session.run(None, {"x": images.numpy()})[0].argmax(1) == test.labels.numpy()
    assert files["onnx_int8"]["test_accuracy"] == pytest.approx(is_right.mean(), abs=1e-9)
    assert files["onnx_int8"]["test_images"] == len(test.labels)
    assert f"{is_right.mean():.4f}" in card
    whole, rounded = files["onnx"], files["onnx_int8"]
    assert rounded["bytes"] < whole["bytes"]  # after one epoch many layers are sensitive, and stay in float32
    assert rounded["test_accuracy"] == pytest.approx(whole["test_accuracy"], abs=0.1)
    assert rounded["weights"] == f"trained by search.train, {deployed.name}.int8.safetensors"
    assert f"`{rounded['file']}` computes its linear layers in 8-bit integers" in card


def test_float16_file_has_half_the_size_and_the_same_accuracy(deployed: Path) -> None:
    files = json.loads((deployed / "card.json").read_text(encoding="utf-8"))["files"]
    whole, half = files["onnx"], files["onnx_float16"]
    types = [
        tensor.data_type for tensor in onnx.load(deployed / "model.float16.onnx").graph.initializer if len(tensor.dims) > 1
    ]
    assert types.count(onnx.TensorProto.FLOAT16) > 0
    assert onnx.TensorProto.FLOAT not in types
    assert half["bytes"] < 0.7 * whole["bytes"]  # the graph itself is much of so small a file
    assert half["test_accuracy"] == pytest.approx(whole["test_accuracy"], abs=0.005)
    assert "`model.float16.onnx` has its weights in float16" in (deployed / "README.md").read_text(encoding="utf-8")


def export_elsewhere(folder: Path, formats: str) -> dict[str, Any]:
    """Export from a copy of the study, in a process of its own: OpenVINO and processes that load images do not get along.

    Returns:
        Facts of the card about each file.
    """
    shutil.copytree("outputs", folder / "outputs")
    with Command(folder, "search.export", *EXPORT, "pick=knee", f"format={formats}") as command:
        printed = command.wait(600)
    assert command.returncode == 0, printed
    (card,) = (folder / "outputs/first/deploy").glob("*/card.json")
    files: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))["files"]
    return files


@pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")
@pytest.mark.timeout(900)
def test_executorch_file_computes_what_was_trained(deployed: Path, tmp_path: Path) -> None:
    files = export_elsewhere(tmp_path, "[onnx,onnx_int8,executorch]")  # with int8 accuracies are computed
    assert files["executorch"]["test_accuracy"] == pytest.approx(files["onnx"]["test_accuracy"], abs=0.001)
    assert files["executorch"]["parity"] < PARITY["float32"]
    assert files["executorch"]["bytes"] == pytest.approx(files["onnx"]["bytes"], rel=0.2)
    card = (tmp_path / deployed / "README.md").read_text(encoding="utf-8")
    assert "any batch size, but one image at a time for `model.pte`" in card


@pytest.mark.slow
def test_openvino_files_compute_what_was_trained(deployed: Path, tmp_path: Path) -> None:
    files = export_elsewhere(tmp_path, "[openvino,openvino_float16,openvino_bfloat16,openvino_int8]")
    whole, half, rounded = (
        (tmp_path / deployed / name).stat().st_size for name in ("model.bin", "model.float16.bin", "model.int8.bin")
    )
    assert rounded < 0.9 * whole
    assert half < 0.6 * whole
    assert files["openvino_float16"]["test_accuracy"] == pytest.approx(files["openvino"]["test_accuracy"], abs=0.005)
    assert files["openvino_bfloat16"]["test_accuracy"] == pytest.approx(files["openvino"]["test_accuracy"], abs=0.02)
    assert files["openvino_int8"]["test_accuracy"] == pytest.approx(files["openvino"]["test_accuracy"], abs=0.1)
    card = (tmp_path / deployed / "README.md").read_text(encoding="utf-8")
    assert '`openvino.Core().compile_model(FILE, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})(images)`' in card
    assert "`model.bfloat16.xml` has its weights in float16" in card


def build_data(settings: dict[str, Any]) -> ImageData:
    data: ImageData = build_node(OmegaConf.create(settings))
    return data


def test_images_of_an_int8_export_are_found_elsewhere_or_named(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", [*EXPORT, "pick=knee", "format=onnx_int8", "data_path=elsewhere"]) == 2
    assert "data_path=elsewhere: the images of this study, noisy_glyphs, are in no folder" in capsys.readouterr().err
    config = Path("outputs/first/config.yaml")
    config.rename("config.yaml")
    code = call("export", [*EXPORT, "pick=knee", "format=onnx_int8"])
    Path("config.yaml").rename(config)
    assert code == 2
    assert f"{config}, which says what the images of the study are, cannot be read" in capsys.readouterr().err


def test_onnx_file_runs_without_this_project(deployed: Path) -> None:
    session = onnxruntime.InferenceSession(deployed / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"x": torch.rand(4, 1, 32, 32).numpy()})
    assert logits.shape == (4, 100)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(CHARACTERS)
    assert len(json.loads(metadata["normalisation"])["mean"]) == 1
    architecture, _ = architecture_file.read(deployed / "architecture.yaml")
    assert metadata["architecture"] == architecture.key
    trained = Path("outputs/first/pareto") / f"{deployed.name}.safetensors"
    assert read_metadata(deployed / "model.safetensors") == read_metadata(trained) == metadata


def test_search_can_start_from_a_deployed_file(deployed: Path) -> None:
    weights = InitialWeights.read(deployed / "model.safetensors")
    architecture, _ = architecture_file.read(deployed / "architecture.yaml")
    assert isinstance(weights.weights, LITv2)
    assert weights.weights.architecture.key == architecture.key
    trained = load_file(Path("outputs/first/pareto") / f"{deployed.name}.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights.weights.state_dict().items())
    assert weights.normalisation is not None


def test_card_has_what_was_measured(deployed: Path) -> None:
    facts = json.loads((deployed / "card.json").read_text(encoding="utf-8"))
    card = (deployed / "README.md").read_text(encoding="utf-8")
    assert set(facts["files"]) == set(WRITTEN)
    for name, file in facts["files"].items():
        assert file["parity"] <= PARITY[FORMATS[name].dtype]
        assert file["latency"]["repetitions"] > 1
        assert f"{file['latency']['latency_ms']:.3f}" in card
    assert "| stage | width | blocks | window | Lo-Fi heads | heads | MLP ratio |" in card
    assert "On " + facts["device"]["device"] in card
    assert f"{facts['trained']['test_accuracy']:.4f}" in card
    assert facts["trained"]["class_names"] == list(CHARACTERS)
    assert f"- Classes, in the order of the outputs: {', '.join(CHARACTERS[:20])}, and 80 more in `card.json`." in card
    assert "Apache-2.0" in card


def test_files_are_measured_again_against_their_card(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("measure", [f"deployed={deployed}", "trusted=true", *SHORT]) == 0
    printed = capsys.readouterr().out
    assert all(kind.file in printed for kind in WRITTEN.values())


SHORT = ["latency.max_seconds=0.3", "latency.calibration_seconds=0.3"]


class Touch:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def with_pickle(member: str, content: bytes) -> bytes:
    """An input of the example that torch.load refuses with weights_only=True, which torch.export.load then does without."""
    return pickle.dumps(Touch()) if "sample_inputs" in member else content


def with_guard(member: str, content: bytes) -> bytes:
    """No pickle at all: a condition on the inputs, which is Python."""
    if "/models/" not in member:
        return content
    program = json.loads(content)
    program["guards_code"] = ["__import__('pathlib').Path('executed').touch() or True"]
    return json.dumps(program).encode()


@pytest.mark.parametrize("tampered", [with_pickle, with_guard])
def test_file_that_runs_code_is_not_loaded(
    deployed: Path, tmp_path: Path, tampered: Callable[[str, bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "received"
    shutil.copytree(deployed, folder)
    with zipfile.ZipFile(deployed / "model.pt2") as before, zipfile.ZipFile(folder / "model.pt2", "w") as after:
        for member in before.namelist():
            after.writestr(member, tampered(member, before.read(member)))
    assert call("measure", [f"deployed={folder}", *SHORT]) == 0
    printed = capsys.readouterr()
    assert not Path("executed").exists()
    assert "model.pt2 is not loaded: PyTorch runs code that such a file contains; set trusted=true" in printed.out
    assert "model.onnx" in printed.out
    facts = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    facts["files"] = {"torch_export": facts["files"]["torch_export"]}
    (folder / "card.json").write_text(json.dumps(facts), encoding="utf-8")
    assert call("measure", [f"deployed={folder}", *SHORT]) == 2
    assert "or ask for format=[onnx]" in capsys.readouterr().err
    assert not Path("executed").exists()


def test_card_of_another_setting_is_refused(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("measure", [f"deployed={deployed}", "latency.batch_size=2"]) == 2
    assert "batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pick=elbow"], "pick=elbow is an invalid rule"),
        (["pick=latency<=0.001ms"], "the fastest network of the front takes"),
        (["format=tflite"], "format=tflite is unknown; choose from yaml, safetensors, torch_export, onnx"),
        (["format=onnx", "onnx.opset=17"], "opset=17 must be a whole number from 18 to 20"),
        (["format=onnx", "onnx.ir_version=11"], "ir_version=11 must be a whole number from 8 to 10"),
        (["study.name=missing"], "there is no outputs/missing here"),
        (["format=onnx", "latency=ssh", "latency.host=pi"], "latency=ssh: exported files run on this machine's CPU here"),
    ],
)
def test_mistakes_are_named(deployed: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", [*EXPORT, *overrides]) == 2
    assert message in capsys.readouterr().err


def test_weights_for_other_images_are_named(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("outputs/first/pareto") / f"{deployed.name}.safetensors"
    before = file.read_bytes()
    architecture, _ = architecture_file.read(deployed / "architecture.yaml")
    save_file(build(architecture, in_chans=3, num_classes=10).state_dict(), file)
    code = call("export", [*EXPORT, "pick=knee", "format=onnx"])
    file.write_bytes(before)
    assert code == 2
    assert "is for images of 3 channel(s), the study's have 1" in capsys.readouterr().err


def test_network_without_a_head_is_read(architecture: Architecture) -> None:
    state = build(architecture, in_chans=1, num_classes=0).state_dict()
    assert network_with(architecture, state).num_classes == 0


def test_file_of_format_1_is_deployed_for_its_images_and_classes(tmp_path: Path, architecture: Architecture) -> None:
    file = tmp_path / "old.yaml"
    body = {"format": 1, "architecture": architecture.to_dict(), "device": {"input_size": "1x32x32", "num_classes": 10}}
    file.write_text(yaml.safe_dump(body), encoding="utf-8")
    _, facts = architecture_file.read(file)
    trained = trained_network(file, architecture, facts)
    assert (trained.network.in_chans, trained.network.num_classes) == (1, 10)
    assert trained.metadata == {"architecture": architecture.key}
    assert trained.origin == "random, untrained"


def test_accuracy_of_other_weights_is_not_on_the_card(
    tmp_path: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a training that was killed between its weights and its result, where another one had left both."""
    file = tmp_path / "network.yaml"
    architecture_file.write(file, "", architecture, {})
    for number, epochs in ((1, 1), (2, 2)):
        with pytest.MonkeyPatch.context() as patch:
            if number == 2:
                patch.setattr(TrainingResult, "save", killed)
            assert call("train", [f"arch={file}", *TINY[:2], f"train.max_epochs={epochs}"]) == (0 if number == 1 else 130)
        trained = trained_network(file, *architecture_file.read(file))
        assert trained.result.get("max_epochs") == (1 if number == 1 else None)
    assert "network.result.json is of other weights: the card gets no accuracy of" in capsys.readouterr().out
    assert call("train", [f"arch={file}", *TINY[:2], "train.max_epochs=2"]) == 0
    assert trained_network(file, *architecture_file.read(file)).result["max_epochs"] == 2


def killed(*args: object) -> None:
    raise KeyboardInterrupt


def test_architecture_of_a_trained_network_stays(deployed: Path) -> None:
    pareto = Path("outputs/first/pareto")
    trained, stale, copied = pareto / "trial-00090.yaml", pareto / "trial-00091.yaml", pareto / "trial-00090-strong.yaml"
    for file in (trained, stale, copied):
        file.write_text("of an earlier front\n", encoding="utf-8")
    begun = pareto / "trial-00092.yaml"
    begun.write_text("of an earlier front\n", encoding="utf-8")
    of_training = [trained.with_suffix(".safetensors"), begun.with_suffix(".0123456789ab.ckpt")]
    shared = [file.with_suffix(".supernet.safetensors") for file in (trained, stale)]
    for file in (*of_training, *shared):
        file.touch()
    first_epoch = pareto / "trial-00093.yaml"
    first_epoch.write_text("of an earlier front\n", encoding="utf-8")
    with training_lock(first_epoch):
        assert call("export", EXPORT) == 0
    assert [file.exists() for file in (trained, begun, stale, copied, *shared)] == [True, True, False, True, True, False]
    assert first_epoch.exists()
    assert call("export", EXPORT) == 0
    assert not first_epoch.exists()
    for file in (trained, begun, copied, *of_training, shared[0]):
        file.unlink()


def test_second_export_waits_for_the_first(deployed: Path) -> None:
    first = threading.Event()

    def hold() -> None:
        with export_lock(Path("outputs/first")):
            first.set()
            time.sleep(1.0)
            first.clear()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        holding = pool.submit(hold)
        first.wait()
        assert call("export", EXPORT) == 0
        assert not first.is_set()
        holding.result()


def test_weights_of_an_unchanged_front_are_not_cut_again(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would need torch and what builds on it: four fifths of an export's time."""
    share = next(Path("outputs/first/pareto").glob("*.supernet.safetensors"))
    before = load(share.read_bytes())
    supernet, _ = origin_of_share(share)
    assert supernet is not None
    of_another = save(before, {"supernet": supernet, "architecture": "another trial of this number"})
    for damaged in (share.read_bytes()[:1000], of_another):
        share.write_bytes(damaged)
        assert call("export", EXPORT) == 0
        written = share.read_bytes()
        after = load(written)
        assert damaged != written
        assert all(torch.equal(before[name], after[name]) for name in before)
    opened = "search.accuracy.trained_supernet.TrainedSupernet.open"
    monkeypatch.setattr(opened, lambda path: pytest.fail("opened the supernet"))
    assert call("export", EXPORT) == 0
    assert share.read_bytes() == written


def test_folder_without_a_card_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("measure", [f"deployed={tmp_path}"]) == 2
    assert "has no card.json" in capsys.readouterr().err
