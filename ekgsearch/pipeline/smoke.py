"""The smoke form of a job: all of its phases, each as small as it can be, to see in seconds whether they run."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import ValidationError

from ekgsearch.artefact.sidecar import read_sidecar
from ekgsearch.data.datasets import Dataset
from ekgsearch.errors import JobError, MissingDataError, StorageError
from ekgsearch.experiment import Job
from ekgsearch.fields import expand_path
from ekgsearch.methods.section import UNKNOWN_REDUCTION, EvaluatingSection
from ekgsearch.pipeline.images import data_request
from ekgsearch.pipeline.network import weights_path
from ekgsearch.pipeline.study import StudyJob
from ekgsearch.runtime.progress import LOG_FILE
from ekgsearch.sections.data import ANY_CLASSES, PICTURE_SIZE, DataSection

log = logging.getLogger(__name__)

Checked = TypeVar("Checked")
Kind = TypeVar("Kind", bound=Job)

SUFFIX = ".smoke"
"""End of the names of all that a smoke run writes, next to what the real one writes."""

MOST_PIXELS = 64
MOST_CLASSES = 10
IMAGES_PER_CLASS = 2
"""Of the search subset, and of the warm-up subset: so few that data of any size have them."""

STEPS = 2
"""Steps of every training, and batches of the memory bank."""

SEARCH_BATCH = 4
"""Images of a search batch: few enough that ten classes make as many batches as racing needs."""


@dataclass(frozen=True, slots=True)
class Smoke(Generic[Checked]):
    """What is run in place of a job, a study or a benchmark.

    Attributes:
        checked: its smoke form.
        notes: what was missing, and what takes its place; one line each.
    """

    checked: Checked
    notes: tuple[str, ...]

    def tell(self) -> None:
        """Log the notes."""
        for note in self.notes:
            log.warning("smoke: %s", note)


def smoke_of(job: Kind) -> Smoke[Kind]:
    """The smoke form of a job or of a study: checked like any other, and run by the same pipeline.

    It has a tiny part of the images, of at most 64 pixels, makes one iteration of the search with at most three
    candidates and two steps of every training, in the process that runs it. Images that are missing are replaced by
    generated ones, missing weights by fresh ones; nothing is downloaded. It writes next to the run directory.

    Raises:
        JobError: what the job says cannot be had in small; one line per contradiction.
        DataError, NetworkError: data or weights are there and damaged.
    """
    weights, weight_notes = _weights(job)
    data, dataset, data_notes = _images(job, weights)
    search, search_notes = _search(job)
    changes: dict[str, Mapping[str, Any]] = {
        "net": {"weights": weights, "new_classifier": job.net.new_classifier and weights is not None},
        "data": data,
        **_trainings(job, dataset),
        "search": search,
        "phases": {"uri": None},
        "cluster": {"search_workers": 0, "address": None, "device": "auto"},
    }
    if isinstance(job, StudyJob):
        changes["study"] = {
            "subnetworks": 3,
            "by_l1": min(job.study.by_l1, 1),
            "points": 2,
            "lanczos_iterations": min(job.study.lanczos_iterations, STEPS),
        }
    fields = job.model_dump()
    run_dir = job.run_dir
    fields |= {"output": str(run_dir.with_name(run_dir.name + SUFFIX)), "search_run": None}
    fields |= {section: fields[section] | changed for section, changed in changes.items()}
    try:
        checked = type(job).model_validate(fields)
    except ValidationError as error:
        lines = [detail["msg"].removeprefix("Value error, ") for detail in error.errors(include_url=False)]
        raise JobError(*(f"in small: {line}" for text in lines for line in text.splitlines())) from error
    return Smoke(checked, (*weight_notes, *data_notes, *search_notes))


@contextmanager
def emptied(job: Job) -> Iterator[None]:
    """Hold the run directory of a smoke run, without what an earlier one has left: each begins at the beginning.

    Args:
        job: a smoke form.

    Raises:
        StorageError: another process holds it, there is something else in its place, or it cannot be emptied.
    """
    folder = job.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{folder}: expected a folder, or a place for one: {error.strerror}") from error
    try:
        _hold(descriptor, folder)
        _empty(folder)
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(f"{folder}: a smoke run of this job is under way; wait until it ends, or stop it") from error


def _empty(folder: Path) -> None:
    left = list(folder.iterdir())
    if left and not (folder / LOG_FILE).is_file():
        raise StorageError(f"{folder}: expected what an earlier smoke run has left, found no {LOG_FILE}; move it away")
    try:
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise StorageError(f"{folder}: what an earlier smoke run has left cannot be removed: {error}") from error


def _weights(job: Job) -> tuple[str | None, list[str]]:
    """The weights of a job where they are there."""
    text = job.net.weights
    if text is None:
        return None, []
    try:
        path = expand_path(text, "net.weights")
        missing = "" if path.is_file() else f"net.weights = {text}: there is no file {path}"
    except JobError as error:
        missing = str(error)
    return (None, [f"{missing}; the network starts with fresh weights"]) if missing else (text, [])


def _images(job: Job, weights: str | None) -> tuple[dict[str, Any], Dataset, list[str]]:
    """Fields of the images that are used, these images, and what is to be said of them."""
    section, known = job.data, job.data.known
    size = min(section.image_size or (known.size if known else PICTURE_SIZE), MOST_PIXELS)
    small: dict[str, Any] = {
        "image_size": size,
        "max_classes": min(section.max_classes or MOST_CLASSES, MOST_CLASSES),
        "max_images_per_class": min(section.max_images_per_class or 2 * IMAGES_PER_CLASS, 2 * IMAGES_PER_CLASS),
        "train_images": None,
        "test_images": None,
        "download": False,
    }
    notes = []
    try:
        dataset = _opened(job, small)
    except (JobError, MissingDataError) as error:  # a JobError is a variable that is not set
        classes = known.classes if known else _classes(job, weights)
        small |= {"name": "generated", "title": None, "root": None, "classes": classes}
        dataset = _opened(job, small)
        shape = "x".join(map(str, dataset.image_shape))
        notes.append(f"{error}; generated pictures ({shape}, {classes} classes) take their place")
    images = len(dataset.train) - len(dataset.train) % STEPS
    return {**small, "train_images": images, "test_images": min(section.test_images or 20, 20)}, dataset, notes


def _opened(job: Job, changes: dict[str, Any]) -> Dataset:
    section = DataSection.model_validate(job.data.model_dump() | changes)
    return data_request(job.model_copy(update={"data": section})).open()


def _classes(job: Job, weights: str | None) -> int:
    """Number of classes of pictures that are missing: that of the weights where these say it."""
    known = None if weights is None else read_sidecar(weights_path(job.net)).net
    return known.arguments["num_classes"] if known else ANY_CLASSES


def _trainings(job: Job, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Sections of all trainings and of the memory bank: one epoch of two steps each."""
    pictures = job.data.name in ("image_folder", "parquet")
    cropped = {"crop": "resized"} if pictures else {}  # generated ones are cut like those that they stand for
    finetune, warmup = job.finetune, job.warmup
    batch = len(dataset.train) // STEPS
    subset = min(warmup.images_per_class, IMAGES_PER_CLASS) * len(set(dataset.train.labels.tolist()))
    accumulate = min(finetune.accumulate, 2) if batch % 2 == 0 else 1
    crops = {name: cropped if getattr(job, name).crop == "auto" else {} for name in ("pretrain", "finetune")}
    return {
        "pretrain": {
            "epochs": 1,
            "batch_size": batch,
            "warmup_epochs": min(job.pretrain.warmup_epochs, 1),
            **crops["pretrain"],
        },
        "warmup": {
            "images_per_class": min(warmup.images_per_class, IMAGES_PER_CLASS),
            "batch_size": -(-subset // STEPS),
            "epochs": min(warmup.epochs, 1),
        },
        "bank": {"teachers": 1, "batch_size": batch, "uri": None, "cache": None},
        "finetune": {
            "epochs": min(finetune.epochs, 1),
            "warmup_epochs": min(finetune.warmup_epochs, finetune.epochs, 1),
            "batch_size": batch,
            "accumulate": accumulate,
            "average_last": min(finetune.average_last, 1),
            "recalibrate_images": min(finetune.recalibrate_images, batch),
            "checkpoint_every_steps": min(finetune.checkpoint_every_steps, 1),
            "workers": 1,
            "baselines": tuple(dict.fromkeys(choice.in_small() for choice in finetune.baselines)),
            **crops["finetune"],
        },
    }


def _search(job: Job) -> tuple[dict[str, Any], list[str]]:
    """Fields of the search: one iteration, where there are iterations."""
    section = job.search
    changes: dict[str, Any] = {
        "images_per_class": min(section.images_per_class, IMAGES_PER_CLASS),
        **section.in_small(),
    }
    if isinstance(job, StudyJob):  # it cuts at random, as far as the budget says
        changes |= {"reduction": section.reduction or UNKNOWN_REDUCTION, "max_candidates": None}
    if not isinstance(section, EvaluatingSection):
        return changes, []
    changes["batch_size"] = min(section.batch_size, SEARCH_BATCH)
    if section.precision == "tf32" and not torch.cuda.is_available():
        return changes | {"precision": "fp32"}, ["search.precision = tf32 needs a GPU, and there is none; fp32 is used"]
    return changes, []
