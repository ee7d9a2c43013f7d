"""Look at a network by running it, and leave everything as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Put a network and the usual generators of random numbers back to what they were.

    A forward may run any code, and tracers run it with stand-ins for tensors: modes, attributes, buffers and their
    values are restored. Parameters are not copied; nothing that runs here may write into them.

    Args:
        network: any module.
    """
    dicts = [
        (own, dict(own))
        for module in network.modules()
        for own in (vars(module), module._buffers, module._parameters, module._modules)
    ]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = {tensor.device for tensor in network.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            for own, before in dicts:
                own.clear()
                own.update(before)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
