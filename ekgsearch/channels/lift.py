"""Bring any traced graph into one form: layers are called as modules, nothing is written in place."""

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ekgsearch.channels.operations import Kind, function_name, is_plain, kind_of, operation_name
from ekgsearch.errors import NetworkError

_CONV = "input weight bias stride padding dilation groups".split()
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation".split()
_LINEAR = "input weight bias".split()
_FUNCTIONAL_NORM = "input running_mean running_var weight bias training momentum eps".split()
_NORM = "input weight bias running_mean running_var training momentum eps cudnn_enabled".split()
_DROPOUT: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_dropout": nn.Dropout2d,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_WITHOUT_EFFECT = frozenset({"_assert", "_assert_is_none", "_assert_async", "sym_constrain_range_for_size"})
_INPLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_COPIES = frozenset({"cat", "concat", "concatenate", "stack", "pad", "constant_pad_nd", "clone", "repeat", "roll"})


def lift(graph: fx.Graph, network: nn.Module) -> dict[str, nn.Module]:
    """Rewrite a traced graph into the one form that the channel analysis reads.

    Functional convolutions, linear layers, batch norms and PReLUs on parameters of the network become calls of plain
    torch modules that share those parameters; functional dropout becomes a module; in-place operations become their
    plain counterparts; checks and dead nodes go.

    Args:
        graph: graph traced in evaluation mode; changed in place.
        network: the network it was traced from; unchanged.

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
            _lift_function(node, network, modules)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output") or _writes(node, modules))
    for node in list(graph.nodes):
        if _writes(node, modules):
            _write_elsewhere(node, modules)
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


def _lift_function(node: fx.Node, network: nn.Module, modules: dict[str, nn.Module]) -> None:
    match function_name(node.target):
        case "conv2d" | "conv_transpose2d" as name:
            given = _arguments(node, _CONV if name == "conv2d" else _TRANSPOSED)
            _replace(node, given, network, modules, lambda weight, bias: _convolution(name, given, weight, bias))
        case "linear":
            given = _arguments(node, _LINEAR)
            _replace(node, given, network, modules, _linear)
        case "prelu" | "_prelu_kernel":
            given = _arguments(node, _LINEAR)
            _replace(node, given, network, modules, lambda weight, _: _adopt(nn.PReLU(weight.numel()), weight, None))
        case "batch_norm":
            given = _arguments(node, _FUNCTIONAL_NORM if node.target is F.batch_norm else _NORM)
            if given.get("training", False) is False:
                _replace(node, given, network, modules, lambda weight, bias: _norm(node, given, network, weight, bias))
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
    network: nn.Module,
    modules: dict[str, nn.Module],
    build: Callable[[torch.Tensor, torch.Tensor | None], nn.Module],
) -> None:
    """Turn a functional layer whose weight and bias are tensors of the network into a module call."""
    weight, bias, plain = given.get("weight"), given.get("bias"), ("stride", "padding", "dilation", "groups", "eps")
    if not _is_attribute(weight) or not (bias is None or _is_attribute(bias)):
        return
    if any(isinstance(given.get(key), fx.Node) for key in plain):
        return
    owner, _, leaf = str(weight.target).rpartition(".")
    paired = leaf == "weight" and owner and (bias is None or str(bias.target) == f"{owner}.bias")
    path = owner if paired else str(weight.target)
    if path not in modules:
        modules[path] = build(_tensor(network, weight), None if bias is None else _tensor(network, bias))
    elif getattr(modules[path], "weight", None) is not _tensor(network, weight):
        return
    _call(node, path, given["input"])


def _is_attribute(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _tensor(network: nn.Module, node: fx.Node) -> torch.Tensor:
    owner, _, leaf = str(node.target).rpartition(".")
    found = getattr(network.get_submodule(owner), leaf)
    if not isinstance(found, torch.Tensor):
        raise NetworkError(f"expected a tensor at {node.target!r} of the traced network, found {type(found).__name__}")
    return found


def _adopt(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
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


def _convolution(name: str, given: dict[str, Any], weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    options = {key: _pair(given[key]) for key in _TRANSPOSED[3:] if key in given}
    groups = int(options.get("groups", 1))
    outer, inner = int(weight.shape[0]), int(weight.shape[1]) * groups
    kernel = tuple(int(size) for size in weight.shape[2:])
    shape: dict[str, Any] = {"kernel_size": kernel, "bias": bias is not None, "device": "meta", **options}
    if name == "conv2d":
        return _adopt(nn.Conv2d(inner, outer, **shape), weight, bias)
    return _adopt(nn.ConvTranspose2d(outer, inner, **shape), weight, bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    return _adopt(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta"), weight, bias)


def _norm(
    node: fx.Node, given: dict[str, Any], network: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None
) -> nn.Module:
    """Use the network's own batch norm where it is a plain one, else build one on the same tensors."""
    owner = network.get_submodule(str(given["weight"].target).rpartition(".")[0])
    if is_plain(owner, (nn.BatchNorm1d, nn.BatchNorm2d)) and owner.weight is weight:
        return owner
    value = node.meta.get("val")
    flat = isinstance(value, torch.Tensor) and value.ndim < 4
    momentum, eps = given.get("momentum", 0.1), given.get("eps", 1e-5)
    norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(weight.numel(), eps=eps, momentum=momentum, device="meta")
    for name in ("running_mean", "running_var"):
        norm.register_buffer(name, _tensor(network, given[name]) if _is_attribute(given.get(name)) else None)
    norm.track_running_stats = norm.running_mean is not None
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long) if norm.track_running_stats else None
    return _adopt(norm, weight, bias)


def _writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a node changes its input in place."""
    match node.op:
        case "call_module":
            return bool(getattr(modules[str(node.target)], "inplace", False))
        case "call_method":
            name = str(node.target)
            return name.endswith("_") and not name.endswith("__")
        case "call_function":
            if isinstance(node.target, torch._ops.OpOverload):
                return bool(node.target._schema.is_mutable)
            if node.target in _INPLACE_OPERATORS:
                return True
            name = function_name(node.target)
            return (name.endswith("_") and not name.endswith("__")) or name == "setitem" or _inplace_option(node)
    return False


def _inplace_option(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    if not inspect.isfunction(node.target) or "inplace" not in inspect.signature(node.target).parameters:
        return False
    return bool(inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace", False))


def _write_elsewhere(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Let an in-place operation produce a new value, which later readers of the old one get instead."""
    old = node.args[0] if node.args else None
    if not isinstance(old, fx.Node) or not _plain_target(node, modules):
        raise NetworkError(
            f"node {node.name!r} ({node.target}) writes into a tensor in place, which cannot be followed; "
            "compute a new tensor instead"
        )
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    for alias in _aliases(old, modules, node) - {old}:
        late = [user for user in alias.users if order[user] > order[node]]
        if late:
            raise NetworkError(
                f"node {node.name!r} ({node.target}) writes in place into a tensor that {late[0].name!r} reads later "
                f"through {alias.name!r}; use the operation that is not in place"
            )
    for user in list(old.users):
        if order[user] > order[node]:
            user.replace_input_with(old, node)


def _plain_target(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Switch a node to the operation that does not write in place; False where there is none."""
    if node.op == "call_module":
        path = str(node.target)
        if modules[path].inplace is True:
            plain = copy.copy(modules[path])
            plain.inplace = False
            modules[path] = plain
        return True
    if node.target in _INPLACE_OPERATORS:
        node.target = _INPLACE_OPERATORS[node.target]
        return True
    name = operation_name(node)
    if node.op == "call_method":
        node.target = name
        return hasattr(torch.Tensor, name) and name != "copy"
    if isinstance(node.target, torch._ops.OpOverload):
        packet = getattr(torch.ops.aten, name, None)
        plain_op = getattr(packet, node.target._overloadname, None)
        node.target = plain_op or node.target
        return plain_op is not None and name not in ("copy", "fill")
    if inspect.isfunction(node.target) and _inplace_option(node):
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        bound.arguments["inplace"] = False
        node.args, node.kwargs = bound.args, bound.kwargs
        return True
    plain_function = getattr(torch, name, None) or getattr(F, name, None)
    node.target = plain_function or node.target
    return plain_function is not None


def _aliases(value: fx.Node, modules: dict[str, nn.Module], writer: fx.Node) -> set[fx.Node]:
    """Find the nodes that may share memory with a value before it is written: views of it, and what it views."""
    found, todo = {value}, [value]
    while todo:
        node = todo.pop()
        near = [user for user in node.users if _may_view(user, modules)]
        near += node.all_input_nodes if _may_view(node, modules) else []
        todo += [other for other in near if other not in found and other is not writer]
        found.update(near)
    return found - {writer}


def _may_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    kind = kind_of(node, modules)
    return kind in (Kind.MOVE, Kind.IDENTITY) and operation_name(node) not in _COPIES
