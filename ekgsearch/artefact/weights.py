"""Load pretrained weights into a network, after everything about them was checked."""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from ekgsearch.artefact.sidecar import verify_checksum
from ekgsearch.artefact.weights_file import read_weights
from ekgsearch.errors import NetworkError

logger = logging.getLogger(__name__)

_COUNTER_SUFFIX = ".num_batches_tracked"

_NUM_NAMED = 4
"""How many tensors an error names before it only counts them."""


def load_weights(network: nn.Module, path: Path, *, afresh: Collection[str] = ()) -> None:
    """Load the weights of a file into a network, in place; every name and shape must match.

    A floating-point type may be another than the network's, to which values are converted.

    Counters of seen batches (`num_batches_tracked`) may be missing. The checksum is verified where a sidecar next to
    the file has one.

    Args:
        network: what they are loaded into.
        path: safetensors file, or a state dict saved by torch.save; see `read_weights`.
        afresh: names of tensors of the network that keep their fresh values.

    Raises:
        NetworkError: the file is missing or damaged, its checksum is not the sidecar's, names, shapes or kinds of
            numbers differ, or values are none that a trained network has. The network is left as it was.
        StorageError: the file of a sidecar cannot be read.
    """
    own = network.state_dict()
    if path.is_file():
        verify_checksum(path)
    tensors = {name: tensor for name, tensor in read_weights(path, own).items() if name not in afresh}
    _check_prefix(path, own, tensors)
    left_out = set(afresh)
    missing = [
        name for name in own if name not in tensors and name not in left_out and not name.endswith(_COUNTER_SUFFIX)
    ]
    unexpected = [name for name in tensors if name not in own]
    misshaped = [
        f"{name} {tuple(tensor.shape)} where the network has {tuple(own[name].shape)}"
        for name, tensor in tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    _check_input(path, network, tensors)
    if missing or unexpected or misshaped:
        found = {"missing": missing, "unexpected": unexpected, "other shape": misshaped}
        words = "; ".join(f"{what} {_named(names)}" for what, names in found.items() if names)
        raise NetworkError(
            f"{path}: the weights do not fit {type(network).__name__}: {words}. Give the network that was trained "
            "(name, classes, shortcut; net.arguments of your own one); weights of other classes fit with "
            "net.new_classifier: true"
        )
    _check_values(path, own, tensors)
    network.load_state_dict(tensors, strict=False)
    logger.debug("loaded %d tensors from %s", len(tensors), path)


def _check_prefix(path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Name a prefix that all names have, as wrappers of a network write them."""
    if not tensors or any(name in own for name in tensors):
        return
    words = next(iter(tensors)).split(".")
    for count in range(1, len(words)):
        prefix = ".".join(words[:count]) + "."
        if all(name.startswith(prefix) for name in tensors) and any(name[len(prefix) :] in own for name in tensors):
            raise NetworkError(
                f"{path}: all {len(tensors)} names begin with '{prefix}', which the network's do not, as if a wrapper "
                "of the network had been saved; save the network itself, or take the prefix off the names"
            )


def _check_input(path: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Name the first convolution where it takes another number of channels."""
    first = next(((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or f"{first[0]}.weight" not in tensors:
        return
    name, (given, own) = f"{first[0]}.weight", (tensors[f"{first[0]}.weight"], first[1].weight)
    if given.dim() == own.dim() and given.shape[0] == own.shape[0] and given.shape[1] != own.shape[1]:
        raise NetworkError(
            f"{path}: the first layer, {name}, takes images of {given.shape[1]} channels, the network here images of "
            f"{own.shape[1]}; choose weights for such images, or images of {given.shape[1]} channels (data.channels)"
        )


def _check_values(path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Name tensors that no trained network has; all of them are known to the network."""
    of_integers, not_finite, negative = [], [], []
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            of_integers.append(f"{name} of {str(tensor.dtype).removeprefix('torch.')}")
        # A number may be finite in the file and not in the type of the network.
        elif not tensor.to(own[name].dtype).isfinite().all():
            not_finite.append(name)
        elif name.endswith("running_var") and (tensor < 0).any():
            negative.append(name)
    if of_integers or not_finite or negative:
        found = {
            "integers instead of floating-point numbers": of_integers,
            "values that are not finite": not_finite,
            "negative variances": negative,
        }
        words = "; ".join(f"{what} in {_named(names)}" for what, names in found.items() if names)
        raise NetworkError(
            f"{path}: expected the weights of a trained network, found {words}; save the weights again, or choose "
            "others"
        )


def _named(names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return "none"
    rest = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + rest
