"""The typed job: one YAML file is one run."""

import os
import re
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from ekgsearch.errors import JobError
from ekgsearch.finetune.config import EMBEDDING_OBJECTIVES
from ekgsearch.records import content_hash
from ekgsearch.search.steps import expand_reference
from ekgsearch.sections.bank import BankSection
from ekgsearch.sections.base import Section
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.sections.data import DataSection, NetSection
from ekgsearch.sections.search import SearchSection
from ekgsearch.sections.training import FinetuneSection, PretrainSection, WarmupSection

THREADS = ("threads", "threads_per_worker")
"""Fields of the section `cluster` that are part of the arithmetic."""


class Job(Section):
    """One run: what to shrink, on which images, how, and where to write."""

    UNHASHED: ClassVar[dict[str, Any]] = {
        "output": True,
        "search_run": True,
        "cluster": True,
        "bank": {"uri", "cache", "resident"},
    }
    """Fields that change no result."""

    output: str = Field(description="run directory; $VARIABLES are expanded")
    seed: int = Field(1, ge=0, description="seed of every random choice that is not a method's constant")
    search_run: str | None = Field(
        None,
        description="directory of a run whose finished search is adopted: same seed, network, data, warm-up, search, "
        "another fine-tuning; null: search here. $VARIABLES are expanded",
    )
    net: NetSection = Field(default_factory=NetSection)
    data: DataSection = Field(default_factory=DataSection)
    pretrain: PretrainSection = Field(default_factory=PretrainSection)
    warmup: WarmupSection = Field(default_factory=WarmupSection)
    search: SearchSection
    bank: BankSection = Field(default_factory=BankSection)
    finetune: FinetuneSection = Field(default_factory=FinetuneSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)

    @model_validator(mode="before")
    @classmethod
    def _expand_reference(cls, values: Any) -> Any:
        return expand_reference(values)

    @model_validator(mode="after")
    def _agree(self) -> "Job":
        if (self.search.reduction is None) == (self.search.budget is None):
            raise ValueError("search: give exactly one of search.reduction (a share) and search.budget (a cost)")
        if self.net.weights is None and self.pretrain.epochs == 0:
            raise ValueError("net.weights is null and pretrain.epochs is 0: give weights or epochs to train them")
        if self.data.name in ("image_folder", "parquet") and self.data.root is None:
            raise ValueError(f"data.root is null: data.name {self.data.name} needs the folder that holds train and val")
        for name, section in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if any(not 0 < share < 1 for share in section.milestones):
                raise ValueError(f"{name}.milestones = {list(section.milestones)}: shares of the epochs, each in 0..1")
        if self.finetune.batch_size % (self.finetune.workers * self.finetune.accumulate):
            raise ValueError(
                f"finetune.batch_size = {self.finetune.batch_size} does not divide over "
                f"finetune.workers = {self.finetune.workers} x finetune.accumulate = {self.finetune.accumulate}"
            )
        share = self.finetune.batch_size // (self.finetune.workers * self.finetune.accumulate)
        if self.finetune.objective in EMBEDDING_OBJECTIVES and share < 2:
            raise ValueError(
                f"finetune.objective {self.finetune.objective} compares images: expected at least 2 per process and "
                f"micro-batch, found {share} (finetune.batch_size = {self.finetune.batch_size} over finetune.workers x "
                "finetune.accumulate); raise finetune.batch_size"
            )
        if self.finetune.average_last > self.finetune.epochs:
            raise ValueError(
                f"finetune.average_last = {self.finetune.average_last}, but there are only "
                f"finetune.epochs = {self.finetune.epochs}"
            )
        if self.search.method == "uniform" and self.finetune.objective not in ("plain", "single"):
            raise ValueError(
                "search.method uniform leaves no interim sub-networks, so finetune.objective "
                f"{self.finetune.objective} has no teachers; use plain or single"
            )
        return self

    @property
    def deciding_fields(self) -> dict[str, Any]:
        """Every field that can change a result, by dotted name: not the output folder, not where the work runs.

        The numbers of threads are among them: they are part of the arithmetic. Several fine-tuning workers without
        `synchronised_norm` have batch statistics of their own, each over its share of a batch; then their number is
        part of the result, and otherwise stands as 1.
        """
        fields = flat(self.model_dump(mode="json", exclude=self.UNHASHED))
        for name in THREADS:
            fields[f"cluster.{name}"] = getattr(self.cluster, name)
        del fields["data.loader_threads"], fields["finetune.checkpoint_every_steps"]
        if self.finetune.synchronised_norm:
            fields["finetune.workers"] = 1
        return fields

    @property
    def sha256(self) -> str:
        """Hash of everything that can change a result."""
        return content_hash(self.deciding_fields)

    @property
    def finetune_seed(self) -> int:
        """Seed of the fine-tuning: its own, else that of the job."""
        return self.seed if self.finetune.seed is None else self.finetune.seed

    @property
    def run_name(self) -> str:
        """Name of the run in every table: the last part of its directory."""
        return self.run_dir.name

    @property
    def run_dir(self) -> Path:
        """The run directory, variables expanded, absolute."""
        return expand_path(self.output, "output").absolute()


def expand_path(text: str, field: str) -> Path:
    """Expand ``$VARIABLES`` and ``~`` in a path of the job.

    Raises:
        JobError: a variable is not set.
    """
    missing = [name for name in re.findall(r"\$\{?(\w+)\}?", text) if name not in os.environ]
    if missing:
        raise JobError(f"{field} = {text}: the environment variable {missing[0]} is not set; set it or give a path")
    return Path(os.path.expandvars(text)).expanduser()


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def job_schema() -> dict[str, Any]:
    """JSON schema of a job file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}
