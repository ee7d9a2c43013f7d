"""The processes that train one network together, and the few things they tell each other."""

import logging
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ekgsearch.data.subset import share
from ekgsearch.errors import EkgError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """One process among those that train together; alone, it needs no process group.

    Attributes:
        device: device of this process.
        rank: index of this process, 0..size-1; rank 0 writes checkpoints.
        size: number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls, device: torch.device) -> "World":
        """Describe this process as torch.distributed sees it: alone, unless a process group was initialised."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(device, distributed.get_rank(), distributed.get_world_size())
        return cls(device)

    def __post_init__(self) -> None:
        """Check rank and size.

        Raises:
            EkgError: a rank outside the world.
        """
        if not 0 <= self.rank < self.size:
            raise EkgError(f"expected a rank of 0..{self.size - 1}, found {self.rank}; start the processes again")

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over all processes; a new tensor, equal everywhere."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        distributed.all_reduce(total)
        return total

    def gather(self, values: Tensor) -> Tensor:
        """Stack a tensor of one shape over all processes, equal everywhere: (...) to (size, ...), on its device."""
        if self.size == 1:
            return values[None]
        mine = values.detach().to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        distributed.all_gather(parts, mine)
        return torch.stack(parts).to(values.device)

    def exchanging_gradients(self, wrapped: nn.Module, exchange: bool) -> AbstractContextManager[None]:
        """Within the context, gradients of a wrapped model are averaged over processes, or only added up here."""
        if exchange or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        context: AbstractContextManager[None] = wrapped.no_sync()
        return context

    def wrap(self, model: nn.Module) -> nn.Module:
        """Make the gradients of a model the mean over all processes.

        The statistics of batch normalisation stay those of each process until `average_statistics`.
        """
        return model if self.size == 1 else data_parallel(model, self.device)

    @torch.no_grad()
    def average_statistics(self, model: nn.Module) -> None:
        """Replace floating-point buffers (running statistics) by their mean over all processes."""
        if self.size == 1:
            return
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.sum(buffer) / self.size)

    def share(self, count: int) -> slice:
        """Part of `count` items that this process takes; see `subset.share`."""
        return share(count, self.rank, self.size)


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Let a process group, that of one process included, average the gradients of a model."""
    device_ids = [device.index or 0] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # torch 2.15 renames this argument and says to keep it for statistics that are each process's own
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
