"""The ratio of two latencies, its spread, and the noise that it must exceed."""

import math
import time

import pytest
import torch
from torch import nn

from ekgsearch.runtime.latency import PASS_SECONDS, ROUNDS, compare_latencies, summarise


def test_the_ratio_is_the_median_over_the_rounds_and_a_steady_slowdown_cancels_out() -> None:
    rounds = [(2.0 * 1.1**n, 1.0 * 1.1 ** (n + 1), 2.0 * 1.1 ** (n + 2)) for n in range(0, 30, 3)]
    found = summarise(rounds)
    assert found.ratio == pytest.approx(2.0)
    assert (found.ratio_low, found.ratio_high) == (pytest.approx(2.0), pytest.approx(2.0))
    assert found.noise == pytest.approx(1.21)


def test_quartiles_and_noise_are_those_of_the_rounds() -> None:
    noise = [1.0, 1.0, 1.1, 1.2, 3.0]
    ratios = [0.1, 0.8, 1.0, 1.3, 9.0]
    turns = (math.sqrt, lambda value: 1 / math.sqrt(value))
    rounds = []
    for number, (ratio, off) in enumerate(zip(ratios, noise, strict=True)):
        before, after = turns[number % 2](off), turns[(number + 1) % 2](off)
        rounds.append((0.004 * before, 0.004 / ratio, 0.004 * after))
    found = summarise(rounds)
    assert (found.ratio_low, found.ratio, found.ratio_high) == pytest.approx((0.8, 1.0, 1.3))
    assert found.noise == pytest.approx(1.2)
    assert found.slim_ms == pytest.approx(4.0)
    assert found.full_ms == pytest.approx(4.0, rel=0.1)


class Counted(nn.Module):
    """Notes each pass."""

    def __init__(self, name: str, passes: list[str]) -> None:
        super().__init__()
        self.name, self.passes = name, passes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert images.shape == (2, 3, 4, 4)
        self.passes.append(self.name)
        return images


def test_a_slow_network_is_timed_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ekgsearch.runtime.latency._seconds", lambda network, images, repeats: 1.5)
    checks: list[None] = []
    networks = Counted("full", []), Counted("slim", [])
    compare_latencies(*networks, (3, 4, 4), 2, torch.device("cpu"), check=lambda: checks.append(None))
    assert len(checks) == 6, "three passes of 1.5 s make a round, and 30 s six of them"


def test_the_networks_take_turns_in_passes_that_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * PASS_SECONDS / 2.5)
    found = compare_latencies(
        Counted("full", passes), Counted("slim", passes), (3, 4, 4), batch_size=2, device=torch.device("cpu")
    )
    timed = [name for name in ("full", "slim", "full") for _ in range(3)]
    assert passes == ["full", "slim", "full"] * 2 + timed * ROUNDS
    assert found.full_ms == found.slim_ms == pytest.approx(1000 * PASS_SECONDS / 2.5 / 3)
    assert (found.ratio, found.noise) == (pytest.approx(1), pytest.approx(1))
