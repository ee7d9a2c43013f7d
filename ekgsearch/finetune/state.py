"""State of a training: network, heads, optimiser, averages, and where in the epochs it stands."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ekgsearch.finetune.average import WeightAverage
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.metrics import EpochMetrics
from ekgsearch.finetune.objectives.base import Given, Objective
from ekgsearch.finetune.objectives.registry import objective_class
from ekgsearch.finetune.student import Answer, Student
from ekgsearch.finetune.synchronised_norm import synchronise_norms
from ekgsearch.finetune.world import World


@dataclass
class Running:
    """The epoch under way.

    Attributes:
        sums: sums over this process' images so far: what `Objective.names` lists, replaced images, images; float64.
        step: steps that are done.
        skipped: of them, those without a finite loss and gradient.
        seconds: wall time so far, seconds; that before a resume included.
        waited: part of it in which this process waited for views and rows of the memory bank.
        learning_rate: rate of the last step.
    """

    sums: Tensor
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    learning_rate: float = float("nan")

    @classmethod
    def begin(cls, objective: Objective) -> "Running":
        """An epoch without a step."""
        device = objective.given.world.device
        return cls(torch.zeros(len(objective.names) + 2, dtype=torch.float64, device=device))


@dataclass
class TrainState:
    """Everything that training changes, and what a checkpoint holds.

    Attributes:
        model: the network itself.
        objective: student, heads and losses.
        parallel: the objective as it is called: alone, or wrapped so that gradients are averaged over processes.
        optimizer: optimiser of network and heads.
        running: the epoch under way.
        averages: averages of the weights by name: `ema`, `averaged`.
        history: the epochs that are done.
        skipped_in_a_row: steps without a finite loss and gradient since the last good one.
    """

    model: nn.Module
    objective: Objective
    parallel: nn.Module
    optimizer: torch.optim.SGD
    running: Running
    averages: dict[str, WeightAverage] = field(default_factory=dict)
    history: list[EpochMetrics] = field(default_factory=list)
    skipped_in_a_row: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """The epoch under way, from 1."""
        return len(self.history) + 1

    @property
    def following(self) -> list[nn.Module]:
        """The networks whose running statistics move in every step: the network itself and its moving average."""
        return [self.model, self.averages["ema"].network] if "ema" in self.averages else [self.model]

    def release(self) -> None:
        """Leave the network as a plain one in evaluation mode: without hooks, with its own batch norms."""
        for undo in reversed(self._undo):
            undo()
        self.model.eval()


def start(
    model: nn.Module,
    config: FinetuneConfig,
    world: World,
    *,
    teacher: nn.Module | None = None,
    classifier: str | None = None,
    teacher_width: int = 0,
) -> TrainState:
    """Place a network on its device and give it its heads, its averages and its optimiser.

    The optimiser is SGD with momentum, by default Nesterov's; the weight decay is added to the gradient of all
    parameters, normalisation and biases included (EKG, arXiv 2203.02651), those of the heads, too.

    Args:
        model: network to train; `TrainState.release` undoes what is done to it beside the training.
        config: what decides the result.
        world: this process.
        teacher: unpruned network, for an objective that needs it.
        classifier: path of the linear layer whose input is the embedding, for an objective that needs embeddings.
        teacher_width: features of an embedding in the memory bank, for the same.
    """
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    model.to(world.device, memory_format=layout)  # type: ignore[call-overload]
    averages = {}
    if config.ema_decay:
        averages["ema"] = WeightAverage(model)
    if config.average_last:
        averages["averaged"] = WeightAverage(model)
    if teacher is not None:
        teacher.to(world.device, memory_format=layout)  # type: ignore[call-overload]
        teacher.eval()
    student = Student(model, config, classifier if config.needs.embeddings else None)
    objective = objective_class(config.objective)(
        Given(
            student=student,
            config=config,
            world=world,
            teacher=None if teacher is None else _outputs_of(Student(teacher, config)),
            teacher_width=teacher_width,
        )
    )
    undo = [student.release]
    if config.synchronised_norm:
        undo += [synchronise_norms(module, world) for module in (objective, *objective.followers.values())]
    if config.compile:
        student.compile()
    optimizer = torch.optim.SGD(
        objective.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=world.device.type == "cuda",
    )
    return TrainState(
        model,
        objective,
        world.wrap(objective),
        optimizer,
        Running.begin(objective),
        averages=averages,
        _undo=undo,
    )


def _outputs_of(teacher: Student) -> Callable[[Tensor], Tensor]:
    """A network as a function of views without a gradient, whose outputs are all that is asked of it."""

    @torch.no_grad()
    def outputs(views: Tensor) -> Tensor:
        answer: Answer = teacher(views)
        return answer.outputs

    return outputs
