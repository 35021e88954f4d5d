"""Search spaces: what they propose, what they refuse, and their baselines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import optuna
import pytest

from models.architecture import Architecture
from models.complexity import cost
from search import UserError
from search.space.choices import distinct_stages
from search.space.space import PATTERN, Space

STAGES: list[dict[str, Any]] = [
    {"depth": [1, 2], "window_size": [0, 2, 4], "alpha": [0.0, 0.5, 1.0], "num_heads": 2},
    {"depth": [1, 2, 3], "window_size": [0, 1, 2], "alpha": [0.25, 0.75], "num_heads": [2, 4]},
    {"depth": [2, 4, 6], "window_size": [0, 2], "alpha": 0.9, "num_heads": 4},
    {"depth": 1, "window_size": 1, "alpha": 0.5, "num_heads": 8, "mlp_ratio": [2.0, 4.0]},
]


def make(stages: list[dict[str, Any]] | None = None, **kwargs: Any) -> Space:
    return Space(**{"embed_dim": [8, 16], "stages": stages or STAGES, "patch_size": 2, "downsample": "conv", **kwargs})


def ask(space: Space, num_trials: int) -> list[tuple[dict[str, Any], Architecture]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(num_trials)]
    proposals = [space.suggest(trial) for trial in trials]
    return [(trial.params, architecture) for trial, architecture in zip(trials, proposals, strict=True)]


def test_proposals_stay_in_the_space() -> None:
    space = make()
    for _, architecture in ask(space, 200):
        assert architecture.embed_dim in (8, 16)
        assert all(spec in distinct_stages(choices) for spec, choices in zip(architecture.stages, space.stages, strict=True))


def test_parameters_give_back_their_architecture() -> None:
    space = make()
    for parameters, architecture in ask(space, 100):
        assert space.architecture(parameters) == architecture


HEADS_BY_WIDTH: list[dict[str, Any]] = [
    {"depth": [1, 2], "window_size": [0, 2], "alpha": [0.0, 0.5, 1.0]},
    *[{"depth": 1, "window_size": [1, 2], "alpha": [0.25, 0.75]}] * 3,
]


def test_wider_networks_have_more_heads_of_a_fixed_width() -> None:
    space = make(HEADS_BY_WIDTH, embed_dim=[8, 16, 24], head_dim=8)
    networks = [space.architecture(parameters) for parameters in space.every()]
    assert {network.embed_dim for network in networks} == {8, 16, 24}
    for network in [*networks, *space.covering(), space.anchor(), space.largest(), space.smallest(), space.sample([3])]:
        for stage, dim in zip(network.stages, network.dims, strict=True):
            assert stage.num_heads == (dim // 8 if stage.window_size else 1)
    assert len({network.key for network in networks}) == space.num_architectures()


def test_heads_of_a_fixed_width_are_no_parameter() -> None:
    space = make(HEADS_BY_WIDTH, embed_dim=[8, 16], head_dim=8)
    for parameters, architecture in ask(space, 50):
        space.check(parameters)
        assert space.architecture(parameters) == architecture
        assert not [name for name in parameters if "heads" in name]
    assert not [name for name in space.searched_dimensions() if "heads" in name]
    low, high = space.pair("embed_dim", [0])
    assert [(network.embed_dim, network.stages[3].num_heads) for network in (low, high)] == [(8, 8), (16, 16)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": [8, 12]}, "space.embed_dim=12 is not divisible by space.head_dim=8"),
        ({"head_dim": 0}, "space.head_dim=0 must be a whole number of at least 1"),
        ({"head_dim": "wide"}, "space.head_dim='wide' must be"),
        ({"stages": STAGES}, r"space.stages\[0\].num_heads: leave it out"),
    ],
)
def test_heads_that_do_not_fit_the_widths_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**{"stages": HEADS_BY_WIDTH, "head_dim": 8, **change})


def test_only_what_matters_is_asked() -> None:
    for parameters, _ in ask(make(), 200):
        for stage in (1, 2):
            window = parameters[f"stage{stage}.window_size"]
            assert (f"stage{stage}.alpha" in parameters) == (window > 1)
        assert ("stage2.num_heads" in parameters) == (parameters["stage2.window_size"] > 0)
        assert not {"stage1.num_heads", "stage3.alpha", "stage4.depth", "stage4.alpha"} & set(parameters)


def test_number_of_architectures_counts_keys() -> None:
    free = {"depth": [1, 2], "window_size": [0, 1, 2], "alpha": [0.0, 0.1, 0.5, 1.0], "num_heads": 2}
    fixed = {"depth": 1, "window_size": 0, "alpha": 0.0, "num_heads": 1}
    space = make([free, {**fixed, "depth": [1, 2]}, fixed, fixed])
    keys = {architecture.key for _, architecture in ask(space, 1000)}
    # 2 widths x 2 depths x (none, plain, and windows of 2 with 0, 1 or 2 Lo-Fi heads) x 2 depths
    assert space.num_architectures() == len(keys) == 2 * (2 * 5) * 2


def test_hidden_widths_that_round_alike_are_one_network() -> None:
    stage = {"depth": 1, "window_size": 0, "alpha": 0.0, "num_heads": 1, "mlp_ratio": [2.0, 2.1]}
    assert make([stage, *[{**stage, "mlp_ratio": 2.0}] * 3], embed_dim=[8, 16]).num_architectures() == 1 + 2  # 16; 32, 33


def test_every_network_is_enumerated() -> None:
    space = make()
    enumerated = list(space.every())
    keys = {space.architecture(parameters).key for parameters in enumerated}
    assert len(keys) == space.num_architectures()
    assert len({tuple(sorted(parameters.items())) for parameters in enumerated}) == len(enumerated)


def test_parameters_of_any_trial_pass_the_check() -> None:
    space = make()
    for parameters, _ in ask(space, 50):
        space.check(parameters)
        space.check({**parameters, "stage1.num_heads": 2, "stage1.alpha": 0.5})  # fixed, and maybe without attention


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage1.depth": 5}, "stage1.depth=5 is not in the space; choose from 1, 2"),
        ({"stage1.depth": "deep"}, "stage1.depth='deep' is not in the space"),
        ({"stage1.depth": [1]}, r"stage1.depth=\[1\] is not in the space"),
        ({"stage4.depth": 2}, "stage4.depth=2 is not in the space; choose from 1"),
        ({"stage5.depth": 1}, "stage5.depth is not a parameter of the space; known are embed_dim, stage1.depth"),
        ({"stage1.depth": None}, "stage1.depth=None is not in the space"),
    ],
)
def test_parameters_outside_the_space_are_named(change: dict[str, Any], message: str) -> None:
    space = make()
    with pytest.raises(ValueError, match=message):
        space.check({**space.baselines()["smallest"], **change})


def test_parameters_that_are_missing_are_named() -> None:
    space = make()
    parameters = dict(space.baselines()["smallest"])
    del parameters["stage2.depth"]
    with pytest.raises(ValueError, match="stage2.depth is missing; choose from 1, 2, 3"):
        space.check(parameters)


def test_baselines_follow_the_litv2_pattern_at_every_width() -> None:
    space = make()
    patterns = [
        space.architecture(parameters) for origin, parameters in space.baselines().items() if origin.startswith(PATTERN)
    ]
    assert [architecture.embed_dim for architecture in patterns] == [8, 16]
    for architecture in patterns:
        assert [s.window_size for s in architecture.stages] == [0, 0, 2, 1]
        assert [s.depth for s in architecture.stages] == [2, 2, 6, 1]
    assert space.anchor() in patterns


def test_extremes_of_a_space_are_baselines() -> None:
    space = make()
    least, most = (space.architecture(space.baselines()[name]) for name in ("smallest", "largest"))
    assert most == space.largest()
    assert least.embed_dim == 8
    assert [s.depth for s in least.stages] == [1, 1, 2, 1]
    assert [s.window_size for s in least.stages] == [0, 0, 0, 1]  # none where the space allows


def test_a_network_that_is_a_baseline_twice_is_tried_once() -> None:
    fixed = {"depth": 1, "window_size": 0, "alpha": 0.0, "num_heads": 1}
    assert list(make([{**fixed, "depth": [1, 2]}, *[fixed] * 3], embed_dim=8).baselines()) == [
        "smallest",
        f"{PATTERN}, width 8",
    ]


def test_parameters_of_baselines_can_be_enqueued() -> None:
    space = make()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for parameters in space.baselines().values():
        study.enqueue_trial(dict(parameters))
        trial = study.ask()
        assert space.suggest(trial) == space.architecture(parameters)
        assert trial.params == parameters


def test_sample_is_a_network_of_the_space_and_repeats() -> None:
    space = make()
    drawn = [space.sample([0, number]) for number in range(50)]
    assert drawn == [space.sample([0, number]) for number in range(50)]
    assert len({architecture.key for architecture in drawn}) > 40
    for architecture in drawn:
        assert architecture.embed_dim in space.network["embed_dim"]
        for stage, choices in zip(architecture.stages, space.stages, strict=True):
            assert stage in distinct_stages(choices)


@pytest.mark.parametrize("size", ["largest", "smallest"])
def test_sized_sample_draws_only_its_attention(size: Literal["largest", "smallest"]) -> None:
    space = make()
    drawn = [space.sample([0, number], size) for number in range(50)]
    pick = max if size == "largest" else min
    assert {architecture.embed_dim for architecture in drawn} == {pick(space.network["embed_dim"])}
    for index, choices in enumerate(space.stages):
        assert {architecture.stages[index].depth for architecture in drawn} == {pick(choices["depth"])}
        assert {architecture.stages[index].window_size for architecture in drawn} == set(choices["window_size"])


def test_heads_of_a_stage_without_attention_are_no_dimension() -> None:
    stages = [{"depth": [1, 2], "window_size": 0, "alpha": 0.0, "num_heads": [1, 2]}] * 4
    space = Space(embed_dim=[8], stages=stages, patch_size=2, downsample="conv")
    assert set(space.searched_dimensions()) == {f"stage{number}.depth" for number in range(1, 5)}


def test_pair_differs_in_its_dimension_alone() -> None:
    space = make()
    assert "embed_dim" in space.searched_dimensions()
    for dimension, choices in space.searched_dimensions().items():
        stage, _, kind = dimension.rpartition(".")
        for number in range(20):
            pair = space.pair(dimension, [number])
            if not stage:
                assert [a.embed_dim for a in pair] == [choices[0], choices[-1]]
                assert pair[0].stages == pair[1].stages
                continue
            index = int(stage.removeprefix("stage")) - 1
            low, high = (architecture.stages[index] for architecture in pair)
            if kind == "alpha":
                assert low.window_size == high.window_size > 1
                assert low.lo_heads <= high.lo_heads
            else:
                assert (getattr(low, kind), getattr(high, kind)) == (choices[0], choices[-1])
            rest = [architecture.stages[:index] + architecture.stages[index + 1 :] for architecture in pair]
            assert rest[0] == rest[1]


def test_largest_is_in_the_space() -> None:
    largest = make().largest()
    assert largest.embed_dim == 16
    assert [s.depth for s in largest.stages] == [2, 3, 6, 1]


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, {"depth": []}, r"space.stages\[0\].depth is empty"),
        (1, {"depth": [0, 1]}, "stage 2: depth=0"),
        (2, {"window_size": [-1]}, "stage 3: window_size=-1"),
        (0, {"alpha": [0.5, 1.2]}, r"stages\[0\].alpha=1.2"),
        (0, {"num_heads": 3}, "stage 1: dim=8 is not divisible by num_heads=3"),
        (0, {"alpha": ["half"]}, "'half' is not a number"),
        (0, {"window": [1]}, "unknown window"),
        (0, {"alpha": True}, "True is not a number"),
    ],
)
def test_impossible_spaces_name_the_value(index: int, change: dict[str, Any], message: str) -> None:
    stages = [dict(stage) for stage in STAGES]
    stages[index] |= change
    with pytest.raises(UserError, match=message):
        make(stages)


def test_wrong_number_of_stages() -> None:
    with pytest.raises(UserError, match="3 entries"):
        make(STAGES[:3])
    with pytest.raises(UserError, match=r"space.embed_dim is empty"):
        make(embed_dim=[])


def test_image_size_is_a_choice_of_the_space() -> None:
    plain, space = make(), make(img_size=[96, 32, 64])
    assert space.num_architectures() == 3 * plain.num_architectures()
    assert space.searched_dimensions()["img_size"] == (32, 64, 96)
    asked = ask(space, 100)
    assert {parameters["img_size"] for parameters, _ in asked} == {32, 64, 96}
    for parameters, architecture in asked:
        assert architecture.img_size == parameters["img_size"]
        assert space.architecture(parameters) == architecture
    with pytest.raises(ValueError, match="img_size=48 is not in the space; choose from 32, 64, 96"):
        space.check({**asked[0][0], "img_size": 48})


def test_extremes_are_at_the_extreme_sizes_and_the_anchor_at_the_middle_one() -> None:
    space = make(img_size=[32, 64, 96])
    assert (space.smallest().img_size, space.anchor().img_size, space.largest().img_size) == (32, 64, 96)
    patterns = [values["img_size"] for name, values in space.baselines().items() if name.startswith(PATTERN)]
    assert patterns == [96, 96]  # the nearest to 224
    for size in ("largest", "smallest"):
        assert {space.sample([0, number], size).img_size for number in range(50)} == {32, 64, 96}  # type: ignore[arg-type]


def test_pair_of_image_sizes_is_one_network() -> None:
    low, high = make(img_size=[32, 64, 96]).pair("img_size", [3])
    assert (low.img_size, high.img_size) == (32, 96)
    assert low.weights_key == high.weights_key


def test_cheapest_network_of_several_sizes_is_the_smallest_image() -> None:
    space = make(img_size=[32, 64])
    macs = {size: cost(replace(space.anchor(), img_size=size), 3, 10, 224)[1] for size in (32, 64)}
    assert macs[32] < macs[64] / 3
    assert space.cheapest(lambda network: cost(network, 3, 10, 224)[1]).img_size == 32


@pytest.mark.parametrize("none", [{}, {"img_size": None}])
def test_space_without_image_sizes_is_what_it_was(none: dict[str, None]) -> None:
    space = make(**none)
    assert "img_size" not in space.searched_dimensions()
    assert space.anchor().img_size is None
    assert not any("img_size" in parameters for parameters, _ in ask(space, 20))


def test_a_single_image_size_is_not_asked() -> None:
    space = make(img_size=48)
    assert {architecture.img_size for _, architecture in ask(space, 20)} == {48}
    assert "img_size" not in space.searched_dimensions()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "space.img_size is empty"),
        (["large"], "space.img_size: 'large' is not a number"),
        ([64.5], "space.img_size=64.5 must be a whole number"),
        ([15, 64], "space: img_size=15 is below 16, the smallest image for patches of 2 pixels"),
    ],
)
def test_impossible_image_sizes_are_named(sizes: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(img_size=sizes)


def test_cheapest_network_is_the_cheapest_of_all() -> None:
    """Parameters are the fewest with half of the heads Lo-Fi; the space's smallest network has the most Lo-Fi heads."""
    fixed = {"depth": 1, "window_size": 2, "alpha": [0.0, 0.5, 1.0], "num_heads": 2}
    space = make([{**fixed, "depth": [1, 2]}, fixed, {**fixed, "window_size": 0, "alpha": 0.0}, fixed])

    def parameters(network: Architecture) -> float:
        return cost(network, in_chans=1, num_classes=100, img_size=32)[0]

    networks = [space.architecture(values) for values in space.every()]
    cheapest = space.cheapest(parameters)
    assert cheapest in networks
    assert parameters(cheapest) == min(map(parameters, networks)) < parameters(space.smallest())
