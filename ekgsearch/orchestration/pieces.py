"""Large answers of workers in pieces, so that no single object of more than a megabyte passes through the driver."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import ray
from ray import cloudpickle

from ekgsearch.workers.questions import Answer, Value

T = TypeVar("T")

MOST_BYTES = 900_000
"""Serialised bytes of one object; channel scores of ResNet-50 are 92 kB per batch, and a worker may own many."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """An answer that waits in the object store, a few batches in each object."""

    references: tuple[ray.ObjectRef[Answer], ...]


def pack(answer: Answer) -> Answer | Pieces:
    """Give an answer as it is, or in pieces of whole batches if it is large."""
    size = len(cloudpickle.dumps(answer))  # type: ignore[no-untyped-call]
    if size <= MOST_BYTES or len(answer.values) < 2:
        return answer
    batches = list(answer.values)
    num_pieces = min(len(batches), -(-size // MOST_BYTES) + 1)
    parts = [batches[start::num_pieces] for start in range(num_pieces)]
    return Pieces(
        tuple(ray.put(replace(answer, values={batch: answer.values[batch] for batch in part})) for part in parts)
    )


def unpack(found: T | Pieces, weigh: Callable[[object], None]) -> T | Answer:
    """Fetch the pieces of an answer and join them; anything else is given back.

    Args:
        found: what a call to a worker returned.
        weigh: told of every object that is fetched.

    Raises:
        RayError: a piece was lost with its worker.
    """
    if not isinstance(found, Pieces):
        weigh(found)
        return found
    values: dict[int, Sequence[Value]] = {}
    for reference in found.references:
        part = ray.get(reference)
        weigh(part)
        values.update(part.values)
    return replace(part, values=values)
