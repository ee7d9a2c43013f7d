"""The classifier of a network: its last linear layer, whose input is the embedding of an image."""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.errors import NetworkError


@dataclass(frozen=True, slots=True)
class Classifier:
    """The linear layer that makes the logits.

    Attributes:
        path: path of the layer.
        input: name of the value that it reads, (B, width): the embeddings.
        width: its input features in the unpruned network.
    """

    path: str
    input: str
    width: int


def find_classifier(graph: ChannelGraph) -> Classifier | None:
    """Find the linear layer whose result is the network's output.

    Args:
        graph: analysed network.

    Returns:
        The layer; None where the output is not one tensor that comes straight from a linear layer on (B, features).
    """
    result = _result(graph)
    if isinstance(result, fx.Node) and result.op == "call_module":
        path, source = str(result.target), result.all_input_nodes[0]
        module = graph.trace.modules[path]
        if isinstance(module, nn.Linear) and len(graph.trace.shapes[source.name]) == 2:
            return Classifier(path, source.name, module.in_features)
    return None


def classifier(graph: ChannelGraph) -> Classifier:
    """The linear layer whose result is the network's output.

    Args:
        graph: analysed network.

    Raises:
        NetworkError: there is none; see `find_classifier`.
    """
    found = find_classifier(graph)
    if found is None:
        raise NetworkError(
            "expected a network whose output comes from one linear layer on (images, features), found "
            f"{_result(graph)}; embeddings of images (objectives contrastive and byol) need such a classifier"
        )
    return found


def _result(graph: ChannelGraph) -> Any:
    return next(node for node in graph.trace.graph.nodes if node.op == "output").args[0]
