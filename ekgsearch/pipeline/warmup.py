"""The phase of a short training on the warm-up subset, before the search."""

from ekgsearch.data.views import Augmentation
from ekgsearch.experiment import Job
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.train import outcome_files, train_here
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.training import TrainingTask

SEMANTICS = 1

NO_AUGMENTATION = Augmentation(pad=0, flip=False, brightness=0, contrast=0, saturation=0)


class Warmup(Phase):
    """Train all weights for an epoch or so; without epochs the weights stay as they are."""

    kind = PhaseKind.WARMUP
    name = "warmup"
    training = "warmup"

    def inputs(self, context: RunContext) -> Inputs:
        """The weights; where they are trained, everything that a training depends on."""
        setup, job = context.setup, context.setup.job
        files = {"weights": context.weights_sha256("pretrain")}
        if not job.warmup.epochs:
            return Inputs(semantics=SEMANTICS, files=files, sections={"warmup": {"epochs": 0}})
        return Inputs(
            semantics=SEMANTICS,
            sections={"warmup": job.warmup.identity()},
            files=files,
            images={"warmup": setup.selection(setup.warmup_ids), "loader": setup.loader},
            network=setup.network_identity,
            choices={"seed": job.seed, "search.warmup_factor": job.search.warmup_factor},
            device=setup.device,
            threads=job.cluster.threads,
        )

    def run(self, context: RunContext) -> Result:
        """Train, or pass the weights on."""
        setup, weights = context.setup, context.weights("pretrain")
        if not setup.job.warmup.epochs:
            name = weights.relative_to(context.folder).as_posix()
            return Result(files=(name,), fields={"weights": name})
        config = warmup_config(setup.job, len(setup.warmup_ids))
        ids = tuple(setup.warmup_ids.tolist())
        task = TrainingTask(name=self.training, config=config, subnetwork=None, ids=ids, evaluate=False)
        train_here(context, self, task, weights)
        return outcome_files(context, self.training)


def warmup_config(job: Job, num_images: int) -> FinetuneConfig:
    """How the network is warmed up on so many images.

    A factor on the gradient of the loss (`SearchSection.warmup_factor`) leaves that of the weight decay as it is: the
    learning rate is multiplied by it, the decay divided.
    """
    section = job.warmup
    factor = job.search.warmup_factor
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
