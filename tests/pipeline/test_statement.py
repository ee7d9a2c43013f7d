"""The statement of a run in its journal: what may still change when it is continued, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import JOB
from paper_run import begin, commit_until, paper_run

from ekgsearch.errors import ResumeError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.phase import differences
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.storage.journal import Journal, read_journal


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A job, opened once: no field that these tests change is looked at when the job is opened."""
    folder = tmp_path_factory.mktemp("statement")
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    return set_up(load_job(folder / "job.yaml"))


class Run:
    """A run directory whose phases are journal lines and nothing else."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.file, self.setup = folder / "job.yaml", setup
        self.file.write_text(JOB.format(output=folder / "run"))
        self.folder = folder / "run"
        self.folder.mkdir()
        self.open()

    @contextmanager
    def context(self, *settings: str, **changes: object) -> Iterator[RunContext]:
        setup = replace(self.setup, job=self.job(*settings), **changes)  # type: ignore[arg-type]
        with Journal.open(self.folder / "journal.jsonl") as journal:
            yield paper_run(setup, self.folder, journal)

    def open(self, *settings: str, resume: bool = False, **changes: object) -> None:
        with self.context(*settings, **changes) as context:
            start_or_check(context, resume)

    def job(self, *settings: str) -> Job:
        return load_job(self.file, settings)

    def commit(self, last: str | None) -> None:
        if last is not None:
            with self.context() as context:
                commit_until(context, last)

    @property
    def journal(self) -> bytes:
        return (self.folder / "journal.jsonl").read_bytes()


@pytest.fixture
def run(tmp_path: Path, opened: Setup) -> Run:
    return Run(tmp_path, opened)


@pytest.mark.parametrize(
    ("last", "settings", "again"),
    [
        ("evaluate", ["seed=7", "finetune.objective=plain"], "pretrain, warmup, search, finetune-slim, evaluate"),
        ("evaluate", ["finetune.learning_rate=3.0"], "finetune-slim, evaluate"),
        ("evaluate", ["cluster.threads=7"], "pretrain, warmup, search, bank, finetune-slim, evaluate"),
        ("evaluate", ["cluster.threads_per_worker=7"], "search, bank, finetune-slim, evaluate"),
        ("search", ["search.step=0.35"], "search"),
        ("search", ["warmup.epochs=2", "finetune.epochs=3"], "warmup, search"),
        ("bank", ["bank.dtype=float32"], "bank"),
        ("bank", ["finetune.objective=byol"], "bank"),
        ("warmup", ["search.quirks=[halved_warmup_divisor]"], "warmup"),
    ],
)
def test_a_change_that_committed_phases_depend_on_is_refused_with_these_phases(
    last: str, settings: list[str], again: str, run: Run
) -> None:
    run.commit(last)
    before, job = run.journal, (run.folder / "job.yaml").read_bytes()
    for resume in (False, True):
        with pytest.raises(ResumeError) as refused:
            run.open(*settings, resume=resume)
        assert f"would have to be done again: {again}. Put it back" in str(refused.value)
        assert all(f"{setting.partition('=')[0]} was " in str(refused.value) for setting in settings)
        assert ("--set search_run=" in str(refused.value)) == ("search" not in again)
    assert (run.journal, (run.folder / "job.yaml").read_bytes()) == (before, job)
    run.open()


@pytest.mark.parametrize(
    ("last", "settings"),
    [
        ("search", ["finetune.epochs=3", "bank.teachers=2"]),
        ("bank", ["finetune.objective=plain"]),
        ("warmup", ["search.step=0.35"]),
        (None, ["seed=7"]),
    ],
)
def test_a_change_that_nothing_so_far_depends_on_is_made_and_stated(
    last: str | None, settings: list[str], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    before = run.job().identity()
    run.commit(last)
    with pytest.raises(ResumeError, match="or continue all the same with --resume"):
        run.open(*settings)
    run.open(*settings, resume=True)
    name = settings[0].partition("=")[0]
    assert f"continuing although {name} was " in caplog.text
    line = read_journal(run.folder / "journal.jsonl")[-1]
    now = run.job(*settings)
    assert (line["kind"], line["job"], line["changes"]) == ("job", now.sha256, differences(before, now.identity()))
    assert load_job(run.folder / "job.yaml").identity() == now.identity()
    run.open(*settings)
    with pytest.raises(ResumeError, match=f"{name} was "):
        run.open()


def test_a_field_that_changes_no_result_may_change_at_any_time(run: Run) -> None:
    run.commit("evaluate")
    before = run.journal
    run.open("bank.cache=/elsewhere", "data.max_damaged=0.5", "cluster.search_workers=3", "finetune.baselines=[plain]")
    assert run.journal == before


def test_a_phase_that_has_begun_is_not_done_otherwise(run: Run) -> None:
    run.commit("bank")
    with run.context() as context:
        begin(context, next(phase for phase in context.phases if phase.name == "finetune-slim"))
    with pytest.raises(ResumeError, match=r"done again: finetune-slim\. Put"):
        run.open("finetune.learning_rate=0.5", resume=True)


def test_the_journal_says_what_a_run_is_not_a_job_file_that_was_edited(run: Run) -> None:
    run.commit("evaluate")
    path = run.folder / "job.yaml"
    text = path.read_text()
    path.write_text(text.replace("seed: 1", "seed: 7"))
    with pytest.raises(ResumeError, match="seed was 1, is 7"):
        run.open("seed=7", resume=True)
    run.open()
    assert path.read_text() == text
    path.write_text("no job")
    run.open()
    assert path.read_text() == text


def test_the_job_of_a_run_directory_is_continued_from_anywhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert load_job(run.folder / "job.yaml").run_dir == run.folder


def test_other_images_are_refused_once_a_phase_has_begun(run: Run) -> None:
    images = replace(run.setup.images, dataset=replace(run.setup.dataset, test=run.setup.dataset.train))
    run.open(resume=True, images=images)
    run.open(images=images)
    run.open(resume=True)
    run.commit("pretrain")
    with pytest.raises(ResumeError, match=r"data was .*, is .* done again: pretrain\. Put"):
        run.open(resume=True, images=images, test=run.setup.dataset.train)


def test_another_version_continues_where_that_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.commit("search")
    monkeypatch.setattr("torch.__version__", "9.9.9")
    with pytest.raises(ResumeError, match=r"torch was .*, is \"9\.9\.9\".* or continue all the same with --resume"):
        run.open()
    run.open(resume=True)


def test_threads_that_the_environment_gives_are_recorded_as_a_number(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.commit("search")
    here = run.job().cluster.threads
    monkeypatch.setenv("OMP_NUM_THREADS", str(here + 1))
    with pytest.raises(ResumeError, match=rf"cluster\.threads was {here}, is {here + 1}"):
        run.open()
    run.open(f"cluster.threads={here}")
    assert f"threads: {here}\n" in (run.folder / "job.yaml").read_text()
