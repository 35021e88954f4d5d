"""The images of an earlier search, from the configuration that it saved: int8 files are calibrated with them and tested."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from search import UserError, one_line
from search.commands.cli import build
from search.commands.settings import IMAGES_REMEDY
from search.results.deployed_images import DeployedImages
from search.study.storage import refuse_changes
from search.training.data import ImageData

log = logging.getLogger(__name__)
OURS = "search.training."  # a folder may come from somebody else: nothing else that it names is called


def images_of_search(folder: Path, path: Any, study: optuna.Study, side: int, trusted: bool) -> DeployedImages:
    """Read the images of a study.

    Args:
        folder: Of the study.
        path: Where the images are now; None for where they were.
        study: Knows what the images were.
        side: Of the deployed networks' images, in pixels.
        trusted: Whether the study may name sources of images that are not of this project.

    Raises:
        UserError: If the study has no saved configuration, or its images are not there or others.
    """
    cfg = saved_configuration(folder / "config.yaml", trusted)
    has_folder = "path" in cfg.data.source and not str(cfg.data.source._target_).endswith(".hub")
    if path is not None:
        if not has_folder:
            raise UserError(f"data_path={path}: the images of this study, {cfg.data.name}, are in no folder; leave it out")
        cfg.data.source.path = str(path)
    log.info("reading the images of the search for int8")
    if has_folder and not Path(cfg.data.source.path).exists():
        raise UserError(f"there is no {cfg.data.source.path}, where the search read its images; set data_path=FOLDER")
    data: ImageData = build(cfg.data, img_size=cfg.proxy.img_size)
    refuse_changes(study, study.user_attrs["data"], data.contents(), IMAGES_REMEDY)
    return DeployedImages.of(data if side <= cfg.proxy.img_size else build(cfg.data, img_size=side))


def saved_configuration(file: Path, trusted: bool) -> DictConfig:
    """Read what a search saved. Raises: UserError if there is nothing, or it would call code that is not trusted."""
    try:
        cfg = OmegaConf.load(file)
        targets = set(targets_in(OmegaConf.to_container(cfg.data)))
        has_all = isinstance(cfg, DictConfig) and "source" in cfg.data and "img_size" in cfg.proxy
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}, which says what the images of the study are, cannot be read ({one_line(error)}); run the search again"
        ) from error
    if not has_all or not targets:
        raise UserError(f"{file} does not say what the images of the study are; run the search again")
    if not trusted and (others := sorted(target for target in targets if not target.startswith(OURS))):
        raise UserError(
            f"{file} names code that is not of this project ({', '.join(others)}); set trusted=true if it is yours"
        )
    assert isinstance(cfg, DictConfig)
    return cfg


def targets_in(node: Any) -> Iterator[str]:
    """What a configuration would call."""
    if isinstance(node, dict):
        yield from (str(value) for key, value in node.items() if key == "_target_")
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_in(value)
