"""A short training on the warm-up subset before the search."""

from ekgsearch.data.views import Augmentation
from ekgsearch.experiment import Job
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.train import train_here
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.training import TrainingTask

NO_AUGMENTATION = Augmentation(pad=0, flip=False, brightness=0, contrast=0, saturation=0)


def warm_up(state: RunState) -> None:
    """Commit the weights after a short training on the warm-up subset."""
    if state.line("warmup"):
        state.committed("warmup")
        return
    setup, section = state.setup, state.setup.job.warmup
    path = state.committed("pretrain")
    assert path is not None
    if section.epochs:
        config = warmup_config(setup.job, len(setup.warmup_ids))
        ids = tuple(setup.warmup_ids.tolist())
        task = TrainingTask(name="warmup", config=config, subnetwork=None, ids=ids, evaluate=False)
        path = train_here(state, PhaseKind.WARMUP, task, path)
    state.commit("warmup", path)


def warmup_config(job: Job, num_images: int) -> FinetuneConfig:
    """How the network is warmed up on so many images.

    With the quirk `halved_warmup_divisor` the gradient of the loss is doubled and that of the weight decay is not:
    twice the learning rate and half the decay.
    """
    section = job.warmup
    factor = 2 if "halved_warmup_divisor" in job.search.quirks else 1
    return FinetuneConfig(
        objective="plain",
        epochs=section.epochs,
        batch_size=min(section.batch_size, num_images),
        learning_rate=section.learning_rate * factor,
        milestones=(),
        weight_decay=section.weight_decay / factor,
        augmentation=NO_AUGMENTATION,
        seed=sub_seed(job.seed, "warmup"),
        shuffle=False,
    )
