"""Section of a job: the network."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ekgsearch.errors import NetworkError
from ekgsearch.fields import Mark, Place, Section, Text, absolute, expand_path
from ekgsearch.nets.options import Padding, Shortcut
from ekgsearch.nets.zoo import check, check_size
from ekgsearch.sections.data import PICTURE_SIZE, DataSection
from ekgsearch.sections.names import JsonSchema, known_network, network_names

NetName = Annotated[Text, AfterValidator(known_network), JsonSchema(network_names)]
"""A network of the zoo, of torchvision or of timm."""


class NetSection(Section):
    """The network to shrink."""

    name: NetName | None = Field(
        "resnet56",
        description="architecture: one of ekgsearch (resnet20, resnet56, resnet50, vgg16, mobilenet_v2, ...), "
        "torchvision/NAME, or timm/NAME where timm is installed; ekgsearch groups --list names them. null with factory",
    )
    factory: Annotated[Text | None, Mark.BY_CONTENT] = Field(
        None,
        description="your own network: package.module:callable, or path/file.py:callable relative to the job file; its "
        "code is run, and its source is part of what a run is. null: name",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="what the class or function of factory, torchvision or timm is called with, by name; num_classes "
        "or classes is filled in where it takes one",
    )
    weights: Annotated[Text | None, Mark.BY_CONTENT, Mark.PATH] = Field(
        None,
        description="file of trained weights, safetensors or a state dict saved by torch.save; null trains the network "
        "first. $VARIABLES are expanded",
    )
    new_classifier: bool = Field(
        False,
        description="of the weights take all but the last layer, which starts afresh for the classes of the images and "
        "is trained, with the rest, by pretrain",
    )
    shortcut: Literal["option_a", "projection"] | None = Field(
        None, description="shortcut of CIFAR ResNets; null: as the weights' sidecar says, else projection"
    )
    padding: Literal["torch", "tf_same"] | None = Field(
        None,
        description="padding of strided convolutions; null: as the weights' sidecar says, else tf_same with all quirks "
        "of search.quirks, else torch",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, values: Any) -> Any:
        """The default name stands back where a factory is given."""
        if isinstance(values, dict) and values.get("factory") is not None and "name" not in values:
            return {**values, "name": None}
        return values

    @property
    def is_of_zoo(self) -> bool:
        """Whether it is a network of this package."""
        return self.name is not None and "/" not in self.name

    @property
    def target(self) -> str:
        """The name, or the factory with the variables in its path expanded; see `Factory.target`."""
        if self.factory is None:
            assert self.name is not None
            return self.name
        place, colon, name = self.factory.rpartition(":")
        return f"{expand_path(place, 'net.factory')}{colon}{name}" if place.endswith(".py") else self.factory

    @property
    def trains_first(self) -> bool:
        """Whether the network is trained before anything is cut."""
        return self.weights is None or self.new_classifier

    def rebased(self, base_of: Callable[[Place], Path], place: Place = ()) -> Self:
        """A copy whose relative paths are absolute, that of the factory's file, too."""
        found = super().rebased(base_of, place)
        path, colon, name = (self.factory or "").rpartition(":")
        if not path.endswith(".py"):
            return found
        return found.model_copy(update={"factory": absolute(path, base_of((*place, "factory"))) + colon + name})

    def contradictions(self) -> Iterator[str]:
        """What the fields of this section ask for and cannot have together; one line each."""
        if self.name is not None and self.factory is not None:
            yield f"net.name = {self.name} and net.factory = {self.factory}: give one of them"
        if self.name is None and self.factory is None:
            yield "net.name is null: give a name, or your own network by net.factory"
        if self.factory is not None and ":" not in self.factory:
            yield f"net.factory = {self.factory}: expected package.module:callable or path/file.py:callable"
        if self.is_of_zoo and self.arguments:
            yield f"net.arguments are those of factory, torchvision/NAME or timm/NAME; {self.name} takes none"
        for field in ("shortcut", "padding"):
            value = getattr(self, field)
            if not self.is_of_zoo and value is not None:
                yield f"net.{field} = {value} belongs to the networks of ekgsearch; leave it out"
        if self.new_classifier and self.weights is None:
            yield "net.new_classifier = true keeps all but the last layer of net.weights, which is null; give weights"


def network_contradictions(net: NetSection, data: DataSection, padding: Padding) -> Iterator[str]:
    """What the network that is named cannot have, or cannot do with the images that are named; one line each.

    Args:
        net: the network.
        data: the images.
        padding: where neither the job nor a sidecar says one.
    """
    yield from net.contradictions()
    known = data.known
    size = data.image_size or (known.size if known else PICTURE_SIZE)
    asked = net.padding or ("torch" if net.weights else padding)  # weights may have a sidecar that says another one
    if net.is_of_zoo and (error := network_error(net.name or "", size, net.shortcut or "projection", asked)):
        yield f"net.name = {net.name} on data.name = {data.name}: {error}"


def network_error(name: str, size: int, shortcut: Shortcut = "projection", padding: Padding = "torch") -> str:
    """Why a network of the zoo cannot take square images, without building it; empty where it can.

    Args:
        name: one of `ekgsearch.nets.zoo.NAMES`.
        size: side of the images in pixels.
        shortcut: see `ekgsearch.nets.zoo.build`.
        padding: likewise.
    """
    try:
        check(name, shortcut, padding)
        check_size(name, padding, (3, size, size))
    except NetworkError as error:
        return str(error)
    return ""
