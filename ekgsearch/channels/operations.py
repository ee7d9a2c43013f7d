"""What each node of a traced network does to channels: which operations are known, and how they are told apart."""

import operator
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize


class Kind(StrEnum):
    """What a node does to the channels of its input."""

    INPUT = "input"
    OUTPUT = "output"
    CONSTANT = "constant"  # a parameter or buffer read outside a layer
    CONV = "conv"  # Conv2d or ConvTranspose2d
    LINEAR = "linear"
    NORM = "norm"  # per-channel normalisation or scale with its own weights: BatchNorm, InstanceNorm, PReLU
    IDENTITY = "identity"  # same values in evaluation mode
    ELEMENTWISE = "elementwise"  # each element by itself, finite at zero
    BINARY = "binary"  # two tensors element by element
    AVERAGE = "average"  # linear over the positions of one channel
    POOL = "pool"  # over the positions of one channel, not linear
    REDUCE = "reduce"  # linear over the named axes
    SOFTMAX = "softmax"  # normalises over one axis
    MOVE = "move"  # rearranges, repeats, drops or pads elements
    SHAPE = "shape"  # reads sizes
    NUMBER = "number"  # arithmetic on sizes; decided by its arguments
    UNKNOWN = "unknown"


_OFF_IN_EVALUATION = frozenset({"StochasticDepth", "DropPath"})
"""Class names of modules, of any library, that drop whole branches in training and do nothing in evaluation."""

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d)
_MODULES: dict[Kind, tuple[type[nn.Module], ...]] = {
    Kind.CONV: _CONVOLUTIONS,
    Kind.LINEAR: (nn.Linear,),
    Kind.NORM: _NORMS,
    Kind.IDENTITY: (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    Kind.ELEMENTWISE: (
        nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
        nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Tanhshrink,
        nn.Hardshrink, nn.Softshrink, nn.LogSigmoid, nn.Threshold,
    ),
    Kind.AVERAGE: (
        nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
        nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
    ),
    Kind.POOL: (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.ConstantPad2d),
    Kind.SOFTMAX: (nn.Softmax, nn.LogSoftmax),
    Kind.MOVE: (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
}  # fmt: skip

_FUNCTIONS: dict[Kind, str] = {
    Kind.IDENTITY: "detach to float double half bfloat16 type_as cpu cuda _to_copy alias lift_fresh_copy positive",
    Kind.ELEMENTWISE: "relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid tanh "
    "softplus softsign tanhshrink hardshrink softshrink logsigmoid threshold abs neg clamp clamp_min clamp_max square "
    "sin cos erf dropout dropout1d dropout2d alpha_dropout feature_alpha_dropout feature_dropout",
    Kind.BINARY: "add sub rsub mul multiply subtract div truediv true_divide maximum minimum",
    Kind.AVERAGE: "avg_pool2d adaptive_avg_pool2d interpolate upsample upsample_nearest2d upsample_bilinear2d",
    Kind.POOL: "max_pool2d adaptive_max_pool2d amax amin",
    Kind.REDUCE: "mean sum",
    Kind.SOFTMAX: "softmax log_softmax _softmax _log_softmax",
    Kind.MOVE: "contiguous clone view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis "
    "unsqueeze squeeze "
    "cat concat concatenate stack chunk split split_with_sizes tensor_split unsafe_split unsafe_chunk unbind getitem "
    "slice select narrow pad constant_pad_nd expand expand_as view_as reshape_as repeat repeat_interleave roll flip "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
    Kind.SHAPE: "size getattr dim ndimension numel sym_size sym_numel stride",
    Kind.NUMBER: "floordiv mod pow int",
}
_KIND_BY_NAME = {name: kind for kind, names in _FUNCTIONS.items() for name in names.split()}
_SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})

JOINS = frozenset({"cat", "concat", "concatenate", "stack"})
"""Names of the operations that join a list of tensors."""

PADS = frozenset({"pad", "constant_pad_nd"})
"""Names of the operations that add elements around a tensor."""


def function_name(target: Any) -> str:
    """Name a function of torch or of Python's operators; empty for any other callable, whatever it is called."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name.removeprefix("aten::")) if target.namespace == "aten" else ""
    name = str(getattr(target, "__name__", ""))
    if target is getattr:
        return name
    known = any(getattr(home, name, None) is target for home in (operator, torch, F, torch.Tensor))
    return name if known and name else ""


def operation_name(node: fx.Node) -> str:
    """Name what a node calls, without the trailing underscore of in-place methods; empty where it is not known."""
    name = str(node.target) if node.op == "call_method" else function_name(node.target)
    return name if name.startswith("__") else name.rstrip("_")


def called(node: fx.Node) -> str:
    """Name what a node calls, for a message: never the address of a function."""
    target = node.target
    return operation_name(node) or (
        target if isinstance(target, str) else str(getattr(target, "__name__", "a function"))
    )


def is_plain(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    """Tell whether a module computes just what one of these torch classes computes, from its own parameters."""
    if type(module) not in classes:
        return False
    return not parametrize.is_parametrized(module) and not module._forward_pre_hooks


def drops_branches(module: nn.Module) -> bool:
    """Tell whether a module is stochastic depth: parameter-free, and the identity in evaluation mode."""
    return type(module).__name__ in _OFF_IN_EVALUATION and not list(module.parameters())


def module_kind(module: nn.Module) -> Kind:
    """Classify a leaf module."""
    if is_plain(module, (nn.PReLU,)):
        return Kind.NORM
    if drops_branches(module):
        return Kind.IDENTITY
    kinds = [kind for kind, classes in _MODULES.items() if is_plain(module, classes)]
    return kinds[0] if kinds else Kind.UNKNOWN


def kind_of(node: fx.Node, modules: dict[str, nn.Module]) -> Kind:
    """Classify a node of a traced network.

    Args:
        node: node of the traced graph.
        modules: leaf modules by path.
    """
    match node.op:
        case "placeholder":
            return Kind.INPUT
        case "output":
            return Kind.OUTPUT
        case "get_attr":
            return Kind.CONSTANT
        case "call_module":
            return module_kind(modules[str(node.target)])
    name = operation_name(node)
    if name == "getattr" and node.args[1] not in _SHAPE_ATTRIBUTES:
        return Kind.UNKNOWN
    return _KIND_BY_NAME.get(name, Kind.UNKNOWN)


def is_depthwise(module: nn.Module) -> bool:
    """Tell whether a convolution filters each input channel by itself (a one-channel convolution does not count)."""
    return isinstance(module, _CONVOLUTIONS) and module.groups > 1 and module.groups == module.in_channels
