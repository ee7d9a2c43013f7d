"""Run a traced network node by node, with other weights, from any node on."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ekgsearch.channels.operations import Kind
from ekgsearch.records import NormMode

Values = Mapping[str, Any]
Call = Callable[[Values, Mapping[str, Tensor], NormMode], Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One node, ready to run.

    Attributes:
        name: name of the node.
        inputs: names of the values it reads.
        call: computes the value from (values, weights by layer path, norm mode).
    """

    name: str
    inputs: tuple[str, ...]
    call: Call


class Program:
    """The steps of a traced network, always in evaluation mode (no dropout), without gradients to its parameters.

    Attributes:
        input: name of the images among the values.
        steps: nodes in execution order, without the images and the output.
        last_use: by value name, index of the last step that reads it; the number of steps where the output does.
    """

    def __init__(
        self,
        graph: fx.Graph,
        read_tensor: Callable[[str], Tensor],
        modules: Mapping[str, nn.Module],
        kinds: Mapping[str, Kind],
    ) -> None:
        nodes = list(graph.nodes)
        self.input = next(node.name for node in nodes if node.op == "placeholder")
        result = next(node for node in nodes if node.op == "output").args[0]
        self._output = _bind(result)
        calls = [node for node in nodes if node.op not in ("placeholder", "output")]
        self.steps = tuple(
            Step(n.name, tuple(i.name for i in n.all_input_nodes), _call(n, read_tensor, modules, kinds[n.name]))
            for n in calls
        )
        self.last_use: dict[str, int] = {}
        for index, step in enumerate(self.steps):
            self.last_use.update(dict.fromkeys(step.inputs, index))
        fx.node.map_arg(result, lambda node: self.last_use.update({node.name: len(self.steps)}))

    def values(self, images: Tensor) -> dict[str, Any]:
        """Compute the values of all nodes with the network's own weights and running statistics."""
        values: dict[str, Any] = {self.input: images}
        for step in self.steps:
            values[step.name] = step.call(values, {}, "running")
        return values

    def output(self, values: Values) -> Any:
        """Pick the network's output out of the values."""
        return self._output(values)


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
            return lambda values, weights, mode: module._conv_forward(
                args(values)[0], _weight(module, path, weights), _detached(module.bias)
            )
        case Kind.CONV, nn.ConvTranspose2d():
            return lambda values, weights, mode: _transposed(module, args(values)[0], _weight(module, path, weights))
        case Kind.LINEAR, nn.Linear():
            return lambda values, weights, mode: F.linear(
                args(values)[0], _weight(module, path, weights), _detached(module.bias)
            )
        case Kind.NORM, nn.modules.batchnorm._BatchNorm():
            return lambda values, weights, mode: _batch_norm(module, args(values)[0], mode)
        case Kind.NORM, nn.PReLU():
            return lambda values, weights, mode: F.prelu(args(values)[0], module.weight.detach())
        case (Kind.IDENTITY, _):
            return lambda values, weights, mode: args(values)[0]
        case (Kind.UNKNOWN | Kind.NORM, _):
            return lambda values, weights, mode: _in_evaluation(module, args(values), kwargs(values))
    return lambda values, weights, mode: module(*args(values), **kwargs(values))


def _transposed(module: nn.ConvTranspose2d, value: Tensor, weight: Tensor) -> Tensor:
    assert isinstance(module.padding, tuple)
    bias, output_padding = _detached(module.bias), module.output_padding
    return F.conv_transpose2d(
        value, weight, bias, module.stride, module.padding, output_padding, module.groups, module.dilation
    )


def _weight(module: nn.Module, path: str, weights: Mapping[str, Tensor]) -> Tensor:
    given = weights.get(path)
    return module.get_parameter("weight").detach() if given is None else given


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _batch_norm(module: nn.modules.batchnorm._BatchNorm, value: Tensor, mode: NormMode) -> Tensor:
    """Normalise; in batch mode the running statistics are neither read nor written."""
    by_batch = mode == "batch" or module.running_mean is None
    mean, var = (None, None) if by_batch else (module.running_mean, module.running_var)
    weight, bias = _detached(module.weight), _detached(module.bias)
    return F.batch_norm(value, mean, var, weight, bias, by_batch, 0.0, module.eps)


def _in_evaluation(module: nn.Module, args: Any, kwargs: Any) -> Any:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        return module(*args, **kwargs)
    finally:
        for part, training in modes:
            part.training = training
