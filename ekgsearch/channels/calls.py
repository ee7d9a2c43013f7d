"""Read and repeat the calls of a traced graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from ekgsearch.channels.operations import operation_name


def call_move(node: fx.Node, modules: Mapping[str, nn.Module], value: Callable[[fx.Node], Any]) -> Any:
    """Execute a movement, or arithmetic on sizes, on other values than it was traced with.

    Args:
        node: the node to execute.
        modules: leaf modules by path.
        value: gives the tensor or number to use for each node that it reads.
    """
    args = fx.node.map_arg(node.args, value)
    kwargs = fx.node.map_arg(dict(node.kwargs), value)
    if node.op == "call_module":
        return modules[str(node.target)](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def argument(node: fx.Node, position: int, names: Sequence[str], default: Any = None) -> Any:
    """Read an argument of a call that may be given by position or under one of several names."""
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def pad_amounts(node: fx.Node) -> tuple[Any, bool, Any]:
    """Read a pad: its amounts, whether it is by a constant, and that constant."""
    if operation_name(node) == "constant_pad_nd":
        return argument(node, 1, ["pad"]), True, argument(node, 2, ["value"], 0)
    mode = argument(node, 2, ["mode"], "constant")
    return argument(node, 1, ["pad"]), mode == "constant", argument(node, 3, ["value"], 0) or 0
