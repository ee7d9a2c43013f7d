"""The weights that a run begins with: given ones, or those of a training."""

from pathlib import Path

from ekgsearch.pipeline.augmenting import pretrain_augmentation
from ekgsearch.pipeline.setup import Setup
from ekgsearch.pipeline.state import RunState
from ekgsearch.pipeline.train import train_here, training_config
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.training import TrainingTask


def pretrain(state: RunState) -> None:
    """Commit the weights of the unpruned network: the given ones, or trained ones."""
    if state.line("pretrain"):
        state.committed("pretrain")
        return
    setup, section = state.setup, state.setup.job.pretrain
    path = save_initial(setup, state.folder)
    if setup.job.net.weights is None:
        config = training_config(
            section,
            objective="plain",
            augmentation=pretrain_augmentation(setup.job),
            seed=sub_seed(setup.job.seed, "pretrain"),
            num_evaluations=10,
        )
        ids = None if setup.train_ids is None else tuple(setup.train_ids.tolist())
        task = TrainingTask(name="full", config=config, subnetwork=None, ids=ids, evaluate=True)
        path = train_here(state, PhaseKind.PRETRAIN, task, path)
    state.commit("pretrain", path)


def save_initial(setup: Setup, folder: Path) -> Path:
    """Write the weights that a run begins with, given or fresh; equal weights give equal bytes."""
    path = folder / "initial.safetensors"
    save_tensors(path, setup.network.state_dict(), {"network": setup.net.name})
    return path
