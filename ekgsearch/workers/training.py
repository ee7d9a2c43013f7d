"""Train the networks of a run, one after the other, in however many processes the backend provides."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import nn

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.head import classifier
from ekgsearch.channels.slim import slim
from ekgsearch.data.images import ArrayImages, ImageSet
from ekgsearch.errors import StorageError
from ekgsearch.finetune.checkpoints import CheckpointPort, FolderCheckpoints
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.metrics import EpochMetrics, StepReport, TrainResult
from ekgsearch.finetune.objectives.registry import objective_class
from ekgsearch.finetune.world import World
from ekgsearch.records import PhaseKind, Subnetwork
from ekgsearch.rows.training import EpochRow
from ekgsearch.runtime.listener import SILENT, Advanced, EpochEnded, Listener, stop_where_asked
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.objects import open_store
from ekgsearch.storage.sealed import read_sealed, sealed
from ekgsearch.storage.tensors import load_tensors, save_tensors
from ekgsearch.workers.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class BankAddress:
    """A complete memory bank: what it is made of, where it lives, and how a machine holds it.

    Attributes:
        spec: what it is made of.
        uri: where it lives.
        cache_dir: folder of the machine for its copy.
        resident: whether it is held in the memory of a GPU, if it fits.
    """

    spec: BankSpec
    uri: str
    cache_dir: Path
    resident: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """One network to train.

    Attributes:
        name: network, as in the table of epochs: full, slim, plain, uniform.
        config: how it is trained.
        subnetwork: which channels it keeps; None for the unpruned network.
        ids: training images that are used; None for all.
        evaluate: whether the test set is evaluated after epochs.
        initial: safetensors file, readable from every node, with the weights of the slim network that it starts from;
            None for those of the unpruned network, cut.
    """

    name: str
    config: FinetuneConfig
    subnetwork: Subnetwork | None
    ids: tuple[int, ...] | None
    evaluate: bool
    initial: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """The networks that one phase trains.

    Attributes:
        run: name of the run.
        phase: kind of phase the work is charged to.
        instance: which phase of this kind it is.
        workload: the unpruned network with its weights, and the images.
        tasks: the trainings, in order; every one starts from the weights of the workload.
        bank: memory bank, where an objective needs it.
        threads: torch threads of each process.
        checkpoint_every_steps: steps between two checkpoints within an epoch; 0 for none.
    """

    run: str
    phase: PhaseKind
    instance: str
    workload: Workload
    tasks: tuple[TrainingTask, ...]
    bank: BankAddress | None
    threads: int
    checkpoint_every_steps: int = 0

    @property
    def devices_per_worker(self) -> int:
        """What one process holds: one GPU, or as many cores as it has threads."""
        return self.threads if self.workload.device == "cpu" else 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished training.

    Attributes:
        name: network that was trained.
        phase: phase it belongs to.
        objective: training objective.
        result: its epochs.
        weights: file of the trained weights.
        averages: files of averaged weights by name, `ema` and `averaged`.
        test_images: images that each evaluation was on; 0 where none was made.
    """

    name: str
    phase: str
    objective: str
    result: TrainResult
    weights: Path
    averages: Mapping[str, Path]
    test_images: int

    @classmethod
    def read(cls, folder: Path, name: str) -> "Outcome":
        """Read what `train_all` wrote.

        Raises:
            StorageError: the training has not finished, or its record is damaged.
        """
        path = outcome_path(folder, name)
        try:
            values = read_sealed(path)
            epochs = tuple(EpochMetrics.from_dict(epoch) for epoch in values["epochs"])
            averages = {average: weights_path(folder, name, average) for average in values.get("averages", ())}
            result = TrainResult(epochs, objective_class(values["objective"]).metric)
            weights = weights_path(folder, name)
            test_images = values.get("test_images", 0)
            return cls(name, values["phase"], values["objective"], result, weights, averages, test_images)
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path}: expected the record of a finished training, found {error}") from error

    def rows(self, run: str) -> list[EpochRow]:
        """Rows of the table of epochs."""
        return [
            epoch.row(
                run=run,
                phase=self.phase,
                network=self.name,
                objective=self.objective,
                test_images=self.test_images,
            )
            for epoch in self.result.epochs
        ]


def outcome_path(folder: Path, name: str) -> Path:
    """Record of a finished training; it is written last, so its presence means that all is there."""
    return folder / f"{name}.epochs.json"


def weights_path(folder: Path, name: str, average: str | None = None) -> Path:
    """Trained weights of a finished training, or an average of them."""
    return folder / (f"{name}.{average}.safetensors" if average else f"{name}.safetensors")


def train_all(
    spec: TrainingSpec,
    folder: Path,
    *,
    device: str | None = None,
    port_of: Callable[[TrainingTask], CheckpointPort] | None = None,
    listener: Listener = SILENT,
    tells_epochs_before: bool = False,
) -> None:
    """Train every network of a spec that has not finished yet.

    Called by every process with the same arguments; rank 0 writes weights, then the record that names them. A
    training that was stopped goes on after its last checkpoint.

    Args:
        spec: what to train.
        folder: for weights and records, the same for all processes.
        device: device of this process; None for the spec's.
        port_of: where the checkpoints of a training go; None for a folder below `folder`.
        listener: told by rank 0 of steps and epochs; every process asks its own one before each step whether to stop.
        tells_epochs_before: whether the listener is also told of the epochs before a resume.

    Raises:
        Stopped: the listener has asked for it.
    """
    torch.set_num_threads(spec.threads)
    EXACT.set_backends()  # a search in this process may have asked for another arithmetic
    world = World.current(torch.device(device or spec.workload.device))
    dataset = spec.workload.data.open()
    train_images, test_images = (
        _held(images, world.device) for images in (dataset.train, spec.workload.data.evaluated(dataset))
    )
    bank = None
    if spec.bank is not None:
        bank = MemoryBank.open(
            open_store(spec.bank.uri),
            spec.bank.spec,
            cache_dir=spec.bank.cache_dir,
            device=world.device,
            resident=spec.bank.resident,
        )
    check = partial(stop_where_asked, listener)
    for task in pending(spec.tasks, folder):
        check()
        network = spec.workload.open_network().to(world.device)
        model = _student(network, task, spec.workload)
        data = TrainData(
            train=train_images,
            normalisation=spec.workload.normalisation,
            test=test_images if task.evaluate else None,
            ids=None if task.ids is None else torch.tensor(task.ids),
            loader=spec.workload.data.loading.loader,
            threads=spec.workload.data.loading.num_threads,
            max_damaged=spec.workload.data.loading.max_damaged,
        )
        port = port_of(task) if port_of else FolderCheckpoints(folder / f"{task.name}-checkpoints")
        with _Telling(listener if world.rank == 0 else SILENT, spec, task, len(train_images)) as telling:
            result = train(
                model,
                data,
                task.config,
                world=world,
                bank=bank if task.config.needs.bank else None,
                teacher=network if task.config.needs.teacher else None,
                classifier=_classifier(network, task.config, spec.workload),
                checkpoint=port,
                checkpoint_every_steps=spec.checkpoint_every_steps,
                on_epoch=telling.epoch,
                on_step=telling.step,
                on_continue=telling.epochs_before if tells_epochs_before else None,
                check=check,
            )
        if world.rank == 0:
            _write_outcome(folder, spec, task, model, result, 0 if data.test is None else len(data.test))


def pending(tasks: Iterable[TrainingTask], folder: Path) -> list[TrainingTask]:
    """The tasks that have no record of having finished."""
    return [task for task in tasks if not outcome_path(folder, task.name).exists()]


def _held(images: ImageSet, device: torch.device) -> ImageSet:
    """Move images that are in memory to a GPU, once, so that batches are gathered and changed where they are used."""
    return images.to(device) if device.type == "cuda" and isinstance(images, ArrayImages) else images


def _student(network: nn.Module, task: TrainingTask, workload: Workload) -> nn.Module:
    if task.subnetwork is None:
        return network
    student = slim(analyse(network, workload.recipe.input_shape), task.subnetwork)
    if task.initial is not None:
        student.load_state_dict(load_tensors(task.initial)[0])
    return student


def _classifier(network: nn.Module, config: FinetuneConfig, workload: Workload) -> str | None:
    """Path of the classifier, the same in the slim network, where the objective needs it."""
    return classifier(analyse(network, workload.recipe.input_shape)).path if config.needs.embeddings else None


class _Telling:
    """Tells a listener of one training: its images over all epochs, all processes together, and its epochs."""

    def __init__(self, listener: Listener, spec: TrainingSpec, task: TrainingTask, num_images: int) -> None:
        self._listener, self._phase, self._network = listener, spec.instance, task.name
        self._metric = objective_class(task.config.objective).metric.of("test")
        self._label = f"{spec.phase.value} {task.name} ({task.config.objective})"
        images, batch_size = num_images if task.ids is None else len(task.ids), task.config.batch_size
        self._total = max(1, images // batch_size) * min(images, batch_size) * task.config.epochs

    def __enter__(self) -> Self:
        self._advance(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._advance(0, is_end=True)

    def step(self, report: StepReport) -> None:
        """Tell of a step."""
        self._advance(report.images)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Tell of an epoch, whose measurements are then shown next to the progress."""
        self.epochs_before([metrics])
        shown: dict[str, float | int | str] = {"epoch": metrics.epoch, "loss": f"{metrics.loss:.4f}"}
        if self._metric in metrics.values:
            shown[self._metric] = f"{metrics.values[self._metric]:#.4g}"
        self._advance(0, shown)

    def epochs_before(self, epochs: Sequence[EpochMetrics]) -> None:
        """Tell of epochs alone."""
        for metrics in epochs:
            event = EpochEnded(phase=self._phase, network=self._network, epoch=metrics.epoch, metrics=metrics.to_dict())
            self._listener.hear(event)

    def _advance(self, done: int, shown: Mapping[str, float | int | str] | None = None, is_end: bool = False) -> None:
        event = Advanced(
            label=self._label, done=done, total=self._total, unit="images", shown=shown or {}, is_end=is_end
        )
        self._listener.hear(event)


def _write_outcome(
    folder: Path, spec: TrainingSpec, task: TrainingTask, model: nn.Module, result: TrainResult, test_images: int
) -> None:
    save_tensors(weights_path(folder, task.name), model.state_dict(), {"network": task.name})
    for name, average in result.averages.items():
        save_tensors(weights_path(folder, task.name, name), average.state_dict(), {"network": task.name})
    record = {
        "phase": spec.phase.value,
        "objective": task.config.objective,
        "epochs": [epoch.to_dict() for epoch in result.epochs],
        "averages": sorted(result.averages),
        "test_images": test_images,
    }
    write_atomically(outcome_path(folder, task.name), sealed(record))


def load_student(workload: Workload, subnetwork: Subnetwork | None, weights: Path) -> nn.Module:
    """Rebuild a trained network from which channels it keeps and its weights."""
    network = workload.open_network()
    if subnetwork is not None:
        network = slim(analyse(network, workload.recipe.input_shape), subnetwork)
    network.load_state_dict(load_tensors(weights)[0])
    return network.eval()
