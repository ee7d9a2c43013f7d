"""The phases of a job, in order."""

from collections.abc import Iterator

from ekgsearch.experiment import Job
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.methods.baselines.section import OneShotSection
from ekgsearch.pipeline.bank import Bank
from ekgsearch.pipeline.baseline import BaselineCut, FreshWeights
from ekgsearch.pipeline.evaluate import Evaluate
from ekgsearch.pipeline.finetune import Finetune
from ekgsearch.pipeline.found import SEARCH
from ekgsearch.pipeline.phase import Phase
from ekgsearch.pipeline.pretrain import Pretrain
from ekgsearch.pipeline.search import Search
from ekgsearch.pipeline.stages import Stages
from ekgsearch.pipeline.warmup import Warmup


def phases_of(job: Job) -> tuple[Phase, ...]:
    """List the phases that a job asks for."""
    return (
        Pretrain(),
        Warmup(),
        _search(job),
        *([Bank()] if needs_of(job.finetune.objective).bank else []),
        Finetune("slim", job.finetune.objective),
        *_baselines(job),
        Evaluate(),
    )


def _search(job: Job) -> Phase:
    """The search, decision by decision; or the cuts of a method that makes one, in stages."""
    section, objective = job.search, job.finetune.objective
    if isinstance(section, OneShotSection) and section.stages is not None:
        return Stages("slim", (section,), objective, search=SEARCH, is_baseline=False)
    return Search(needs_workers=section.needs_workers)


def _baselines(job: Job) -> Iterator[Phase]:
    """The baselines, each made and fine-tuned; one that is the network itself is not trained twice."""
    for choice in job.finetune.baselines:
        match choice.method:
            case "plain":
                if job.finetune.objective != "plain":
                    yield Finetune("plain", "plain")
            case "scratch":
                yield FreshWeights()
                yield Finetune("scratch", "plain", FreshWeights.name)
            case _ if choice.name != job.search.method:
                search, forms = f"{SEARCH}-{choice.name}", choice.forms(job.search)
                if choice.stages is None:
                    yield BaselineCut(search, forms)
                else:
                    yield Stages(choice.name, forms, "plain", search=search, is_baseline=True)
                yield Finetune(choice.name, "plain", search)
