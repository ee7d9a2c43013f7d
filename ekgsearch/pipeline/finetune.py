"""The phases that fine-tune the slim network and its baselines, one for each."""

from dataclasses import fields, replace
from typing import Any

from ekgsearch.artefact.file import save_file
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.finetune.objectives.registry import ObjectiveName, needs_of
from ekgsearch.pipeline.augmenting import finetune_augmentation
from ekgsearch.pipeline.bank import bank_address
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.decisions import final_subnetwork
from ekgsearch.pipeline.found import SEARCH, slim_file
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.structure import describe_slim
from ekgsearch.pipeline.train import train_by_backend, training_config
from ekgsearch.records import PhaseKind, Subnetwork
from ekgsearch.runtime.seeds import sub_seed
from ekgsearch.workers.training import Outcome, TrainingTask, load_student

SEMANTICS = 1

RESOLVED = frozenset({"objective", "seed", "milestones", "temperature"})
"""Fields that the section leaves open, or has in another form than the training takes."""


class Finetune(Phase):
    """Fine-tune one network: the slim one with the job's objective, or a baseline with cross-entropy alone.

    Attributes:
        objective: what its training minimises.
        search: instance of the phase that has left the network.
    """

    kind = PhaseKind.FINETUNE

    def __init__(self, network: str, objective: ObjectiveName, search: str = SEARCH) -> None:
        """Choose what is trained.

        Args:
            network: slim: what the search has found; plain: the same as a baseline; else the name of the baseline.
            objective: what its training minimises.
            search: instance of the phase that has left the network.
        """
        self.name = f"finetune-{network}"
        self.training = network
        self.objective = objective
        self.search = search

    def inputs(self, context: RunContext) -> Inputs:
        """The network, and everything that its training depends on."""
        setup, job = context.setup, context.setup.job
        choices: dict[str, Any] = {
            "seed": job.finetune_seed,
            "subnetwork": final_subnetwork(context, self.search).sha256,
        }
        files = {
            "weights": context.weights_sha256("warmup"),
            "slim": context.sha256_of(self.search, slim_file(self.search)),
        }
        if needs_of(self.objective).bank:
            line = context.committed("bank")
            assert line is not None, "the memory bank comes before the objectives that read it"
            choices["bank"] = line["manifest"]
        return Inputs(
            semantics=SEMANTICS,
            sections={
                "finetune": job.finetune.model_copy(
                    update={"objective": self.objective, "epochs": self._epochs(context)}
                ).identity()
            },
            files=files,
            images={
                "train": setup.selection(setup.train_ids),
                "test": setup.test.content_hash,
                "loader": setup.loader,
            },
            network=setup.network_identity,
            choices=choices,
            device=setup.devices.finetune,
            threads=job.cluster.threads_per_worker,
        )

    def run(self, context: RunContext) -> Result:
        """Train, in however many processes the job asks for."""
        subnetwork = final_subnetwork(context, self.search)
        task = TrainingTask(
            name=self.training,
            config=finetune_config(context, self.objective, self._epochs(context)),
            subnetwork=subnetwork,
            ids=context.setup.train_id_list,
            evaluate=True,
            initial=context.slim_weights(self.search),
        )
        bank = bank_address(context) if needs_of(self.objective).bank else None
        trained = train_by_backend(context, self.name, task, bank)
        return _write_final(context, subnetwork, trained) if self.training == "slim" else trained

    def _epochs(self, context: RunContext) -> int:
        """Those of the section, less those that a search in stages has trained for."""
        line = context.committed(self.search)
        assert line is not None, "a network is found before it is trained"
        return int(line.get("epochs_left", context.setup.job.finetune.epochs))


def _write_final(context: RunContext, subnetwork: Subnetwork, trained: Result) -> Result:
    """Write the trained slim network, and its averages, as files that say what they hold."""
    outcome = Outcome.read(context.training_folder, "slim")
    names = []
    for average, weights in {"": outcome.weights, **outcome.averages}.items():
        network = load_student(context.workload, subnetwork, weights)
        path = context.folder / (f"final_{average}.safetensors" if average else "final.safetensors")
        contents = f"fine-tuned, {average} average of its weights" if average else "fine-tuned"
        save_file(path, network.state_dict(), describe_slim(context.setup, subnetwork, contents))
        names.append(path.name)
    return Result(files=tuple(names), extras=(*trained.files, *trained.extras), fields={"weights": names[0]})


def finetune_config(context: RunContext, objective: ObjectiveName, epochs: int | None = None) -> FinetuneConfig:
    """How the section `finetune` of the job trains a network with an objective.

    Args:
        context: the run.
        objective: what the training minimises.
        epochs: of the training, where it is one of several that share those of the section; None for all of them.
    """
    setup, section = context.setup, context.setup.job.finetune
    if epochs is not None:
        shorter = {name: min(getattr(section, name), epochs) for name in ("warmup_epochs", "average_last")}
        section = section.model_copy(update={"epochs": epochs, **shorter})
    config = training_config(
        section,
        objective=objective,
        augmentation=finetune_augmentation(setup.job),
        seed=sub_seed(setup.job.finetune_seed, "finetune"),
        num_evaluations=20,
    )
    temperature = section.temperature or (10.0 if setup.dataset.num_classes >= 1000 else 4.0)
    taken = {item.name for item in fields(FinetuneConfig)} & type(section).model_fields.keys() - RESOLVED
    options = {name: getattr(section, name) for name in taken}
    return replace(config, temperature=temperature, **options)
