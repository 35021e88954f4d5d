"""The keys of `latency` in the configuration: which a study may change, and where they are declared."""

from __future__ import annotations

import inspect
from dataclasses import fields

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from search.commands.cli import build, conf_dir, plain
from search.latency.remote.access import SshAccess
from search.latency.target import EXECUTION_KEYS, TargetSettings

NETWORK_KEYS = {"img_size", "in_chans", "num_classes"}  # of the deployed network, from other groups
SHARED_KEYS = {field.name for field in fields(TargetSettings)} - NETWORK_KEYS
STUDY_KEYS = {"budget_ms", "budget_on", "devices", "objectives"}
CHOICES = ["cpu", "cpu_compiled", "cuda", "executorch", "onnxruntime", "openvino", "ssh"]


def test_choices_are_the_targets_and_nothing_else() -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert GlobalHydra.instance().config_loader().get_group_options("latency") == CHOICES


def test_execution_keys_are_those_of_the_connection() -> None:
    assert {field.name for field in fields(SshAccess)} == EXECUTION_KEYS
    assert not EXECUTION_KEYS & SHARED_KEYS


@pytest.mark.parametrize("name", CHOICES)
def test_each_key_is_an_argument_of_the_same_name(name: str) -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = plain(hydra.compose("config", [f"latency={name}", *(["latency.host=pi"] if name == "ssh" else [])]).latency)
    keys = set(config) - STUDY_KEYS - {"_target_", "_partial_"}
    arguments = set(inspect.signature(build(config).func).parameters) - {"settings"}
    assert keys == SHARED_KEYS | arguments
    assert arguments == {"ssh": EXECUTION_KEYS, "cuda": {"cuda_graph"}}.get(name, set())
