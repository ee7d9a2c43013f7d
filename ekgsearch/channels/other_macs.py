"""Multiply-accumulates of the operations that are no known layer, counted while they run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ekgsearch.channels.execute import Program
from ekgsearch.channels.operations import Kind

_COUNTED_BY_FORMULA = frozenset({Kind.CONV, Kind.LINEAR})
"""Kinds whose operations follow from their channels; all others are measured."""


def other_macs(program: Program, kinds: Mapping[str, Kind], images: Tensor) -> dict[str, int]:
    """Count the multiply-accumulates per image of all steps that are no convolution or linear layer of a known kind.

    They are half the operations that the counter of torch sees (`torch.utils.flop_counter`): matrix products,
    attention, and convolutions inside modules that are not known. Channels that such a step reads and makes are frozen,
    so every sub-network has the same ones.

    Args:
        program: the traced network.
        kinds: kind of each node by name.
        images: a batch (B, C, H, W) to run it on.

    Returns:
        Counts by step name, those that are not 0.
    """
    found: dict[str, int] = {}
    if Kind.UNKNOWN not in kinds.values():
        return found
    values: dict[str, object] = {program.input: images}
    with torch.no_grad(), _countable(), FlopCounterMode(display=False) as counter:
        for index, step in enumerate(program.steps):
            before = counter.get_total_flops()
            values[step.name] = step.call(values, {}, "running")
            macs = (counter.get_total_flops() - before) // (2 * len(images))
            if macs and kinds[step.name] not in _COUNTED_BY_FORMULA:
                found[step.name] = macs
            for name in step.inputs:
                if program.last_use[name] == index:
                    values.pop(name, None)
    return found


@contextmanager
def _countable() -> Iterator[None]:
    """Run attention as the matrix products it consists of; the counter does not see into its fused kernels."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
