"""A comparison of a forward in training with one in evaluation, beyond what known layers do in their two modes."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ekgsearch.channels.operations import drops_branches, function_name
from ekgsearch.channels.untouched import untouched

T = TypeVar("T")

_FOLLOWED = (_NormBase, _DropoutNd)
"""Layers whose two modes a slim network has too."""

_FOLLOWED_FUNCTIONS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "batch_norm"}
)
"""Functions of which the same is true."""

_TOLERANCE = 1e-5  # of the largest value; both runs use the same kernels
_SHOWN = 3


def training_difference(network: nn.Module, images: Tensor, leaves: Collection[str]) -> str:
    """Compare a forward in training with one in evaluation, dropout and norms apart.

    A slim network is cut from the forward in evaluation; what a network does in training only (an auxiliary head, a
    hand-written drop path) is not in it.

    Args:
        network: the network; its modes, tensors and the generators of random numbers are left as they were.
        images: a small batch (B, C, H, W).
        leaves: paths of the modules that a slim network keeps whole, with both their modes.

    Returns:
        What differs, in words; empty where nothing does.
    """
    with untouched(network):
        network.eval()
        expected = _run(network, images)
    with untouched(network):
        _train(network, leaves)
        try:
            found = _run(network, images)
        except Exception as error:  # any Python code may run in a forward, so anything may be raised
            return f"the forward in training fails on {tuple(images.shape)}: {type(error).__name__}: {error}"
    return _describe(network, expected, found)


def in_training(network: nn.Module, leaves: Collection[str], run: Callable[[], T]) -> T:
    """Run something with a network in training, dropout and norms apart; arguments as for `training_difference`."""
    with untouched(network), _WithoutDropout():
        _train(network, leaves)
        return run()


def _train(network: nn.Module, leaves: Collection[str]) -> None:
    """Switch modules to training that are neither kept whole nor followed in both modes."""
    for path, module in network.named_modules():
        inside = any(path == leaf or path.startswith(f"{leaf}.") for leaf in leaves if leaf)
        module.training = not inside and not isinstance(module, _FOLLOWED) and not drops_branches(module)


class _Run:
    """One forward: outputs of modules in the order in which they were done, and whether random numbers were drawn."""

    def __init__(self) -> None:
        self.outputs: list[tuple[str, list[Tensor]]] = []
        self.drew = False


@torch.no_grad()
def _run(network: nn.Module, images: Tensor) -> _Run:
    run = _Run()

    def note(path: str) -> Any:
        return lambda module, args, output: run.outputs.append((path, _tensors(output)))

    handles = [module.register_forward_hook(note(path)) for path, module in network.named_modules()]
    torch.manual_seed(0)
    before = _generators(images.device)
    try:
        with _WithoutDropout():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    run.drew = before != _generators(images.device)
    return run


def _generators(device: torch.device) -> list[object]:
    """States of the generators that a forward may draw from."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    numpy: Any = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), numpy[1].tobytes(), numpy[2], *(state.numpy().tobytes() for state in states)]


class _WithoutDropout(TorchFunctionMode):
    """Runs functional dropout and batch norm as in evaluation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = dict(kwargs or {}), function_name(func).rstrip("_")
        by_batch = name == "batch_norm" and (args[1] if len(args) > 1 else given.get("running_mean")) is None
        if name in _FOLLOWED_FUNCTIONS and given.get("training") and not by_batch:
            given["training"] = False
        return func(*args, **given)


def _describe(network: nn.Module, expected: _Run, found: _Run) -> str:
    usual, in_training = _by_call(expected), _by_call(found)
    only = _outermost([path for path, _ in in_training if (path, 0) not in usual])
    if only:
        return f"the forward in training runs modules that evaluation does not: {_some(only)}"
    changed = next(
        (path for (path, n), one in in_training.items() if not all_close(one, usual.get((path, n), []))), None
    )
    if changed is not None:
        module = network.get_submodule(changed)
        where = f"{changed!r} ({type(module).__name__})" if changed else f"the forward of {type(module).__name__}"
        return f"{where} gives something else in training than in evaluation"
    if found.drew and not expected.drew:
        return "the forward in training draws random numbers outside dropout and stochastic depth"
    missing = _outermost([path for path, _ in usual if (path, 0) not in in_training])
    return f"the forward in training leaves modules out: {_some(missing)}" if missing else ""


def _by_call(run: _Run) -> dict[tuple[str, int], list[Tensor]]:
    """Outputs by module and how often it had been called before."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    count: Counter[str] = Counter()
    for path, output in run.outputs:
        found[path, count[path]] = output
        count[path] += 1
    return found


def _outermost(paths: Iterable[str]) -> list[str]:
    """Paths without those inside another of them, each once, in their order."""
    several = dict.fromkeys(paths)
    return [path for path in several if not any(path.startswith(f"{other}.") for other in several)]


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def all_close(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Tell whether two lists of tensors are equal but for rounding."""
    return len(found) == len(expected) and all(
        one.shape == other.shape and distance(one, other) <= _TOLERANCE * max(size(other), 1e-6)
        for one, other in zip(found, expected, strict=True)
    )


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors of one shape; those that are no numbers are equal, or infinitely far apart."""
    if torch.equal(one, other):
        return 0.0
    return size(one - other) if one.is_floating_point() or one.is_complex() else float("inf")


def size(tensor: Tensor) -> float:
    """Largest absolute value of a tensor; 0 for one without elements."""
    return float(tensor.abs().max()) if tensor.numel() and tensor.dtype != torch.bool else 0.0


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:_SHOWN])
    return shown if len(paths) <= _SHOWN else f"{shown} and {len(paths) - _SHOWN} more"
