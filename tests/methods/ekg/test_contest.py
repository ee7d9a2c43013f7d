"""Which of the evaluated candidates wins, by score and by what a rise of the score saves."""

import math

import pytest

from ekgsearch.errors import NumericsError
from ekgsearch.methods.base import Evaluation
from ekgsearch.methods.ekg.contest import Contest


def evaluations(*scores: float, images: int = 10) -> list[Evaluation]:
    return [Evaluation(score / 2, score, 5, images) for score in scores]


def test_by_score_the_lowest_wins_and_the_first_at_a_tie() -> None:
    assert Contest(evaluations(3.0, 2.0, 2.0, math.nan), 0.0).winner([], 1) == 1


def test_by_cost_the_lowest_rise_per_share_wins() -> None:
    contest = Contest(evaluations(1.2, 1.1, 1.4), 0.0, shares=(0.02, 0.001, 0.1), standing=1.0)
    assert contest.winner([], 1) == 2, "rises of 10, 100 and 4 per share"


def test_of_candidates_that_cost_nothing_the_one_that_saves_most_wins() -> None:
    """A fall of 1e-9 for a share of 1e-6 would else beat everything."""
    contest = Contest(evaluations(0.999, 1.0 - 1e-9, 1.0, 1.1), 0.0, shares=(0.01, 1e-6, 0.05, 0.2), standing=1.0)
    assert contest.winner([], 1) == 2


def test_rounding_counts_as_what_it_is_worth_per_share() -> None:
    """Rises of 100 and 101 per share differ by 1e-5 of the score; those of 1000 and 1.0 do not nearly tie."""
    close = Contest(evaluations(1.0100, 1.0101, 1.5), 1e-4, shares=(0.0001, 0.0001, 0.0005), standing=1.0)
    assert close.near_ties() == [0, 1]
    settled = close.settled([0, 1], evaluations(1.02, 1.01))
    assert settled.winner([0, 1], 1) == 1
    clear = Contest(evaluations(1.1, 1.0001), 1e-6, shares=(0.0001, 0.0001), standing=1.0)
    assert clear.near_ties() == []


def test_candidates_that_saw_fewer_images_or_gave_no_number_do_not_win() -> None:
    seen = [*evaluations(1.0, images=5), *evaluations(math.inf, 2.0)]
    assert Contest(seen, 0.0, shares=(0.1, 0.1, 0.1), standing=0.5).winner([], 1) == 2
    with pytest.raises(NumericsError, match="all 2 candidates of iteration 7"):
        Contest(evaluations(math.nan, math.inf), 0.0).winner([], 7)
