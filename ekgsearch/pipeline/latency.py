"""How long a forward pass takes on this device: measured, because fewer operations are not always faster."""

import statistics
import time

import torch
from torch import nn

REPEATS = 15
"""Timed rounds; the networks take turns, so that a busy machine slows them alike."""


@torch.no_grad()
def median_latencies_ms(
    networks: dict[str, nn.Module], input_shape: tuple[int, int, int], batch_size: int, device: torch.device
) -> dict[str, float]:
    """Median time of one forward pass of each network, milliseconds, in running mode.

    Args:
        networks: by name; moved to the device and left in evaluation mode.
        input_shape: (channels, height, width) of one image.
        batch_size: images of one pass.
        device: where to measure.
    """
    images = torch.rand(batch_size, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for round_index in range(REPEATS + 2):
        for name, network in networks.items():
            network.to(device).eval()
            _synchronise(device)
            start = time.perf_counter()
            network(images)
            _synchronise(device)
            if round_index >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
