"""Section of a job: workers, their devices, and what happens when they are lost."""

import os
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from ekgsearch.fields import MOST, Amount, Count, Mark, Seconds, Section, Text, Threads
from ekgsearch.methods.evaluate import PREFIX_BYTES
from ekgsearch.runtime.environment import default_threads

DriverThreads = Annotated[
    int,
    Field(ge=1, le=1024),
    BeforeValidator(lambda value: default_threads() if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 1024}, {"type": "null"}]}),
]
"""A number of threads; null is resolved where the job is read, so that it is the number that is recorded."""


class ClusterSection(Section):
    """Where the work runs."""

    search_workers: Annotated[int, Mark.NO_RESULT] = Field(
        0, ge=0, le=4096, description="long-lived Ray workers of search and bank; 0: in this process"
    )
    address: Annotated[Text | None, Mark.NO_RESULT] = Field(
        None, description="address of a running Ray cluster; null: $RAY_ADDRESS, else local"
    )
    placement: Annotated[Literal["spread", "pack"], Mark.NO_RESULT] = Field(
        "spread", description="search workers over as many nodes as possible, or as few as possible"
    )
    cpus_per_worker: Annotated[Amount | None, Mark.NO_RESULT] = Field(
        None, description="cores that one worker holds; below 1 several share one; null: one for each thread"
    )
    gpus_per_worker: Annotated[Amount, Mark.NO_RESULT] = Field(
        1, description="GPUs that one search worker holds where the device is cuda; below 1 several share one"
    )
    threads: DriverThreads = Field(
        default_factory=default_threads,
        description="torch threads of the process that runs the job: pre-training, warm-up, evaluation (part of the "
        "arithmetic); null: $OMP_NUM_THREADS, else one per core",
    )
    threads_per_worker: Threads = Field(
        1, description="torch threads of one worker of search, bank and fine-tuning (part of the arithmetic)"
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], Mark.NO_RESULT] = Field(
        "auto",
        description="auto: cuda where this machine has it; for workers of a named cluster: where a node of it does",
    )
    max_restarts: Annotated[int, Mark.NO_RESULT] = Field(
        3,
        ge=0,
        le=1000,
        description="times in a row that a lost worker is replaced, with no answer or checkpoint, before the run stops",
    )
    start_timeout_seconds: Annotated[Seconds, Mark.NO_RESULT] = Field(
        300,
        description="a search worker that has not started for so long is replaced; the next one gets twice as long",
    )
    timeout_seconds: Annotated[Seconds, Mark.NO_RESULT] = Field(
        1800, description="a worker that answers nothing for so long is replaced"
    )
    prefix_mb: Annotated[Count, Mark.NO_RESULT] = Field(
        PREFIX_BYTES // 1_000_000,
        description="megabytes of feature maps that a search worker keeps from scoring, for candidates to start from; "
        "batches beyond are walked through again, to the same bits",
    )
    object_store_mb: Annotated[int, Mark.NO_RESULT] = Field(
        256, ge=75, le=MOST, description="object store of a local Ray session, MiB; Ray wants 75 at least"
    )

    @property
    def session_address(self) -> str | None:
        """Address of the Ray cluster to use: `address`, else $RAY_ADDRESS; None for a session on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    @property
    def cores_per_worker(self) -> float:
        """Cores that one worker holds."""
        return self.threads_per_worker if self.cpus_per_worker is None else self.cpus_per_worker

    @model_validator(mode="after")
    def _whole(self) -> "ClusterSection":
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"cluster.gpus_per_worker = {self.gpus_per_worker}: above 1 it must be a whole number of GPUs"
            )
        return self
