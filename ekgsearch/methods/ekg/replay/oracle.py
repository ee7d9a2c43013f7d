"""Decisions that the program published with the paper recorded, read from a folder of its files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.head import classifier
from ekgsearch.errors import DataError
from ekgsearch.methods.base import GroupScores
from ekgsearch.methods.ekg.replay.oracle_files import (
    iteration_arrays,
    load_arrays,
    read_object,
    read_trace,
    require_numbers,
)
from ekgsearch.methods.ekg.steps import decimal
from ekgsearch.records import Subnetwork

TRACE, INDICES, INITIAL, INITIAL_LOGITS = "trace.jsonl", "indices.json", "initial.json", "initial_logits.npz"


@dataclass(frozen=True, slots=True)
class RecordedState:
    """What a recorded program had in hand before an iteration.

    Attributes:
        subnetwork: the sub-network that stood.
        rates: width of every channel group.
        knowledge: ensemble knowledge of the search subset, (images, classes) float32.
    """

    subnetwork: Subnetwork
    rates: dict[str, Fraction]
    knowledge: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RecordedCandidate:
    """A candidate that was tried: what it cut, what it cost, and its loss and score under the nominal means."""

    group: str
    num_kept: int
    macs: int
    params: int
    loss: float
    score: float


@dataclass(frozen=True, slots=True)
class RecordedIteration:
    """One iteration of a recorded search.

    Attributes:
        number: iteration, from 1.
        before: the state that it started from.
        scores: importance of every channel.
        sums: what each channel group of positive width was judged by, 0 where it was not looked at.
        threshold: Otsu's threshold.
        shortlist: channel groups that were tried.
        candidates: all that were tried, in order.
        winner: channel group that was cut.
        margin: score of the second best candidate minus that of the best.
        after: the sub-network that stood afterwards.
        rates_after: width of every channel group afterwards.
    """

    number: int
    before: RecordedState
    scores: GroupScores
    sums: dict[str, float]
    threshold: float
    shortlist: tuple[str, ...]
    candidates: tuple[RecordedCandidate, ...]
    winner: str
    margin: float
    after: Subnetwork
    rates_after: dict[str, Fraction]


@dataclass(frozen=True, slots=True)
class Oracle:
    """A folder of recorded iterations; what is in it is described by the README that comes with such folders.

    Attributes:
        folder: the folder.
        search_ids: ids of the training images of the search subset, in the order in which they were used.
        full_macs: cost of the unpruned network under the counter `ekg`.
        full_params: its parameters under the same counter.
        iterations: iterations whose record is complete, ascending: trace, arrays, and the arrays of the one before.
        incomplete: iterations of the trace that lack arrays and so cannot be compared.
    """

    folder: Path
    search_ids: tuple[int, ...]
    full_macs: int
    full_params: int
    iterations: tuple[int, ...]
    incomplete: tuple[int, ...]
    _trace: Mapping[int, Mapping[str, Any]]

    @classmethod
    def open(cls, folder: Path) -> "Oracle":
        """Read the small files of a folder.

        Raises:
            DataError: a file is missing or damaged, or no iteration is complete.
        """
        indices = read_object(folder / INDICES, "an object with the list `d_val` of image ids")
        initial = read_object(folder / INITIAL, "an object with `flops` and `params` of the unpruned network")
        trace = read_trace(folder / TRACE)
        try:
            search_ids = tuple(int(image) for image in indices["d_val"])
            full_macs, full_params = int(_number(initial, "flops")), int(_number(initial, "params"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{folder}: expected `d_val` (image ids) in {INDICES}, `flops` and `params` in {INITIAL}; "
                f"missing or not a number: {error}"
            ) from error
        if not search_ids:
            raise DataError(f"{folder}: expected image ids of the search subset in `d_val` of {INDICES}, found none")
        complete = [number for number in sorted(trace) if all(path.is_file() for path in _files(folder, number))]
        if not complete:
            raise DataError(
                f"{folder}: expected at least one iteration n with a line in {TRACE}, iters/iter_n.npz and the arrays "
                f"of the iteration before ({INITIAL_LOGITS} for n = 1); the trace has the iterations {sorted(trace)}"
            )
        incomplete = tuple(sorted(trace.keys() - set(complete)))
        return cls(folder, search_ids, full_macs, full_params, tuple(complete), incomplete, trace)

    def iteration(self, number: int, graph: ChannelGraph) -> RecordedIteration:
        """Read one iteration.

        Args:
            number: one of `iterations`.
            graph: the network's channel groups, which are the recorded program's gates in order.

        Raises:
            DataError: it is not complete, or a file is missing, damaged or of another network.
        """
        if number not in self.iterations:
            raise DataError(
                f"{self.folder}: expected one of the complete iterations {list(self.iterations)}, found {number}"
            )
        names, line = [group.name for group in graph.groups], self._trace[number]
        before = self._state_before(number, graph)
        arrays = iteration_arrays(_files(self.folder, number)[0], graph)
        after, rates_after = _masks_and_rates(arrays, names)
        try:
            flags = _by_group(line, "do_check", before.rates)
            sums = _by_group(line, "gate_scores_used_by_otsu", before.rates)
            candidates = tuple(
                RecordedCandidate(
                    names[_gate(found, "gate", len(names))],
                    int(_number(found, "channels")),
                    int(_number(found, "flops")),
                    int(_number(found, "params")),
                    _number(found, "loss"),
                    _number(found, "score"),
                )
                for found in line["candidates"]
            )
            winner = names[_gate(line, "winner_gate", len(names))]
            margin = _number(line, "margin_to_second") if len(candidates) > 1 else math.inf
            threshold = _number(line, "otsu_threshold")
            judged = {name: _number(sums, name) for name, rate in before.rates.items() if rate > 0}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{self.folder / TRACE}, iteration {number}: expected do_check, gate_scores_used_by_otsu, "
                f"otsu_threshold, candidates, winner_gate and margin_to_second, found a problem with {error}"
            ) from error
        return RecordedIteration(
            number,
            before,
            {name: arrays[f"score_{index:02d}"].astype(np.float64) for index, name in enumerate(names)},
            judged,
            threshold,
            tuple(name for name, flag in flags.items() if flag),
            candidates,
            winner,
            margin,
            after,
            rates_after,
        )

    def _state_before(self, number: int, graph: ChannelGraph) -> RecordedState:
        names = [group.name for group in graph.groups]
        path = _files(self.folder, number)[1]
        if number == 1:
            values = list(load_arrays(path).values())
            if not values:
                raise DataError(
                    f"{path}: expected the logits of the unpruned network on the search subset, found no array"
                )
            state = RecordedState(graph.full(), dict.fromkeys(names, Fraction(1)), values[0])
        else:
            arrays = iteration_arrays(path, graph)
            state = RecordedState(*_masks_and_rates(arrays, names), arrays["knowledge"])
        expected = (len(self.search_ids), graph.trace.modules[classifier(graph).path].out_features)
        if state.knowledge.shape != expected:
            raise DataError(
                f"{path}: expected ensemble knowledge of {expected[0]} images x {expected[1]} classes, found an array "
                f"of shape {state.knowledge.shape}"
            )
        require_numbers(path, "the ensemble knowledge", state.knowledge)
        return state


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    """Arrays of an iteration, and those of the state before it."""
    path = folder / "iters" / f"iter_{number:04d}.npz"
    return path, folder / INITIAL_LOGITS if number == 1 else folder / "iters" / f"iter_{number - 1:04d}.npz"


def _masks_and_rates(
    arrays: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> tuple[Subnetwork, dict[str, Fraction]]:
    kept = {name: np.flatnonzero(arrays[f"mask_{index:02d}"]).tolist() for index, name in enumerate(names)}
    widths = arrays["width_list"].tolist()
    return Subnetwork.of(kept), {name: decimal(float(width)) for name, width in zip(names, widths, strict=True)}


def _by_group(line: Mapping[str, Any], field: str, rates: Mapping[str, Fraction]) -> dict[str, Any]:
    """A list of the trace by channel group; it may leave out the channel groups whose width has reached 0."""
    values, opened = list(line[field]), [name for name, rate in rates.items() if rate > 0]
    if len(values) not in (len(rates), len(opened)):
        raise ValueError(
            f"{field}: {len(values)} values for {len(rates)} channel groups, {len(opened)} of them of positive width"
        )
    return dict(zip(rates if len(values) == len(rates) else opened, values, strict=True))


def _number(fields: Mapping[str, Any], field: str) -> float:
    value = float(fields[field])
    if not math.isfinite(value):
        raise ValueError(f"{field} = {value}, which is not finite")
    return value


def _gate(fields: Mapping[str, Any], field: str, num_gates: int) -> int:
    """Index of a channel group."""
    value = _number(fields, field)
    if value not in range(num_gates):
        raise ValueError(f"{field} = {fields[field]}, which is not one of 0 to {num_gates - 1}")
    return int(value)
