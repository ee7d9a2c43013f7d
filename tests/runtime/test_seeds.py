"""Seeds of different purposes differ, and stay the same for ever."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ekgsearch.runtime.seeds import sub_seed

NAMES = st.lists(st.text(max_size=5) | st.integers(), max_size=3)


@given(seed=st.integers(), names=NAMES)
def test_a_seed_fits_every_generator(seed: int, names: list[str | int]) -> None:
    assert 0 <= sub_seed(seed, *names) < 2**63


@given(first=st.tuples(st.integers(), NAMES), second=st.tuples(st.integers(), NAMES))
def test_different_purposes_have_different_seeds(
    first: tuple[int, list[str | int]], second: tuple[int, list[str | int]]
) -> None:
    is_same = first == second
    assert (sub_seed(first[0], *first[1]) == sub_seed(second[0], *second[1])) == is_same


def test_names_are_not_run_together_and_numbers_are_no_texts() -> None:
    seeds = [sub_seed(1), sub_seed(1, "ab"), sub_seed(1, "a", "b"), sub_seed(1, 1), sub_seed(1, "1"), sub_seed(2)]
    assert len(set(seeds)) == len(seeds)


def test_seeds_do_not_change_between_versions() -> None:
    assert sub_seed(1, "views", 3) == 2830775879404138462
    expected = int.from_bytes(hashlib.sha256(b'[1,"views",3]').digest()[:8], "big") // 2
    assert sub_seed(1, "views", 3) == expected
