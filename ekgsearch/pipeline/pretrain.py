"""The phase that gives the weights that a run begins with: given ones, or those of a training."""

from pathlib import Path

from ekgsearch.artefact.file import save_file
from ekgsearch.pipeline.augmenting import pretrain_augmentation
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.network import weights_path
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.setup import Setup
from ekgsearch.pipeline.structure import describe_unpruned
from ekgsearch.pipeline.train import outcome_files, train_here, training_config
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.storage.files import file_sha256
from ekgsearch.workers.training import TrainingTask

SEMANTICS = 1


class Pretrain(Phase):
    """Take the given weights, or train the unpruned network."""

    kind = PhaseKind.PRETRAIN
    name = "pretrain"
    training = "full"

    def inputs(self, context: RunContext) -> Inputs:
        """The given weights; without them everything that a training depends on."""
        setup, job = context.setup, context.setup.job
        given = {} if job.net.weights is None else {"net.weights": file_sha256(weights_path(job.net))}
        if not job.net.trains_first:
            return Inputs(semantics=SEMANTICS, files=given, network=setup.network_identity)
        images = {
            "train": setup.selection(setup.train_ids),
            "test": setup.test.content_hash,
            "loader": setup.loader,
        }
        return Inputs(
            semantics=SEMANTICS,
            sections={"pretrain": job.pretrain.identity()},
            files=given,
            images=images,
            network=setup.network_identity,
            choices={"seed": job.seed},
            device=setup.device,
            threads=job.cluster.threads,
        )

    def run(self, context: RunContext) -> Result:
        """Write the given weights, or train."""
        setup, section = context.setup, context.setup.job.pretrain
        initial = save_initial(setup, context.folder)
        if not setup.job.net.trains_first:
            return Result(files=(initial.name,), fields={"weights": initial.name})
        config = training_config(
            section,
            objective="plain",
            augmentation=pretrain_augmentation(setup.job),
            seed=sub_seed(setup.job.seed, "pretrain"),
            num_evaluations=10,
        )
        task = TrainingTask(name=self.training, config=config, subnetwork=None, ids=setup.train_id_list, evaluate=True)
        train_here(context, self, task, initial)
        return outcome_files(context, self.training)


def save_initial(setup: Setup, folder: Path) -> Path:
    """Write the weights that a run begins with, given or fresh; equal weights give equal bytes."""
    path = folder / "initial.safetensors"
    given, section = setup.job.net.weights is not None, setup.job.net
    contents = "given weights" if given else "fresh weights, untrained"
    if section.new_classifier:
        contents += ", the last layer fresh and untrained"
    save_file(path, setup.network.state_dict(), describe_unpruned(setup, contents))
    return path
