"""What a run is stands in its journal: what may still change when it is continued, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import JOB

from ekgsearch.errors import ResumeError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.changes import FIRST_PHASE, phase_of_fact, phase_of_field
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.pipeline.statement import start_or_check
from ekgsearch.pipeline.study import StudyJob
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.storage.journal import Journal, read_journal

SEARCHED = ("pretrain", "warmup", "iteration", "search")
FINISHED = (*SEARCHED, "bank", "finetune", "evaluate", "done")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """A job, opened once: no field that these tests change is looked at when the job is opened."""
    folder = tmp_path_factory.mktemp("statement")
    (folder / "job.yaml").write_text(JOB.format(output=folder / "run"))
    return set_up(load_job(folder / "job.yaml"))


class Run:
    """A run directory whose phases are journal lines and nothing else."""

    def __init__(self, folder: Path, setup: Setup, *settings: str) -> None:
        self.file, self.setup = folder / "job.yaml", setup
        self.file.write_text(JOB.format(output=folder / "run"))
        self.folder = folder / "run"
        self.folder.mkdir()
        self.open(*settings)

    def open(self, *settings: str, resume: bool = False, **changes: object) -> None:
        setup = replace(self.setup, job=self.job(*settings), **changes)  # type: ignore[arg-type]
        with Journal.open(self.folder / "journal.jsonl") as journal:
            start_or_check(setup, journal, resume)

    def job(self, *settings: str) -> Job:
        return load_job(self.file, settings)

    def commit(self, kinds: Sequence[str]) -> None:
        with Journal.open(self.folder / "journal.jsonl") as journal:
            for kind in kinds:
                journal.append(kind)

    @property
    def journal(self) -> bytes:
        return (self.folder / "journal.jsonl").read_bytes()


@pytest.fixture
def run(tmp_path: Path, opened: Setup) -> Run:
    return Run(tmp_path, opened)


@pytest.mark.parametrize(
    ("begun", "settings", "again"),
    [
        (FINISHED, ["seed=7", "finetune.objective=plain"], "pretrain, warmup, search, bank, finetune, evaluate"),
        (FINISHED, ["finetune.epochs=3"], "finetune, evaluate"),
        (FINISHED, ["data.test_images=50"], "pretrain, warmup, search, bank, finetune, evaluate"),
        (FINISHED, ["cluster.threads=7"], "pretrain, warmup, search, bank, finetune, evaluate"),
        (FINISHED, ["cluster.threads_per_worker=7"], "search, bank, finetune, evaluate"),
        (SEARCHED, ["search.reduction=0.4"], "search"),
        (SEARCHED[:3], ["search.reduction=0.4"], "search"),
        (SEARCHED, ["warmup.epochs=2", "finetune.epochs=3"], "warmup, search"),
        ((*SEARCHED, "bank"), ["bank.teachers=2"], "bank"),
        ((*SEARCHED, "bank"), ["finetune.objective=byol"], "bank"),
        (("pretrain",), ["search.quirks=[sequential_statistics]"], "pretrain"),
    ],
)
def test_a_change_that_committed_phases_depend_on_is_refused_with_these_phases(
    begun: tuple[str, ...], settings: list[str], again: str, run: Run
) -> None:
    run.commit(begun)
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
    ("begun", "settings"),
    [
        (SEARCHED, ["finetune.epochs=3", "bank.teachers=2"]),
        ((*SEARCHED, "bank"), ["finetune.objective=plain"]),
        (("pretrain", "warmup"), ["search.reduction=0.4"]),
        (FINISHED, ["data.max_damaged=0.5"]),
        ((), ["seed=7"]),
    ],
)
def test_a_change_that_nothing_so_far_depends_on_is_made_and_stated(
    begun: tuple[str, ...], settings: list[str], run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    before = run.job().deciding_fields
    run.commit(begun)
    with pytest.raises(ResumeError, match="or continue all the same with --resume"):
        run.open(*settings)
    run.open(*settings, resume=True)
    name = settings[0].partition("=")[0]
    assert f"continuing although {name} was " in caplog.text
    line = read_journal(run.folder / "journal.jsonl")[-1]
    now = run.job(*settings)
    assert (line["kind"], line["job"], line["fields"]) == ("job", now.sha256, now.deciding_fields)
    assert line["changes"][name] == [before[name], now.deciding_fields[name]]
    assert load_job(run.folder / "job.yaml").deciding_fields == now.deciding_fields
    run.open(*settings)
    with pytest.raises(ResumeError, match=f"{name} was "):
        run.open()


def test_an_attempt_at_a_phase_counts_as_its_beginning(run: Run) -> None:
    run.commit(SEARCHED)
    with Ledger(run.folder / "ledger", "run").attempt(PhaseKind.FINETUNE, "cpu", 1):
        pass
    run.open("bank.cache=/elsewhere")
    with pytest.raises(ResumeError, match=r"done again: finetune\. Put"):
        run.open("finetune.learning_rate=0.5", resume=True)


def test_the_journal_says_what_a_run_is_not_a_job_file_that_was_edited(run: Run) -> None:
    run.commit(FINISHED)
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


def test_other_images_are_refused_once_a_phase_has_begun(run: Run) -> None:
    images = replace(run.setup.images, dataset=replace(run.setup.dataset, test=run.setup.dataset.train))
    run.open(resume=True, images=images)
    run.open(images=images)
    run.commit(["pretrain"])
    with pytest.raises(ResumeError, match=r"data was .*, is .* done again: pretrain\. Put"):
        run.open(resume=True)


def test_threads_that_the_environment_gives_are_recorded_as_a_number(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.commit(SEARCHED)
    here = run.job().cluster.threads
    monkeypatch.setenv("OMP_NUM_THREADS", str(here + 1))
    with pytest.raises(ResumeError, match=rf"cluster\.threads was {here}, is {here + 1}"):
        run.open()
    run.open(f"cluster.threads={here}")
    assert f"threads: {here}\n" in (run.folder / "job.yaml").read_text()


def test_every_field_and_fact_has_a_first_phase(opened: Setup) -> None:
    fields = opened.job.deciding_fields
    study = StudyJob.model_validate(
        opened.job.model_dump() | {"finetune": {**opened.job.finetune.model_dump(), "objective": "plain"}}
    ).deciding_fields
    for name in {**fields, **study}:
        phase_of_field(name, fields, fields)
    for name in opened.facts:
        phase_of_fact(name)
    listed = {name for name in FIRST_PHASE if "." in name}
    assert listed <= fields.keys(), "a listed field that no job has"
