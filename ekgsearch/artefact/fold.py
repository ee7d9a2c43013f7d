"""Batch norms folded into the convolutions before them."""

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ekgsearch.errors import NetworkError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_norms(network: nn.Module) -> tuple[nn.Module, int]:
    """A copy of a network whose batch norms are part of the convolutions that they follow.

    It computes the same in evaluation mode, up to rounding, with fewer operations; it is not for training.

    Args:
        network: a slim network, or any that torch.fx traces.

    Returns:
        The copy, in evaluation mode, and how many batch norms were folded.

    Raises:
        NetworkError: the network cannot be traced.
    """
    try:
        traced = network if isinstance(network, fx.GraphModule) else fx.symbolic_trace(network)
    except Exception as error:  # any Python code may run in a forward
        raise NetworkError(f"batch norms cannot be folded: torch.fx cannot trace the network: {error}") from error
    folded = copy.deepcopy(traced).eval()
    modules = dict(folded.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in folded.graph.nodes if node.op == "call_module")
    owners = Counter(id(module) for module in modules.values())
    count = 0
    for node in list(folded.graph.nodes):
        source = node.all_input_nodes[0] if node.op == "call_module" and node.all_input_nodes else None
        if source is None or source.op != "call_module" or len(source.users) > 1:
            continue
        norm, conv = modules[str(node.target)], modules[str(source.target)]
        once = all(calls[one.target] == 1 for one in (node, source)) and owners[id(norm)] == owners[id(conv)] == 1
        # A subclass may compute something else, as one with a parametrised weight does, and so may a hook.
        plain = type(conv) in _CONVOLUTIONS and type(norm) in _NORMS and not _is_hooked(conv) and not _is_hooked(norm)
        if not once or not plain or not norm.track_running_stats:
            continue
        folded.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(source)
        folded.graph.erase_node(node)
        count += 1
    folded.graph.lint()
    folded.recompile()
    folded.delete_all_unused_submodules()
    return folded, count


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
