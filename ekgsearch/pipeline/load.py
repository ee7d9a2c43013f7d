"""Open the slim network of a run: one safetensors file says which network, which channels and which weights."""

import json
from pathlib import Path

from torch import nn

from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim
from ekgsearch.errors import NetworkError
from ekgsearch.nets.spec import NetSpec
from ekgsearch.nets.zoo import build
from ekgsearch.records import Subnetwork
from ekgsearch.storage.tensors import load_tensors


def load_slim(path: Path) -> nn.Module:
    """Rebuild the network of `slim.safetensors` or `final.safetensors` of a run, in running mode.

    Nothing is unpickled: the file's metadata hold the architecture and the kept channels as JSON. The same metadata
    hold `mean` and `std`, the input normalisation in pixel units 0..255.

    Args:
        path: the file.

    Raises:
        NetworkError: the file is not the slim network of a run.
        StorageError: it is missing or damaged.
    """
    tensors, metadata = load_tensors(path)
    try:
        net = NetSpec.from_dict(json.loads(metadata["net"]))
        subnetwork = Subnetwork.of(json.loads(metadata["subnetwork"]))
    except (KeyError, ValueError, AttributeError) as error:
        raise NetworkError(
            f"{path}: expected metadata `net` and `subnetwork` of a slim network, found {sorted(metadata)}; "
            "give slim.safetensors or final.safetensors of a run directory"
        ) from error
    network = slim(analyse(build(net), net.input_shape), subnetwork, preserve_norm=False)
    network.load_state_dict(tensors)
    return network.eval()
