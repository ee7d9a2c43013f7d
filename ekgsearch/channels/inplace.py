"""Turn in-place operations of a traced graph into operations that make new values."""

import copy
import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ekgsearch.channels.operations import Kind, called, function_name, kind_of, operation_name
from ekgsearch.errors import NetworkError

_INPLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_COPIES = frozenset({"cat", "concat", "concatenate", "stack", "pad", "constant_pad_nd", "clone", "repeat", "roll"})


def writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
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


def write_elsewhere(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Let an in-place operation produce a new value, which later readers of the old one get instead."""
    old = node.args[0] if node.args else None
    if not isinstance(old, fx.Node) or not _plain_target(node, modules):
        raise NetworkError(
            f"node {node.name!r} ({called(node)}) writes into a tensor in place, which cannot be followed; "
            "compute a new tensor instead"
        )
    if _is_number(old, modules):
        return  # numbers are not written in place, whatever the operator
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    for alias in _aliases(old, modules, node) - {old}:
        late = [user for user in alias.users if order[user] > order[node]]
        if late:
            raise NetworkError(
                f"node {node.name!r} ({called(node)}) writes in place into a tensor that {late[0].name!r} reads later "
                f"through {alias.name!r}; use the operation that is not in place"
            )
    for user in list(old.users):
        if order[user] > order[node]:
            user.replace_input_with(old, node)


def _is_number(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Tell whether a node is computed from sizes alone."""
    kind = kind_of(node, modules)
    if kind is Kind.SHAPE:
        return True
    sources = node.all_input_nodes
    passes = kind in (Kind.NUMBER, Kind.BINARY) or operation_name(node) == "getitem"
    return passes and bool(sources) and all(_is_number(source, modules) for source in sources)


def _plain_target(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Switch a node to the operation that does not write in place; False where there is none."""
    if node.op == "call_module":
        path = str(node.target)
        if getattr(modules[path], "inplace", False):
            plain = copy.copy(modules[path])
            vars(plain)["inplace"] = False
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
