"""Search of a network's channels on any images, in this process."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from torch import Tensor, nn

from ekgsearch.channels.graph import ChannelGraph
from ekgsearch.channels.members import ChannelGroup
from ekgsearch.errors import JobError, ResumeError
from ekgsearch.experiment import SearchChoice
from ekgsearch.methods.base import BatchwiseEvaluator, Decision, Materials, decisions_from_records
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.choice import budget_of, chosen_groups
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch
from ekgsearch.methods.local import LocalEvaluator
from ekgsearch.methods.section import EvaluatingSection, SearchSection
from ekgsearch.pipeline.lines import content
from ekgsearch.records import Subnetwork, content_hash
from ekgsearch.runtime.progress import Progress
from ekgsearch.storage.files import make_folder
from ekgsearch.storage.journal import Journal
from ekgsearch.storage.tensors import serialise_tensors
from ekgsearch.workers.spec import SearchSpec

log = logging.getLogger(__name__)


class _Choice(BaseModel):
    search: SearchChoice = Field(discriminator="method")


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
    budget = budget_of(graph, section, groups)
    with ExitStack() as work:
        work.enter_context(_undisturbed(graph.network))
        _check_labels(graph, held)
        opened = section.open(_materials(graph, section, groups, budget, held, seed))
        journal, made = None, []
        if folder is not None:
            make_folder(Path(folder))
            journal = work.enter_context(Journal.open(Path(folder) / "journal.jsonl"))
            made = _made(journal, graph, {"search": section.identity(), "seed": seed, **_identity(graph, held)})
        if not (made and opened.is_over(made)):
            bar = work.enter_context(closing(_Bar(budget, made))) if progress else None
            for decision in opened.run(tuple(made)):
                if journal is not None:
                    journal.append("iteration", **decision.to_record())
                made.append(decision)
                if bar is not None:
                    bar.show(decision)
    return made[-1].subnetwork


def _materials(
    graph: ChannelGraph,
    section: SearchSection,
    groups: tuple[ChannelGroup, ...],
    budget: Budget,
    held: Sequence[SearchBatch],
    seed: int,
) -> Materials:
    """What the search of a method works with, in this process."""
    spec = None
    if isinstance(section, EvaluatingSection):
        places = tuple((batch.index, tuple(range(len(batch.labels)))) for batch in held)
        spec = SearchSpec.of(section, run="", batches=places, seed=seed)
    return Materials(
        graph=graph,
        groups=groups,
        open_graph=lambda: graph,
        budget=budget,
        seed=seed,
        threads=torch.get_num_threads(),
        evaluator=lambda: _evaluator(graph, held, spec),
        batches=[batch.index for batch in held],
        tie_tolerance=0.0 if spec is None else spec.tie_tolerance,
    )


def _evaluator(graph: ChannelGraph, held: Sequence[SearchBatch], spec: SearchSpec | None) -> BatchwiseEvaluator:
    assert spec is not None, "the method looks at no image"
    spec.arithmetic.set_backends()
    part = BatchEvaluator(spec.networks(graph), lambda images: images, held, spec.divisor, spec.rules)
    return LocalEvaluator([part], spec.nominal_batch)


def _section(fields: dict[str, Any]) -> SearchSection:
    try:
        given = {name: value for name, value in fields.items() if value is not None}
        section = _Choice.model_validate({"search": given}).search
    except ValidationError as error:
        raise JobError(*dict.fromkeys(map(_mistake, error.errors(include_url=False)))) from error
    if contradictions := list(section.contradictions()):
        raise JobError(*contradictions)
    return section


def _mistake(detail: ErrorDetails) -> str:
    """A mistake in a field of the search, in one line."""
    name = ".".join(str(part) for part in detail["loc"][2:])
    if detail["type"] == "union_tag_invalid":
        return f"search: method = {detail['input']['method']!r}: must be one of {detail['ctx']['expected_tags']}"
    if detail["type"] == "extra_forbidden":
        return f"search: {name} is no field of this method, or none at all"
    return f"search: {name} = {detail['input']!r}: {detail['msg'].removeprefix('Value error, ')}"


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


def _check_labels(graph: ChannelGraph, held: Sequence[SearchBatch]) -> None:
    """Compare the labels with the number of outputs of the network, which is in evaluation mode."""
    if not held:
        return
    with torch.no_grad():
        classes = graph.network(held[0].pixels[:1]).shape[1]
    for batch in held:
        low, high = int(batch.labels.min()), int(batch.labels.max())
        if low < 0 or high >= classes:
            raise JobError(
                f"search: batch {batch.index}: expected labels from 0 to {classes - 1}, as many as the network has "
                f"outputs, found {low} to {high}"
            )


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
    images = {f"{batch.index}.images": batch.pixels for batch in held}
    labels = {f"{batch.index}.labels": batch.labels for batch in held}
    tensors = {"network": graph.network.state_dict(), "images": images | labels}
    return {name: hashlib.sha256(serialise_tensors(of)).hexdigest() for name, of in tensors.items()}


def _made(journal: Journal, graph: ChannelGraph, identity: dict[str, Any]) -> list[Decision]:
    """The decisions in the journal of a folder, which begins with what the search is."""
    if not journal.lines:
        journal.append("search", **identity)
        return []
    first = journal.lines[0]
    changed = [name for name, value in identity.items() if content_hash(first.get(name)) != content_hash(value)]
    if changed:
        raise ResumeError(
            f"{journal.path.parent} holds another search: {', '.join(changed)} differ; give another folder, or make "
            "them equal to continue it"
        )
    return decisions_from_records(map(content, journal.lines[1:]), graph.full())


class _Bar:
    """Progress of a search towards its budget, the decisions that were made before included."""

    def __init__(self, budget: Budget, made: Sequence[Decision]) -> None:
        self._budget = budget
        self._costs: list[int] = []
        self._progress: Progress | None = None
        for decision in made:
            self.show(decision)

    def show(self, decision: Decision) -> None:
        """Show one more decision; the first is the unpruned network."""
        cost = self._budget.measured(decision.macs, decision.params)
        self._costs.append(cost)
        full, before = self._costs[0], self._costs[-2:][0]
        if self._progress is None:
            total = round(full - self._budget.limit) if self._budget.is_limit else full
            self._progress = Progress("search", max(1, total), f"{self._budget.unit} removed", log)
        self._progress.advance(before - cost, iteration=decision.iteration, reduction=f"{1 - cost / full:.1%}")

    def close(self) -> None:
        """End the line."""
        if self._progress is not None:
            self._progress.close()
