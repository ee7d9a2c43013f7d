"""One worker of search and memory bank: it opens the network once and owns fixed batches."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ekgsearch.bank.build import Outputs, build_block
from ekgsearch.bank.commit import MissingBlock
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.shards import write_shard
from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.head import classifier
from ekgsearch.data.damage import sound_reader
from ekgsearch.methods.evaluate import BatchEvaluator, SearchBatch
from ekgsearch.records import Subnetwork
from ekgsearch.storage.objects import open_store
from ekgsearch.workers.questions import Answer, Begin, Evaluate, Extend, Question, Scores, Settle, Value
from ekgsearch.workers.spec import BuiltBlock, SearchSpec, Timed
from ekgsearch.workers.workload import Workload

T = TypeVar("T")


class Worker:
    """Evaluates networks on its batches, and builds blocks of the memory bank."""

    def __init__(
        self,
        workload: Workload,
        spec: SearchSpec,
        owned: Sequence[int],
        attempt: int = 1,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the network and the images.

        Args:
            workload: what to open.
            spec: the batches of the whole search subset.
            owned: indices of the batches that this worker evaluates.
            attempt: how many workers have owned these batches before, plus 1; every report carries it.
            check: called before each forward pass; raises to stop there.
        """
        self._run = spec.run
        self._attempt = attempt
        self._check = check
        torch.set_num_threads(workload.threads)
        self._device = torch.device(workload.device)
        train = workload.data.open().train
        self._num_replaced = 0
        self._train, self._max_damaged = train, workload.data.loading.max_damaged
        self._readers: dict[str, Callable[[Tensor], Tensor]] = {}
        self._normalisation = workload.normalisation
        network = workload.open_network()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        graph = analyse(network, workload.recipe.input_shape)
        batches = [
            SearchBatch(index, train.read(torch.tensor(ids)).to(self._device), train.labels[list(ids)].to(self._device))
            for index, ids in spec.batches
            if index in owned
        ]
        spec.arithmetic.set_backends()
        networks = spec.networks(graph)
        self._masked = networks.masked
        self._evaluator = BatchEvaluator(
            networks, self._normalisation, batches, spec.divisor, spec.rules, spec.prefix_bytes, check
        )

    def begin(self, interim: Sequence[Subnetwork]) -> None:
        """Set the ensemble knowledge to the mean logits of these networks, in place of a worker that was lost."""
        if interim:
            self._evaluator.begin(interim)

    def answer(self, question: Question) -> Answer:
        """Answer a question of the search for the batches that this worker owns."""
        timed = _timed(lambda: self._values(question))
        return Answer(
            run=self._run,
            iteration=question.iteration,
            question=question.name,
            attempt=self._attempt,
            values=timed.value,
            busy_seconds=timed.busy_seconds,
        )

    def _values(self, question: Question) -> Mapping[int, Sequence[Value]]:
        """For each batch the values in the order of the candidates; a single one where there are no candidates."""
        match question:
            case Begin():
                return _one_each(self._evaluator.begin(question.interim))
            case Extend():
                return _one_each(self._evaluator.extend(question.networks))
            case Scores():
                return _one_each(self._evaluator.scores(question.current, question.count))
            case Evaluate():
                return self._evaluator.evaluate(question.current, question.candidates, question.batches)
            case Settle():
                return self._evaluator.settle(question.candidates)

    def build_block(
        self, spec: BankSpec, teachers: Sequence[Subnetwork], missing: MissingBlock, uri: str
    ) -> Timed[BuiltBlock]:
        """Run those teachers over one block of training images that are missing there, and store their outputs.

        Raises:
            DataError: more pictures are damaged than allowed; the search itself, unlike the bank, replaces none.
        """
        return _timed(lambda: self._build_block(spec, teachers, missing, uri))

    def _build_block(
        self, spec: BankSpec, teachers: Sequence[Subnetwork], missing: MissingBlock, uri: str
    ) -> BuiltBlock:
        EXACT.set_backends()  # the search may have asked for another arithmetic; the bank is built after it
        ids, read = bank_layout(spec)[missing.block], self._sound_reader(spec)
        columns = [spec.columns[position] for position in missing.columns]
        has_embeddings = any(column.part == "embeddings" for column in columns)
        source = classifier(self._masked.graph).input if has_embeddings else None

        def forward(images: Tensor, teacher: Subnetwork) -> Outputs:
            self._check()
            if source is None:
                return Outputs(self._masked.forward(images, teacher, norm_mode="batch"))
            weights, masks = self._masked.weights(teacher), self._masked.masks(teacher)
            logits, kept = self._masked.run(images, weights, masks, norm_mode="batch", keep=frozenset({source}))
            return Outputs(logits, kept[source])

        def batches() -> Iterator[Tensor]:
            for part in torch.split(ids, spec.batch_size):
                yield self._normalisation(read(part).to(self._device))

        self._num_replaced = 0
        made, store = build_block(forward, batches(), teachers, columns), open_store(uri)
        for column, values in zip(columns, made, strict=True):
            write_shard(store, column, missing.block, values)
        return BuiltBlock(missing.block, len(ids), self._num_replaced)

    def _sound_reader(self, spec: BankSpec) -> Callable[[Tensor], Tensor]:
        """Reads images of a bank; in place of damaged ones others that the bank covers, as in the fine-tuning."""
        if spec.sha256 not in self._readers:
            self._readers[spec.sha256] = sound_reader(
                self._train, spec.image_ids, max_share=self._max_damaged, on_replaced=self._count_replaced
            )
        return self._readers[spec.sha256]

    def _count_replaced(self, count: int) -> None:
        self._num_replaced += count


def _one_each(values: Mapping[int, T]) -> dict[int, list[T]]:
    """The only value of every batch, as a list."""
    return {batch: [value] for batch, value in values.items()}


def _timed(work: Callable[[], T]) -> Timed[T]:
    start = time.perf_counter()
    value = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Timed(value, time.perf_counter() - start)
