"""Which interim sub-networks become teachers."""

import math
from collections.abc import Sequence

from ekgsearch.errors import JobError, NumericsError


def choose_teachers(losses: Sequence[float], num_teachers: int) -> tuple[int, ...]:
    """Choose teachers whose losses are spread evenly between the best interim sub-network and the student.

    The targets are K equally spaced losses from the lowest to the highest, the highest left out; the interim
    sub-network nearest to each target is taken, every one at most once. Source: EKG (arXiv 2203.02651), memory bank;
    the rule of the reference code, with the student left out.

    Args:
        losses: validation loss of each interim sub-network, the student (the last of the search) left out; position 0
            is the unpruned network.
        num_teachers: K >= 1; fewer are chosen where there are fewer interim sub-networks.

    Returns:
        min(K, len(losses)) distinct positions in `losses`, ascending by loss: the first has the lowest loss of all.

    Raises:
        JobError: K below 1, or no interim sub-network at all.
        NumericsError: a loss that is not a finite number.
    """
    if num_teachers < 1:
        raise JobError(
            f"bank: expected at least 1 teacher, found {num_teachers}; set the number of teachers to 1 or more"
        )
    if not losses:
        raise JobError(
            "bank: no interim sub-network to teach; pass at least the loss of the unpruned network, "
            "which is the only teacher where nothing was cut"
        )
    for position, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise NumericsError(
                f"bank: the loss of interim sub-network {position} of {len(losses)} is {loss}; expected a finite "
                "number; search again with a lower learning rate in the warm-up"
            )
    by_loss = sorted(range(len(losses)), key=lambda position: (losses[position], position))
    count = min(num_teachers, len(losses))
    lowest, highest = losses[by_loss[0]], losses[by_loss[-1]]
    chosen: list[int] = []
    for index in range(count):
        target = lowest + index * (highest - lowest) / count
        free = [position for position in by_loss if position not in chosen]
        chosen.append(min(free, key=lambda position: abs(losses[position] - target)))
    return tuple(position for position in by_loss if position in chosen)
