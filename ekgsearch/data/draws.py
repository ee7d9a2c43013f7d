"""Random numbers that are a function of what they are for, not of what was drawn before."""

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
"""The constants of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""


def words(ids: Tensor, num_draws: int, *key: int) -> Tensor:
    """Draw 64 random bits per image and draw.

    Args:
        ids: image ids (B,), int64, on any device.
        num_draws: draws per image.
        *key: what the draws are for, such as seed, epoch and view; any integers.

    Returns:
        Bits (B, num_draws), int64: each a function of the key, its image id and its draw index alone, the same on
        every device.
    """
    state = 0
    for number in key:
        state = _mixed((state + _STEP + number) & _WORD)
    streams = _mixed_tensor(ids.to(torch.int64) * _signed(_STEP) + _signed(state))
    steps = torch.arange(1, num_draws + 1, device=ids.device) * _signed(_STEP)
    return _mixed_tensor(streams[:, None] + steps)


def uniforms(ids: Tensor, num_draws: int, *key: int) -> Tensor:
    """Draw uniform numbers (B, num_draws) in [0, 1), float64, 53 bits each; see `words`."""
    return _logical_shift(words(ids, num_draws, *key), 11).to(torch.float64) * 2.0**-53


def _mixed(word: int) -> int:
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        word = ((word ^ (word >> shift)) * factor) & _WORD
    return word ^ (word >> _SHIFTS[-1])


def _mixed_tensor(words: Tensor) -> Tensor:
    """Mix as `_mixed` does; int64 arithmetic wraps around, so its bits are those of unsigned words."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        words = (words ^ _logical_shift(words, shift)) * _signed(factor)
    return words ^ _logical_shift(words, _SHIFTS[-1])


def _logical_shift(words: Tensor, shift: int) -> Tensor:
    return (words >> shift) & ((1 << (64 - shift)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
