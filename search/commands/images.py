"""The images of an earlier search, from the configuration that it saved: int8 files are calibrated with them and tested."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from search import UserError
from search.commands.cli import build
from search.results.deployed_images import DeployedImages

log = logging.getLogger(__name__)


def images_of_search(folder: Path, path: Any) -> DeployedImages:
    """Read the images of a study.

    Args:
        folder: Of the study.
        path: Where the images are now; None for where they were.

    Raises:
        UserError: If the study has no saved configuration, or its images are not there.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"there is no {file}, which says what the images of the study are; run the search once more")
    data = OmegaConf.load(file).data
    if path is not None:
        if "path" not in data.source:
            raise UserError(f"data_path={path}: the images of this study ({data.name}) are not in a folder; leave it out")
        data.source.path = str(path)
    log.info("reading the images of the search for int8")
    try:
        return DeployedImages.of(build(data))
    except UserError as error:
        raise UserError(f"{error}; or set data_path to where the images of the search are") from error
