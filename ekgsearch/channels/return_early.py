"""A forward that returns early in evaluation: what stands behind that place runs in training only."""

import re
from typing import Any

from torch import fx

_CALL = re.compile(r"^(?P<indent> *)\w+ = \w*early_return\((?P<value>.*)\)(;.*)?$", re.MULTILINE)


def early_return(value: Any) -> Any:
    """Mark the place; the line that calls this is replaced."""
    return value


def return_before(graph: fx.Graph, last: fx.Node, value: Any) -> None:
    """Let a graph return in evaluation mode as soon as a node is done.

    Args:
        graph: graph of a network; its code is changed, also in copies of it.
        last: the last node that evaluation needs.
        value: what evaluation returns, made of nodes.
    """
    with graph.inserting_after(last):
        graph.call_function(early_return, (value,))
    graph.on_generate_code(lambda before: _Rewriting(before))


def is_kept(node: fx.Node) -> bool:
    """Tell whether a node stays in a graph although nothing reads its value."""
    return node.op in ("placeholder", "output") or node.target is early_return


class _Rewriting:
    """Rewrites the marked line of generated code."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, lines: list[str]) -> list[str]:
        code = "".join(self._before(lines) if self._before else lines)
        return [_CALL.sub(r"\g<indent>if not self.training:\n\g<indent>    return \g<value>", code)]
