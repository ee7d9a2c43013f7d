"""Records of a small search are repeated: late iterations, near ties, rounding draws, and records that are wrong."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_search import CLOSED_SUM, change_arrays, change_line, joined, open_recorded, record_search

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.errors import DataError
from ekgsearch.methods.base import Evaluation, GroupScores
from ekgsearch.methods.ekg.replay.agreement import (
    FreeRun,
    compare_candidates,
    compare_outcome,
    in_recorded_order,
    largest_deviation,
)
from ekgsearch.methods.ekg.replay.oracle import Oracle
from ekgsearch.methods.ekg.replay.replay import ROUNDING_DRAWS, Replay
from ekgsearch.methods.evaluate import SearchBatch
from ekgsearch.pipeline.replaying import free_run_text, iteration_text

CLOSED = ("layer1.1.conv1", "layer3.2.conv1")
CUT = "layer2.1.conv1"
"""The channel group that iteration 1 cuts, to 26 of 32 channels; the scores of the 26th and 27th differ by 1.1e-3."""


@pytest.fixture(scope="module")
def batch(batches: list[SearchBatch]) -> SearchBatch:
    return joined(batches)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, graph: ChannelGraph, batch: SearchBatch) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "folder"
    record_search(folder, graph, batch, 3, closed=CLOSED)
    return folder


@pytest.fixture
def altered(recorded: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "altered"
    (folder / "iters").mkdir(parents=True)
    for path in recorded.rglob("*.*"):
        (folder / path.relative_to(recorded)).write_bytes(path.read_bytes())
    return folder


def leave_out_closed(folder: Path) -> None:
    """Write the sums and flags of iterations 2 and 3 without the gates of width 0."""

    def change(line: dict[str, Any]) -> None:
        is_open = [value != CLOSED_SUM for value in line["gate_scores_used_by_otsu"]]
        for field in ("gate_scores_used_by_otsu", "do_check"):
            line[field] = [value for value, is_kept in zip(line[field], is_open, strict=True) if is_kept]

    for number in (2, 3):
        change_line(folder, number, change)


@pytest.mark.parametrize("shorten", [lambda folder: None, leave_out_closed])
def test_gates_of_width_zero_are_not_compared_whether_they_are_recorded_or_not(
    shorten: Callable[[Path], None], altered: Path, graph: ChannelGraph, batch: SearchBatch
) -> None:
    shorten(altered)
    replay = open_recorded(altered, graph, batch)
    record = replay.oracle.iteration(2, graph)
    assert set(record.before.rates) - set(record.sums) == set(CLOSED)
    assert [report.breaks for report in replay.run([2, 3])] == [(), ()]
    change_line(altered, 2, lambda line: line["gate_scores_used_by_otsu"].pop())
    with pytest.raises(DataError, match=r"gate_scores_used_by_otsu: \d+ values for 12 channel groups, 10 of them of"):
        Oracle.open(altered).iteration(2, graph)


def exchanged(share: float) -> Callable[[int, GroupScores], None]:
    """Scores of iteration 1 in which the last channel that is kept and the first that goes change places.

    Args:
        share: how far either is moved, as a share of the largest score of their channel group.
    """

    def change(number: int, scores: GroupScores) -> None:
        if number == 1:
            values = scores[CUT]
            kept, removed = np.argsort(-values)[[25, 26]]
            values[kept] -= share * values.max()
            values[removed] += share * values.max()

    return change


def recorded_with(
    folder: Path, graph: ChannelGraph, batch: SearchBatch, nudge: Callable[[int, GroupScores], None]
) -> Replay:
    record_search(folder, graph, batch, 3, nudge=nudge)
    return open_recorded(folder, graph, batch)


def test_a_free_run_ends_before_a_near_tie_and_breaks_at_another_order(
    graph: ChannelGraph, batch: SearchBatch, tmp_path: Path
) -> None:
    tied = recorded_with(tmp_path / "tied", graph, batch, exchanged(9e-4))
    (report,) = tied.run([1])
    assert (report.winner, report.near_ties, report.breaks) == (CUT, (CUT,), ())
    (found,) = tied.free_runs()
    assert found == FreeRun(1, 3, parted_at=1, near_tie=found.near_tie)
    assert 6e-4 < found.near_tie < 7e-4
    said = "free run over iterations 1 to 3: agrees, parted at iteration 1 by a near tie of importance within 6.7e-04"
    assert free_run_text(found) == said
    (found,) = tied.free_runs([2, 3])
    assert found == FreeRun(2, 3)
    (found,) = recorded_with(tmp_path / "far", graph, batch, exchanged(2e-2)).free_runs()
    assert found == FreeRun(1, 3, broke_at=1)
    assert free_run_text(found) == "free run over iterations 1 to 3: BREAKS in iteration 1"


def test_a_near_tie_does_not_excuse_another_winner(graph: ChannelGraph, batch: SearchBatch, tmp_path: Path) -> None:
    recorded_with(tmp_path / "tied", graph, batch, exchanged(9e-4))

    def let_another_win(line: dict[str, Any]) -> None:
        line["winner_gate"] = next(one["gate"] for one in line["candidates"] if one["gate"] != line["winner_gate"])

    change_line(tmp_path / "tied", 1, let_another_win)
    (found,) = open_recorded(tmp_path / "tied", graph, batch).free_runs()
    assert found == FreeRun(1, 3, broke_at=1)


def test_a_systematic_error_uses_up_all_rounding_draws_and_breaks(
    altered: Path, graph: ChannelGraph, batch: SearchBatch
) -> None:
    def change(arrays: dict[str, Any]) -> None:
        arrays["score_01"] *= 1.01

    change_arrays(altered / "iters" / "iter_0002.npz", change)
    (report,) = open_recorded(altered, graph, batch).run([2])
    assert report.draws == ROUNDING_DRAWS
    assert 0.009 < report.importance <= report.undrawn_importance < 0.011
    assert any("importance is off by 9.9e-03" in text for text in report.breaks)
    assert "importance 9.9e-03 with 16 rounding draws (9.9e-03 without), " in iteration_text(report)
    undrawn = dataclasses.replace(report, draws=0)
    assert "importance 9.9e-03, sums" in iteration_text(undrawn)


def test_the_channels_of_the_decision_itself_are_compared(
    recorded: Path, graph: ChannelGraph, batch: SearchBatch
) -> None:
    replay = open_recorded(recorded, graph, batch)
    record = replay.oracle.iteration(3, graph)
    decision = replay.decide(record, record.scores)
    assert decision.group == record.winner
    assert compare_outcome(decision, record, record.scores) == []
    for name in (record.winner, next(name for name in decision.subnetwork.names if name != record.winner)):
        other = decision.subnetwork.replace(name, decision.subnetwork[name][1:])
        breaks = compare_outcome(dataclasses.replace(decision, subnetwork=other), record, record.scores)
        assert len(breaks) == 1
        assert breaks[0].startswith(f"{name} keeps the channels {list(other[name])}, recorded")


@pytest.mark.parametrize(("gap", "is_near"), [(1.5e-3, True), (1.99e-3, True), (2.01e-3, False)])
def test_channels_nearly_tie_within_twice_the_tolerance(
    recorded: Path, graph: ChannelGraph, batch: SearchBatch, gap: float, is_near: bool
) -> None:
    """Both scores may be off by the tolerance."""
    record = open_recorded(recorded, graph, batch).oracle.iteration(1, graph)
    expected = np.linspace(1, 0.1, 32)
    expected[26] = expected[25] - gap
    record = dataclasses.replace(record, scores={**record.scores, CUT: expected})
    own = {**record.scores, CUT: expected[[*range(25), 26, 25, *range(27, 32)]]}
    used, near_ties, breaks = in_recorded_order(record, own)
    assert used[CUT] is expected
    assert near_ties == ({CUT: pytest.approx(gap)} if is_near else {})
    assert breaks == ([] if is_near else [f"{CUT} ranks the channels [25, 26] otherwise"])


def test_an_order_that_brings_a_removed_channel_back_is_another_order(
    recorded: Path, graph: ChannelGraph, batch: SearchBatch
) -> None:
    record = open_recorded(recorded, graph, batch).oracle.iteration(2, graph)
    assert len(record.before.subnetwork[CUT]) == 26
    expected = np.linspace(1, 0.1, 32)
    record = dataclasses.replace(record, scores={**record.scores, CUT: expected})
    own = {**record.scores, CUT: expected[[*range(25), 26, 25, *range(27, 32)]]}
    assert in_recorded_order(record, own)[2] == [f"{CUT} ranks the channels [25, 26] otherwise"]


def test_a_loss_that_is_no_number_and_another_width_do_not_agree(
    recorded: Path, graph: ChannelGraph, batch: SearchBatch
) -> None:
    replay = open_recorded(recorded, graph, batch)
    record = replay.oracle.iteration(3, graph)
    decision = replay.decide(record, record.scores)
    assert compare_candidates(decision, record)[2] == []
    for numbers in ((math.nan, record.candidates[0].score), (record.candidates[0].loss, math.nan)):
        broken = dataclasses.replace(decision.candidates[0], evaluation=Evaluation(*numbers, 0, 41))
        other = dataclasses.replace(decision, candidates=(broken, *decision.candidates[1:]))
        assert len(compare_candidates(other, record)[2]) == 1
    for name in (record.winner, next(name for name in record.rates_after if name != record.winner)):
        rates = {**record.rates_after, name: record.rates_after[name] + Fraction(1, 10**5)}
        (said,) = compare_outcome(decision, dataclasses.replace(record, rates_after=rates), record.scores)
        assert said.startswith(f"{name} has the width")


def test_recorded_thresholds_and_sums_are_compared(altered: Path, graph: ChannelGraph, batch: SearchBatch) -> None:
    change_line(altered, 2, lambda line: line.update(otsu_threshold=line["otsu_threshold"] * 1.002))

    def off(line: dict[str, Any]) -> None:
        line["gate_scores_used_by_otsu"] = [1.002 * value for value in line["gate_scores_used_by_otsu"]]

    change_line(altered, 3, off)
    second, third = open_recorded(altered, graph, batch).run([2, 3])
    assert [text.split(",")[0].rpartition(" ")[0] for text in second.breaks] == ["the threshold is"]
    assert third.breaks == ("the sum of a channel group's importance is off by 2.0e-03",)


def test_iterations_that_nothing_decides_end_a_free_run(altered: Path, graph: ChannelGraph, batch: SearchBatch) -> None:
    change_line(altered, 2, lambda line: line.update(margin_to_second=0.0))
    assert list(open_recorded(altered, graph, batch).free_runs()) == []


def test_of_several_rounding_draws_the_closest_counts(
    recorded: Path, graph: ChannelGraph, batch: SearchBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    deviations = iter([0.5, 0.2, *[0.4] * (ROUNDING_DRAWS - 1)])
    monkeypatch.setattr("ekgsearch.methods.ekg.replay.replay.largest_deviation", lambda *scores: next(deviations))
    (report,) = open_recorded(recorded, graph, batch).run([1])
    assert (report.importance, report.undrawn_importance, report.draws) == (0.2, 0.5, ROUNDING_DRAWS)


def test_channel_groups_without_importance_are_measured_by_a_floor() -> None:
    expected = {"alive": np.array([1.0, 0.5]), "dead": np.zeros(2)}
    assert largest_deviation({"alive": np.array([1.0, 0.5]), "dead": np.zeros(2)}, expected) == 0
    assert largest_deviation({"alive": np.array([1.0, 0.5]), "dead": np.array([0, 1e-13])}, expected) < 1e-3
    assert largest_deviation({"alive": np.array([1.0, 0.5]), "dead": np.array([0, 1e-6])}, expected) > 1
    assert largest_deviation({"dead": np.zeros(2)}, {"dead": np.zeros(2)}) == 0


def set_field(*keys: str | int, value: object) -> Callable[[Path], None]:
    """Change a field of iteration 2 in the trace."""

    def change(line: Any) -> None:
        for key in keys[:-1]:
            line = line[key]
        line[keys[-1]] = value

    return lambda folder: change_line(folder, 2, change)


def set_array(name: str, index: int | Sequence[int] | slice, value: float) -> Callable[[Path], None]:
    """Change numbers in the arrays of iteration 2."""

    def change(arrays: dict[str, Any]) -> None:
        arrays[name][index] = value

    return lambda folder: change_arrays(folder / "iters" / "iter_0002.npz", change)


def with_more_classes(folder: Path) -> None:
    """Give the ensemble knowledge of iteration 2 a class that the network has not."""

    def change(arrays: dict[str, Any]) -> None:
        arrays["knowledge"] = np.pad(arrays["knowledge"], ((0, 0), (0, 1)))

    change_arrays(folder / "iters" / "iter_0001.npz", change)


def set_initial(value: object) -> Callable[[Path], None]:
    return lambda folder: (folder / "initial.json").write_text(json.dumps({"flops": value, "params": 1}))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (set_array("width_list", 3, math.nan), r"iter_0002\.npz: expected finite numbers in width_list, found nan"),
        (set_array("width_list", 3, -0.2), r"expected widths within 0\.\.1 in width_list, found -0\.2 to 1\.0"),
        (set_array("score_04", 0, math.inf), r"expected finite numbers in score_04, found inf"),
        (set_array("knowledge", 0, math.nan), r"expected finite numbers in the ensemble knowledge, found nan"),
        (
            with_more_classes,
            r"iter_0001\.npz: expected ensemble knowledge of 41 images x 4 classes, found .* \(41, 5\)",
        ),
        (set_array("mask_05", slice(None), 0), r"expected at least one kept channel in mask_05, found none"),
        (set_field("candidates", 0, "flops", value=math.inf), "iteration 2: .* flops = inf, which is not finite"),
        (set_field("candidates", 0, "flops", value=10**400), "iteration 2: .* too large"),
        (set_field("candidates", 0, "score", value=math.nan), "iteration 2: .* score = nan, which is not finite"),
        (set_field("candidates", 0, "gate", value=-1), "iteration 2: .* gate = -1, which is not one of 0 to 11"),
        (set_field("candidates", 0, "gate", value=12), "iteration 2: .* gate = 12, which is not one of 0 to 11"),
        (set_field("candidates", 0, "gate", value=1.5), "iteration 2: .* gate = 1.5, which is not one of 0 to 11"),
        (set_field("winner_gate", value=-1), "iteration 2: .* winner_gate = -1, which is not one of 0 to 11"),
        (set_field("gate_scores_used_by_otsu", 0, value=math.nan), "iteration 2: .* nan, which is not finite"),
        (set_field("otsu_threshold", value=None), "iteration 2: expected do_check"),
        (set_initial(math.inf), "expected `d_val`.* flops = inf, which is not finite"),
    ],
)
def test_numbers_that_no_record_has_are_named(
    harm: Callable[[Path], None], expected: str, altered: Path, graph: ChannelGraph
) -> None:
    harm(altered)
    with pytest.raises(DataError, match=expected):
        [oracle.iteration(number, graph) for oracle in [Oracle.open(altered)] for number in oracle.iterations]
