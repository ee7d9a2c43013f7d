"""Every network that can be built by name, with its initial weights."""

import math
from typing import get_args

import torch
from torch import nn

from ekgsearch.errors import NetworkError
from ekgsearch.nets.googlenet import GoogLeNet
from ekgsearch.nets.mobilenet_v2 import CIFAR_STRIDES, IMAGENET_STRIDES, MobileNetV2
from ekgsearch.nets.options import Padding, Shortcut
from ekgsearch.nets.resnet import BasicBlock, Block, Bottleneck, ResNet
from ekgsearch.nets.resnet_cifar import CifarBlock, CifarResNet
from ekgsearch.nets.vgg import VGG16

_CIFAR_RESNETS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
_RESNETS: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_MOBILENETS = {"mobilenet_v2": (IMAGENET_STRIDES, 0.2), "mobilenet_v2_cifar": (CIFAR_STRIDES, 0.0)}

NAMES: tuple[str, ...] = (*_CIFAR_RESNETS, *_RESNETS, *_MOBILENETS, "vgg16", "googlenet")
"""Names that `build` knows."""

_SMALLEST_INPUT = {"vgg16": 16, "googlenet": 4}


def build(
    name: str,
    num_classes: int,
    channels: int = 3,
    *,
    shortcut: Shortcut = "projection",
    padding: Padding = "torch",
    seed: int | None = None,
) -> nn.Module:
    """Build a network with fresh weights.

    Convolutions start from a normal distribution with He's variance over the outgoing connections, linear layers
    from normal(0, 0.01), biases from 0, norms from gamma 1 and beta 0, except the last norm of each residual branch
    of a ResNet, which starts at gamma 0 (as in the code published with EKG, arXiv 2203.02651).

    Args:
        name: one of `NAMES`.
        num_classes: number of logits, at least 1.
        channels: of an image, at least 1.
        shortcut: shortcut of down-sampling blocks of the CIFAR ResNets (arXiv 1512.03385, sec. 3.3, options A and B).
        padding: padding of the stride-2 3x3 convolutions; "tf_same" is what weights trained in TensorFlow need.
        seed: makes the weights a function of the other arguments and this number and leaves torch's generator
            untouched; None draws from torch's global generator.

    Raises:
        NetworkError: unknown name, or a form in which this network does not exist.
    """
    check(name, shortcut, padding)
    with torch.random.fork_rng(devices=[]):
        network = _construct(name, num_classes, channels, shortcut, padding)
    _initialise(network, None if seed is None else torch.Generator().manual_seed(seed))
    return network


def check(name: str, shortcut: Shortcut, padding: Padding) -> None:
    """Check that a network exists in a form, without building it.

    Raises:
        NetworkError: unknown name, or a form in which this network does not exist.
    """
    if name not in NAMES:
        raise NetworkError(f"network must be one of {', '.join(NAMES)}; found '{name}'")
    for field, value, allowed in (("shortcut", shortcut, get_args(Shortcut)), ("padding", padding, get_args(Padding))):
        if value not in allowed:
            raise NetworkError(f"network '{name}': {field} must be one of {', '.join(allowed)}, found {value!r}")
    if shortcut == "option_a" and name not in _CIFAR_RESNETS:
        raise NetworkError(f"shortcut 'option_a' exists for {', '.join(_CIFAR_RESNETS)} only, found '{name}'")
    if padding == "tf_same" and name not in _CIFAR_RESNETS and name not in _MOBILENETS:
        raise NetworkError(
            f"padding 'tf_same' exists for {', '.join((*_CIFAR_RESNETS, *_MOBILENETS))} only, found '{name}'"
        )


def check_size(name: str, padding: Padding, input_shape: tuple[int, int, int]) -> None:
    """Check that a network takes images of a shape, without building it.

    Args:
        name: one of `NAMES`.
        padding: of its strided convolutions; "tf_same" at the bottom and the right is TensorFlow's rule for even sizes
            only.
        input_shape: (channels, height, width), pixels.

    Raises:
        NetworkError: it does not.
    """
    _, height, width = input_shape
    smallest = _SMALLEST_INPUT.get(name, 1)
    if min(height, width) < smallest:
        raise NetworkError(
            f"network '{name}' takes images of at least {smallest}x{smallest} pixels, found input_shape {input_shape}"
        )
    reduction = math.prod(_MOBILENETS[name][0]) if name in _MOBILENETS else 4
    if padding == "tf_same" and (height % reduction or width % reduction):
        raise NetworkError(
            f"network '{name}' with padding 'tf_same' takes images whose height and width are multiples of "
            f"{reduction}, found input_shape {input_shape}"
        )


def _construct(name: str, num_classes: int, channels: int, shortcut: Shortcut, padding: Padding) -> nn.Module:
    if name in _CIFAR_RESNETS:
        return CifarResNet(channels, _CIFAR_RESNETS[name], num_classes, shortcut, padding)
    if name in _RESNETS:
        return ResNet(channels, *_RESNETS[name], num_classes)
    if name in _MOBILENETS:
        strides, dropout = _MOBILENETS[name]
        return MobileNetV2(channels, strides, num_classes, padding, dropout)
    if name == "vgg16":
        return VGG16(channels, num_classes)
    return GoogLeNet(channels, num_classes)


def _initialise(network: nn.Module, generator: torch.Generator | None) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out), generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01, generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, CifarBlock | BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
