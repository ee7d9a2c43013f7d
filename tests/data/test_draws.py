import numpy as np
import pytest
import torch

from ekgsearch.data.draws import uniforms, words

WORD = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """One output of SplitMix64, written out with Python's unbounded integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
    return state ^ (state >> 31)


def expected_word(image_id: int, draw: int, key: tuple[int, ...]) -> int:
    gamma, state = 0x9E3779B97F4A7C15, 0
    for number in key:
        state = splitmix64((state + gamma + number) & WORD)
    stream = splitmix64((state + image_id * gamma) & WORD)
    return splitmix64((stream + (draw + 1) * gamma) & WORD)


@pytest.mark.parametrize("key", [(), (0,), (7, 1, 0), ((1 << 63) - 1, 12, 3)])
def test_words_equal_splitmix64_in_unbounded_integers(key: tuple[int, ...]) -> None:
    ids = torch.tensor([0, 1, 49_999, 2**40])
    found = words(ids, 4, *key)
    for row, image_id in enumerate(ids.tolist()):
        for draw in range(4):
            assert int(found[row, draw]) & WORD == expected_word(image_id, draw, key)


def test_splitmix64_has_the_published_first_output() -> None:
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_an_image_draws_the_same_numbers_in_any_batch() -> None:
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = uniforms(ids, 5, 1, 2, 3)
    assert torch.equal(whole[400:403], uniforms(ids[400:403], 5, 1, 2, 3))
    assert torch.equal(whole[:, :2], uniforms(ids, 2, 1, 2, 3))


@pytest.mark.parametrize("other", [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3)])
def test_every_part_of_the_key_changes_all_draws(other: tuple[int, int, int]) -> None:
    ids = torch.arange(2000)
    one, two = uniforms(ids, 3, 1, 2, 3), uniforms(ids, 3, *other)
    assert not (one == two).any()
    assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 0.05


def test_draws_are_uniform_and_independent() -> None:
    draws = uniforms(torch.arange(20_000), 4, 11, 1, 0).numpy()
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    expected = len(draws) / 20
    for column in draws.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        # 43.8 is the 0.1 % point of chi-square with 19 degrees of freedom.
        assert ((counts - expected) ** 2 / expected).sum() < 43.8
    with_next_image = np.concatenate([draws[:-1], draws[1:]], axis=1)
    # Five standard deviations of the correlation of independent samples.
    assert np.abs(np.corrcoef(with_next_image.T) - np.eye(8)).max() < 5 / np.sqrt(len(draws))


@pytest.mark.gpu
def test_the_accelerator_draws_the_same_bits() -> None:
    ids = torch.arange(10_000)
    assert torch.equal(words(ids.cuda(), 11, 5, 6, 7).cpu(), words(ids, 11, 5, 6, 7))
    assert torch.equal(uniforms(ids.cuda(), 11, 5, 6, 7).cpu(), uniforms(ids, 11, 5, 6, 7))
