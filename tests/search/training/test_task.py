"""Trainings of one process, wherever they are started."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from models.architecture import Architecture
from models.litv2 import build
from search.training import sources
from search.training.data import ImageData
from search.training.recipe import Recipe
from search.training.task import ImageClassification, TrainSettings, fit, make_trainer

SETTINGS = TrainSettings(
    max_epochs=1, batch_size=32, lr=2e-3, weight_decay=0.05, warmup=0.2, label_smoothing=0.1, clip_norm=1.0,
    drop_path_rate=0.0, accelerator="cpu",
)  # fmt: skip
TASK_3_OF_4 = {
    "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "batch", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
    "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_NODELIST": "node1",
}  # fmt: skip


@pytest.fixture(params=["no --ntasks-per-node", "with it"])
def _in_a_slurm_job(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    variables = TASK_3_OF_4 | ({"SLURM_NTASKS_PER_NODE": "4"} if request.param == "with it" else {})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = getattr(rank_zero_only, "rank", None)
    rank_zero_only.rank = 2  # type: ignore[attr-defined]  # as Lightning sets it when it is imported there
    yield
    rank_zero_only.rank = before  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_in_a_slurm_job")
def test_training_of_one_process_ignores_the_tasks_of_a_slurm_job(tmp_path: Path, architecture: Architecture) -> None:
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 64, 100, 0, 2, False)
    task = ImageClassification(build(architecture, in_chans=1, num_classes=100), SETTINGS, 100)
    before = [parameter.clone() for parameter in task.parameters()]
    checkpoint = tmp_path / "epoch.ckpt"
    fit(task, data, lambda share: None, checkpoint)
    assert checkpoint.exists()
    assert not all(torch.equal(*pair) for pair in zip(before, task.parameters(), strict=True))
    trainer = make_trainer(SETTINGS)
    assert (trainer.world_size, trainer.global_rank, trainer.is_global_zero) == (1, 0, True)
    assert getattr(rank_zero_only, "rank", None) == 0


@pytest.mark.usefixtures("_in_a_slurm_job")
@pytest.mark.parametrize("devices", [1, "auto"])
def test_full_training_on_one_device_ignores_them_too(tmp_path: Path, devices: int | str) -> None:
    recipe = Recipe(None, 0.0, 0.0, 0.0, 1.0, 0.0, "32-true", devices, 0)
    trainer = make_trainer(SETTINGS, **recipe.trainer_options("cpu", tmp_path))
    assert (trainer.world_size, trainer.global_rank) == (1, 0)
