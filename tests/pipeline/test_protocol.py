"""Phases that exist only here: two members of an ensemble, a level of a fading branch, a cut without workers.

They run through the same loop, journal, store and ledger as those of EKG, which know none of them.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import JOB

from ekgsearch.experiment import Job
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.context import RunContext
from ekgsearch.pipeline.phase import Inputs, Phase, Result
from ekgsearch.pipeline.pretrain import save_initial
from ekgsearch.pipeline.run import opened_run, run_phases
from ekgsearch.pipeline.search import write_found
from ekgsearch.pipeline.train import outcome_files, train_here, training_config
from ekgsearch.pipeline.warmup import NO_AUGMENTATION, Warmup
from ekgsearch.records import PhaseKind
from ekgsearch.runtime.ledger import Ledger
from ekgsearch.runtime.listener import SILENT
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.tensors import load_tensors, save_tensors
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.training import TrainingTask


class Member(Phase):
    """A network trained by itself, under a seed of its own."""

    kind = PhaseKind.PRETRAIN

    def __init__(self, index: int, seed: int) -> None:
        self.name = self.training = f"member-{index}"
        self._seed = seed

    def inputs(self, context: RunContext) -> Inputs:
        setup = context.setup
        return Inputs(
            semantics=1,
            sections={"pretrain": setup.job.pretrain.identity()},
            images={"train": setup.selection(setup.train_ids)},
            network=setup.network_identity,
            choices={"seed": self._seed},
            device=setup.device,
            threads=setup.job.cluster.threads,
        )

    def run(self, context: RunContext) -> Result:
        section = context.setup.job.pretrain
        config = training_config(
            section, objective="plain", augmentation=NO_AUGMENTATION, seed=self._seed, num_evaluations=1
        )
        task = TrainingTask(name=self.training, config=config, subnetwork=None, ids=None, evaluate=False)
        train_here(context, self, task, save_initial(context.setup, context.folder))
        return outcome_files(context, self.training)


class Merge(Phase):
    """The mean of the members' weights, as the file that the phases after it start from."""

    kind = PhaseKind.PRETRAIN
    name = "pretrain"

    def inputs(self, context: RunContext) -> Inputs:
        return Inputs(semantics=1, files={name: context.weights_sha256(name) for name in ("member-0", "member-1")})

    def run(self, context: RunContext) -> Result:
        states = [load_tensors(context.weights(f"member-{index}"))[0] for index in range(2)]
        mean = {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(states[0][name].dtype)
            for name in states[0]
        }
        save_tensors(context.folder / "merged.safetensors", mean, {"network": "merged"})
        return Result(files=("merged.safetensors",), fields={"weights": "merged.safetensors"})


class Level(Warmup):
    """One level of a branch that is faded: one training, which starts from the level before."""

    name = "level-00"

    def inputs(self, context: RunContext) -> Inputs:
        found = super().inputs(context)
        return replace(found, choices={**found.choices, "alpha": 0.5})


class Cut(Phase):
    """A method that needs neither workers nor teachers: it keeps the first half of the first channel group."""

    kind = PhaseKind.SEARCH
    name = "search"

    def inputs(self, context: RunContext) -> Inputs:
        return Inputs(semantics=1, files={"weights": context.weights_sha256("warmup")}, choices={"beta": 0.7})

    def run(self, context: RunContext) -> Result:
        group = context.setup.graph.groups[0]
        return write_found(context, context.setup.graph.full().replace(group.name, range(group.size // 2)))


def phases(seeds: tuple[int, int]) -> tuple[Phase, ...]:
    return Member(0, seeds[0]), Member(1, seeds[1]), Merge(), Warmup(), Level(), Cut()


def ran(folder: Path, name: str, seeds: tuple[int, int]) -> tuple[Job, list[dict]]:
    (folder / "job.yaml").write_text(JOB.format(output="run"))
    settings = (f"output={folder / name}", f"phases.uri={folder / 'store'}", "pretrain.epochs=1")
    job = load_job(folder / "job.yaml", settings)
    job.run_dir.mkdir()
    with opened_run(
        job, InProcessBackend(), lambda _: phases(seeds), listener=SILENT, continue_anyway=False
    ) as context:
        run_phases(context, after_each=lambda _: None)
    return job, read_journal(job.run_dir / "journal.jsonl")


@pytest.mark.slow
def test_other_methods_fit_the_protocol_and_share_what_is_equal(tmp_path: Path) -> None:
    first, lines = ran(tmp_path, "first", (5, 6))
    keys = {line["phase"]: line["key"] for line in lines if line["kind"] == "begin"}
    assert list(keys) == ["member-0", "member-1", "pretrain", "warmup", "level-00", "search"]
    assert len(set(keys.values())) == 6
    second, others = ran(tmp_path, "second", (5, 7))
    shared = {row.instance for row in Ledger(second.run_dir / "ledger", "second").rows() if row.exit_state == "shared"}
    assert shared == {"member-0"}
    other = {line["phase"]: line["key"] for line in others if line["kind"] == "begin"}
    assert [name for name in keys if keys[name] != other[name]] == [
        "member-1",
        "pretrain",
        "warmup",
        "level-00",
        "search",
    ]
    third, _ = ran(tmp_path, "third", (6, 5))
    shared = {row.instance for row in Ledger(third.run_dir / "ledger", "third").rows() if row.exit_state == "shared"}
    assert shared == {"warmup", "level-00", "search"}, "the mean is the same file, which is what these start from"
    names = [f"training/member-{index}.safetensors" for index in range(2)]
    states = [[load_tensors(run.run_dir / name)[0] for name in names] for run in (first, third)]
    for one, other in zip(states[0], reversed(states[1]), strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
