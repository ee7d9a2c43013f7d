"""Run a traced network node by node, with other weights, from any node on."""

import copy
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ekgsearch.channels.norm import norm_mode
from ekgsearch.channels.operations import Kind, is_depthwise, operation_name
from ekgsearch.maths.batch_norm import batch_norm, sequential_batch_norm
from ekgsearch.records import NormMode

Values = Mapping[str, Any]
Call = Callable[[Values, Mapping[str, Tensor], NormMode], Any]

_FRESH = frozenset({Kind.CONV, Kind.LINEAR, Kind.NORM, Kind.BINARY})
"""Kinds whose result is memory of its own."""

_RECTIFIERS: Mapping[type[nn.Module] | str, Callable[[Tensor], Tensor]] = {
    nn.ReLU: F.relu,
    nn.ReLU6: F.relu6,
    "relu": F.relu,
    "relu6": F.relu6,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One node, ready to run.

    Attributes:
        name: name of the node.
        inputs: names of the values it reads.
        call: computes the value from (values, tensors by layer, norm mode); tensors are a layer's weight by its path,
            and its other tensors by path and name ("bn1.bias"), where they differ from the module's own.
        overwrites: name of the value that `call_inplace` may overwrite; empty where there is none.
        call_inplace: like `call`, writing into that value's memory; the same bits.
        is_fresh: whether the value is memory of its own, which nothing else can see.
    """

    name: str
    inputs: tuple[str, ...]
    call: Call
    overwrites: str
    call_inplace: Call
    is_fresh: bool


class Program:
    """The steps of a traced network, always in evaluation mode (no dropout), without gradients to its parameters.

    Attributes:
        input: name of the images among the values.
        steps: nodes in execution order, without the images and the output.
        index: position of each step by name.
        last_use: by value name, index of the last step that reads it; the number of steps where the output does.
    """

    def __init__(
        self,
        graph: fx.Graph,
        read_tensor: Callable[[str], Tensor],
        modules: Mapping[str, nn.Module],
        kinds: Mapping[str, Kind],
        without: Collection[str] = (),
    ) -> None:
        """Prepare the nodes of a graph, all but those of these names."""
        nodes = [node for node in graph.nodes if node.name not in without]
        self.input = next(node.name for node in nodes if node.op == "placeholder")
        result = next(node for node in nodes if node.op == "output").args[0]
        self._output = _bind(result)
        calls = [node for node in nodes if node.op not in ("placeholder", "output")]
        self._results: list[str] = []
        fx.node.map_arg(result, lambda node: self._results.append(node.name))
        self._arrange(_step(node, read_tensor, modules, kinds) for node in calls)

    def with_steps(self, steps: Iterable[Step]) -> "Program":
        """The same program with other steps that lead to the same output."""
        other = copy.copy(self)
        other._arrange(steps)
        return other

    def _arrange(self, steps: Iterable[Step]) -> None:
        self.steps = tuple(steps)
        self.index = {step.name: index for index, step in enumerate(self.steps)}
        self.last_use: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            self.last_use.update(dict.fromkeys(step.inputs, index))
        self.last_use.update(dict.fromkeys(self._results, len(self.steps)))

    def values(self, images: Tensor) -> dict[str, Any]:
        """Compute the values of all nodes with the network's own weights and running statistics."""
        values: dict[str, Any] = {self.input: images}
        for step in self.steps:
            values[step.name] = step.call(values, {}, "running")
        return values

    def output(self, values: Values) -> Any:
        """Pick the network's output out of the values."""
        return self._output(values)

    def of(self, argument: Any, values: Values) -> Any:
        """Replace the nodes in an argument by their values."""
        return _bind(argument)(values)


def _bind(argument: Any) -> Callable[[Values], Any]:
    """Make a function that replaces the nodes in an argument by their values."""
    if isinstance(argument, fx.Node):
        return operator.itemgetter(argument.name)
    if not _contains_node(argument):
        return lambda values: argument
    if type(argument) in (tuple, list):
        kind, parts = type(argument), [_bind(part) for part in argument]
        return lambda values: kind(part(values) for part in parts)
    return lambda values: fx.node.map_arg(argument, lambda node: values[node.name])


def _contains_node(argument: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return bool(found)


def _step(
    node: fx.Node, read_tensor: Callable[[str], Tensor], modules: Mapping[str, nn.Module], kinds: Mapping[str, Kind]
) -> Step:
    call = _call(node, read_tensor, modules, kinds[node.name])
    inputs = tuple(other.name for other in node.all_input_nodes)
    overwrites, function = "", _inplace(node, modules)
    if function is not None:
        own = [other.name for other in node.all_input_nodes if kinds[other.name] in _FRESH and len(other.users) == 1]
        overwrites = own[0] if own else ""
    call_inplace = call if function is None else _overwriting(function, inputs, overwrites, call)
    is_fresh = kinds[node.name] in _FRESH or is_relu(node, modules)
    return Step(node.name, inputs, call, overwrites, call_inplace, is_fresh)


def rectifier(node: fx.Node, modules: Mapping[str, nn.Module]) -> Callable[[Tensor], Tensor] | None:
    """The function of a node that is a ReLU or a ReLU6; None for any other."""
    is_module = node.op == "call_module"
    return _RECTIFIERS.get(type(modules[str(node.target)]) if is_module else operation_name(node))


def is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a node is a ReLU."""
    return rectifier(node, modules) is F.relu


def is_sum(node: fx.Node) -> bool:
    """Tell whether a node adds two values."""
    is_plain_add = operation_name(node) == "add" and len(node.args) == 2 and not node.kwargs
    return is_plain_add and len(node.all_input_nodes) == 2


def _inplace(node: fx.Node, modules: Mapping[str, nn.Module]) -> Callable[..., Tensor] | None:
    """In-place counterpart of a node that has one with the same bits: ReLU, and the sum of two values."""
    if is_relu(node, modules):
        return torch.relu_
    if is_sum(node):
        return torch.Tensor.add_
    return None


def _overwriting(function: Callable[..., Tensor], inputs: tuple[str, ...], overwrites: str, otherwise: Call) -> Call:
    """Call an in-place function where all values are tensors of one shape and type, else the plain one."""
    others = [name for name in inputs if name != overwrites]

    def call(values: Values, tensors: Mapping[str, Tensor], mode: NormMode) -> Any:
        target, rest = values[overwrites], [values[name] for name in others]
        forms = {(value.shape, value.dtype) if isinstance(value, Tensor) else None for value in (target, *rest)}
        if len(forms) > 1 or None in forms:
            return otherwise(values, tensors, mode)
        return function(target, *rest)

    return call


def _call(node: fx.Node, read_tensor: Callable[[str], Tensor], modules: Mapping[str, nn.Module], kind: Kind) -> Call:
    if node.op == "get_attr":
        path = str(node.target)
        return lambda values, weights, mode: read_tensor(path).detach()
    args, kwargs = _bind(node.args), _bind(dict(node.kwargs))
    if node.op == "call_module":
        return _module_call(modules[str(node.target)], str(node.target), kind, args, kwargs)
    if node.op == "call_method":
        method = operator.attrgetter(str(node.target))

        def call_method(values: Values, weights: Mapping[str, Tensor], mode: NormMode) -> Any:
            first, *rest = args(values)
            return method(first)(*rest, **kwargs(values))

        return call_method
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    return lambda values, weights, mode: function(*args(values), **kwargs(values))


def _module_call(
    module: nn.Module, path: str, kind: Kind, args: Callable[[Values], Any], kwargs: Callable[[Values], Any]
) -> Call:
    match kind, module:
        case Kind.CONV, nn.Conv2d():
            return lambda values, tensors, mode: _convolution(module, args(values)[0], _Tensors(module, path, tensors))
        case Kind.CONV, nn.ConvTranspose2d():
            return lambda values, tensors, mode: _transposed(module, args(values)[0], _Tensors(module, path, tensors))
        case Kind.LINEAR, nn.Linear():
            return lambda values, tensors, mode: _linear(args(values)[0], _Tensors(module, path, tensors))
        case Kind.NORM, nn.modules.batchnorm._BatchNorm():
            return lambda values, tensors, mode: _batch_norm(
                module, args(values)[0], _Tensors(module, path, tensors), mode
            )
        case Kind.NORM, nn.PReLU():
            return lambda values, tensors, mode: F.prelu(args(values)[0], _Tensors(module, path, tensors).weight)
        case (Kind.IDENTITY, _):
            return lambda values, weights, mode: args(values)[0]
        case (Kind.UNKNOWN | Kind.NORM, _):
            return lambda values, weights, mode: _in_evaluation(module, args(values), kwargs(values), mode)
    return lambda values, weights, mode: module(*args(values), **kwargs(values))


class _Tensors:
    """Tensors of one layer: the given ones, else the module's own, without gradient."""

    def __init__(self, module: nn.Module, path: str, given: Mapping[str, Tensor]) -> None:
        self._module, self._path, self._given = module, path, given

    @property
    def weight(self) -> Tensor:
        given = self._given.get(self._path)
        own: Tensor = self._module.weight  # type: ignore[assignment]
        return own.detach() if given is None else given

    def find(self, name: str) -> Tensor | None:
        """A bias or a running statistic; None where the module has none."""
        given = self._given.get(f"{self._path}.{name}")
        own = getattr(self._module, name)
        return given if given is not None or own is None else own.detach()


def _convolution(module: nn.Conv2d, value: Tensor, tensors: _Tensors) -> Tensor:
    """Convolve; the number of groups follows from the channels, so that a depthwise kernel may be cut."""
    weight = tensors.weight
    is_padded = module.padding_mode != "zeros"
    if is_padded:
        value = F.pad(value, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    padding = 0 if is_padded else module.padding
    groups = value.shape[1] // weight.shape[1]
    return F.conv2d(value, weight, tensors.find("bias"), module.stride, padding, module.dilation, groups)


def _transposed(module: nn.ConvTranspose2d, value: Tensor, tensors: _Tensors) -> Tensor:
    assert isinstance(module.padding, tuple)
    bias, output_padding = tensors.find("bias"), module.output_padding
    groups = value.shape[1] if is_depthwise(module) else module.groups
    return F.conv_transpose2d(
        value, tensors.weight, bias, module.stride, module.padding, output_padding, groups, module.dilation
    )


def _linear(value: Tensor, tensors: _Tensors) -> Tensor:
    return F.linear(value, tensors.weight, tensors.find("bias"))


def _batch_norm(module: nn.modules.batchnorm._BatchNorm, value: Tensor, tensors: _Tensors, mode: NormMode) -> Tensor:
    """Normalise; in batch mode the running statistics are neither read nor written."""
    weight, bias = (None, None) if module.weight is None else (tensors.weight, tensors.find("bias"))
    if mode == "batch_sequential":
        return sequential_batch_norm(value, weight, bias, module.eps)
    if mode == "batch" or module.running_mean is None:
        return batch_norm(value, weight, bias, module.eps)
    mean, var = tensors.find("running_mean"), tensors.find("running_var")
    return F.batch_norm(value, mean, var, weight, bias, False, 0.0, module.eps)


def _in_evaluation(module: nn.Module, args: Any, kwargs: Any, mode: NormMode) -> Any:
    """Run a module that may do anything in evaluation mode, batch norms inside it in theirs; it is left as it was.

    Hooks may set tensors (`weight_norm`, masks); one that belongs to a recorded graph would not even be copied.
    """
    tensors = [
        (part, {name: value for name, value in vars(part).items() if isinstance(value, Tensor)})
        for part in module.modules()
    ]
    try:
        with norm_mode(module, "running" if mode == "running" else "batch"):
            return module(*args, **kwargs)
    finally:
        for part, own in tensors:
            vars(part).update(own)
