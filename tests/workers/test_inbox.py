"""Accounts of reports: any order, duplicates and late attempts give the sums of one undisturbed worker."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekgsearch.errors import WorkerError
from ekgsearch.methods.base import BatchResult, Candidate, Evaluation
from ekgsearch.methods.evaluate import evaluations
from ekgsearch.records import Subnetwork
from ekgsearch.workers.inbox import Inbox
from ekgsearch.workers.questions import Answer, Evaluate, ReportKey, Scores

RUN = "run"

FULL = Subnetwork.of({"conv1": (0, 1, 2)})

SCORES = Scores(iteration=4, current=FULL, count=4)


def about(num_candidates: int = 1, iteration: int = 4, only: tuple[int, ...] | None = None) -> Evaluate:
    """A question about candidates."""
    candidates = (Candidate("conv1", FULL.replace("conv1", (0,)), Fraction(1, 3)),) * num_candidates
    return Evaluate(iteration=iteration, current=FULL, candidates=candidates, only=only)


def truth(batch: int, candidate: int) -> BatchResult:
    """What an honest worker finds; sums whose order matters in the last bits."""
    loss = math.nan if (batch, candidate) == (1, 1) else math.exp(batch) / (candidate + 3)
    return BatchResult(images=batch + 1, correct=candidate, loss_sum=loss, score_sum=loss + 0.1 * batch)


def key(batch: int, candidate: int = 0, attempt: int = 1, question: str = "evaluate", iteration: int = 4) -> ReportKey:
    return ReportKey(RUN, iteration, question, batch, candidate, attempt)


def asked(num_batches: int, num_candidates: int = 1, question: str = "evaluate") -> Inbox:
    inbox = Inbox(RUN, range(num_batches))
    inbox.ask(SCORES if question == "scores" else about(num_candidates))
    return inbox


@dataclass(frozen=True)
class Loss:
    """The worker of a batch is lost; from now on an attempt with this number counts."""

    batch: int
    attempt: int


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[Loss | tuple[ReportKey, BatchResult]]]:
    """Everything that reaches the driver while one question is open, in a possible order."""
    num_batches, num_candidates = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    events: list[Loss | tuple[ReportKey, BatchResult]] = []
    by_batch = []
    for batch in range(num_batches):
        mine: list[Loss | tuple[ReportKey, BatchResult]] = []
        attempts = draw(st.integers(1, 3))
        for attempt in range(1, attempts + 1):
            if attempt > 1:
                mine.append(Loss(batch, attempt))
                for _ in range(draw(st.integers(0, 3))):  # an orphan still speaks, and what it says may be wrong
                    candidate = draw(st.integers(0, num_candidates - 1))
                    wrong = draw(st.booleans())
                    value = replace(truth(batch, candidate), loss_sum=-1.0) if wrong else truth(batch, candidate)
                    mine.append((key(batch, candidate, draw(st.integers(1, attempt - 1))), value))
            heard = range(num_candidates) if attempt == attempts else range(draw(st.integers(0, num_candidates)))
            said = [(key(batch, candidate, attempt), truth(batch, candidate)) for candidate in heard]
            said += draw(st.lists(st.sampled_from(said), max_size=3)) if said else []
            mine += draw(st.permutations(said))
        by_batch.append(mine)
    while any(by_batch):
        mine = draw(st.sampled_from([part for part in by_batch if part]))
        events.append(mine.pop(0))
    return num_batches, num_candidates, events


def same(first: list[Evaluation], second: list[Evaluation]) -> bool:
    return repr(first) == repr(second)  # every digit, and NaN equal to NaN


@given(histories())
def test_any_order_with_duplicates_and_late_attempts_gives_the_same_sums(history) -> None:
    num_batches, num_candidates, events = history
    inbox = asked(num_batches, num_candidates)
    counted = dropped = 0
    for event in events:
        if isinstance(event, Loss):
            inbox.expect([event.batch], event.attempt)
        elif inbox.take(*event):
            counted += 1
        else:
            dropped += 1
    whole = {batch: [truth(batch, place) for place in range(num_candidates)] for batch in range(num_batches)}
    assert inbox.missing == ()
    assert same(evaluations(inbox.results(), num_candidates), evaluations(whole, num_candidates))
    assert counted == num_batches * num_candidates
    assert inbox.num_duplicates + inbox.num_late == dropped


def test_a_different_duplicate_stops_the_run_and_names_its_key() -> None:
    inbox = asked(2, 2)
    assert inbox.take(key(1, 0), truth(1, 0))
    nudged = replace(truth(1, 0), score_sum=math.nextafter(truth(1, 0).score_sum, 9))
    with pytest.raises(WorkerError, match=r"run run, iteration 4, question evaluate, batch 1, candidate 0, attempt 1"):
        inbox.take(key(1, 0), nudged)


def test_two_attempts_that_both_count_must_agree() -> None:
    inbox = asked(1)
    inbox.take(key(0), truth(0, 0))
    inbox.expect([0], 2)
    assert not inbox.take(key(0, attempt=2), truth(0, 0))
    with pytest.raises(WorkerError, match="differ"):
        inbox.take(key(0, attempt=2), replace(truth(0, 0), correct=1))


def test_channel_scores_are_compared_bit_by_bit() -> None:
    inbox = asked(1, question="scores")
    scores = {"conv1": np.array([0.5, math.nan]), "layer1": np.array([0.0])}
    of_batch = key(0, question="scores")
    assert inbox.take(of_batch, scores)
    assert not inbox.take(of_batch, {name: values.copy() for name, values in reversed(scores.items())})
    with pytest.raises(WorkerError, match="differ"):
        inbox.take(of_batch, scores | {"layer1": np.array([-0.0])})


def test_an_answer_of_an_earlier_iteration_is_recognised_later() -> None:
    inbox = asked(1)
    inbox.take(key(0), truth(0, 0))
    inbox.ask(Scores(iteration=5, current=FULL, count=5))
    assert not inbox.take(key(0), truth(0, 0))
    assert inbox.num_duplicates == 1
    with pytest.raises(WorkerError, match="iteration 4"):
        inbox.take(key(0), truth(0, 1))
    assert inbox.missing == (0,)


@pytest.mark.parametrize(
    "stray",
    [
        key(0)._replace(run="another"),
        key(7),
        key(0, candidate=2),
        key(0, attempt=2),
        key(0, iteration=9),
        key(0, question="scores"),
    ],
)
def test_a_report_that_nobody_asked_for_stops_the_run(stray: ReportKey) -> None:
    with pytest.raises(WorkerError, match=f"iteration {stray.iteration}, question {stray.question}"):
        asked(1, 2).take(stray, truth(0, 0))


def test_a_question_about_some_batches_waits_for_those_and_remembers_the_others() -> None:
    inbox = Inbox(RUN, range(3))

    def ask(*batches: int) -> None:
        inbox.ask(about(only=batches))

    ask(1)
    assert inbox.missing == (1,)
    inbox.take(key(1), truth(1, 0))
    assert inbox.results() == {1: [truth(1, 0)]}
    ask(0, 2)
    assert not inbox.take(key(1), truth(1, 0)), "an equal duplicate of the round before"
    with pytest.raises(WorkerError, match="differ"):
        inbox.take(key(1), truth(1, 2))
    inbox.take(key(0), truth(0, 0))
    assert inbox.missing == (2,)
    inbox.take(key(2), truth(2, 0))
    assert sorted(inbox.results()) == [0, 2]
    ask(1)
    assert inbox.take(key(1), truth(1, 2)), "asked again, an earlier answer is forgotten"
    inbox.ask(about(iteration=5, only=(0,)))
    with pytest.raises(WorkerError, match="nobody has asked"):
        inbox.take(key(1, iteration=5), truth(1, 0))


def test_missing_batches_are_named_instead_of_summed() -> None:
    inbox = asked(3, 2)
    answer = Answer(
        run=RUN, iteration=4, question="evaluate", attempt=1, values={1: [truth(1, 0), truth(1, 1)]}, busy_seconds=0
    )
    for place, value in answer.reports():
        inbox.take(place, value)
    inbox.take(key(2, 1), truth(2, 1))
    assert inbox.missing == (0, 2)
    with pytest.raises(WorkerError, match=r"\[0, 2\]"):
        inbox.results()


@pytest.mark.parametrize("question", [SCORES, about(3), about(2, only=(1,))])
def test_a_question_says_whom_it_concerns_and_how_much_it_is_answered(question: Scores | Evaluate) -> None:
    inbox = Inbox(RUN, range(2))
    inbox.ask(question)
    assert inbox.missing == ((1,) if question.batches else (0, 1))
    assert question.concerns([0]) == (question.batches is None)
    assert question.answers_per_batch == (len(question.candidates) if isinstance(question, Evaluate) else 1)
