"""Records of where channels sit in a network: channel groups, layers and sites."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ekgsearch.channels.operations import Kind, is_depthwise


@dataclass(frozen=True, slots=True)
class Member:
    """The part of a layer that belongs to a channel group.

    Attributes:
        layer: path of the layer.
        positions: for each channel of the group, its indices on the layer's channel axis: the output axis of
            producers, the input axis of consumers (after flattening, the columns of that channel), the only axis of
            norms.
    """

    layer: str
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that are cut together.

    Attributes:
        name: path of the layer that makes them first, with ":2", ":3", ... where several groups start there.
        size: number of channels.
        producers: layers that make them, in execution order (without depthwise convolutions).
        norms: norms and per-channel activations over them.
        depthwise: depthwise convolutions that pass them on.
        consumers: layers that read them.
        sites: names of the nodes whose feature map is masked and where importance is read, in execution order.
        frozen: why these channels cannot be cut; empty where they can.
        uses: number of producers; the u_g by which the search step of a residual group is divided.
    """

    name: str
    size: int
    producers: tuple[Member, ...]
    norms: tuple[Member, ...]
    depthwise: tuple[Member, ...]
    consumers: tuple[Member, ...]
    sites: tuple[str, ...]
    frozen: str = ""

    @property
    def uses(self) -> int:
        """Number of layers that write into these channels; at least 1."""
        return max(1, len(self.producers))


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer with the coupling class of each of its channels.

    Attributes:
        path: path of its module.
        kind: convolution, linear layer or norm.
        module: the module of the original network.
        inputs: int64 class of each input channel.
        outputs: int64 class of each output channel.
        positions: how often one of its kernels is applied per image, summed over its calls.
        out_positions: elements of one output channel per image, summed over its calls.
    """

    path: str
    kind: Kind
    module: nn.Module
    inputs: Tensor
    outputs: Tensor
    positions: int
    out_positions: int

    @property
    def weight(self) -> Tensor:
        """The weight of the original network as it is now, without gradient."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @property
    def can_run_cut(self) -> bool:
        """Whether the layer can be run with given tensors of fewer channels; other norms only as they are."""
        return self.kind is not Kind.NORM or isinstance(self.module, (_BatchNorm, nn.PReLU))

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel is filtered by itself."""
        return is_depthwise(self.module)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A node whose feature map is multiplied by the mask and where importance is read.

    Attributes:
        node: name of the node.
        axis: channel axis of its value.
        ndim: number of axes of its value.
        classes: int64 class of each of its channels.
        groups: names of the channel groups that occur in it.
    """

    node: str
    axis: int
    ndim: int
    classes: Tensor
    groups: tuple[str, ...]

    def shape(self) -> tuple[int, ...]:
        """Shape by which a vector over the channels broadcasts over the value."""
        return tuple(-1 if axis == self.axis else 1 for axis in range(self.ndim))
