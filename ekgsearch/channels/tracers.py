"""The two tracers of torch behind one door: a graph, and the tensors that a forward makes itself."""

import inspect
import logging
import operator

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ekgsearch.channels.operations import drops_branches
from ekgsearch.errors import EkgError, NetworkError

_log = logging.getLogger(__name__)


def traced_graph(network: nn.Module, images: Tensor) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Trace a network in the mode that it is in: symbolically, or else with `torch.export`.

    Args:
        network: the network.
        images: a batch (B, C, H, W) for the second tracer.

    Returns:
        The graph, and the tensors that the forward makes itself, by the name under which the graph reads them.

    Raises:
        NetworkError: neither can trace it.
    """
    try:
        return symbolic(network)
    except Exception as error:
        symbolic_error = error
    try:
        return symbolic(network, follow_buffers=False)
    except Exception as error:
        _log.info("symbolic tracing failed (%s: %s); trying torch.export", type(error).__name__, error)
    try:
        return _exported(network, images)
    except EkgError:
        raise
    except Exception as error:
        raise NetworkError(
            "expected a network that torch.fx or torch.export can trace; "
            f"torch.fx says: {first_line(symbolic_error)}; torch.export says: {first_line(error)}; "
            "avoid control flow that depends on values in its forward"
        ) from error


def first_line(error: BaseException) -> str:
    """Name an error and give the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


class _Tracer(fx.Tracer):
    """Keeps stochastic depth as one call, so that a slim network can switch it on for training."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return drops_branches(m) or super().is_leaf_module(m, module_qualified_name)


def symbolic(network: nn.Module, *, follow_buffers: bool = True) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Trace with the symbolic tracer, in the mode that the network is in.

    Args:
        network: the network; left as it was.
        follow_buffers: trace what is computed from buffers; otherwise they are constants, for forwards that look into
            them.

    Returns:
        The graph, and the tensors that the forward makes itself, by the name under which the graph reads them.
    """
    tracer = _Tracer()
    tracer.proxy_buffer_attributes = follow_buffers
    parameters = list(inspect.signature(network.forward).parameters.values())
    defaults = {p.name: p.default for p in parameters[1:] if p.default is not inspect.Parameter.empty}
    before = set(vars(network))
    graph = tracer.trace(network, concrete_args=defaults or None)
    # the tracer leaves tensors made in the forward on the network; they belong to the graph
    constants = {name: vars(network).pop(name) for name in set(vars(network)) - before}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if len(placeholders) != 1 + len(defaults):
        raise NetworkError(f"expected a forward with one argument without default, found {len(placeholders)}")
    given = set(placeholders[1:])
    for node in graph.nodes:
        if given.intersection(node.all_input_nodes):
            given.add(node)  # the tracer's checks that defaults are given
    for node in reversed(list(graph.nodes)):
        if node in given:
            graph.erase_node(node)
    return graph, constants


def _exported(network: nn.Module, images: Tensor) -> tuple[fx.Graph, dict[str, Tensor]]:
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    module = program.module(check_guards=False)
    graph = fx.Graph()
    leaves = pytree.tree_leaves(graph.graph_copy(module.graph, {}))
    graph.output(pytree.tree_unflatten(leaves, program.call_spec.out_spec))
    tensors = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    return graph, {name: value for name, value in tensors.items() if not _holds(network, name)}


def _holds(network: nn.Module, target: str) -> bool:
    """Tell whether a network has a tensor of this path; buffers outside its state count for export as constants."""
    try:
        return isinstance(operator.attrgetter(target)(network), Tensor)
    except AttributeError:
        return False


def read_tensor(network: nn.Module, constants: dict[str, Tensor], target: str) -> Tensor:
    """Read a tensor by its path: one that the forward made, or a parameter or buffer of the network.

    Raises:
        NetworkError: something else is there.
    """
    found = constants[target] if target in constants else operator.attrgetter(target)(network)
    if not isinstance(found, Tensor):
        raise NetworkError(f"expected a tensor at {target!r} of the traced network, found {type(found).__name__}")
    return found
