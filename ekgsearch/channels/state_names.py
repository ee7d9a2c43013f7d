"""The state of a slim network under the names of the original's state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


def follow_names(module: nn.Module, original: nn.Module, renamed: Mapping[str, str]) -> None:
    """Let the state of a slim network have the names of the original's, and load from it.

    Tensors that are not in the original's state stay out of the slim one's. Tensors of the original that its forward
    never reads are not in the slim network; they are skipped when a state of the original is loaded.

    Args:
        module: slim network; gets hooks, which copies of it keep.
        original: the network it was cut from.
        renamed: name in the original's state by name in the slim network, where they differ; empty for a buffer that
            torch needs and the original does without.
    """
    expected = set(original.state_dict())
    for path, part in module.named_modules():
        for name in dict(part.named_buffers(recurse=False)):
            own = f"{path}.{name}" if path else name
            if own not in renamed and own not in expected:
                part._non_persistent_buffers_set.add(name)
    unread = expected - {renamed.get(name, name) for name in module.state_dict()}
    module.register_state_dict_post_hook(_Saved(dict(renamed)))  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_Loaded(dict(renamed), frozenset(unread)))  # type: ignore[no-untyped-call]


@dataclass
class _Saved:
    """Renames the tensors of a state that is given out."""

    renamed: dict[str, str]

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        for own, name in self.renamed.items():
            value = state.pop(prefix + own)
            if name:
                state[prefix + name] = value


@dataclass
class _Loaded:
    """Renames the tensors of a state that is about to be loaded, and leaves out what nothing reads."""

    renamed: dict[str, str]
    unread: frozenset[str]

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        for name in self.unread:
            state.pop(prefix + name, None)
        for own, name in self.renamed.items():
            if not name:
                state[prefix + own] = module.get_buffer(own)
            elif prefix + name in state:
                state[prefix + own] = state.pop(prefix + name)
