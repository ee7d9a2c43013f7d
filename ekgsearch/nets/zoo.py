"""Every network that can be built by name, with its initial weights."""

import math

import torch
from torch import nn

from ekgsearch.errors import NetworkError
from ekgsearch.nets.googlenet import GoogLeNet
from ekgsearch.nets.mobilenet_v2 import CIFAR_STRIDES, IMAGENET_STRIDES, MobileNetV2
from ekgsearch.nets.resnet import BasicBlock, Block, Bottleneck, ResNet
from ekgsearch.nets.resnet_cifar import CifarBlock, CifarResNet
from ekgsearch.nets.spec import NetSpec
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


def build(spec: NetSpec, *, seed: int | None = None) -> nn.Module:
    """Build a network with fresh weights.

    Convolutions start from a normal distribution with He's variance over the outgoing connections, linear layers
    from normal(0, 0.01), biases from 0, norms from gamma 1 and beta 0, except the last norm of each residual branch
    of a ResNet, which starts at gamma 0 (as in the code published with EKG, arXiv 2203.02651).

    Args:
        spec: name and dimensions.
        seed: makes the weights a function of the spec and this number and leaves torch's generator untouched;
            None draws from torch's global generator.

    Raises:
        NetworkError: unknown name, or dimensions that this network cannot have.
    """
    check(spec)
    with torch.random.fork_rng(devices=[]):
        network = _construct(spec)
    _initialise(network, None if seed is None else torch.Generator().manual_seed(seed))
    return network


def check(spec: NetSpec) -> None:
    """Check that a network can be built, without building it.

    Raises:
        NetworkError: unknown name, or dimensions that this network cannot have.
    """
    if spec.name not in NAMES:
        raise NetworkError(f"network must be one of {', '.join(NAMES)}; found '{spec.name}'")
    _, height, width = spec.input_shape
    smallest = _SMALLEST_INPUT.get(spec.name, 1)
    if min(height, width) < smallest:
        raise NetworkError(
            f"network '{spec.name}' takes images of at least {smallest}x{smallest} pixels, "
            f"found input_shape {spec.input_shape}"
        )
    if spec.shortcut == "option_a" and spec.name not in _CIFAR_RESNETS:
        raise NetworkError(f"shortcut 'option_a' exists for {', '.join(_CIFAR_RESNETS)} only, found '{spec.name}'")
    if spec.padding == "tf_same":
        _check_one_sided_padding(spec)


def _check_one_sided_padding(spec: NetSpec) -> None:
    """Padding at the bottom and the right is TensorFlow's rule for even sizes only."""
    if spec.name not in _CIFAR_RESNETS and spec.name not in _MOBILENETS:
        raise NetworkError(
            f"padding 'tf_same' exists for {', '.join((*_CIFAR_RESNETS, *_MOBILENETS))} only, found '{spec.name}'"
        )
    reduction = math.prod(_MOBILENETS[spec.name][0]) if spec.name in _MOBILENETS else 4
    if spec.input_shape[1] % reduction or spec.input_shape[2] % reduction:
        raise NetworkError(
            f"network '{spec.name}' with padding 'tf_same' takes images whose height and width are multiples of "
            f"{reduction}, found input_shape {spec.input_shape}"
        )


def _construct(spec: NetSpec) -> nn.Module:
    channels = spec.input_shape[0]
    if spec.name in _CIFAR_RESNETS:
        return CifarResNet(channels, _CIFAR_RESNETS[spec.name], spec.num_classes, spec.shortcut, spec.padding)
    if spec.name in _RESNETS:
        return ResNet(channels, *_RESNETS[spec.name], spec.num_classes)
    if spec.name in _MOBILENETS:
        strides, dropout = _MOBILENETS[spec.name]
        return MobileNetV2(channels, strides, spec.num_classes, spec.padding, dropout)
    if spec.name == "vgg16":
        return VGG16(channels, spec.num_classes)
    return GoogLeNet(channels, spec.num_classes)


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
