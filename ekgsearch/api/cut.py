"""Channel groups of a network, costs of its sub-networks, and the networks that these stand for."""

from typing import Any

import torch
from torch import Tensor, nn

from ekgsearch.channels import graph as graphs
from ekgsearch.channels import slim as slim_networks
from ekgsearch.channels.cost import cost as cost_of
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.errors import NetworkError
from ekgsearch.records import Costs, Counter, Subnetwork
from ekgsearch.runtime.latency import Latency, compare_latencies


def analyse(network: nn.Module, input_shape: tuple[int, int, int]) -> ChannelGraph:
    """Find which channels of a network can be cut, and which only together.

    Nothing is known about the architecture: the network is traced with torch.fx. The result prints as a table of its
    channel groups; `result.groups`, `result.frozen` (each with the reason) and `result.warnings` hold the same.

    Args:
        network: maps float images (B, C, H, W) to logits (B, classes). It is left as it was, and its tensors are
            shared: weights that change later are followed.
        input_shape: (channels, height, width) of one image.

    Raises:
        NetworkError: the network cannot be traced, or fails on such images.
    """
    if not isinstance(network, nn.Module):
        raise NetworkError(f"analyse: expected a torch.nn.Module, found {type(network).__name__}")
    return graphs.analyse(network, tuple(input_shape))  # type: ignore[arg-type]  # analyse checks its length


def slim(graph: ChannelGraph, subnetwork: Subnetwork, *, preserve_norm: bool = True) -> nn.Module:
    """Cut a network down to a sub-network: a copy with really smaller layers, which trains like any module.

    Its parameters have the names of the original. It can be analysed and cut again.

    Args:
        graph: what `analyse` found.
        subnetwork: what `search` found, or `graph.full().replace(name, kept_channels)`.
        preserve_norm: scale each cut kernel to the Frobenius norm of the uncut one, as EKG does (arXiv 2203.02651).

    Raises:
        NetworkError: the sub-network does not belong to this network.
    """
    return slim_networks.slim(graph, subnetwork, preserve_norm=preserve_norm)


def masked(graph: ChannelGraph, subnetwork: Subnetwork) -> nn.Module:
    """The same sub-network with zeros in place of what is removed: as large as the original, for comparisons.

    It computes what the slim network computes, in evaluation mode by running statistics, in training mode by those of
    the batch; it does not train.

    Args:
        graph: what `analyse` found; weights that change later are followed.
        subnetwork: channels that each channel group keeps.

    Raises:
        NetworkError: the sub-network does not belong to this network.
    """
    return _Masked(graph, subnetwork)


def cost(graph: ChannelGraph, subnetwork: Subnetwork | None = None, counter: Counter = "macs") -> Costs:
    """Multiply-accumulates of one image and parameters of a sub-network.

    Args:
        graph: what `analyse` found.
        subnetwork: channels that each channel group keeps; None for all.
        counter: `macs` (convolutions, linear layers and what else torch's own counter counts), `2xmac`, or as
            papers count: `ekg`, `thop_old`.

    Raises:
        NetworkError: the sub-network does not belong to this network.
    """
    return cost_of(graph, graph.full() if subnetwork is None else subnetwork, counter)


def latency(
    full: nn.Module,
    slim: nn.Module,
    input_shape: tuple[int, int, int],
    batch_size: int = 1,
    device: str | torch.device = "cpu",
) -> Latency:
    """Compare how long two networks take for a batch on this machine, in turns, so that its noise falls on both.

    Args:
        full: the unpruned network; moved to the device and left in evaluation mode.
        slim: the network to compare; likewise.
        input_shape: (channels, height, width) of one image.
        batch_size: images of one pass.
        device: where to measure.

    Returns:
        Milliseconds of both, their ratio with its quartiles, and the noise of the machine.
    """
    return compare_latencies(full, slim, input_shape, batch_size, torch.device(device))


class _Masked(nn.Module):
    """A masked network as a module; the original's tensors are not registered, so that they are not trained."""

    def __init__(self, graph: ChannelGraph, subnetwork: Subnetwork) -> None:
        super().__init__()
        graph.validate(subnetwork)
        self._run = MaskedNetwork(graph)
        self._subnetwork = subnetwork
        self.eval()

    def forward(self, images: Tensor) -> Any:
        """What the network returns for normalised float images (B, C, H, W), usually logits (B, classes)."""
        return self._run.forward(images, self._subnetwork, norm_mode="batch" if self.training else "running")
