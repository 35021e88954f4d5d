"""A dimension is declared once: everything else follows from the declaration, for a toy dimension too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.architecture import Architecture, StageSpec
from search import UserError
from search.latency import block_model
from search.results.card import stage_header, stage_rows
from search.results.picture import picture
from search.space import Space, dimensions
from search.space.dimensions import NETWORK_DIMENSIONS, STAGE_DIMENSIONS, Dimension, accuracy_inputs, describe
from search.study.samplers.surrogate import SurrogateSampler
from tests.support.known_engine import SPACE, run, sampler

SETTINGS: dict[str, Any] = {"img_size": 32, "n_startup_trials": 10, "population_size": 6, "num_children": 8, "mutation": 0.2}


@dataclass(frozen=True)
class ToyStage(StageSpec):
    """What the model itself needs: a field, its canonical form, and its part of the key."""

    toy: int = 0

    def canonical(self) -> StageSpec:
        return ToyStage(**{**asdict(super().canonical()), "toy": self.toy})

    def key(self, dim: int) -> str:
        return super().key(dim) + (f"t{self.toy}" if self.toy else "")


TOY: Dimension[Any] = Dimension(
    "toy",
    kind=int,
    default=0,
    costs=lambda stage, dim, side: {"toys": float(getattr(stage, "toy", 0))},
    column="toys",
)


@pytest.fixture
def toy_space(monkeypatch: pytest.MonkeyPatch) -> Space:
    """A space with a further dimension of each stage, which is declared here and nowhere else."""
    monkeypatch.setattr("models.architecture.StageSpec", ToyStage)
    monkeypatch.setattr("search.space.space.StageSpec", ToyStage)
    monkeypatch.setattr("search.space.choices.StageSpec", ToyStage)
    monkeypatch.setattr(dimensions, "STAGE_DIMENSIONS", (*STAGE_DIMENSIONS, TOY))
    stage = {"depth": [1, 2], "window_size": [0, 2], "alpha": 0.5, "num_heads": 2, "toy": [0, 1, 2]}
    return Space(embed_dim=[8, 16], stages=[stage] * 4, patch_size=2, downsample="conv")


def test_a_new_dimension_is_asked_and_counted(toy_space: Space) -> None:
    assert toy_space.num_architectures() == 2 * (2 * 2 * 3) ** 4
    assert toy_space.searched_dimensions()["stage3.toy"] == (0, 1, 2)
    drawn = [toy_space.sample([number]) for number in range(60)]
    assert {stage.toy for architecture in drawn for stage in architecture.stages} == {0, 1, 2}  # type: ignore[attr-defined]
    low, high = toy_space.pair("stage2.toy", [3])
    assert low != high
    assert replace(low, stages=high.stages) == high
    least, most = (toy_space.architecture(toy_space.baselines()[name]) for name in ("smallest", "largest"))
    assert [stage.toy for stage in (*least.stages, *most.stages)] == [0] * 4 + [2] * 4  # type: ignore[attr-defined]


def test_a_new_dimension_enters_both_models(toy_space: Space) -> None:
    low, high = toy_space.pair("stage2.toy", [3])
    difference = block_model.features(high, 32) - block_model.features(low, 32)
    column = block_model.columns().index("toys")
    assert difference[column] == 2 * high.stages[1].depth
    assert np.count_nonzero(difference) == 1
    assert len(accuracy_inputs(high)) == len(accuracy_inputs(low))
    assert sum(accuracy_inputs(high)) - sum(accuracy_inputs(low)) == 2


def test_a_new_dimension_is_shown(toy_space: Space) -> None:
    low, high = toy_space.pair("stage2.toy", [3])
    assert "toy=2" in describe(high)
    assert describe(high).count("toy=") == describe(low).count("toy=") + 1
    assert "toy=2" in picture(high, 32)
    assert stage_header()[-1] == "toys"
    assert stage_rows(high)[1][-1] == "2"
    assert Architecture.from_dict(high.to_dict()).key == high.key


def test_a_new_dimension_is_searched(toy_space: Space, tmp_path: Path) -> None:
    make = sampler(SurrogateSampler, space=toy_space, **SETTINGS)
    trials = run(f"sqlite:///{tmp_path / 'study.db'}", 16, space=toy_space, make_sampler=make)
    assert len({trial.architecture.key for trial in trials}) == 16
    assert all("stage1.toy" in trial.parameters for trial in trials)


def test_declarations_are_complete() -> None:
    stage = SPACE.anchor().stages[0]
    for dimension in STAGE_DIMENSIONS:
        assert dimension.value(stage) == getattr(stage, dimension.name)
        assert dimension.column is not None
        assert dimension.card_cell(stage)
        assert all(np.isfinite(dimension.inputs(stage)))
        assert dimension.depends_on is None or dimension.depends_on in {other.name for other in STAGE_DIMENSIONS}
    assert {dimension.name for dimension in STAGE_DIMENSIONS} == set(asdict(stage))
    of_network = {dimension.name for dimension in NETWORK_DIMENSIONS}
    assert of_network | {"stages", "patch_size", "downsample"} == set(asdict(SPACE.anchor()))


def test_image_size_is_described_and_drawn() -> None:
    network = SPACE.anchor()
    small, large = (replace(network, img_size=size) for size in (32, 64))
    assert describe(network).startswith("16: ")
    assert describe(small) == describe(network).replace("16: ", "16 at 32 pixels: ", 1)
    assert picture(small, 64) == picture(network, 32) != picture(large, 32)
    assert len(accuracy_inputs(small)) == len(accuracy_inputs(large)) > len(accuracy_inputs(network))


def test_choices_of_the_wrong_type_are_named() -> None:
    switch: Dimension[Any] = Dimension("switch", kind=bool, default=False)
    assert switch.choices("space.switch", [True, False]) == (False, True)
    with pytest.raises(ValueError, match="space.switch: 1 is not true or false"):
        switch.choices("space.switch", 1)
    with pytest.raises(UserError, match=r"space: unknown widths; known are embed_dim"):
        Space(stages=[{}] * 4, patch_size=2, downsample="conv", widths=[8])
