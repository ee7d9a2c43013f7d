"""Which interim sub-networks become teachers."""

import random

import pytest

from ekgsearch.bank.select import choose_teachers
from ekgsearch.errors import JobError, NumericsError


def test_evenly_rising_losses_give_evenly_spaced_teachers() -> None:
    assert choose_teachers([index / 10 for index in range(11)], 5) == (0, 2, 4, 6, 8)


def test_teachers_are_distinct_and_the_first_has_the_lowest_loss() -> None:
    generator = random.Random(1)
    for _ in range(300):
        losses = [generator.choice([0.1, 0.2, generator.random()]) for _ in range(generator.randint(1, 12))]
        num_teachers = generator.randint(1, 8)
        chosen = choose_teachers(losses, num_teachers)
        assert len(set(chosen)) == len(chosen) == min(num_teachers, len(losses))
        assert losses[chosen[0]] == min(losses)
        assert [losses[position] for position in chosen] == sorted(losses[position] for position in chosen)


def test_each_target_takes_the_nearest_loss_that_is_free() -> None:
    # Targets 0, 1 and 2 between 0 and 3: 1.2 is nearest to 1 and to 2, so the third target takes 2.9.
    assert choose_teachers([0.0, 1.2, 2.9, 3.0], 3) == (0, 1, 2)


def test_losses_that_first_fall_put_a_later_network_first() -> None:
    assert choose_teachers([0.30, 0.25, 0.40, 0.50], 2) == (1, 2)


def test_equal_losses_are_taken_in_order() -> None:
    assert choose_teachers([0.2, 0.2, 0.2], 2) == (0, 1)


def test_few_interim_networks_are_all_taken() -> None:
    assert choose_teachers([0.3], 5) == (0,)


def test_what_cannot_be_chosen_from_is_refused() -> None:
    with pytest.raises(JobError, match="at least 1 teacher, found 0"):
        choose_teachers([0.1], 0)
    with pytest.raises(JobError, match="no interim sub-network"):
        choose_teachers([], 5)
    with pytest.raises(NumericsError, match="sub-network 1 of 2 is nan"):
        choose_teachers([0.1, float("nan")], 1)
