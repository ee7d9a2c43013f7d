"""Names of networks in a job, and in its schema."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

from ekgsearch.artefact.targets import LIBRARIES, check_target, names_of
from ekgsearch.errors import NetworkError
from ekgsearch.nets import zoo


@dataclass(frozen=True)
class JsonSchema:
    """Gives a field a JSON schema that is made when it is asked for, since it takes seconds.

    Attributes:
        make: makes the schema.
    """

    make: Callable[[], Mapping[str, Any]]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Replace the schema that the type itself would have."""
        return dict(self.make())


def known_network(name: str) -> str:
    """Check the name of a network.

    Raises:
        PydanticCustomError: there is no such network, or its package is missing.
    """
    if ":" in name:
        raise PydanticCustomError("network", "is no name of a network; your own is named by net.factory")
    try:
        check_target(name)
    except NetworkError as error:
        raise PydanticCustomError("network", "{words}", {"words": str(error).removeprefix("network ")}) from None
    return name


def network_names() -> Mapping[str, Any]:
    """JSON schema of the name of a network: all of the zoo and of torchvision, and those of timm by their form."""
    listed = [name for library in ("", "torchvision") for name in listed_networks(library)]
    return {"anyOf": [{"enum": listed}, {"type": "string", "pattern": "^timm/.+$"}]}


def listed_networks(library: str) -> list[str]:
    """Names of the zoo, where the library is empty, or of a library, as a job names them; none where it is missing."""
    if not library:
        return list(zoo.NAMES)
    if importlib.util.find_spec(library) is None:
        return []
    return [f"{library}/{name}" for name in names_of(library)]


def all_networks() -> dict[str, list[str]]:
    """Names of all networks by where they come from."""
    return {library or "ekgsearch": listed_networks(library) for library in ("", *LIBRARIES)}
