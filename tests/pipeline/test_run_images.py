"""A run over an image folder goes on with the pictures that it was opened with, whatever has become of them since."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from data.loading import encoded, photograph, picture_folder
from paper_run import paper_run

from ekgsearch.data.encoded import EncodedImages
from ekgsearch.errors import DataError, ResumeError
from ekgsearch.experiment import Job
from ekgsearch.finetune.metrics import EpochMetrics
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.images import INDEX_NAME, keep_index
from ekgsearch.pipeline.run import run_job
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.storage.journal import Journal
from ekgsearch.workers import training
from ekgsearch.workers.backend import InProcessBackend

JOB = """\
output: {folder}/run
net: {{name: resnet20}}
data: {{name: image_folder, root: {folder}/pictures, image_size: 8, max_damaged: 0.2}}
pretrain: {{epochs: 1, batch_size: 6}}
warmup: {{epochs: 0}}
search: {{reduction: 0.05, step: 0.4, images_per_class: 2}}
bank: {{teachers: 1, batch_size: 4}}
finetune: {{epochs: 2, batch_size: 6}}
"""


class Stopped(Exception):  # noqa: N818
    """The driver is killed."""


class StoppedBeforeTheSearch(InProcessBackend):
    """Is killed before there are workers."""

    def team(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise Stopped


class StoppedBeforeTheBank(InProcessBackend):
    """Is killed as soon as the search has ended."""

    def enlist(self, num_blocks: int) -> None:
        raise Stopped


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures of two classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return picture_folder(tmp_path / "pictures")


@pytest.fixture
def load(tmp_path: Path, root: Path) -> Callable[..., Job]:
    """Load the job of a run whose directory is there, with changes."""
    (tmp_path / "run").mkdir()
    (tmp_path / "job.yaml").write_text(JOB.format(folder=tmp_path))
    return lambda *changes: load_job(tmp_path / "job.yaml", changes)


def open_run(job: Job, *, continue_anyway: bool = False) -> Setup:
    """Open a run as a driver does, and go no further."""
    setup = set_up(job, in_run=True)
    with Journal.open(job.run_dir / "journal.jsonl") as journal:
        start_or_check(paper_run(setup, job.run_dir, journal), continue_anyway)
    return setup


def first_of_the_search(job: Job) -> Path:
    setup = set_up(job, in_run=True)
    train = setup.dataset.train
    assert isinstance(train, EncodedImages)
    return Path(train.source.where(train.images[setup.search_ids[0]]))


def table(job: Job, name: str) -> pd.DataFrame:
    return pd.read_parquet(job.run_dir / "tables" / f"{name}.parquet")


def test_a_run_that_was_stopped_in_its_fine_tuning_goes_on_when_pictures_were_damaged_since(
    root: Path, load: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = load()

    def stop(_: object, metrics: EpochMetrics) -> None:
        if (job.run_dir / "slim.safetensors").exists():
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(training._Telling, "epoch", stop)
        with pytest.raises(Stopped):
            run_job(job, InProcessBackend())
    (root / "train" / "cat" / "01.jpg").unlink()
    (root / "train" / "dog" / "05.jpg").write_bytes(b"garbage")
    (root / "train" / "cat" / "99.jpg").write_bytes(encoded(photograph(9)))
    run_job(job, InProcessBackend())
    assert table(job, "epochs").query("network == 'slim'").replaced_images.tolist() == [0, 2]
    assert "is damaged, the next sound one of its class stands in for it (2 of at most 3)" in caplog.text
    assert "verified again" not in caplog.text


def test_a_bank_that_is_filled_later_holds_what_stands_in_for_a_picture_of_the_search(
    load: Callable[..., Job],
) -> None:
    job = load()
    with pytest.raises(Stopped):
        run_job(job, StoppedBeforeTheBank())
    first_of_the_search(job).unlink()
    partials = [job.run_dir / ".a.partial", job.run_dir / "bank" / ".b.partial"]
    for path in partials:
        path.touch()
    run_job(job, InProcessBackend())
    assert [path.exists() for path in partials] == [False, True], "another run may be writing into the bank"
    assert table(job, "summary").replaced_bank_images.tolist() == [1]


def test_a_search_that_starts_later_names_the_picture_that_is_gone(load: Callable[..., Job]) -> None:
    job = load()
    with pytest.raises(Stopped):
        run_job(job, StoppedBeforeTheSearch())
    picture = first_of_the_search(job)
    sound = picture.read_bytes()
    picture.unlink()
    with pytest.raises(DataError, match=rf"{picture} was verified and cannot be read any more"):
        run_job(job, InProcessBackend())
    picture.write_bytes(sound)
    with pytest.raises(Stopped):
        run_job(job, StoppedBeforeTheBank())


def test_a_process_that_starts_later_opens_the_images_by_their_index(root: Path, load: Callable[..., Job]) -> None:
    setup = open_run(load())
    (root / "train" / "cat" / "01.jpg").unlink()
    assert setup.data.open().content_hash == setup.dataset.content_hash
    assert len(setup.data.open().train) == 12


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("spoil", [Path.unlink, _cut_off])
def test_without_a_sound_index_the_folder_is_verified_and_compared(
    spoil: Callable[[Path], None], root: Path, load: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    job = load()
    index = job.run_dir / INDEX_NAME
    setup = open_run(job)
    whole = index.read_bytes()
    spoil(index)
    assert setup.data.open().content_hash == setup.dataset.content_hash
    assert f"{index} " in caplog.text
    assert "the pictures are verified again" in caplog.text
    open_run(job)
    assert index.read_bytes() == whole
    spoil(index)
    (root / "train" / "cat" / "01.jpg").unlink()
    with pytest.raises(DataError, match=r"expected images of SHA-256 .*, 11 for training; .*restore them"):
        setup.data.open()
    with pytest.raises(ResumeError, match=r"belongs to another run: data was .*, is "):
        open_run(job)
    assert not index.exists() or index.read_bytes() != whole


def test_an_index_of_a_run_that_was_not_opened_yet_is_not_used(root: Path, load: Callable[..., Job]) -> None:
    job = load()
    keep_index(set_up(job, in_run=True).images)
    (root / "train" / "cat" / "01.jpg").unlink()
    assert len(open_run(job).dataset.train) == 11
    assert len(set_up(job, in_run=True).data.open().train) == 11


def test_in_another_folder_the_pictures_are_verified_anew(root: Path, load: Callable[..., Job], tmp_path: Path) -> None:
    open_run(load())
    elsewhere = root.rename(tmp_path / "elsewhere")
    moved = load(f"data.root={elsewhere}")
    open_run(moved)
    (elsewhere / "train" / "cat" / "01.jpg").unlink()
    assert len(open_run(moved).dataset.train) == 12
    other = picture_folder(tmp_path / "other", train=7)
    with pytest.raises(ResumeError, match=r"data was .*, is "):
        open_run(load(f"data.root={other}"))


def test_other_images_are_refused_although_there_is_an_index(load: Callable[..., Job]) -> None:
    open_run(load())
    with pytest.raises(ResumeError, match=r"data was .*, is "):
        open_run(load("data.image_size=16"))
