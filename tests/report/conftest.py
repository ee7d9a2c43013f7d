"""A synthetic run directory: ResNet-56 on CIFAR-10 with half of its MACs removed, as a search would leave it."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ekgsearch.records import canonical_json
from ekgsearch.rows.run import DeviceHoursRow, LatencyRow, SummaryRow
from ekgsearch.rows.search import AuditRow, CandidateRow, IterationRow, SubnetworkRow
from ekgsearch.rows.training import BaselineRow, EpochRow, StageRow
from ekgsearch.storage.tables import write_table

FULL_MACS, FULL_PARAMS = 125_747_840, 855_770
DEVICE = "NVIDIA H200"

JOB = """# ResNet-56 on CIFAR-10, half of the MACs removed.
# Reproduces: EKG (arXiv 2203.02651), Table 1, row 50.12 %.
name: resnet56-cifar10-50
seed: {seed}
data: {{name: cifar10, root: data/cifar10}}
network: {{name: resnet56}}
search: {{method: ekg, reduction: 0.5, step: 0.2}}
bank: {{teachers: 5, temperature: 4}}
finetune: {{objective: ekg, epochs: 100, batch_size: 128, learning_rate: 0.01}}
"""


def groups() -> dict[str, int]:
    """The 30 channel groups of ResNet-56 by name, with their sizes."""
    sizes = {"conv1": 16}
    for stage, size in ((1, 16), (2, 32), (3, 64)):
        if stage > 1:
            sizes[f"layer{stage}.0.shortcut.0"] = size
        sizes |= {f"layer{stage}.{block}.conv1": size for block in range(9)}
    return sizes


class SyntheticRun:
    """Makes the rows of one run from a seed; every number is invented, but of the size a real run has."""

    def __init__(self, name: str, seed: int, reduction: float, objective: str, method: str) -> None:
        self.name, self.seed, self.reduction = name, seed, reduction
        self.objective, self.method = objective, method
        self.random = np.random.default_rng(seed)
        self.sizes = groups()
        self.kept = dict(self.sizes)
        self.iterations: list[IterationRow] = []
        self.candidates: list[CandidateRow] = []
        self.subnetworks: list[SubnetworkRow] = []
        self._search()

    def _search(self) -> None:
        self._iteration(0, "", 0, 0.0, math.nan)
        removed, iteration = 0.0, 0
        while removed < self.reduction:
            iteration += 1
            open_groups = [name for name, kept in self.kept.items() if kept > 2]
            tried = sorted(self.random.choice(len(open_groups), size=min(20, len(open_groups)), replace=False))
            rewards = {open_groups[index]: self._reward(removed) for index in tried}
            winner = max(rewards, key=lambda name: rewards[name])
            self.kept[winner] -= max(1, round(0.2 * self.sizes[winner]))
            self.kept[winner] = max(self.kept[winner], 2)
            self._candidates(iteration, rewards, winner, removed)
            removed = min(removed + float(self.random.uniform(0.004, 0.013)), 0.7)
            self._iteration(iteration, winner, len(rewards), removed, 0.31)

    def _reward(self, removed: float) -> float:
        tail = self.random.exponential(0.03) if self.random.uniform() > 0.03 else self.random.uniform(0.3, 1.5)
        return -(0.11 + 0.9 * removed**2.4) - float(tail)

    def _candidates(self, iteration: int, rewards: dict[str, float], winner: str, removed: float) -> None:
        for name, reward in rewards.items():
            macs = int(FULL_MACS * (1 - removed - self.random.uniform(0.003, 0.012)))
            loss, kept = -0.55 * reward, max(1, self.kept[name] - 2)
            row = CandidateRow(
                self.name, iteration, name, kept, loss, -reward, reward, 99 - 20 * loss, macs, name == winner, 320
            )
            self.candidates.append(row)

    def _iteration(self, iteration: int, group: str, tried: int, removed: float, threshold: float) -> None:
        score = 0.11 + 0.9 * removed**2.4 + float(self.random.normal(0, 0.003))
        loss = 0.55 * score
        self.iterations.append(
            IterationRow(
                run=self.name,
                iteration=iteration,
                channel_group=group,
                num_kept=self.kept.get(group, 0),
                num_candidates=tried,
                threshold=threshold,
                loss=loss,
                score=score,
                search_top1=98.8 - 26 * loss,
                kept_macs=int(FULL_MACS * (1 - removed)),
                macs_reduction=removed,
                kept_params=int(FULL_PARAMS * (1 - 0.55 * removed)),
                params_reduction=0.55 * removed,
            )
        )
        teachers = {0: 0, 22: 1, 34: 2, 43: 3, 49: 4}
        for name, size in self.sizes.items():
            kept = json.dumps(list(range(self.kept[name])))
            teacher = teachers.get(iteration, -1)
            self.subnetworks.append(SubnetworkRow(self.name, iteration, teacher, name, size, self.kept[name], kept))

    def epochs(self) -> list[EpochRow]:
        """Two trainings: 200 epochs of the unpruned network, 100 of the slim one and of each baseline."""
        rows = self._training("pretrain", "full", "plain", 200, (60, 120, 160), 93.84, 70.0)
        rows += self._training("warmup", "full", "plain", 1, (), 93.8, 93.0)
        for network, objective, final in (
            ("slim", self.objective, 94.09),
            ("plain", "plain", 93.78),
            ("uniform", "plain", 93.02),
        ):
            rows += self._training("finetune", network, objective, 100, (30, 60, 80), final, 91.0)
        return rows

    def _training(
        self, phase: str, network: str, objective: str, epochs: int, drops: tuple[int, ...], final: float, start: float
    ) -> list[EpochRow]:
        rows = []
        for epoch in range(1, epochs + 1):
            level = sum(epoch > drop for drop in drops)
            progress = (1 - math.exp(-epoch / (0.06 * epochs))) * (0.55 + 0.15 * level if drops else 1)
            wobble = float(self.random.normal(0, 0.8 / (1 + 2 * level)))
            test = start + (final - start) * min(progress, 1.0) + wobble * (epoch < epochs)
            label = 1.6 * math.exp(-4 * progress) + 0.02
            distillation = 0.6 * math.exp(-2 * progress) if objective == "ekg" else 0.0
            rows.append(
                EpochRow(
                    run=self.name,
                    phase=phase,
                    network=network,
                    objective=objective,
                    epoch=epoch,
                    learning_rate=0.1 * 0.2**level,
                    loss=label + distillation,
                    loss_label=label,
                    loss_distillation=distillation,
                    num_teachers_used=3.2 if distillation else 0.0,
                    train_top1=min(test + 6 * progress, 99.8),
                    test_top1=test,
                    images=50_000,
                    wall_seconds=9.5,
                    loss_views=-0.5 * progress if objective == "byol" else 0.0,
                    ema_top1=test + 0.1 if objective == "byol" else math.nan,
                    averaged_top1=test + 0.2 if objective == "byol" and epoch == epochs else math.nan,
                    skipped_steps=int(objective == "byol" and epoch == 1),
                )
            )
        return rows

    def device_hours(self) -> list[DeviceHoursRow]:
        """One attempt per phase, and a search that died once and was resumed."""
        rows = []
        for phase, attempt, seconds, busy, state in (
            ("pretrain", 1, 1590, 0.97, "finished"),
            ("warmup", 1, 14, 0.6, "finished"),
            ("search", 1, 211, 0.9, "died"),
            ("search", 2, 505, 0.93, "finished"),
            ("bank", 1, 41, 0.8, "finished"),
            ("finetune", 1, 2410, 0.95, "finished"),
            ("evaluate", 1, 22, 0.5, "finished"),
        ):
            held = float(seconds)
            rows.append(
                DeviceHoursRow(
                    run=self.name,
                    phase=phase,
                    instance=phase,
                    attempt=attempt,
                    device=DEVICE,
                    num_devices=1,
                    wall_seconds=held,
                    busy_seconds=busy * held,
                    idle_seconds=(1 - busy) * held,
                    device_hours=held / 3600,
                    exit_state=state,
                    producer=self.name,
                )
            )
        return rows

    def baselines(self) -> list[BaselineRow]:
        """A baseline that the summary has no column for."""
        last = self.iterations[-1]
        return [
            BaselineRow(
                run=self.name,
                network="scratch",
                method="ekg",
                groups="all",
                stages=1,
                objective="plain",
                counter="macs",
                kept_macs=last.kept_macs,
                macs_reduction=last.macs_reduction,
                kept_params=last.kept_params,
                params_reduction=last.params_reduction,
                epochs=100,
                top1=87.5,
                best_top1=88.0,
            )
        ]

    def latencies(self) -> list[LatencyRow]:
        """The final network by two backends."""
        times = {"full_ms": 8.0, "slim_ms": 4.0, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1, "noise": 1.05}
        machine = {"device": "cpu", "cpu": "a processor", "threads": 2, "torch": "2.15.0"}
        return [
            LatencyRow(run=self.name, network="final", contents="slim", backend=backend, batch=64, **times, **machine)
            for backend in ("eager", "onnx")
        ]

    def stages(self) -> list[StageRow]:
        """A baseline in three stages, of which the second has fallen too far."""
        return [
            StageRow(
                run=self.name,
                network="l1-3-stages",
                method="l1",
                groups="all",
                stage=number,
                kept_macs=round((1 - removed) * 125_000_000),
                macs_reduction=removed,
                kept_params=round((1 - removed) * 850_000),
                params_reduction=removed,
                epochs=30,
                top1=top1,
                held=number != 2,
            )
            for number, removed, top1 in ((1, 0.2, 92.0), (2, 0.4, 80.0), (3, 0.2, 92.5))
        ]

    def audit(self) -> list[AuditRow]:
        """Four decisions repeated, one of them with another outcome."""
        return [
            AuditRow(
                run=self.name,
                iteration=row.iteration,
                channel_group=row.channel_group,
                num_kept=row.num_kept,
                exact_channel_group=row.channel_group if index else "conv1",
                exact_num_kept=row.num_kept,
                agrees=index > 0,
                score=row.score,
                exact_score=row.score - (0 if index else 0.004),
                regret=0 if index else 0.004,
                shortlist_shared=1.0 if index else 0.8,
            )
            for index, row in enumerate(self.iterations[3:20:5])
        ]

    def summary(self, **changes: Any) -> SummaryRow:
        """The result of the run."""
        last = self.iterations[-1]
        wobble = float(self.random.normal(0, 0.07))
        values: dict[str, Any] = {
            "run": self.name,
            "method": self.method,
            "dataset": "cifar10",
            "architecture": "resnet56",
            "objective": self.objective,
            "seed": self.seed,
            "finetune_seed": self.seed,
            "full_top1": 93.84,
            "searched_top1": 78.31,
            "recalibrated_top1": 88.02,
            "final_top1": 94.45 - 3 * (self.reduction - 0.4) ** 2 - 0.35 * self.reduction + wobble,
            "best_top1": 94.55 - 3 * (self.reduction - 0.4) ** 2 - 0.35 * self.reduction + wobble,
            "plain_top1": 93.78,
            "uniform_top1": 93.02,
            "counter": "macs",
            "full_macs": FULL_MACS,
            "kept_macs": last.kept_macs,
            "macs_reduction": last.macs_reduction,
            "full_params": FULL_PARAMS,
            "kept_params": last.kept_params,
            "params_reduction": last.params_reduction,
            "full_latency_ms": 3.92,
            "slim_latency_ms": 3.78,
            "full_latency_batch64_ms": 11.6,
            "slim_latency_batch64_ms": 7.21,
            "iterations": last.iteration,
            "candidates": len(self.candidates),
            "device_hours": sum(row.device_hours for row in self.device_hours()),
            "device": DEVICE,
            "finetune_epochs": 100,
            "latency_ratio": 1.04,
            "latency_ratio_low": 0.97,
            "latency_ratio_high": 1.12,
            "latency_noise": 1.09,
            "latency_ratio_batch64": 1.61,
            "latency_ratio_low_batch64": 1.55,
            "latency_ratio_high_batch64": 1.66,
            "latency_noise_batch64": 1.03,
        }
        return SummaryRow(**{**values, **changes})

    def write(self, folder: Path, tables: tuple[str, ...], changes: dict[str, Any]) -> Path:
        """Write the run directory; only the named tables."""
        (folder / "tables").mkdir(parents=True)
        (folder / "job.yaml").write_text(JOB.format(seed=self.seed))
        provenance = {
            "python": "3.11.15",
            "torch": "2.15.0",
            "ray": "2.60.0",
            "platform": "Linux-6.1-x86_64",
            "devices": [DEVICE],
            "cores": 16,
            "commit": hashlib.sha1(b"x").hexdigest(),
        }
        (folder / "provenance.json").write_text(json.dumps(provenance))
        (folder / "journal.jsonl").write_text(canonical_json({"kind": "start"}) + "\n")
        rows: dict[str, tuple[list[Any], type]] = {
            "iterations": (self.iterations, IterationRow),
            "candidates": (self.candidates, CandidateRow),
            "subnetworks": (self.subnetworks, SubnetworkRow),
            "epochs": (self.epochs(), EpochRow),
            "device_hours": (self.device_hours(), DeviceHoursRow),
            "audit": (self.audit(), AuditRow),
            "baselines": (self.baselines(), BaselineRow),
            "stages": (self.stages(), StageRow),
            "latencies": (self.latencies(), LatencyRow),
            "summary": ([self.summary(**changes)], SummaryRow),
        }
        for name in tables:
            write_table(folder / "tables" / f"{name}.parquet", *rows[name])
        return folder


TABLES = (
    "iterations",
    "candidates",
    "subnetworks",
    "epochs",
    "device_hours",
    "audit",
    "baselines",
    "stages",
    "latencies",
    "summary",
)


def make_run(
    folder: Path,
    *,
    seed: int = 1,
    reduction: float = 0.5,
    objective: str = "ekg",
    method: str = "ekg",
    tables: tuple[str, ...] = TABLES,
    **changes: Any,
) -> Path:
    """Write a synthetic run directory named like its folder and return it.

    `changes` replace columns of the summary row.
    """
    return SyntheticRun(folder.name, seed, reduction, objective, method).write(folder, tables, changes)


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    return make_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that no test changes."""
    return make_run(tmp_path_factory.mktemp("runs") / "resnet56-half")
