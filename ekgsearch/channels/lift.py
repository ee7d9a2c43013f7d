"""Bring any traced graph into one form: layers are called as modules, nothing is written in place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
_TENSORS = ("weight", "bias", "running_mean", "running_var")
"""Names of the tensors that functional layers take and that their modules hold."""

_SETTINGS = ("stride", "padding", "output_padding", "dilation", "groups", "eps", "momentum")
"""Names of their other arguments."""

_COUNT = "num_batches_tracked"
"""Buffer of a batch norm that no function takes."""

_WITHOUT_EFFECT = frozenset({"_assert", "_assert_is_none", "_assert_async", "sym_constrain_range_for_size"})


@dataclass(frozen=True, slots=True)
class Leaves:
    """The modules that a lifted graph calls.

    Attributes:
        modules: by path.
        borrowed: for modules that stand in for a functional layer, which tensor of the network each of their tensors
            is: path in the network by name in the module, by path of the module.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    borrowed: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def own(self) -> list[str]:
        """Paths of the modules that are the network's own."""
        return [path for path in self.modules if path not in self.borrowed]

    def bind(self, read: Callable[[str], Tensor]) -> None:
        """Give the stand-ins the tensors that the network holds now, should it hold others than before."""
        for path, names in self.borrowed.items():
            for name, target in names.items():
                tensor = read(target)
                if getattr(self.modules[path], name) is not tensor:
                    _adopt(self.modules[path], name, tensor)


def lift(graph: fx.Graph, network: nn.Module, read: Callable[[str], Tensor], *, in_training: bool = False) -> Leaves:
    """Rewrite a traced graph into the one form that the channel analysis reads.

    Functional convolutions, linear layers, batch norms and PReLUs on tensors of the network become calls of plain
    torch modules that share those tensors, parameters as parameters and buffers as buffers; tensors that several calls
    read stay functions of them. Functional dropout becomes a module; in-place operations become their plain
    counterparts; checks and dead nodes go.

    Args:
        graph: graph traced in one mode; changed in place.
        network: the network it was traced from; unchanged.
        read: reads a tensor that the graph uses outside layers, by its path.
        in_training: whether it was traced in training mode; in evaluation mode otherwise.

    Returns:
        The leaf modules that the graph calls.

    Raises:
        NetworkError: a tensor is written in place in a way that cannot be expressed without it.
    """
    lifter = _Lifter(network, read, in_training)
    modules = lifter.leaves.modules
    for node in list(graph.nodes):
        if node.op == "call_module":
            modules[str(node.target)] = network.get_submodule(str(node.target))
            _positional(node)
        elif node.op == "call_function":
            _drop_check(graph, node)
    for node in list(graph.nodes):
        if node.op == "call_function":
            lifter.lift(node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output") or writes(node, modules))
    for node in list(graph.nodes):
        if writes(node, modules):
            write_elsewhere(node, modules)
    graph.lint()
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return Leaves(
        {path: module for path, module in modules.items() if path in used},
        {path: names for path, names in lifter.leaves.borrowed.items() if path in used},
    )


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


class _Lifter:
    """Turns functional layers into calls of modules."""

    def __init__(self, network: nn.Module, read: Callable[[str], Tensor], in_training: bool) -> None:
        self._in_training = in_training
        self.leaves = Leaves()
        self._network = network
        self._read = read
        self._settings: dict[str, list[Any]] = {}

    def lift(self, node: fx.Node) -> None:
        """Lift one node, if it is a layer."""
        match function_name(node.target):
            case "conv2d" | "conv_transpose2d" as name:
                given = _arguments(node, _CONV if name == "conv2d" else _TRANSPOSED)
                self._replace(node, given, lambda weight: _convolution(name, given, weight))
            case "linear":
                given = _arguments(node, _LINEAR)
                self._replace(node, given, lambda weight: _linear(given, weight))
            case "prelu" | "_prelu_kernel":
                given = _arguments(node, _LINEAR)
                self._replace(node, given, lambda weight: nn.PReLU(weight.numel(), device="meta"))
            case "batch_norm":
                given = _arguments(node, _FUNCTIONAL_NORM if node.target is F.batch_norm else _NORM)
                if given.get("training", False) is self._in_training:
                    self._replace(node, given, lambda weight: _norm(node, given, weight))
            case name if name in _DROPOUT:
                self._lift_dropout(node, name)

    def _lift_dropout(self, node: fx.Node, name: str) -> None:
        """Replace dropout that follows the mode; one that is always on stays a function."""
        given = _arguments(node, ["input", "p", "training", "inplace"])
        if given.get("training", given.get("train", True)) is self._in_training:
            path = f"_{node.name}"
            self.leaves.modules[path] = _DROPOUT[name](given.get("p", 0.5))
            _call(node, path, given["input"])

    def _replace(self, node: fx.Node, given: dict[str, Any], build: Callable[[Tensor], nn.Module]) -> None:
        """Turn a functional layer whose tensors all belong to the network into a module call."""
        tensors = {name: given[name] for name in _TENSORS if given.get(name) is not None}
        settings = [function_name(node.target), *(given.get(name) for name in _SETTINGS)]
        if "weight" not in tensors or not all(map(_is_attribute, tensors.values())):
            return
        if any(isinstance(setting, fx.Node) for setting in settings):
            return
        names = {name: str(value.target) for name, value in tensors.items()}
        owner, _, leaf = names["weight"].rpartition(".")
        paired = leaf == "weight" and owner and all(target == f"{owner}.{name}" for name, target in names.items())
        path = owner if paired else names["weight"]
        if path not in self.leaves.modules:
            self._settings[path] = [names, settings]
            self._add(path, names, build, self._network.get_submodule(owner) if paired else None)
        if self._settings.get(path) == [names, settings]:  # else the same tensors, used in another way: a function
            _call(node, path, given["input"])

    def _add(
        self, path: str, names: dict[str, str], build: Callable[[Tensor], nn.Module], owner: nn.Module | None
    ) -> None:
        """Use the network's own module where it is a plain batch norm, else one that stands in for the function."""
        if owner is not None and is_plain(owner, (nn.BatchNorm1d, nn.BatchNorm2d)):
            self.leaves.modules[path] = owner
            return
        module = build(self._read(names["weight"])).train(False)
        if isinstance(getattr(owner, _COUNT, None), Tensor):
            names = {**names, _COUNT: f"{path}.{_COUNT}"}
        for name, target in names.items():
            _adopt(module, name, self._read(target))
        self.leaves.modules[path], self.leaves.borrowed[path] = module, names


def _call(node: fx.Node, path: str, value: Any) -> None:
    node.op, node.target, node.args, node.kwargs = "call_module", path, (value,), {}


def _is_attribute(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


def _adopt(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a module use an existing tensor: a parameter as a parameter, any other as a buffer."""
    if hasattr(module, name):
        delattr(module, name)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _pair(value: Any) -> Any:
    """Give aten's one-element lists for two axes as two numbers."""
    if isinstance(value, (list, tuple)):
        return tuple(value) * (2 if len(value) == 1 else 1)
    return value


def _convolution(name: str, given: dict[str, Any], weight: Tensor) -> nn.Module:
    options = {key: _pair(given[key]) for key in _TRANSPOSED[3:] if key in given}
    groups = int(options.get("groups", 1))
    outer, inner = int(weight.shape[0]), int(weight.shape[1]) * groups
    kernel = tuple(int(size) for size in weight.shape[2:])
    shape: dict[str, Any] = {"kernel_size": kernel, "bias": given.get("bias") is not None, "device": "meta", **options}
    return nn.Conv2d(inner, outer, **shape) if name == "conv2d" else nn.ConvTranspose2d(outer, inner, **shape)


def _linear(given: dict[str, Any], weight: Tensor) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=given.get("bias") is not None, device="meta")


def _norm(node: fx.Node, given: dict[str, Any], weight: Tensor) -> nn.Module:
    """Build a batch norm whose tensors are still to come."""
    value = node.meta.get("val")
    flat = isinstance(value, Tensor) and value.ndim < 4
    tracks = given.get("running_mean") is not None
    kind = nn.BatchNorm1d if flat else nn.BatchNorm2d
    norm = kind(weight.numel(), given.get("eps", 1e-5), given.get("momentum", 0.1), True, tracks, device="meta")
    norm.num_batches_tracked = None
    if given.get("bias") is None:
        norm.bias = None  # type: ignore[assignment]
    return norm
