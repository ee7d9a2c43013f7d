"""Trace a network into a list of nodes with known shapes, in one form whatever the tracer."""

import keyword
import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from ekgsearch.channels.auxiliary import Auxiliary, join, remove, works
from ekgsearch.channels.execute import Program
from ekgsearch.channels.lift import Leaves, lift
from ekgsearch.channels.operations import Kind, kind_of
from ekgsearch.channels.other_macs import OtherMacs, other_macs
from ekgsearch.channels.tracers import first_line, read_tensor, symbolic, traced_graph
from ekgsearch.channels.training_forward import distance, size, training_difference
from ekgsearch.channels.untouched import untouched
from ekgsearch.errors import NetworkError

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
        leaves: leaf modules, the network's own and those that stand in for functional layers.
        constants: tensors that the forward itself makes, by the name under which the graph reads them.
        kinds: what each node does to channels, by node name.
        shapes: shape of each node's tensor, by node name; nodes without a single tensor are absent.
        program: the same nodes, ready to run.
        other_macs: what is multiplied outside known layers.
        auxiliary: nodes that run in training only; the program is without them.
        training_difference: what the network does in training beyond what its layers do, in words; empty for nothing.
    """

    network: nn.Module
    graph: fx.Graph
    leaves: Leaves
    constants: dict[str, Tensor]
    kinds: dict[str, Kind]
    shapes: dict[str, tuple[int, ...]]
    program: Program
    other_macs: OtherMacs
    auxiliary: Auxiliary
    training_difference: str

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Leaf modules by path."""
        return self.leaves.modules

    def tensor(self, target: str) -> Tensor:
        """Read a tensor that the graph uses outside layers."""
        return read_tensor(self.network, self.constants, target)

    def bind(self) -> None:
        """Follow the network where it holds other tensors than when it was traced (loaded, moved, replaced)."""
        self.leaves.bind(self.tensor)


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Trace:
    """Trace a network in evaluation mode.

    The symbolic tracer of torch is tried first; where it fails, `torch.export`. The traced network is run once against
    the network itself on a small random batch.

    Args:
        network: any module that maps images to outputs; left as it was.
        input_shape: shape (C, H, W) of one image.

    Raises:
        NetworkError: the network does not work on such images, cannot be traced, or the trace computes something else.
    """
    _check_kind(network)
    _check_names(network)
    with untouched(network):
        network.eval()
        images = example(network, input_shape)
        expected = _outputs(run_example(network, images))
        graph, constants = traced_graph(network, images)
        read = partial(read_tensor, network, constants)
        leaves = lift(graph, network, read)
        difference = training_difference(network, images, leaves.own)
        auxiliary = _training_only(network, images, graph, leaves, constants) if difference else Auxiliary()
        kinds = _kinds(graph, leaves)
        program = Program(graph, read, leaves.modules, kinds, without=auxiliary.nodes)
        shapes = _check(expected, program, images)
        if auxiliary.nodes:
            shapes |= _shapes(Program(graph, read, leaves.modules, kinds), images)
        counted = other_macs(program, kinds, images)
    return Trace(network, graph, leaves, constants, kinds, shapes, program, counted, auxiliary, difference)


def _kinds(graph: fx.Graph, leaves: Leaves) -> dict[str, Kind]:
    kinds = {node.name: kind_of(node, leaves.modules) for node in graph.nodes}
    for node in graph.nodes:
        if node.op == "call_module" and (len(node.args) != 1 or node.kwargs):
            kinds[node.name] = Kind.UNKNOWN
    return kinds


def _training_only(
    network: nn.Module, images: Tensor, graph: fx.Graph, leaves: Leaves, constants: dict[str, Tensor]
) -> Auxiliary:
    """Add to a graph what the forward does in training only, where that can be traced and comes out the same."""
    read = partial(read_tensor, network, constants)
    try:
        with untouched(network):  # the tracer leaves stand-ins where a forward counts its steps
            training, own_constants = symbolic(network.train())
        others = lift(training, network, partial(read_tensor, network, own_constants), in_training=True)
    except Exception as error:  # any Python code may run in a forward, so anything may be raised
        _log.info("the forward in training cannot be traced: %s: %s", type(error).__name__, error)
        return Auxiliary()
    if own_constants:
        return Auxiliary()
    auxiliary = join(graph, leaves, training, others)
    if auxiliary is None:
        return Auxiliary()
    whole = Program(graph, read, leaves.modules, _kinds(graph, leaves))
    if works(network, whole, auxiliary, leaves, images):
        return auxiliary
    remove(graph, leaves, auxiliary)
    return Auxiliary()


def example(network: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    """A random batch of two images (2, C, H, W) in the type and on the device of the network.

    Raises:
        NetworkError: the shape makes no sense, or the network has no parameters.
    """
    if len(input_shape) != 3 or not all(isinstance(size, int) and size > 0 for size in input_shape):
        raise NetworkError(f"expected an input shape (channels, height, width) of positive sizes, found {input_shape}")
    tensors = [tensor for tensor in network.parameters() if tensor.is_floating_point()]
    if any(is_lazy(tensor) for tensor in network.parameters()):
        raise NetworkError("expected a network that knows its shapes, found lazy layers; run it once on images first")
    if not tensors:
        raise NetworkError("expected a network with parameters, found none; there is nothing to cut")
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise NetworkError("expected a network with values, found tensors on the meta device; load its weights first")
    images = torch.randn(BATCH, *input_shape, generator=torch.Generator().manual_seed(0))
    return images.to(device=tensors[0].device, dtype=tensors[0].dtype)


@torch.no_grad()
def run_example(network: nn.Module, images: Tensor) -> Any:
    """Run a network on a small batch.

    Raises:
        NetworkError: it fails there; the message tells the shape, and whether it works on a single image.
    """
    try:
        return network(images)
    except Exception as error:  # any Python code may run in a forward, so anything may be raised
        shape, reason = tuple(images.shape[1:]), first_line(error)
        try:
            network(images[:1])
        except Exception:
            raise NetworkError(
                f"the network fails on images of shape {shape}: {reason}; expected the channels, height and width "
                "that it was made for (data.image_size and the images' channels), and images that are large enough"
            ) from error
        raise NetworkError(
            f"the network works on one image of shape {shape} but not on a batch of {len(images)}: {reason}; its "
            "forward mixes the images of a batch (flatten from dimension 1, do not write the batch size into it)"
        ) from error


def _check_kind(network: nn.Module) -> None:
    """Refuse what is no network of torch's modules, or one that has lost its two modes."""
    if not isinstance(network, nn.Module):
        raise NetworkError(f"expected a torch.nn.Module, found {type(network).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise NetworkError("expected Python modules, found a scripted or traced one; give the network it was made from")
    if isinstance(network, fx.GraphModule) and "train" in vars(network):  # which raises there
        raise NetworkError(
            "expected a network with a training and an evaluation mode, found an exported program; give the network "
            "it was made from"
        )


def _check_names(network: nn.Module) -> None:
    """Refuse names of which no code can be made."""
    for path, _ in [*network.named_modules(), *network.named_parameters(), *network.named_buffers()]:
        bad = [part for part in path.split(".") if keyword.iskeyword(part) or '"' in part or "\\" in part]
        if bad:
            raise NetworkError(
                f"the network has a part named {path!r}; {bad[0]!r} cannot be written in the code of a slim network "
                "(Python keywords, quotes and backslashes cannot): give it another name"
            )


def _check(expected: list[Tensor], program: Program, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Run the traced network and compare it with what the original gave; return the shapes of all values."""
    with torch.no_grad():
        try:
            values = program.values(images)
        except Exception as error:
            raise NetworkError(f"the traced network fails where the network does not: {first_line(error)}") from error
    found = _outputs(program.output(values))
    scale = max(map(size, expected), default=0.0)
    same = len(found) == len(expected) and all(
        a.shape == b.shape and distance(a, b) <= _TOLERANCE * max(scale, 1e-6)
        for a, b in zip(found, expected, strict=False)
    )
    if not same or not math.isfinite(scale):
        raise NetworkError(
            "the traced network gives other outputs than the network in evaluation mode (or outputs that are not "
            "finite); its forward must do the same for every image, without randomness"
        )
    return _shapes_of(values)


@torch.no_grad()
def _shapes(program: Program, images: Tensor) -> dict[str, tuple[int, ...]]:
    return _shapes_of(program.values(images))


def _shapes_of(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}


def _outputs(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
