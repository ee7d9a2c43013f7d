"""Networks that runs have left: the file, real images for it, and its accuracy."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ekgsearch.artefact.file import Description
from ekgsearch.data.folder import folder_images
from ekgsearch.data.index import index_images
from ekgsearch.data.views import Normalisation
from ekgsearch.errors import EkgError, NetworkError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.images import data_request
from ekgsearch.storage.tables import read_table

log = logging.getLogger(__name__)

NAMES = ("final.safetensors", "slim.safetensors")
"""Files of a run directory with a network, the first that is there is taken."""

_ACCURACY = {"final": "final_top1", "slim": "searched_top1", "final_ema": "ema_top1", "final_averaged": "averaged_top1"}


@dataclass(frozen=True, slots=True)
class Given:
    """A network that a person names: a run directory, or a file.

    Attributes:
        path: the file.
        run_dir: the run directory that it lies in; None where it lies elsewhere.
    """

    path: Path
    run_dir: Path | None

    @classmethod
    def find(cls, place: Path) -> "Given":
        """Find the file.

        Raises:
            NetworkError: there is none.
        """
        path = place
        if place.is_dir():
            found = [place / name for name in NAMES if (place / name).is_file()]
            if not found:
                raise NetworkError(f"{place}: expected a run directory with {' or '.join(NAMES)}, found neither")
            path = found[0]
        if not path.is_file():
            raise NetworkError(f"{place}: there is no such run directory or file")
        is_of_run = (path.parent / "job.yaml").is_file()
        return cls(path, path.parent if is_of_run else None)

    @property
    def run(self) -> str:
        """What tables call the run: the name of its directory, or of the folder that the file lies in."""
        return self.path.absolute().parent.name

    def top1(self) -> float | None:
        """Accuracy on the test set in percent, as the run has measured it; None where it has not."""
        column = _ACCURACY.get(self.path.stem)
        table = None if self.run_dir is None else self.run_dir / "tables" / "summary.parquet"
        if column is None or table is None or not table.is_file():
            return None
        summary: pd.DataFrame = read_table(table)
        value = float(summary[column].iloc[-1]) if len(summary) else math.nan
        return None if math.isnan(value) else value


def real_images(given: Given, description: Description, count: int, folder: Path | None) -> Tensor | None:
    """Normalised images for a network.

    Args:
        given: where the network lies; of one in a run directory the test images of the run are taken.
        description: shape and normalisation of the images.
        count: how many, at most.
        folder: a folder with one folder of pictures for each class, in place of those of the run.

    Returns:
        Float images (B, C, H, W); None where none are at hand, which the log tells.

    Raises:
        DataError: the folder is missing or holds no picture.
    """
    channels, height, _ = description.recipe.input_shape
    if folder is not None:
        pictures = folder_images(index_images(folder, num_threads=2), height, num_threads=2, channels=channels)
    elif given.run_dir is not None:
        try:
            pictures = data_request(load_job(given.run_dir / "job.yaml")).open().test  # type: ignore[assignment]
        except EkgError as error:
            log.warning("the images of the run are not at hand: %s", error)
            return None
    else:
        log.warning("%s: no real images are at hand; give a folder of pictures by --images", given.path)
        return None
    ids = torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).long()
    return normalised(description, pictures.read(ids))


def normalised(description: Description, pixels: Tensor) -> Tensor:
    """Network input from pixels (B, C, H, W) uint8; where the file names no normalisation, pixels over 255."""
    channels = description.recipe.input_shape[0]
    mean, std = description.mean or (0.0,) * channels, description.std or (255.0,) * channels
    return Normalisation(mean, std)(pixels)
