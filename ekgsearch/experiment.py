"""The typed job: one YAML file is one run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from ekgsearch.fields import Mark, Section, Seed, Text, expand_path
from ekgsearch.finetune.objectives.registry import needs_of
from ekgsearch.methods.baselines.section import CriterionSection, OneShotSection, UniformSection
from ekgsearch.methods.ekg.quirks import expand_reference
from ekgsearch.methods.ekg.section import EkgSection
from ekgsearch.methods.epruner.section import EprunerSection
from ekgsearch.records import content_hash
from ekgsearch.sections.bank import BankSection
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.sections.data import DataSection
from ekgsearch.sections.net import NetSection, network_contradictions
from ekgsearch.sections.phases import PhasesSection
from ekgsearch.sections.training import FinetuneSection, PretrainSection, WarmupSection
from ekgsearch.sections.tune import TuneSection

SearchChoice = EkgSection | EprunerSection | UniformSection | CriterionSection
"""The methods; where `search.method` is left out, the first."""


class Job(Section):
    """One run: what to shrink, on which images, how, and where to write."""

    output: Annotated[Text, Mark.NO_RESULT, Mark.PATH] = Field(description="run directory; $VARIABLES are expanded")
    seed: Seed = Field(1, description="seed of every random choice that is not a method's constant")
    search_run: Annotated[Text | None, Mark.NO_RESULT, Mark.PATH] = Field(
        None,
        description="directory of a run whose finished search is adopted: same seed, network, data, warm-up, search, "
        "another fine-tuning; null: search here. $VARIABLES are expanded",
    )
    net: NetSection = Field(default_factory=NetSection)
    data: DataSection = Field(default_factory=DataSection)
    pretrain: PretrainSection = Field(default_factory=PretrainSection)
    warmup: WarmupSection = Field(default_factory=WarmupSection)
    search: SearchChoice = Field(discriminator="method")
    bank: BankSection = Field(default_factory=BankSection)
    finetune: FinetuneSection = Field(default_factory=FinetuneSection)
    phases: PhasesSection = Field(default_factory=PhasesSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Write out what stands for several fields, and the method where none is named."""
        match expand_reference(values):
            case {"search": {**search}, **others} if "method" not in search:
                return {**others, "search": {"method": "ekg", **search}}
            case completed:
                return completed

    @model_validator(mode="after")
    def _agree(self) -> "Job":
        if found := list(self.contradictions()):
            raise ValueError("\n".join(found))
        return self

    def contradictions(self) -> Iterator[str]:
        """What does not go together in this job, as far as it can be told without opening a file; one line each."""
        yield from self.search.contradictions()
        if self.net.trains_first and self.pretrain.epochs == 0:
            lacking = "net.weights is null" if self.net.weights is None else "net.new_classifier is true"
            yield f"{lacking} and pretrain.epochs is 0: give weights or epochs to train them"
        if self.search_run is not None and self.search_run == self.output:
            yield f"search_run = {self.search_run!r} is the run directory itself; leave it out or name another run"
        yield from self.data.contradictions()
        yield from network_contradictions(self.net, self.data, self.search.padding)
        yield from self._lacks_images()
        num_images = self.data.train_images or (self.data.known.train if self.data.known else None)
        yield from self.pretrain.contradictions("pretrain", num_images if self.net.trains_first else None)
        yield from self.finetune.contradictions("finetune", num_images)
        if isinstance(self.search, OneShotSection):
            yield from self.finetune.stage_contradictions("finetune", self.search.stages)
        if self.bank.betas is not None and not self.search.takes_betas:
            yield f"bank.betas does nothing with search.method {self.search.method}; leave it out"
        yield from self.bank.contradictions(self.search.own_beta)
        if self.search.takes_betas and self.bank.betas is None and needs_of(self.finetune.objective).bank:
            yield (
                f"search.method {self.search.method} leaves no interim sub-networks, so finetune.objective "
                f"{self.finetune.objective} has no teachers; give bank.betas, or use plain or single"
            )
        if not self.search.leaves_teachers and needs_of(self.finetune.objective).bank:
            yield (
                f"search.method {self.search.method} leaves no interim sub-networks, so finetune.objective "
                f"{self.finetune.objective} has no teachers; use plain or single"
            )

    def _lacks_images(self) -> Iterator[str]:
        """The two subsets of the search are disjoint: a class must have enough images for both."""
        warmup = self.warmup.images_per_class if self.warmup.epochs else 0
        search, known = self.search.images_per_class, self.data.known
        if known is not None and search + warmup > known.per_class:
            yield (
                f"search.images_per_class = {search} and warmup.images_per_class = {warmup}, but a class of "
                f"{self.data.name} has only {known.per_class} training images; lower one of them"
            )

    @property
    def sha256(self) -> str:
        """Hash of every field that can change a result."""
        return content_hash(self.identity())

    @property
    def finetune_seed(self) -> int:
        """Seed of the fine-tuning: its own, else that of the job."""
        return self.seed if self.finetune.seed is None else self.finetune.seed

    @property
    def asks_for_workers(self) -> bool:
        """Whether it wants more processes than the one that runs it."""
        return self.cluster.search_workers > 0 or self.finetune.workers > 1

    @property
    def run_name(self) -> str:
        """Name of the run in every table: the last part of its directory."""
        return self.run_dir.name

    @property
    def run_dir(self) -> Path:
        """The run directory, variables expanded, absolute."""
        return expand_path(self.output, "output").absolute()


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def changed_fields(section: Section, prefix: str = "") -> dict[str, Any]:
    """Fields that are not as by default, by their dotted names; one without a default counts as changed."""
    found: dict[str, Any] = {}
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            found |= changed_fields(value, f"{prefix}{name}.")
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            found[f"{prefix}{name}"] = values[name]
    return found


def job_schema() -> dict[str, Any]:
    """JSON schema of a job file, and of that of a sweep, which has a section more."""
    schema, tune = Job.model_json_schema(), TuneSection.model_json_schema()
    schema["$defs"] |= {**tune.pop("$defs"), "TuneSection": tune}
    schema["properties"]["tune"] = {"$ref": "#/$defs/TuneSection"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
