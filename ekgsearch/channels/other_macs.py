"""Multiply-accumulates of the operations that are no known layer, counted while they run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ekgsearch.channels.execute import Program
from ekgsearch.channels.operations import Kind

_COUNTED_BY_FORMULA = frozenset({Kind.CONV, Kind.LINEAR})
"""Kinds whose operations follow from their channels; all others are measured."""

_OF_TORCH = frozenset({"aten", "prim", "prims"})
"""Namespaces of the operations that torch brings."""


@dataclass(frozen=True, slots=True)
class OtherMacs:
    """What is multiplied outside known layers.

    Attributes:
        per_image: multiply-accumulates per image by step, those that are not 0.
        uncounted: names of operations that torch's counter cannot know, because they are not torch's own.
    """

    per_image: dict[str, int] = field(default_factory=dict)
    uncounted: set[str] = field(default_factory=set)


def other_macs(program: Program, kinds: Mapping[str, Kind], images: Tensor) -> OtherMacs:
    """Count the multiply-accumulates of all steps that are no convolution or linear layer of a known kind.

    They are half the operations that the counter of torch sees (`torch.utils.flop_counter`): matrix products,
    attention, and convolutions inside modules that are not known. Channels that such a step reads and makes are frozen,
    so every sub-network has the same ones.

    Args:
        program: the traced network.
        kinds: kind of each node by name.
        images: a batch (B, C, H, W) to run it on.
    """
    if Kind.UNKNOWN not in kinds.values():
        return OtherMacs()
    try:
        return _counted(program, kinds, images[:1])
    except Exception:  # some forwards work on several images only
        return _counted(program, kinds, images)


@torch.no_grad()
def _counted(program: Program, kinds: Mapping[str, Kind], images: Tensor) -> OtherMacs:
    found = OtherMacs()
    values: dict[str, object] = {program.input: images}
    with _countable(), FlopCounterMode(display=False) as counter, _Foreign(found.uncounted):
        for index, step in enumerate(program.steps):
            before = counter.get_total_flops()
            values[step.name] = step.call(values, {}, "running")
            macs = (counter.get_total_flops() - before) // (2 * len(images))
            if macs and kinds[step.name] not in _COUNTED_BY_FORMULA:
                found.per_image[step.name] = macs
            for name in step.inputs:
                if program.last_use[name] == index:
                    values.pop(name, None)
    return found


class _Foreign(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that do not come with torch."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace not in _OF_TORCH:
            self._names.add(str(func._schema.name))
        return func(*args, **(kwargs or {}))


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
