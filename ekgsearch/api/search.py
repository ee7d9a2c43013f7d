"""Search of a network's channels on any images, in this process."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from ekgsearch.channels.arithmetic import Arithmetic
from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.errors import JobError, ResumeError
from ekgsearch.experiment import SearchChoice
from ekgsearch.methods.base import BatchwiseEvaluator, Decision, Materials, decisions_from_records
from ekgsearch.methods.budget import Budget, set_budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch
from ekgsearch.methods.local import LocalEvaluator
from ekgsearch.methods.networks import TIE_TOLERANCE, FastNetworks, NaiveNetworks
from ekgsearch.methods.section import EvaluatingSection, SearchSection
from ekgsearch.records import Subnetwork, content_hash
from ekgsearch.runtime.progress import Progress
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.journal import Journal

log = logging.getLogger(__name__)


class _Choice(BaseModel):
    search: SearchChoice


def search(
    graph: ChannelGraph,
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    *,
    reduction: float | None = None,
    method: str = "ekg",
    folder: str | Path | None = None,
    seed: int = 1,
    progress: bool = True,
    **fields: Any,
) -> Subnetwork:
    """Find which channels of a network to keep.

    The network is left as it was; nothing is trained. A batch is indivisible: `ekg` and `taylor` evaluate networks by
    the statistics of each batch, so batches of a few hundred images are best (EKG: 32 images of each class in batches
    of 256). The images are held in memory.

    Args:
        graph: what `ekgsearch.analyse` found.
        batches: (images, labels) pairs: normalised float images (B, C, H, W) as the network takes them, class indices
            (B,) int64. Methods that look at weights alone (l1, l2, fpgm, bn_scale, epruner, uniform, random) need none.
        reduction: share of the multiply-accumulates to remove, between 0 and 1.
        method: ekg, epruner, or a baseline: uniform, l1, l2, fpgm, taylor, bn_scale, random.
        folder: where the decisions are written as they are made; the same call continues a search that was interrupted,
            and returns at once where it is complete.
        seed: of random choices.
        progress: show how far it is, with an estimate of its end.
        **fields: any other field of a job's `search` section, such as step=0.1 or groups="private".

    Returns:
        The channels that each channel group keeps.

    Raises:
        JobError: a field does not exist or has no such value, or images are missing or not of the network's shape.
        BudgetError: so much cannot be removed.
        ResumeError: the folder holds another search.
        StorageError: the folder's journal is damaged, or the disk refuses.
    """
    section = _section({"method": method, "reduction": reduction, **fields})
    held = _held(graph, batches) if section.needs_workers else []
    if section.needs_workers and not held:
        raise JobError(f"search: the method {method} looks at images; give batches of (images, labels)")
    groups = chosen_groups(graph, section)
    budget = set_budget(
        graph,
        reduction=section.reduction,
        absolute=section.budget,
        unit=section.unit,
        counter=section.counter,
        groups=groups,
        least_width=section.least_width,
    )
    with ExitStack() as work:
        work.enter_context(_undisturbed(graph.network))
        opened = section.open(
            Materials(
                graph=graph,
                groups=groups,
                open_graph=lambda: graph,
                budget=budget,
                seed=seed,
                threads=torch.get_num_threads(),
                evaluator=lambda: _evaluator(graph, held, section, seed),
                batches=[batch.index for batch in held],
                tie_tolerance=TIE_TOLERANCE if _slices(section) else 0.0,
            )
        )
        journal, made = None, []
        if folder is not None:
            make_folder(Path(folder))
            journal = work.enter_context(Journal.open(Path(folder) / "journal.jsonl"))
            made = _made(journal, graph, {"search": section.identity(), "seed": seed, **_identity(graph, held)})
        bar = _Bar(graph, budget, made) if progress else None
        if made and opened.is_over(made):
            return made[-1].subnetwork
        for decision in opened.run(tuple(made)):
            if journal is not None:
                journal.append("iteration", **decision.to_record())
            made.append(decision)
            if bar is not None:
                bar.show(decision)
        if bar is not None:
            bar.close()
    return made[-1].subnetwork


def _section(fields: dict[str, Any]) -> SearchSection:
    try:
        given = {name: value for name, value in fields.items() if value is not None}
        section = _Choice.model_validate({"search": given}).search
    except ValidationError as error:
        lines = []
        for detail in error.errors(include_url=False):
            name = ".".join(str(part) for part in detail["loc"][2:]) or "method"
            lines.append(f"search: {name} = {detail['input']!r}: {detail['msg']}")
        raise JobError(*lines) from error
    if contradictions := list(section.contradictions()):
        raise JobError(*contradictions)
    return section


def _held(graph: ChannelGraph, batches: Iterable[tuple[Tensor, Tensor]]) -> list[SearchBatch]:
    """The images on the device of the network, checked."""
    device = next(graph.network.parameters()).device
    held = []
    for index, pair in enumerate(batches):
        images, labels = pair if isinstance(pair, Sequence) and len(pair) == 2 else (None, None)
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            raise JobError(
                f"search: batch {index}: expected a pair of tensors (images, labels), found {type(pair).__name__}"
            )
        if tuple(images.shape[1:]) != graph.input_shape or labels.shape != images.shape[:1] or not len(labels):
            raise JobError(
                f"search: batch {index}: expected images (B, {', '.join(map(str, graph.input_shape))}) and labels "
                f"(B,), found {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        if not images.is_floating_point() or labels.is_floating_point():
            raise JobError(
                f"search: batch {index}: expected normalised float images and whole labels, found "
                f"{images.dtype} and {labels.dtype}"
            )
        held.append(SearchBatch(index, images.detach().to(device), labels.detach().long().to(device)))
    return held


def _evaluator(
    graph: ChannelGraph, held: Sequence[SearchBatch], section: SearchSection, seed: int
) -> BatchwiseEvaluator:
    assert isinstance(section, EvaluatingSection)
    arithmetic = Arithmetic(section.precision, section.channels_last, section.compile)
    arithmetic.set_backends()
    networks = (
        NaiveNetworks(graph, section.norm_mode)
        if section.evaluation == "naive"
        else FastNetworks(graph, section.slice_below, section.norm_mode, arithmetic)
    )
    divisor = section.nominal_batch or sum(len(batch.labels) for batch in held)
    return LocalEvaluator([BatchEvaluator(networks, lambda images: images, held, divisor, section.rules(seed))])


def _slices(section: SearchSection) -> bool:
    return isinstance(section, EvaluatingSection) and section.evaluation == "fast" and section.slice_below > 0


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of the weights, and torch's switches, as they were before at the end."""
    training = {module: module.training for module in network.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in network.parameters()}
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    switches = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = switches
        for module, mode in training.items():
            module.training = mode
        for parameter, wants in wanted.items():
            parameter.requires_grad_(wants)


def _identity(graph: ChannelGraph, held: Sequence[SearchBatch]) -> dict[str, str]:
    """Hashes of the network with its weights, and of the images."""
    state = {name: _tensor_hash(tensor) for name, tensor in graph.network.state_dict().items()}
    images = [[_tensor_hash(batch.pixels), _tensor_hash(batch.labels)] for batch in held]
    return {"network": content_hash(state), "images": content_hash(images)}


def _tensor_hash(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest() + str(tuple(tensor.shape))


def _made(journal: Journal, graph: ChannelGraph, identity: dict[str, Any]) -> list[Decision]:
    """The decisions in the journal of a folder, which begins with what the search is."""
    if not journal.lines:
        journal.append("search", **identity)
        return []
    first = {name: value for name, value in journal.lines[0].items() if name in identity}
    changed = [name for name, value in identity.items() if content_hash(first.get(name)) != content_hash(value)]
    if changed:
        raise ResumeError(
            f"{journal.path.parent} holds another search: {', '.join(changed)} differ; give another folder, or make "
            "them equal to continue it"
        )
    return decisions_from_records(
        ({k: v for k, v in line.items() if k not in ("seq", "kind", "prev", "hash")} for line in journal.lines[1:]),
        graph.full(),
    )


class _Bar:
    """Progress of a search towards its budget."""

    def __init__(self, graph: ChannelGraph, budget: Budget, made: Sequence[Decision]) -> None:
        self._graph, self._budget = graph, budget
        self._full, self._removed = 0, 0
        self._progress: Progress | None = None
        for decision in made:
            self.show(decision)

    def show(self, decision: Decision) -> None:
        """Show one more decision."""
        cost = self._budget.measured(decision.macs, decision.params)
        if self._progress is None:
            self._full = cost
            total = round(cost - self._budget.limit) if self._budget.is_limit else cost
            self._progress = Progress("search", max(1, total), f"{self._budget.unit} removed", log)
        removed = self._full - cost
        shown: dict[str, float | int | str] = {
            "iteration": decision.iteration,
            "reduction": f"{removed / self._full:.1%}",
        }
        self._progress.advance(removed - self._removed, **shown)
        self._removed = removed

    def close(self) -> None:
        """End the line."""
        if self._progress is not None:
            self._progress.close()
