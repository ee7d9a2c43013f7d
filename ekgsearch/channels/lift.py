"""Bring any traced graph into one form: layers are called as modules, nothing is written in place."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ekgsearch.channels.inplace import write_elsewhere, writes
from ekgsearch.channels.operations import function_name, is_plain

_CONV = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
_TRANSPOSED = ["input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"]
_LINEAR = ["input", "weight", "bias"]
_FUNCTIONAL_NORM = ["input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"]
_NORM = ["input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled"]
_DROPOUT: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_dropout": nn.Dropout2d,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_WITHOUT_EFFECT = frozenset({"_assert", "_assert_is_none", "_assert_async", "sym_constrain_range_for_size"})


def lift(graph: fx.Graph, network: nn.Module, read: Callable[[str], Tensor]) -> dict[str, nn.Module]:
    """Rewrite a traced graph into the one form that the channel analysis reads.

    Functional convolutions, linear layers, batch norms and PReLUs on parameters of the network become calls of plain
    torch modules that share those parameters; functional dropout becomes a module; in-place operations become their
    plain counterparts; checks and dead nodes go.

    Args:
        graph: graph traced in evaluation mode; changed in place.
        network: the network it was traced from; unchanged.
        read: reads a tensor that the graph uses outside layers, by its path.

    Returns:
        The leaf modules that the graph calls, by path.

    Raises:
        NetworkError: a tensor is written in place in a way that cannot be expressed without it.
    """
    modules: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        if node.op == "call_module":
            modules[str(node.target)] = network.get_submodule(str(node.target))
            _positional(node)
        elif node.op == "call_function":
            _drop_check(graph, node)
    for node in list(graph.nodes):
        if node.op == "call_function":
            _lift_function(node, network, modules, read)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output") or writes(node, modules))
    for node in list(graph.nodes):
        if writes(node, modules):
            write_elsewhere(node, modules)
    graph.lint()
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return {path: module for path, module in modules.items() if path in used}


def _positional(node: fx.Node) -> None:
    """Turn module(input=x) into module(x)."""
    if not node.args and list(node.kwargs) in (["input"], ["x"]):
        node.args, node.kwargs = tuple(node.kwargs.values()), {}


def _drop_check(graph: fx.Graph, node: fx.Node) -> None:
    name = str(getattr(node.target, "__name__", ""))
    if name.split(".")[0] in _WITHOUT_EFFECT and not node.users:
        graph.erase_node(node)


def _arguments(node: fx.Node, names: list[str]) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _lift_function(
    node: fx.Node, network: nn.Module, modules: dict[str, nn.Module], read: Callable[[str], Tensor]
) -> None:
    match function_name(node.target):
        case "conv2d" | "conv_transpose2d" as name:
            given = _arguments(node, _CONV if name == "conv2d" else _TRANSPOSED)
            _replace(node, given, read, modules, lambda weight, bias: _convolution(name, given, weight, bias))
        case "linear":
            given = _arguments(node, _LINEAR)
            _replace(node, given, read, modules, _linear)
        case "prelu" | "_prelu_kernel":
            given = _arguments(node, _LINEAR)
            _replace(node, given, read, modules, lambda weight, _: _adopt(nn.PReLU(weight.numel()), weight, None))
        case "batch_norm":
            given = _arguments(node, _FUNCTIONAL_NORM if node.target is F.batch_norm else _NORM)
            if given.get("training", False) is False:
                _replace(node, given, read, modules, partial(_norm, node, given, network, read))
        case name if name in _DROPOUT:
            _lift_dropout(node, name, modules)


def _lift_dropout(node: fx.Node, name: str, modules: dict[str, nn.Module]) -> None:
    """Replace dropout that is off in evaluation mode; one that is always on stays a function."""
    given = _arguments(node, ["input", "p", "training", "inplace"])
    if given.get("training", given.get("train", True)) is False:
        path = f"_{node.name}"
        modules[path] = _DROPOUT[name](given.get("p", 0.5))
        _call(node, path, given["input"])


def _call(node: fx.Node, path: str, value: Any) -> None:
    node.op, node.target, node.args, node.kwargs = "call_module", path, (value,), {}


def _replace(
    node: fx.Node,
    given: dict[str, Any],
    read: Callable[[str], Tensor],
    modules: dict[str, nn.Module],
    build: Callable[[Tensor, Tensor | None], nn.Module],
) -> None:
    """Turn a functional layer whose weight and bias are tensors of the network into a module call."""
    weight, bias = given.get("weight"), given.get("bias")
    settings = ("stride", "padding", "output_padding", "dilation", "groups", "eps")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return
    if any(isinstance(given.get(key), fx.Node) for key in settings):
        return
    owner, _, leaf = str(weight.target).rpartition(".")
    paired = leaf == "weight" and owner and (bias is None or str(bias.target) == f"{owner}.bias")
    path = owner if paired else str(weight.target)
    if path in modules:
        return  # a second use of these weights stays a function of them
    modules[path] = build(read(str(weight.target)), None if bias is None else read(str(bias.target)))
    _call(node, path, given["input"])


def _is_attribute(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _adopt(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Let a module use existing tensors as its weight and bias."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            shared = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
            module.register_parameter(name, shared)
    return module.train(False)


def _pair(value: Any) -> Any:
    """Give aten's one-element lists for two axes as two numbers."""
    if isinstance(value, (list, tuple)):
        return tuple(value) * (2 if len(value) == 1 else 1)
    return value


def _convolution(name: str, given: dict[str, Any], weight: Tensor, bias: Tensor | None) -> nn.Module:
    options = {key: _pair(given[key]) for key in _TRANSPOSED[3:] if key in given}
    groups = int(options.get("groups", 1))
    outer, inner = int(weight.shape[0]), int(weight.shape[1]) * groups
    kernel = tuple(int(size) for size in weight.shape[2:])
    shape: dict[str, Any] = {"kernel_size": kernel, "bias": bias is not None, "device": "meta", **options}
    if name == "conv2d":
        return _adopt(nn.Conv2d(inner, outer, **shape), weight, bias)
    return _adopt(nn.ConvTranspose2d(outer, inner, **shape), weight, bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return _adopt(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"), weight, bias)


def _norm(
    node: fx.Node,
    given: dict[str, Any],
    network: nn.Module,
    read: Callable[[str], Tensor],
    weight: Tensor,
    bias: Tensor | None,
) -> nn.Module:
    """Use the network's own batch norm where it is a plain one, else build one on the same tensors."""
    owner = network.get_submodule(str(given["weight"].target).rpartition(".")[0])
    if is_plain(owner, (nn.BatchNorm1d, nn.BatchNorm2d)) and owner.weight is weight:
        return owner
    value = node.meta.get("val")
    flat = isinstance(value, Tensor) and value.ndim < 4
    momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
    norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(weight.numel(), eps=eps, momentum=momentum, device="meta")
    for name in ("running_mean", "running_var"):
        norm.register_buffer(name, read(str(given[name].target)) if _is_attribute(given.get(name)) else None)
    norm.track_running_stats = norm.running_mean is not None
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long) if norm.track_running_stats else None
    return _adopt(norm, weight, bias)
