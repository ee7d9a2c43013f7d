"""Decisions that the program published with the paper recorded, read from a folder of its files."""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.errors import DataError
from ekgsearch.records import Subnetwork
from ekgsearch.search.base import GroupScores
from ekgsearch.search.steps import decimal

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
        sums: what each channel group was judged by, 0 where it was not looked at.
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
        indices = _read_json(folder / INDICES, "an object with the list `d_val` of image ids")
        initial = _read_json(folder / INITIAL, "an object with `flops` and `params` of the unpruned network")
        trace = _read_trace(folder / TRACE)
        try:
            search_ids = tuple(int(image) for image in indices["d_val"])
            full_macs, full_params = int(initial["flops"]), int(initial["params"])
        except (KeyError, TypeError, ValueError) as error:
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
        after_path = _files(self.folder, number)[0]
        arrays = _arrays(after_path, graph)
        after, rates_after = _masks_and_rates(arrays, names)
        try:
            flags, sums = list(line["do_check"]), list(line["gate_scores_used_by_otsu"])
            if len(flags) != len(names) or len(sums) != len(names):
                raise ValueError(f"{len(flags)} flags and {len(sums)} sums for {len(names)} channel groups")
            candidates = tuple(
                RecordedCandidate(
                    names[int(found["gate"])],
                    int(found["channels"]),
                    int(found["flops"]),
                    int(found["params"]),
                    float(found["loss"]),
                    float(found["score"]),
                )
                for found in line["candidates"]
            )
            winner, margin = names[int(line["winner_gate"])], float(line["margin_to_second"])
            threshold = float(line["otsu_threshold"])
            judged = {name: float(value) for name, value in zip(names, sums, strict=True)}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"{self.folder / TRACE}, iteration {number}: expected do_check, gate_scores_used_by_otsu, "
                f"otsu_threshold, candidates, winner_gate and margin_to_second, found a problem with {error}"
            ) from error
        return RecordedIteration(
            number,
            self._state_before(number, graph),
            {name: arrays[f"score_{index:02d}"].astype(np.float64) for index, name in enumerate(names)},
            judged,
            threshold,
            tuple(name for name, flag in zip(names, flags, strict=True) if flag),
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
            values = list(_load(path).values())
            if not values:
                raise DataError(
                    f"{path}: expected the logits of the unpruned network on the search subset, found no array"
                )
            state = RecordedState(graph.full(), dict.fromkeys(names, Fraction(1)), values[0])
        else:
            arrays = _arrays(path, graph)
            state = RecordedState(*_masks_and_rates(arrays, names), arrays["knowledge"])
        if state.knowledge.ndim != 2 or len(state.knowledge) != len(self.search_ids):
            raise DataError(
                f"{path}: expected ensemble knowledge of {len(self.search_ids)} images x classes, found an array of "
                f"shape {state.knowledge.shape}"
            )
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


def _arrays(path: Path, graph: ChannelGraph) -> dict[str, NDArray[Any]]:
    """Load the arrays of an iteration and compare their shapes with the network."""
    arrays = _load(path)
    sizes = {
        f"{kind}_{index:02d}": group.size for index, group in enumerate(graph.groups) for kind in ("score", "mask")
    }
    sizes["width_list"] = len(graph.groups)
    for name, size in sizes.items():
        found = arrays[name].shape if name in arrays else "none"
        if found != (size,):
            raise DataError(f"{path}: expected an array {name} of shape ({size},), found {found}")
    if "knowledge" not in arrays:
        raise DataError(f"{path}: expected an array knowledge (images, classes), found {sorted(arrays)[:5]}...")
    return arrays


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"no file {path}: expected numpy arrays (.npz); fetch the folder again") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected numpy arrays (.npz), found a damaged file: {error}") from error


def _read_json(path: Path, expected: str) -> Mapping[str, Any]:
    values = _parse(path, _read_text(path, expected), expected)
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected {expected}, found {type(values).__name__}")
    return values


def _read_trace(path: Path) -> dict[int, Mapping[str, Any]]:
    expected = "one JSON object with `step` per line"
    found: dict[int, Mapping[str, Any]] = {}
    for count, text in enumerate(_read_text(path, expected).splitlines(), 1):
        values = _parse(path, text, expected)
        if not isinstance(values, dict) or not re.fullmatch(r"\d+", str(values.get("step"))):
            raise DataError(f"{path}:{count}: expected {expected}, found {text[:60]!r}")
        found[int(values["step"])] = values
    return found


def _read_text(path: Path, expected: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"no file {path}: expected {expected}; fetch the folder again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected {expected}, found a file that cannot be read: {error}") from error


def _parse(path: Path, text: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: expected {expected}, found damaged JSON: {error}") from error
