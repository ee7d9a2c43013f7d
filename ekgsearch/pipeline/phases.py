"""The phases of a job, in order."""

from collections.abc import Iterator

from ekgsearch.experiment import Job
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.methods.baselines.section import baseline_section
from ekgsearch.pipeline.bank import Bank
from ekgsearch.pipeline.baseline import BaselineCut, FreshWeights
from ekgsearch.pipeline.evaluate import Evaluate
from ekgsearch.pipeline.finetune import Finetune
from ekgsearch.pipeline.phase import Phase
from ekgsearch.pipeline.pretrain import Pretrain
from ekgsearch.pipeline.search import Search
from ekgsearch.pipeline.warmup import Warmup


def phases_of(job: Job) -> tuple[Phase, ...]:
    """List the phases that a job asks for."""
    return (
        Pretrain(),
        Warmup(),
        Search(needs_workers=job.search.needs_workers),
        *([Bank()] if needs_of(job.finetune.objective).bank else []),
        Finetune("slim", job.finetune.objective),
        *_baselines(job),
        Evaluate(),
    )


def _baselines(job: Job) -> Iterator[Phase]:
    """The baselines, each made and fine-tuned; one that is the network itself is not trained twice."""
    for name in job.finetune.baselines:
        if name == "plain":
            if job.finetune.objective != "plain":
                yield Finetune("plain", "plain")
        elif name != job.search.method:
            cut = FreshWeights() if name == "scratch" else BaselineCut(baseline_section(name, job.search))
            yield cut
            yield Finetune(name, "plain", cut.name)
