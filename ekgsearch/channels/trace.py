"""Trace a network into a list of nodes with known shapes, in one form whatever the tracer."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ekgsearch.channels.execute import Program
from ekgsearch.channels.lift import lift
from ekgsearch.channels.operations import Kind, kind_of
from ekgsearch.errors import EkgError, NetworkError

_log = logging.getLogger(__name__)

BATCH = 2
"""Images in the batch that is traced; two, so that an operation over the batch shows."""

_TOLERANCE = 1e-3  # of the largest output; traced and original networks run the same kernels


@dataclass(frozen=True)
class Trace:
    """A network as a graph of layers and operations.

    Attributes:
        network: the network itself; its tensors are shared, not copied.
        graph: nodes in execution order.
        modules: leaf modules by path.
        kinds: what each node does to channels, by node name.
        shapes: shape of each node's tensor, by node name; nodes without a single tensor are absent.
        program: the same nodes, ready to run.
    """

    network: nn.Module
    graph: fx.Graph
    modules: dict[str, nn.Module]
    kinds: dict[str, Kind]
    shapes: dict[str, tuple[int, ...]]
    program: Program


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Trace:
    """Trace a network in evaluation mode.

    The symbolic tracer of torch is tried first; where it fails, `torch.export`. The traced network is run once against
    the network itself on a small random batch.

    Args:
        network: any module that maps images to outputs; left as it was.
        input_shape: shape (3, H, W) of one image.

    Raises:
        NetworkError: the network cannot be traced, or the trace computes something else.
    """
    with evaluation(network):
        images = _example(network, input_shape)
        graph = _graph(network, images)
        modules = lift(graph, network)
        kinds = {node.name: kind_of(node, modules) for node in graph.nodes}
        for node in graph.nodes:
            if node.op == "call_module" and (len(node.args) != 1 or node.kwargs):
                kinds[node.name] = Kind.UNKNOWN
        program = Program(graph, network, modules, kinds)
        shapes = _check(network, program, images)
    return Trace(network, graph, modules, kinds, shapes, program)


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode and back, each module to the mode it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _example(network: nn.Module, input_shape: tuple[int, int, int]) -> torch.Tensor:
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise NetworkError(f"expected an input shape (channels, height, width) of positive sizes, found {input_shape}")
    tensors = [tensor for tensor in network.parameters() if tensor.is_floating_point()]
    if not tensors:
        raise NetworkError("expected a network with parameters, found none; there is nothing to cut")
    images = torch.randn(BATCH, *input_shape, generator=torch.Generator().manual_seed(0))
    return images.to(device=tensors[0].device, dtype=tensors[0].dtype)


def _graph(network: nn.Module, images: torch.Tensor) -> fx.Graph:
    try:
        return _symbolic(network)
    except Exception as error:  # any Python code may run in a forward, so anything may be raised
        _log.info("symbolic tracing failed (%s: %s); trying torch.export", type(error).__name__, error)
        symbolic_error = error
    try:
        return _exported(network, images)
    except EkgError:
        raise
    except Exception as error:
        raise NetworkError(
            "expected a network that torch.fx or torch.export can trace; "
            f"torch.fx says: {_first_line(symbolic_error)}; torch.export says: {_first_line(error)}; "
            "avoid control flow that depends on values in its forward"
        ) from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _symbolic(network: nn.Module) -> fx.Graph:
    import inspect

    parameters = list(inspect.signature(network.forward).parameters.values())
    defaults = {p.name: p.default for p in parameters[1:] if p.default is not inspect.Parameter.empty}
    graph = fx.Tracer().trace(network, concrete_args=defaults or None)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders[1:]:
        for user in list(node.users):
            graph.erase_node(user)  # the tracer's own check that the default is given
        graph.erase_node(node)
    return graph


def _exported(network: nn.Module, images: torch.Tensor) -> fx.Graph:
    program = torch.export.export(
        network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    module = program.module(check_guards=False)
    graph = module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (pytree.tree_unflatten(list(pytree.tree_leaves(output.args[0])), program.call_spec.out_spec),)
    graph.set_codegen(fx.graph.CodeGen())
    return graph


def _check(network: nn.Module, program: Program, images: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Run the traced and the original network; return the shapes of all values."""
    with torch.no_grad():
        expected = _outputs(network(images))
        try:
            values = program.values(images)
        except Exception as error:
            raise NetworkError(f"the traced network fails where the network does not: {_first_line(error)}") from error
    found = _outputs(program.output(values))
    scale = max((float(tensor.abs().max()) for tensor in expected if tensor.numel()), default=0.0)
    same = len(found) == len(expected) and all(
        a.shape == b.shape and float((a - b).abs().max() if a.numel() else 0) <= _TOLERANCE * max(scale, 1e-6)
        for a, b in zip(found, expected, strict=False)
    )
    if not same or not math.isfinite(scale):
        raise NetworkError(
            "the traced network gives other outputs than the network in evaluation mode (or outputs that are not "
            "finite); its forward must do the same for every image, without randomness"
        )
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, torch.Tensor)}


def _outputs(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
