"""Norm, sum and ReLU (or ReLU6) as one compiled step: less memory traffic, other rounding."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ekgsearch.channels.execute import Program, Step, Values, is_sum, rectifier
from ekgsearch.channels.operations import Kind
from ekgsearch.channels.trace import Trace
from ekgsearch.records import NormMode

_MAX_GRAPHS = 128
"""Forms of the compiled step that one process may come to need; beyond them the compiler would give up."""


def fuse(trace: Trace, visible: frozenset[str]) -> Program:
    """Compile every batch norm that a ReLU or ReLU6 follows, directly or after a sum, together with it.

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
    if rectifier(user, trace.modules):
        return node, user, None
    if not is_sum(user) or len(user.users) != 1 or user.name in visible:
        return None
    last = next(iter(user.users))
    others = [other for other in user.all_input_nodes if other is not node]
    if not rectifier(last, trace.modules) or trace.shapes.get(others[0].name) != trace.shapes[node.name]:
        return None
    return node, last, others[0]


def _fused_step(norm: fx.Node, last: fx.Node, other: fx.Node | None, trace: Trace) -> Step:
    module, path = trace.modules[str(norm.target)], str(norm.target)
    source = norm.all_input_nodes[0].name
    inputs = (source,) if other is None else (source, other.name)
    rectify = rectifier(last, trace.modules)
    assert rectify is not None  # the chain ends with one

    def call(values: Values, tensors: Mapping[str, Tensor], mode: NormMode) -> Any:
        given = [tensors.get(path, module.weight), tensors.get(f"{path}.bias", module.bias)]
        statistics = [tensors.get(f"{path}.{name}", getattr(module, name)) for name in ("running_mean", "running_var")]
        by_batch = mode == "batch" or module.running_mean is None
        added = None if other is None else values[other.name]
        function: Callable[..., Tensor] = _compiled() if by_batch else _normalised
        return function(values[source], *given, *((None, None) if by_batch else statistics), added, module.eps, rectify)

    return Step(last.name, inputs, call, overwrites="", call_inplace=call, is_fresh=True)


def _normalised(
    value: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    added: Tensor | None,
    eps: float,
    rectify: Callable[[Tensor], Tensor],
) -> Tensor:
    out = F.batch_norm(value, mean, var, weight, bias, mean is None, 0.0, eps)
    return rectify(out if added is None else out + added)


@cache
def _compiled(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Tensor]:
    """The compiled form, made at its first use: the compiler takes seconds to import.

    With or without a sum, with or without gradients, one channel or many: each is a graph of its own, in each type and
    layout. All of them are compiled, however many: what ran as it is would round otherwise than in another worker.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_GRAPHS)
    function: Callable[..., Tensor] = torch.compile(_normalised, dynamic=True, fullgraph=True, backend=backend)
    return function
