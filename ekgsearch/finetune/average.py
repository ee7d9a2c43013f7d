"""Averages of a network's weights over its training, and running statistics that fit them."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ekgsearch.channels.norm import recalibrate
from ekgsearch.data.damage import sound_reader
from ekgsearch.data.subset import permutation
from ekgsearch.finetune.config import TrainData

RECALIBRATION_IMAGES = 10_000
"""Training images over which running statistics are averaged anew where nothing else is said, at most."""

_BATCH = 250


class WeightAverage:
    """A running average of parameters and running statistics.

    Attributes:
        network: a network with the averaged weights, in evaluation mode.
        count: networks averaged so far.
    """

    def __init__(self, network: nn.Module) -> None:
        """Start from a copy of a network, which does not count as averaged yet."""
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.count = 0

    @torch.no_grad()
    def update(self, network: nn.Module, weight: float) -> None:
        """Move the average towards a network.

        Running statistics move like parameters: they are averages of the same steps. Integer buffers are copied.

        Args:
            network: of the same structure.
            weight: share of the new network: 1 - decay for an exponential average, 1 / (count + 1) for the mean.
        """
        floating: tuple[list[Tensor], list[Tensor]] = ([], [])
        new = network.state_dict()
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                floating[0].append(value)
                floating[1].append(new[name])
            else:
                value.copy_(new[name])
        torch._foreach_lerp_(floating[0], floating[1], weight)
        self.count += 1


def recalibrate_on(
    network: nn.Module, data: TrainData, *, images: int, seed: int, check: Callable[[], None] = lambda: None
) -> None:
    """Average a network's running statistics anew over training images, un-augmented, in a fixed random order.

    Every process of a world takes the same images and so ends with the same statistics.

    Args:
        network: changed in place.
        data: names the images and the normalisation, and how many damaged pictures are replaced.
        images: how many of the training images are read, at most.
        seed: of their order.
        check: called before each batch; raises to stop there.

    Raises:
        DataError: more pictures are damaged than allowed.
    """
    device = next(network.parameters()).device
    ids = torch.arange(len(data.train)) if data.ids is None else data.ids.cpu()
    chosen = ids[permutation(len(ids), seed, 0)[:images]]
    read = sound_reader(data.train, ids, max_share=data.max_damaged)

    def batches() -> Iterator[Tensor]:
        for part in torch.split(chosen, _BATCH):
            check()
            yield data.normalisation(read(part).to(device))

    recalibrate(network, batches())
