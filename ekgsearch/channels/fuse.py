"""Norm, sum and ReLU as one compiled step: less memory traffic, other rounding."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ekgsearch.channels.execute import Program, Step, Values, is_relu, is_sum
from ekgsearch.channels.operations import Kind
from ekgsearch.channels.trace import Trace
from ekgsearch.records import NormMode


def fuse(trace: Trace, visible: frozenset[str]) -> Program:
    """Compile every batch norm that a ReLU follows, directly or after a sum, together with it.

    Args:
        trace: the traced network.
        visible: names of values that must exist by themselves, such as sites.

    Returns:
        A program with the same inputs and outputs and fewer steps.
    """
    fused: dict[str, Step] = {}
    gone: set[str] = set()
    for node in trace.graph.nodes:
        chain = _chain(node, trace, visible)
        if chain is not None and chain[1].name not in fused:  # two norms may meet in one sum; the first is fused
            norm, last, other = chain
            fused[last.name] = _fused_step(norm, last, other, trace)
            gone.add(norm.name)
            gone.update(user.name for user in norm.users if user is not last)
    return trace.program.with_steps(fused.get(step.name, step) for step in trace.program.steps if step.name not in gone)


def _chain(node: fx.Node, trace: Trace, visible: frozenset[str]) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """Norm, ReLU at the end, and the other operand of the sum between them, if this norm begins such a chain."""
    if trace.kinds[node.name] is not Kind.NORM or not isinstance(
        trace.modules[str(node.target)], nn.modules.batchnorm._BatchNorm
    ):
        return None
    if len(node.users) != 1 or node.name in visible:
        return None
    user = next(iter(node.users))
    if is_relu(user, trace.modules):
        return node, user, None
    if not is_sum(user) or len(user.users) != 1 or user.name in visible:
        return None
    last = next(iter(user.users))
    others = [other for other in user.all_input_nodes if other is not node]
    if not is_relu(last, trace.modules) or trace.shapes.get(others[0].name) != trace.shapes[node.name]:
        return None
    return node, last, others[0]


def _fused_step(norm: fx.Node, last: fx.Node, other: fx.Node | None, trace: Trace) -> Step:
    module, path = trace.modules[str(norm.target)], str(norm.target)
    source = norm.all_input_nodes[0].name
    inputs = (source,) if other is None else (source, other.name)

    def call(values: Values, tensors: Mapping[str, Tensor], mode: NormMode) -> Any:
        given = [tensors.get(path, module.weight), tensors.get(f"{path}.bias", module.bias)]
        statistics = [tensors.get(f"{path}.{name}", getattr(module, name)) for name in ("running_mean", "running_var")]
        by_batch = mode == "batch" or module.running_mean is None
        added = None if other is None else values[other.name]
        function: Callable[..., Tensor] = _compiled() if by_batch else _normalised
        return function(values[source], *given, *((None, None) if by_batch else statistics), added, module.eps)

    return Step(last.name, inputs, call, overwrites="", call_inplace=call, is_fresh=True)


def _normalised(
    value: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    added: Tensor | None,
    eps: float,
) -> Tensor:
    out = F.batch_norm(value, mean, var, weight, bias, mean is None, 0.0, eps)
    return F.relu(out if added is None else out + added)


@cache
def _compiled() -> Callable[..., Tensor]:
    """The compiled form, made at its first use: the compiler takes seconds to import."""
    function: Callable[..., Tensor] = torch.compile(_normalised, dynamic=True)
    return function
