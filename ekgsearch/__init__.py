"""Search, distil and fine-tune smaller convolutional networks.

The names below are loaded where they are first used: importing this package loads neither torch nor Ray.
"""

import importlib
from typing import TYPE_CHECKING

from ekgsearch.version import __version__

if TYPE_CHECKING:
    from ekgsearch.api.cut import analyse, cost, latency, masked, slim
    from ekgsearch.api.files import load_network, save_network
    from ekgsearch.api.search import search

__all__ = [
    "__version__",
    "analyse",
    "cost",
    "latency",
    "load_network",
    "masked",
    "save_network",
    "search",
    "slim",
]

_ROOMS = {
    "analyse": "cut",
    "cost": "cut",
    "latency": "cut",
    "masked": "cut",
    "slim": "cut",
    "load_network": "files",
    "save_network": "files",
    "search": "search",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'ekgsearch' has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(importlib.import_module(f"ekgsearch.api.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
