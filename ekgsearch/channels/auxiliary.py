"""Auxiliary heads: what a forward computes and returns in training in addition to the outputs of evaluation."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from ekgsearch.channels.execute import Program
from ekgsearch.channels.lift import Leaves
from ekgsearch.channels.training_forward import all_close, in_training

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """Nodes that run in training only. They stand behind all others in the graph of a trace.

    Attributes:
        nodes: names of the nodes.
        output: what the forward returns in training, made of nodes.
    """

    nodes: frozenset[str] = frozenset()
    output: Any = None


def join(graph: fx.Graph, leaves: Leaves, training: fx.Graph, others: Leaves) -> Auxiliary | None:
    """Add to the graph of the evaluation what the graph of the training has in addition.

    Args:
        graph: lifted graph of the forward in evaluation; gets the nodes that are missing.
        leaves: its modules; gets theirs.
        training: lifted graph of the forward in training.
        others: its modules.

    Returns:
        What was added; None where nothing was, or where the training does not compute all that evaluation returns.
    """
    merger = _Merger(graph, leaves)
    for node in training.nodes:
        if node.op != "output":
            merger.take(node, others)
    expected: list[fx.Node] = []
    fx.node.map_arg(_output(graph), expected.append)
    if not merger.added or not set(expected) <= set(merger.found.values()):
        merger.undo()
        return None
    output = fx.node.map_arg(_output(training), merger.found.__getitem__)
    return Auxiliary(frozenset(node.name for node in merger.added), output)


def remove(graph: fx.Graph, leaves: Leaves, auxiliary: Auxiliary) -> None:
    """Take an auxiliary head out of a graph again."""
    for node in reversed(list(graph.nodes)):
        if node.name in auxiliary.nodes:
            graph.erase_node(node)
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for path in set(leaves.modules) - used:
        del leaves.modules[path]
        leaves.borrowed.pop(path, None)


def works(network: nn.Module, program: Program, auxiliary: Auxiliary, leaves: Leaves, images: Tensor) -> bool:
    """Tell whether the joined graph returns what the network returns in training, dropout and norms apart.

    Args:
        network: the network.
        program: the whole graph, ready to run.
        auxiliary: what of it is in addition.
        leaves: its modules.
        images: a small batch (B, C, H, W).
    """
    try:
        with torch.no_grad():
            found = program.of(auxiliary.output, program.values(images))
            expected = in_training(network, leaves.own, lambda: network(images))
    except Exception as error:  # any Python code may run in a forward, so anything may be raised
        _log.info("the auxiliary head cannot be run: %s: %s", type(error).__name__, error)
        return False
    return all_close(_tensors(found), _tensors(expected))


def _output(graph: fx.Graph) -> Any:
    return next(node for node in graph.nodes if node.op == "output").args[0]


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


class _Merger:
    """Finds the nodes of one graph in another: the same call on the same values; adds those that are not there."""

    def __init__(self, graph: fx.Graph, leaves: Leaves) -> None:
        self._graph = graph
        self._leaves = leaves
        self._keys: dict[str, fx.Node] = {}
        self._end = next(node for node in graph.nodes if node.op == "output")
        self.found: dict[fx.Node, fx.Node] = {}
        self.added: list[fx.Node] = []
        for node in graph.nodes:
            if node.op != "output":
                self._keys.setdefault(_key(node, leaves.modules, lambda other: other), node)

    def take(self, node: fx.Node, others: Leaves) -> None:
        """Find a node of the other graph here, or add it."""
        key = _key(node, others.modules, self.found.__getitem__)
        if key not in self._keys:
            with self._graph.inserting_before(self._end):
                self._keys[key] = self._graph.node_copy(node, self.found.__getitem__)
            self.added.append(self._keys[key])
            if node.op == "call_module":
                self._adopt(str(node.target), self._keys[key], others)
        self.found[node] = self._keys[key]

    def _adopt(self, path: str, node: fx.Node, others: Leaves) -> None:
        module = others.modules[path]
        if _is_lifted_dropout(path, module):
            node.target = path = f"{path}_in_training"  # both graphs number their dropouts
        if path not in self._leaves.modules:
            self._leaves.modules[path] = module
            if path in others.borrowed:
                self._leaves.borrowed[path] = others.borrowed[path]

    def undo(self) -> None:
        """Leave the graph as it was."""
        remove(self._graph, self._leaves, Auxiliary(frozenset(node.name for node in self.added)))


def _key(node: fx.Node, modules: Mapping[str, nn.Module], here: Callable[[fx.Node], fx.Node]) -> str:
    """Describe a call by what it calls and on which values of this graph."""
    target = node.target if isinstance(node.target, str) else f"{id(node.target)}"
    if node.op == "call_module":
        module = modules[str(node.target)]
        if _is_lifted_dropout(str(node.target), module):
            target = f"{type(module).__name__} {getattr(module, 'p', None)}"
    arguments = [fx.node.map_arg(part, here) for part in (node.args, dict(node.kwargs))]
    return f"{node.op} {target} {arguments}"


def _is_lifted_dropout(path: str, module: nn.Module) -> bool:
    return path.startswith("_") and isinstance(module, _DropoutNd)
