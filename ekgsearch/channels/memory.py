"""How much memory a search worker needs at its peak, from the shapes of the traced network."""

import math
from dataclasses import dataclass

from torch import nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.operations import Kind
from ekgsearch.channels.sliced import first_steps
from ekgsearch.channels.trace import BATCH

_READS_ITS_INPUT = frozenset({Kind.CONV, Kind.LINEAR, Kind.NORM, Kind.POOL, Kind.AVERAGE, Kind.SOFTMAX})
_READS_ITS_OUTPUT = frozenset({Kind.ELEMENTWISE, Kind.SOFTMAX})
_INDEX_BYTES = 8
_WORKSPACE = 14
"""Copies of the largest feature map that are held besides what was saved: gradients on both sides of a layer and of a
shortcut, the layouts that convolutions are computed in, and gaps between blocks of memory (measured, tests)."""


@dataclass(frozen=True, slots=True)
class SearchMemory:
    """Bytes of tensors that one search worker holds, without the libraries.

    Attributes:
        network: weights and running statistics.
        subset: uint8 images of all its batches, and the ensemble knowledge about them in float64.
        scores: feature maps of one batch while channels are scored, kept for the backward pass.
        candidates: feature maps of one batch while candidates branch off.
        prefixes: feature maps of all its batches that candidates start from.
    """

    network: int
    subset: int
    scores: int
    candidates: int
    prefixes: int

    @property
    def peak(self) -> int:
        """The most that is held at a time."""
        return self.network + self.subset + self.prefixes + max(self.scores, self.candidates)


def search_memory(
    graph: ChannelGraph,
    *,
    images: int,
    batch_size: int,
    num_classes: int,
    number_bytes: int = 4,
    masked_groups: frozenset[str] = frozenset(),
    prefix_bytes: int = 0,
) -> SearchMemory:
    """Compute the peak memory of a search worker; it depends on shapes only, and is largest before anything is cut.

    Candidates need little: they branch off one walk through the current network, which holds the values that are still
    to be read. Scores need most: what the backward pass reads. Some of it is kept for the candidates.

    Args:
        graph: analysed network.
        images: images of all batches that the worker owns.
        batch_size: images of its largest batch.
        num_classes: logits per image.
        number_bytes: bytes of one number of a feature map.
        masked_groups: channel groups that will be masked rather than sliced for a while; their masked feature maps are
            held beside the unmasked ones.
        prefix_bytes: the most that is kept for candidates to start from.
    """
    sizes = {
        name: number_bytes * batch_size * math.prod(shape[1:])
        for name, shape in graph.trace.shapes.items()
        if shape and shape[0] == BATCH and name not in graph.trace.auxiliary.nodes
    }
    largest = max(sizes.values())
    prefixes = sum(sizes.get(name, 0) for name in _read_by_candidates(graph))
    parameters = [*graph.network.parameters(), *graph.network.buffers()]
    return SearchMemory(
        network=sum(tensor.numel() * tensor.element_size() for tensor in parameters),
        subset=images * (math.prod(graph.input_shape) + 8 * num_classes),
        scores=_saved(graph, sizes, number_bytes, masked_groups) + _WORKSPACE * largest,
        candidates=_walked(graph, sizes) + _WORKSPACE * largest,
        prefixes=min(prefix_bytes, -(-images * prefixes // batch_size)),
    )


def _saved(graph: ChannelGraph, sizes: dict[str, int], number_bytes: int, masked_groups: frozenset[str]) -> int:
    """Bytes that the backward pass of the scores reads."""
    kinds, extra = graph.trace.kinds, 0
    saved: set[str] = set()
    for node in graph.trace.graph.nodes:
        if node.name in graph.trace.auxiliary.nodes:
            continue
        if kinds[node.name] in _READS_ITS_INPUT:
            saved.update(other.name for other in node.all_input_nodes)
        if kinds[node.name] in _READS_ITS_OUTPUT:
            saved.add(node.name)
        if node.op == "call_module" and isinstance(graph.trace.modules[str(node.target)], nn.MaxPool2d):
            extra += sizes[node.name] // number_bytes * _INDEX_BYTES
    masked = [site.node for site in graph.sites if not masked_groups.isdisjoint(site.groups)]
    return extra + sum(sizes.get(name, 0) for name in (*saved, *masked))


def _walked(graph: ChannelGraph, sizes: dict[str, int]) -> int:
    """Largest sum of the values that a walk and a branch off it hold at a time."""
    program = graph.trace.program
    held = most = sizes.get(program.input, 0)
    alive: dict[str, int] = {}
    for index, step in enumerate(program.steps):
        alive[step.name] = sizes.get(step.name, 0)
        held = sizes.get(program.input, 0) + sum(alive.values())
        most = max(most, held)
        for name in step.inputs:
            if program.last_use[name] == index:
                alive.pop(name, None)
    return 2 * most  # a branch holds at most as much again as the walk that it leaves


def _read_by_candidates(graph: ChannelGraph) -> set[str]:
    """Names of the values that are alive where a candidate may branch off."""
    program, found = graph.trace.program, set[str]()
    alive: set[str] = set()
    branching = set(first_steps(graph, program).values())
    for index, step in enumerate(program.steps):
        if index in branching:
            found |= alive
        alive = {name for name in alive | {step.name} if program.last_use.get(name, 0) > index}
    return found
