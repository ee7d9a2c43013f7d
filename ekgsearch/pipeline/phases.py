"""The phases of a job, in order."""

from ekgsearch.experiment import Job
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.pipeline.bank import Bank
from ekgsearch.pipeline.evaluate import Evaluate
from ekgsearch.pipeline.finetune import finetunings
from ekgsearch.pipeline.phase import Phase
from ekgsearch.pipeline.pretrain import Pretrain
from ekgsearch.pipeline.search import Search
from ekgsearch.pipeline.warmup import Warmup


def phases_of(job: Job) -> tuple[Phase, ...]:
    """List the phases that a job asks for."""
    has_bank = needs_of(job.finetune.objective).bank
    return (
        Pretrain(),
        Warmup(),
        Search(needs_workers=job.search.needs_workers),
        *([Bank()] if has_bank else []),
        *finetunings(job.finetune.objective, job.finetune.baselines, method=job.search.method),
        Evaluate(),
    )
