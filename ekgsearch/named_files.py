"""Files and folders that a job, a study or a benchmark names and that are not there."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.fields import expand_path
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.images import DATA_VARIABLE, data_request

Missing = tuple[str, str]
"""A field, and in words what is missing."""

_SPLITS = {"image_folder": (("train",), ("val", "test")), "parquet": (("train",), ("val", "validation", "test"))}
"""Names of the training and of the test set in the folder of a data set; one of each is there."""


def missing_files(checked: BaseModel) -> list[Missing]:
    """Look for everything that a job, a study or the settings of a benchmark name; nothing is opened.

    Of a store's folder, which is made where it is missing, the folder that it lies in is looked for.

    Returns:
        Every field whose file or folder is missing, or whose path names a variable that is not set.
    """
    return list(_of_job(checked) if isinstance(checked, Job) else _of_bench(checked))


def _of_job(job: Job) -> Iterator[Missing]:
    yield from _file("net.weights", job.net.weights)
    place, _, _ = (job.net.factory or "").rpartition(":")
    if place.endswith(".py"):
        yield from _file("net.factory", place)
    yield from _images(job)
    yield from _file("search_run", job.search_run, "journal.jsonl")
    yield from _store("bank.uri", job.bank.uri)
    yield from _store("phases.uri", job.phases.uri)


def _of_bench(settings: BaseModel) -> Iterator[Missing]:
    """Look for what the benchmarks name; which of these fields one has is its own affair."""
    for name in ("weights", "wide_weights", "journal"):
        yield from _file(name, getattr(settings, name, None))
    yield from _folder("folder", getattr(settings, "folder", None))
    yield from _store("uri", getattr(settings, "uri", None))
    if (job := getattr(settings, "job", None)) is None:
        return
    if absent := list(_missing("job", job, "file", os.path.isfile)):
        yield from absent
        return
    given = getattr(settings, "weights", None) is not None
    for name, words in missing_files(load_job(Path(job), getattr(settings, "overrides", ()))):
        if not (given and name == "net.weights"):
            yield "job", f"{job}: {words}"


def _images(job: Job) -> Iterator[Missing]:
    """The folder of a data set, and in it what must be there before anything is decoded."""
    name = job.data.name
    try:
        root = data_request(job).loading.root
    except JobError as error:
        yield "data.root", str(error)
        return
    if root is None:  # the digits of scikit-learn, or a download into the user's cache
        return
    source = "data.root" if job.data.root is not None else f"${DATA_VARIABLE}"
    if not os.path.isdir(root):
        yield "data.root", f"{source} = {job.data.root or root}: there is no folder {root}"
        return
    for names in _SPLITS.get(name, ()):
        places = [root / split for split in names]
        if not any(os.path.isdir(place) for place in places) and not (name == "parquet" and _shards(root, names)):
            known = " or ".join(f"{split}*.parquet" if name == "parquet" else split for split in names)
            yield "data.root", f"{source} = {job.data.root or root}: there is no {known} in {root}"


def _shards(root: Path, names: Iterable[str]) -> bool:
    return any(any(root.glob(f"{name}*.parquet")) for name in names)


def _file(field: str, text: str | None, inner: str = "") -> Iterator[Missing]:
    return _missing(field, text, "file", os.path.isfile, inner)


def _folder(field: str, text: str | None) -> Iterator[Missing]:
    return _missing(field, text, "folder", os.path.isdir)


def _store(field: str, uri: str | None) -> Iterator[Missing]:
    """The folder that a store on this machine lies in; other stores are not asked."""
    local = (uri or "").removeprefix("file://")
    if local and "://" not in local:
        yield from _missing(field, local, "folder", os.path.isdir, "..")


def _missing(
    field: str, text: str | None, kind: str, exists: Callable[[Path], bool], inner: str = ""
) -> Iterator[Missing]:
    if text is None:
        return
    try:
        path = expand_path(text, field).absolute()
    except JobError as error:
        yield field, str(error)
        return
    path = path.parent if inner == ".." else path / inner
    if not exists(path):
        yield field, f"{field} = {text}: there is no {kind} {path}"
