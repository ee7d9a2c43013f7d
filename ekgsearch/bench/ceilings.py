"""What a GPU can do at most: memory bandwidth by a copy, arithmetic by a large product in bfloat16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ekgsearch.bench.base import Measurement

_BYTES = 2**30
_SIDE = 8192
_REPEATS = 50


def ceilings(device: torch.device) -> list[Measurement]:
    """Measure the two ceilings of a GPU by CUDA events; nothing on a CPU, whose clock other work shares."""
    if device.type != "cuda":
        return []
    source = torch.randint(0, 256, (_BYTES,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    factor = torch.randn(_SIDE, _SIDE, device=device, dtype=torch.bfloat16)
    copies = _seconds(lambda: target.copy_(source))
    products = _seconds(lambda: factor @ factor)
    return [
        Measurement.of("device", "copy, read and written", "GB/s", [2 * _BYTES / one / 1e9 for one in copies]),
        Measurement.of("device", "product in bfloat16", "TFLOP/s", [2 * _SIDE**3 / one / 1e12 for one in products]),
    ]


def convolution_bytes(work: Callable[[], object]) -> int:
    """Bytes that the convolutions of some work read and write, each operand once: what any program must move for it."""
    operands = _Operands()
    with operands:
        work()
    return operands.num_bytes


class _Operands(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operands of convolutions, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "convolution" in str(func):
            operands = args
            if "backward" in str(func):  # the input is read for the gradient of the weight, the weight for the input's
                gradient, saved, weight, *_, (wants_input, wants_weight, _) = args
                operands = (gradient, saved if wants_weight else None, weight if wants_input else None)
            tensors = [leaf for leaf in pytree.tree_leaves((operands, result)) if isinstance(leaf, Tensor)]
            self.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def _seconds(work: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(_REPEATS + 5):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times[5:]
