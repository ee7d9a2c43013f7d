"""The network and the images that a process opens: a small value that travels to any worker."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.recipe import Recipe
from ekgsearch.artefact.targets import find_any
from ekgsearch.artefact.weights import load_weights
from ekgsearch.data.views import Normalisation
from ekgsearch.workers.images import DataRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The network and the images of a run.

    Attributes:
        recipe: the unpruned network; its own code runs, since the job names it.
        weights: safetensors file with its weights, readable from every node.
        data: the images.
        mean: subtracted from the pixels of each channel, in pixel units 0..255.
        std: what the difference is divided by, in pixel units 0..255.
        device: "cpu" or "cuda".
        threads: torch threads of one process; on the CPU they are part of the arithmetic.
    """

    recipe: Recipe
    weights: Path
    data: DataRequest
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str
    threads: int

    @property
    def normalisation(self) -> Normalisation:
        """Turns pixels into network input."""
        return Normalisation(self.mean, self.std)

    @property
    def devices_per_worker(self) -> int:
        """What one process holds: one GPU, or as many cores as it has threads."""
        return self.threads if self.device == "cpu" else 1

    def open_network(self) -> nn.Module:
        """Build the unpruned network with its weights, in running mode, on the device.

        Raises:
            NetworkError: the weights are missing, damaged or of another network.
        """
        network = build(self.recipe, find=find_any)
        load_weights(network, self.weights)
        return network.eval().to(torch.device(self.device))
