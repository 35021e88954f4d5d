"""The settings of a study: which of them its results depend on, and whether they make sense."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from models.architecture import check_image_fits, check_int, check_number
from search.accuracy.base import EXECUTION_KEYS as ACCURACY_EXECUTION_KEYS
from search.commands.accuracy import accuracy_settings, space_settings
from search.commands.cli import plain
from search.commands.targets import SMALLEST, check_targets
from search.latency.target import EXECUTION_KEYS as LATENCY_EXECUTION_KEYS
from search.study.storage import has_password
from search.training.data import EXECUTION_KEYS as DATA_EXECUTION_KEYS

REMEDY = "restore these settings, or choose another study.name"
IMAGES_REMEDY = "accuracies on other images do not compare: restore the images, or choose another study.name"
WEIGHTS_REMEDY = "scores of two supernets do not compare: restore {file}, or choose another study.name"
SECTIONS = ("space", "data", "train", "accuracy", "latency", "limits", "deploy", "proxy")
"""The groups that a study's results depend on."""
EXECUTION_KEYS = {"data": DATA_EXECUTION_KEYS, "accuracy": ACCURACY_EXECUTION_KEYS, "latency": LATENCY_EXECUTION_KEYS}
"""Their keys that only say how work is done, such as paths and hosts."""


def study_settings(cfg: DictConfig) -> dict[str, Any]:
    """What a study's results depend on; keys that only say how work is done, such as paths and hosts, are left out."""
    plain_settings = {name: plain(cfg[name]) for name in SECTIONS} | {"accuracy": accuracy_settings(cfg)}
    settings = {name: without(plain_settings[name], EXECUTION_KEYS.get(name, frozenset())) for name in SECTIONS}
    latency, devices = settings["latency"], settings["latency"].pop("devices")
    if devices:
        latency["devices"] = {name: without(device, EXECUTION_KEYS["latency"]) for name, device in devices.items()}
    else:
        del latency["objectives"]
    settings["limits"] = {name: limit for name, limit in settings["limits"].items() if limit is not None}
    if not settings["limits"]:
        del settings["limits"]
    settings["space"] = space_settings(settings["space"])
    return settings | {"study": {"seed": cfg.study.seed}}


def without(settings: dict[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Settings without some keys, dotted where they are nested."""
    nested = {key.partition(".")[0]: key.partition(".")[2] for key in keys if "." in key}
    return {
        key: without(value, frozenset({nested[key]})) if key in nested and isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in keys
    }


def check_study(cfg: DictConfig) -> None:
    """Raises: ValueError naming the first setting that makes no sense."""
    check_int("study.n_trials", cfg.study.n_trials, 1)
    check_int("study.max_consecutive_failures", cfg.study.max_consecutive_failures, 1)
    check_int("study.seed", cfg.study.seed, 0, 2**32 - 1)
    check_number("storage.retry_seconds", cfg.storage.retry_seconds, 0)
    if cfg.engine.get("address") is not None and has_password(str(cfg.storage.url)):
        raise ValueError(
            "storage.url contains a password, and Ray shows the command to all who see its jobs; keep it in ~/.pgpass"
        )
    if cfg.study.timeout_minutes is not None:
        check_number("study.timeout_minutes", cfg.study.timeout_minutes, SMALLEST)
    if cfg.study.min_expected_gain is not None:
        check_number("study.min_expected_gain", cfg.study.min_expected_gain, SMALLEST, 1)
    check_targets(cfg)
    if cfg.deploy.num_classes is not None:
        check_int("deploy.num_classes", cfg.deploy.num_classes, 0)
    for key in ("deploy", "proxy"):
        check_int(f"{key}.img_size", cfg[key].img_size, 1)
        check_image_fits(f"{key}.img_size", cfg[key].img_size, cfg.space.patch_size)
    check_image_sizes(cfg)
    if not isinstance(cfg.storage.url, str):
        raise ValueError(f"storage.url={cfg.storage.url} must be a database URL such as sqlite:///study.db")


def check_image_sizes(cfg: DictConfig) -> None:
    """Raises: ValueError if the images of networks cannot have a size of the space, or have another one beside it."""
    sizes = cfg.space.get("img_size")
    if sizes is None:
        return
    for key in ("deploy", "proxy"):
        if not OmegaConf.is_interpolation(cfg[key], "img_size"):
            raise ValueError(
                f"{key}.img_size={cfg[key].img_size}: the search chooses the size of images from space.img_size; "
                "remove one of them"
            )
    for size in sizes if isinstance(sizes, ListConfig) else [sizes]:
        check_int("space.img_size", size, 1)
        check_image_fits("space.img_size", size, cfg.space.patch_size)
        if size > cfg.data.img_size:
            raise ValueError(
                f"space.img_size={size} is above data.img_size={cfg.data.img_size}, the size that images are decoded at; "
                f"set data.img_size={size}, or leave that size out"
            )
