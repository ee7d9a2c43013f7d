"""The way back from a slim network: its weights in the places that they have in the unpruned network."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.channels.slim import slim
from ekgsearch.errors import NetworkError
from ekgsearch.records import Subnetwork


def widen(
    graph: ChannelGraph, sub: Subnetwork, weights: Mapping[str, Tensor], input_shape: tuple[int, int, int]
) -> dict[str, Tensor]:
    """Weights of the unpruned network whose masked sub-network computes what a slim network does.

    A slim network takes values of the unpruned one and no others, so a copy of the unpruned network that holds the
    place of every value in its place is cut, and tells where each value of a slim network comes from.

    Args:
        graph: analysed unpruned network.
        sub: channels that the slim network keeps.
        weights: state of the slim network, such as after a training.
        input_shape: (channels, height, width) of one image.

    Returns:
        State of the unpruned network. Weights of channels that are gone are 0; whole numbers, such as counts of
        batches, are those of the slim network.

    Raises:
        NetworkError: the state is not one of this slim network.
    """
    places = copy.deepcopy(graph.network).double()
    placed = analyse(places, input_shape)
    with torch.no_grad():
        for value in places.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.arange(value.numel(), dtype=value.dtype).view_as(value))
    found = slim(placed, sub, preserve_norm=False).state_dict()
    if found.keys() != weights.keys() or any(found[name].shape != weights[name].shape for name in found):
        raise NetworkError("expected the state of the slim network that keeps these channels, found another one")
    wide = {name: value.clone() for name, value in graph.network.state_dict().items()}
    for name, place in found.items():
        if place.is_floating_point():
            wide[name].zero_()
            wide[name].view(-1)[place.reshape(-1).long()] = weights[name].reshape(-1).to(wide[name])
        else:
            wide[name] = weights[name].clone()
    return wide
