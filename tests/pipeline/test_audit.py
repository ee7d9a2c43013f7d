"""An audit finds every decision of an exact search again, and the one that is not the exact one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from paper_run import paper_run
from small_search import SmallSearch

from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.methods.base import Candidate, Evaluation, Evaluator, GroupScores
from ekgsearch.methods.ekg.method import ekg_settings
from ekgsearch.methods.ekg.racing import Racing
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.pipeline.audit import audit
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import decisions
from ekgsearch.pipeline.run import run_job
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.pipeline.warmup import Warmup
from ekgsearch.records import Subnetwork
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.journal import Journal
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.team import Team

SETTINGS = ("search.batch_size=12", "search.reduction=0.25")
WRONG = 3


class WrongOnce:
    """A team that has the worst candidate win in one iteration."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._iteration = 0

    def begin(self, history: Sequence[Subnetwork]) -> Evaluation:
        return self._team.begin(history)

    def scores(self, current: Subnetwork, count: int) -> GroupScores:
        self._iteration = count
        return self._team.scores(current, count)

    def evaluate(self, current: Subnetwork, candidates: Sequence[Candidate]) -> list[Evaluation]:
        found = self._team.evaluate(current, candidates)
        if self._iteration != WRONG:
            return found
        return [Evaluation(one.loss, -one.score, one.correct, one.images) for one in found]

    def settle(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return self._team.settle(candidates)


@contextmanager
def searched(
    folder: Path, evaluator: type[WrongOnce] | None = None, error: float | None = None
) -> Iterator[RunContext]:
    """A run whose search has finished, by the team itself or by what is put before it."""
    small = SmallSearch.make(folder, SETTINGS)
    run = small.setup.job.run_dir
    run.mkdir()
    with Journal.open(run / "journal.jsonl") as journal:
        state = paper_run(small.setup, run, journal)
        weights = small.workload.weights.rename(run / "weights.safetensors")
        state.commit(Warmup(), {"files": {weights.name: file_sha256(weights)}, "weights": weights.name})
        with state.backend.team(state.workload, small.setup.search_spec) as team:
            answering: Evaluator = team if evaluator is None else evaluator(team)
            if error is not None:
                answering = Racing(team, range(len(small.setup.search_spec.batches)), error)
            settings = ekg_settings(small.setup.job.search, small.setup.search_spec.tie_tolerance)
            for decision in EkgSearch(small.setup.graph, answering, small.setup.budget, settings).run():
                journal.append("iteration", **decision.to_record())
        yield state


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunContext]:
    with searched(tmp_path_factory.mktemp("exact")) as state:
        yield state


def test_an_exact_run_agrees_everywhere_and_an_audit_larger_than_the_search_says_so(
    exact: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    made, before = decisions(exact), list(exact.journal.lines)
    rows = audit(exact, 1000)
    assert [row.iteration for row in rows] == list(range(1, len(made)))
    assert f"--audit 1000, but the search made {len(rows)} decisions: auditing all of them" in caplog.text
    for row, decision in zip(rows, made[1:], strict=True):
        assert row.agrees
        assert row.regret == 0
        assert row.shortlist_shared == 1
        assert (row.exact_channel_group, row.exact_score) == (decision.group, decision.evaluation.score)
    assert exact.journal.lines == before


def test_random_iterations_follow_from_the_seed_and_are_written_to_a_table(
    exact: RunContext, caplog: pytest.LogCaptureFixture
) -> None:
    made = decisions(exact)
    rows = audit(exact, 3)
    assert len(rows) == 3
    assert rows == audit(exact, 3)
    assert [row.exact_score for row in rows] == [made[row.iteration].evaluation.score for row in rows]
    table = pd.read_parquet(exact.folder / "tables" / "audit.parquet")
    assert table.iteration.tolist() == [row.iteration for row in rows]
    assert "auditing all" not in caplog.text


def test_a_wrong_decision_is_found_with_its_regret_and_those_around_it_agree(tmp_path: Path) -> None:
    with searched(tmp_path, WrongOnce) as state:
        made = decisions(state)
        rows = {row.iteration: row for row in audit(state, len(made) - 1)}
    wrong = rows.pop(WRONG)
    assert not wrong.agrees
    assert wrong.channel_group == made[WRONG].group
    true_scores = {outcome.group: -outcome.evaluation.score for outcome in made[WRONG].candidates}
    assert wrong.exact_channel_group == min(true_scores, key=lambda group: true_scores[group])
    assert wrong.regret == pytest.approx(max(true_scores.values()) - min(true_scores.values()), rel=1e-4)
    assert wrong.regret > 0
    assert wrong.shortlist_shared == 1
    assert all(row.agrees and row.regret == 0 for row in rows.values())


def test_a_race_at_a_silly_error_probability_is_found_out(tmp_path: Path) -> None:
    with searched(tmp_path, error=0.999) as state:
        rows = audit(state, 1000)
    assert not all(row.agrees for row in rows)
    assert max(row.regret for row in rows) > 0
    assert all(row.shortlist_shared == 1 for row in rows), "scores of channels do not race"


def test_the_exact_plan_does_not_know_the_tier_of_the_job(tmp_path: Path) -> None:
    def setup(*settings: str) -> Setup:
        (tmp_path / "job.yaml").write_text(
            f"output: {tmp_path / 'run'}\ndata: {{image_size: 8}}\nnet: {{name: resnet20}}\n"
            "search: {reduction: 0.3, images_per_class: 12}\nwarmup: {images_per_class: 12}\n"
        )
        return set_up(load_job(tmp_path / "job.yaml", settings))

    plain = setup("search.criterion=l1")
    faster = ("precision=bf16", "channels_last=true", "compile=true", "slice_below=1", "racing=0.5")
    for tiers in (faster, ("evaluation=naive",)):
        other = setup("search.criterion=l1", *(f"search.{tier}" for tier in tiers))
        assert other.exact_spec == plain.exact_spec == plain.search_spec
        assert other.search_spec != plain.search_spec


def test_a_search_without_decisions_cannot_be_audited(tmp_path: Path) -> None:
    job = Job(
        output=str(tmp_path),
        warmup={"images_per_class": 16},
        search={"method": "uniform", "reduction": 0.3},
        finetune={"objective": "plain"},
    )
    with pytest.raises(JobError, match="uniform makes no decisions that --audit could repeat"):
        run_job(job, InProcessBackend(), num_audited=2)
