"""Architectures as plain data."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from models.architecture import Architecture, StageSpec, count_lo_heads


def make(**kwargs: Any) -> Architecture:
    return Architecture(**{"embed_dim": 16, "stages": (StageSpec(1, 2, 0.5, 4),) * 4, **kwargs})


def test_dict_round_trip(architecture: Architecture) -> None:
    assert Architecture.from_dict(architecture.to_dict()) == architecture


def test_key_gives_back_the_network(architecture: Architecture) -> None:
    stages = [
        StageSpec(3, 7, 0.9, 12, 3.3),
        StageSpec(1, 0, mlp_ratio=0.0213),
        StageSpec(2, 1, 0.0, 3, 49 / 48),
        StageSpec(1, 2, 1.0, 8, 1.7),
    ]
    for first in range(4):
        network = Architecture(48, (*stages[first:], *stages[:first]), patch_size=2, downsample="dtm")
        assert Architecture.from_key(network.key).key == network.key
    assert Architecture.from_key(architecture.key) == architecture.canonical()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "c8p4conv",
        "c8p4conv-" * 4,
        "c8p4conv" + "-d1w0m32" * 3,
        "c8p4conv" + "-d1w0h2l1m32" * 4,
        "c8p4conv-d1w0m32-d1w0m64-d1w0m128-d1w0m256@",
        "c8p4conv-d1w0m32-d1w0m64-d1w0m128-d1w0m256@096",
    ],
)
def test_what_is_not_a_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Architecture.from_key(key)


def test_canonical_form_is_stable_and_keeps_the_network(architecture: Architecture) -> None:
    canon = architecture.canonical()
    assert canon.canonical() == canon
    assert canon.key == architecture.key
    assert [s.lo_heads for s in canon.stages] == [s.lo_heads for s in architecture.stages]


def test_canonical_alpha_gives_back_the_heads_it_stands_for() -> None:
    for heads in range(1, 129):
        for lo_heads in range(heads + 1):
            stage = StageSpec(1, 2, min(1.0, lo_heads / heads + 1e-6), heads)
            assert stage.canonical().lo_heads == stage.lo_heads == lo_heads
    for heads, tenths in itertools.product(range(1, 65), range(11)):
        stage = StageSpec(1, 2, tenths / 10, heads)
        assert stage.canonical().lo_heads == int(heads * (tenths / 10))


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (StageSpec(2, 0, 0.1, 4), StageSpec(2, 0, 0.9, 2)),  # no attention: alpha and heads do not matter
        (StageSpec(2, 1, 0.1, 4), StageSpec(2, 1, 0.9, 4)),  # plain attention: alpha does not matter
        (StageSpec(2, 2, 0.51, 4), StageSpec(2, 2, 0.74, 4)),  # the same whole number of Lo-Fi heads
        (StageSpec(2, mlp_ratio=4.0), StageSpec(2, mlp_ratio=4.05)),  # the same hidden width
    ],
)
def test_equal_networks_share_a_key(first: StageSpec, other: StageSpec) -> None:
    keys = {make(stages=(stage, *[StageSpec(1)] * 3)).key for stage in (first, other)}
    assert len(keys) == 1


def test_different_networks_have_different_keys() -> None:
    base = make()
    changed = [
        replace(base, embed_dim=32),
        replace(base, patch_size=2),
        replace(base, downsample="conv"),
        *(
            replace(base, stages=(replace(base.stages[0], **change), *base.stages[1:]))
            for change in ({"depth": 2}, {"window_size": 4}, {"alpha": 1.0}, {"num_heads": 8}, {"mlp_ratio": 2.0})
        ),
    ]
    assert len({a.key for a in [base, *changed]}) == 1 + len(changed)


def test_image_size_belongs_to_what_is_evaluated_and_not_to_its_weights() -> None:
    base = make()
    sizes = [replace(base, img_size=size) for size in (32, 96)]
    assert len({network.key for network in (base, *sizes)}) == 3
    assert {network.weights_key for network in sizes} == {base.key}
    for network in sizes:
        assert Architecture.from_key(network.key) == Architecture.from_dict(network.to_dict()) == network.canonical()
        assert network.scaled(0.5).img_size == network.img_size
    assert [network.side(224) for network in (base, *sizes)] == [224, 32, 96]


def test_network_without_an_image_size_has_the_key_and_the_data_that_it_had_before() -> None:
    stages = ["d1w2h4l2m64", "d1w2h4l2m128", "d1w2h4l2m256", "d1w2h4l2m512"]
    assert make().key == "-".join(["c16p4dtm", *stages])
    assert list(make().to_dict()) == ["embed_dim", "stages", "patch_size", "downsample"]


def test_official_head_split() -> None:
    assert count_lo_heads(12, 2, 0.9) == 10
    assert count_lo_heads(12, 1, 0.5) == 12


def test_scaled_width_stays_divisible_by_heads() -> None:
    narrow = Architecture(96, tuple(StageSpec(2, 2, 0.9, h) for h in (3, 6, 12, 24))).scaled(0.25)
    assert narrow.embed_dim == 24
    assert Architecture(96, tuple(StageSpec(2, 2, 0.9, h) for h in (3, 6, 12, 24))).scaled(0.001).embed_dim == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"embed_dim": True}, "embed_dim=True"),
        ({"embed_dim": 10**9}, "embed_dim=1000000000"),
        ({"downsample": "pool"}, "downsample='pool'.*dtm, conv"),
        ({"img_size": 31}, "img_size=31 is below 32, the smallest image for patches of 4 pixels"),
        ({"img_size": 96.0}, "img_size=96.0 must be a whole number"),
        ({"img_size": 10**9}, "img_size=1000000000 must be a whole number from 1 to 4096"),
        ({"stages": (StageSpec(1),) * 3}, "4 stages, got 3"),
        ({"stages": (StageSpec(0), *[StageSpec(1)] * 3)}, "stage 1: depth=0"),
        ({"stages": (StageSpec(1, -1), *[StageSpec(1)] * 3)}, "stage 1: window_size=-1"),
        ({"stages": (StageSpec(1, 2, 1.5), *[StageSpec(1)] * 3)}, "stage 1: alpha=1.5"),
        ({"stages": (StageSpec(1, 2, float("nan")), *[StageSpec(1)] * 3)}, "stage 1: alpha=nan"),
        ({"stages": (StageSpec(1, 2, 0.5, 3), *[StageSpec(1)] * 3)}, "dim=16 is not divisible by num_heads=3"),
    ],
)
def test_impossible_architectures_name_the_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**change)


@pytest.mark.parametrize(
    "data",
    [
        "text",
        {"embed_dim": 8},
        {"embed_dim": 8, "stages": "four"},
        {"embed_dim": 8, "stages": [1, 2, 3, 4]},
        {"embed_dim": 8, "stages": [{"depth": 1}] * 4, "_target_": "os.system"},
        {"embed_dim": 8, "stages": [{"depth": "1"}] * 4},
        {"embed_dim": 8, "stages": [{"window_size": 1}] * 4},
        {"embed_dim": 8, "stages": [{"depth": 10**6}] * 4},
    ],
)
def test_hostile_data_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        Architecture.from_dict(data)
