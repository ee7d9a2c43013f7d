"""The images of a job: open them, and open the same ones again where a run is continued."""

import dataclasses
import os
from pathlib import Path

from ekgsearch.data.datasets import Dataset, describe_dataset
from ekgsearch.data.folder import indexes_of
from ekgsearch.data.index_file import save_indexes
from ekgsearch.data.limit import Limit
from ekgsearch.experiment import Job
from ekgsearch.fields import expand_path
from ekgsearch.pipeline.lines import newest_statement
from ekgsearch.storage.journal import read_journal
from ekgsearch.workers.images import DataRequest, Loading, Selection

DATA_VARIABLE = "EKGSEARCH_DATA"

INDEX_NAME = "pictures.parquet"
"""File of a run directory with the index of the pictures that the run was opened with."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenedImages:
    """The images of a job, opened in this process.

    Attributes:
        request: how any process opens the same images.
        dataset: the images.
        is_indexed: whether the run directory has their index; else `keep_index` writes it.
    """

    request: DataRequest
    dataset: Dataset
    is_indexed: bool


def open_images(job: Job, *, in_run: bool) -> OpenedImages:
    """Open the images of a job.

    A run over an image folder that was opened before gets the pictures that it was opened with, by their index in the
    run directory. Where that cannot be used, as where `data.root` is another one now, the folder is verified anew.

    Args:
        job: the job.
        in_run: whether the run directory of the job is started or continued, and so keeps the index.

    Raises:
        DataError: images are missing or damaged.
        StorageError: the journal of the run is damaged.
    """
    request, indexed = data_request(job), None
    selection, loading = request.selection, request.loading
    if in_run and selection.name == "image_folder":
        loading = dataclasses.replace(loading, index=job.run_dir / INDEX_NAME)
        as_before = dataclasses.replace(selection, content_hash=_opened_with(job.run_dir))
        indexed = DataRequest(as_before, loading).open_indexed()
    dataset = DataRequest(selection, loading).open() if indexed is None else indexed
    selection = dataclasses.replace(selection, content_hash=dataset.content_hash)
    loading = dataclasses.replace(loading, download=False)
    return OpenedImages(DataRequest(selection, loading), dataset, indexed is not None)


def classes_and_shape(job: Job) -> tuple[int, tuple[int, int, int]]:
    """Number of classes and shape (3, height, width) of a job's images, without decoding any.

    Raises:
        DataError: the folder of pictures, or what tells their classes, is missing.
    """
    request = data_request(job)
    selection = request.selection
    return describe_dataset(
        selection.name,
        request.loading.root,
        image_size=selection.image_size,
        channels=selection.channels,
        classes=selection.classes,
    )


def keep_index(images: OpenedImages) -> None:
    """Write the index of the pictures of a run to its directory, unless it is there; the caller holds the journal.

    Raises:
        StorageError: the disk refuses.
    """
    index = images.request.loading.index
    if index is not None and not images.is_indexed:
        save_indexes(index, indexes_of(images.dataset))


def data_request(job: Job) -> DataRequest:
    """How the images of a job are opened; its folder is `data.root`, else $EKGSEARCH_DATA, else the user's cache."""
    root: Path | None = None
    if job.data.root is not None:
        root = expand_path(job.data.root, "data.root")
    elif job.data.name not in ("digits", "generated") and DATA_VARIABLE in os.environ:
        root = Path(os.environ[DATA_VARIABLE])
    selection = Selection(
        name=job.data.name,
        image_size=job.data.image_size,
        channels=job.data.channels,
        classes=job.data.classes,
        limit=Limit(job.data.max_classes, job.data.max_images_per_class),
        test_images=job.data.test_images,
    )
    loading = Loading(
        root=None if root is None else root.absolute(),
        download=job.data.download,
        max_bad=job.data.max_bad_images,
        loader=job.data.loader,
        threads=job.data.loader_threads,
        max_damaged=job.data.max_damaged,
    )
    return DataRequest(selection, loading)


def _opened_with(run_dir: Path) -> str | None:
    """`Dataset.content_hash` of the images that a run was opened with; None where it was never opened."""
    path = run_dir / "journal.jsonl"
    lines = read_journal(path) if path.exists() else []
    stated = newest_statement(lines)
    return stated["data"] if stated else None
