"""Costs of a sub-network under the four counters of the literature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup, Layer
from ekgsearch.channels.operations import Kind
from ekgsearch.errors import NetworkError
from ekgsearch.records import Costs, Counter, Subnetwork

_NORM_MACS: dict[Counter, int] = {"macs": 0, "ekg": 2, "thop_old": 4, "2xmac": 0}
"""Operations of a batch norm per output element."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """The cost of one layer in a sub-network.

    Attributes:
        layer: path of the layer.
        kind: conv, linear or norm.
        in_channels: channels (linear: columns) that it reads.
        out_channels: channels that it makes.
        macs: operations per image, under the counter.
        params: parameters, under the counter.
    """

    layer: str
    kind: str
    in_channels: int
    out_channels: int
    macs: int
    params: int


class _Table:
    """The layers of a network as integer matrices, so that a cost is a few products.

    Layer l reads in_const[l] + in_size[l] @ kept channels, where kept holds the number of kept channels of each group,
    and makes out_const[l] + out_size[l] @ kept. Its operations are
    mac_pair * inputs * outputs / groups + mac_single * outputs; its parameters likewise.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self.column = {group.name: number for number, group in enumerate(graph.groups)}
        self.full = np.array([group.size for group in graph.groups], dtype=np.int64)
        self.layers = list(graph.layers.values())
        column_of = np.full(int(graph.classes.max()) + 1, len(self.column))
        for name, number in self.column.items():
            column_of[graph.group_classes[name].numpy()] = number
        self._in_size, self._in_const = self._counts([layer.inputs for layer in self.layers], column_of)
        self._out_size, self._out_const = self._counts([layer.outputs for layer in self.layers], column_of)
        self._groups = np.array(
            [1 if layer.is_depthwise else getattr(layer.module, "groups", 1) for layer in self.layers]
        )
        self._factors = {
            counter: np.array([_factors(layer, counter) for layer in self.layers], dtype=np.int64).reshape(-1, 4).T
            for counter in get_args(Counter)
        }
        self._count_shared_kernels_once()
        counted = {id(tensor) for layer in self.layers for tensor in layer.module.parameters()}
        others = {id(tensor): tensor.numel() for tensor in _used_parameters(graph)}
        self._other_params = sum(size for key, size in others.items() if key not in counted)
        self._other_macs = sum(graph.trace.other_macs.per_image.values())

    def _count_shared_kernels_once(self) -> None:
        """Layers that share a kernel have the parameters of it once; such layers are frozen."""
        seen: set[int] = set()
        for position, layer in enumerate(self.layers):
            kernel = id(layer.module.weight)
            if kernel in seen and isinstance(layer.module.weight, nn.Parameter):
                for factors in self._factors.values():
                    factors[2, position] = 0
            seen.add(kernel)

    def _counts(self, lines: list[Tensor], column_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many channels of a layer one channel of each group stands for, and how many are always there."""
        width = len(self.column) + 1
        found = np.array([np.bincount(column_of[line.numpy()], minlength=width) for line in lines], dtype=np.int64)
        return found[:, :-1] // self.full, found[:, -1]

    def kept(self, graph: ChannelGraph, sub: Subnetwork) -> np.ndarray:
        """Number of kept channels of each group."""
        kept = np.zeros_like(self.full)
        for name, indices in sub.kept:
            if name not in self.column:
                graph.validate(sub)
            kept[self.column[name]] = len(indices)
        if len(sub.kept) != len(self.full) or (kept < 1).any() or (kept > self.full).any():
            graph.validate(sub)
        return kept

    def channels(self, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and outputs of each layer."""
        return self._in_const + self._in_size @ kept, self._out_const + self._out_size @ kept

    def rows(self, kept: np.ndarray, counter: Counter) -> tuple[np.ndarray, np.ndarray]:
        """Operations and parameters of each layer."""
        if counter not in self._factors:
            raise NetworkError(f"expected a counter of {list(self._factors)}, found {counter!r}")
        inputs, outputs = self.channels(kept)
        mac_pair, mac_single, param_pair, param_single = self._factors[counter]
        pairs = inputs * outputs // self._groups
        return mac_pair * pairs + mac_single * outputs, param_pair * pairs + param_single * outputs

    def costs(self, kept: np.ndarray, counter: Counter) -> Costs:
        """Sum over the layers and add what lies outside them; parameters where the counter counts more than kernels."""
        macs, params = self.rows(kept, counter)
        others = 0 if counter == "2xmac" else self._other_params
        return Costs(int(macs.sum()) + _scale(counter) * self._other_macs, int(params.sum()) + others)


def _used_parameters(graph: ChannelGraph) -> list[Tensor]:
    """Parameters that the network reads in evaluation, in layers or elsewhere."""
    found: list[Tensor] = []
    for node in graph.trace.graph.nodes:
        if node.name in graph.trace.auxiliary.nodes:
            continue
        if node.op == "call_module":
            found += graph.trace.modules[str(node.target)].parameters()
        elif node.op == "get_attr" and isinstance(tensor := graph.trace.tensor(str(node.target)), nn.Parameter):
            found.append(tensor)
    return found


def _scale(counter: Counter) -> int:
    """How often a multiply-accumulate is counted."""
    return 2 if counter == "2xmac" else 1


def _factors(layer: Layer, counter: Counter) -> tuple[int, int, int, int]:
    """Operations and parameters of a layer: (per input-output pair, per output) of each."""
    module = layer.module
    kernels_only = counter == "2xmac"
    if isinstance(module, nn.PReLU):
        return 0, 0, 0, 0 if kernels_only else len(list(module.parameters()))
    if layer.kind is Kind.NORM:
        affine = 0 if kernels_only else len(list(module.parameters(recurse=False)))
        statistics = 2 if counter == "ekg" and module.running_mean is not None else 0
        return 0, _NORM_MACS[counter] * layer.out_positions, 0, affine + statistics
    kernel = math.prod(getattr(module, "kernel_size", ()))
    bias = module.bias is not None
    bias_macs = layer.out_positions if bias and counter == "thop_old" and layer.kind is Kind.CONV else 0
    macs = _scale(counter) * layer.positions * kernel
    # tensors that are buffers of the network are computed with, but they are no parameters
    params = kernel if isinstance(module.weight, nn.Parameter) else 0
    bias_params = 1 if isinstance(module.bias, nn.Parameter) and not kernels_only else 0
    if layer.is_depthwise:
        return 0, macs + bias_macs, 0, params + bias_params
    return macs, bias_macs, params, bias_params


_tables: WeakKeyDictionary[ChannelGraph, _Table] = WeakKeyDictionary()


def _table(graph: ChannelGraph) -> _Table:
    if graph not in _tables:
        _tables[graph] = _Table(graph)
    return _tables[graph]


def cost(graph: ChannelGraph, sub: Subnetwork, counter: Counter = "macs") -> Costs:
    """Count the operations per image and the parameters of a sub-network.

    Convolutions, linear layers and norms are counted, each as the counter has it; pooling, activations and additions
    are not. Matrix products elsewhere (attention, layers of a kind that is not known) are added as the counter of torch
    counts them; they are the same in every sub-network. Parameters outside the layers are added, except by "2xmac",
    which counts kernels only.

    | counter    | convolution                       | norm, per output element | parameters of a norm |
    |------------|-----------------------------------|--------------------------|----------------------|
    | `macs`     | Ho Wo kh kw Cin Cout / groups     | 0                        | 2 per channel        |
    | `ekg`      | the same                          | 2                        | 4 per channel        |
    | `thop_old` | and 1 per output element if biased| 4                        | 2 per channel        |
    | `2xmac`    | twice                             | 0                        | 0                    |

    Args:
        graph: analysed network.
        sub: which channels are kept; only their numbers matter.
        counter: how to count.

    Raises:
        NetworkError: the sub-network does not fit the network, or the counter is unknown.
    """
    table = _table(graph)
    return table.costs(table.kept(graph, sub), counter)


def layer_costs(graph: ChannelGraph, sub: Subnetwork, counter: Counter = "macs") -> list[LayerCost]:
    """List the cost of each layer of a sub-network, in execution order, without what is no layer; see `cost`."""
    table = _table(graph)
    kept = table.kept(graph, sub)
    inputs, outputs = table.channels(kept)
    macs, params = table.rows(kept, counter)
    return [
        LayerCost(layer.path, str(layer.kind), int(inputs[i]), int(outputs[i]), int(macs[i]), int(params[i]))
        for i, layer in enumerate(table.layers)
    ]


def conv_channels(graph: ChannelGraph, sub: Subnetwork) -> int:
    """Outputs of all convolutions of a sub-network: the channels that EPruner (arXiv 2101.07985) counts."""
    return sum(layer.out_channels for layer in layer_costs(graph, sub) if layer.kind == Kind.CONV)


def reachable(
    graph: ChannelGraph, counter: Counter = "macs", groups: Sequence[ChannelGroup] | None = None, least: int = 1
) -> Costs:
    """Count the smallest sub-network; see `cost`.

    Args:
        graph: analysed network.
        counter: how it is counted.
        groups: channel groups that are cut, the others are full; None for all.
        least: channels that each of them keeps, or all where it has fewer.
    """
    table = _table(graph)
    kept = table.full.copy()
    cut = [table.column[group.name] for group in (graph.groups if groups is None else groups)]
    kept[cut] = np.minimum(kept[cut], least)
    return table.costs(kept, counter)


def group_share(graph: ChannelGraph, group: ChannelGroup | str, counter: Counter = "macs") -> float:
    """Give the share of the operations that goes if one channel group alone is cut to one channel, 0..1."""
    table = _table(graph)
    name = group if isinstance(group, str) else group.name
    kept = table.full.copy()
    kept[table.column[graph.group(name).name]] = 1
    full = table.costs(table.full, counter).macs
    return 1 - table.costs(kept, counter).macs / full if full else 0.0
