"""A phase of a run: a value that says what its result depends on, and computes it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ekgsearch.records import PhaseKind, canonical_json, content_hash

if TYPE_CHECKING:
    from ekgsearch.pipeline.context import RunContext

ARITHMETIC = ("semantics", "torch", "device", "threads")
"""Inputs that say by what something is computed, not what: the adoption of a search does not compare them."""

_LONGEST = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that the result of a phase depends on; its hash is the key of the phase.

    Attributes:
        semantics: number of the version of what the phase does; raised where a change of the code changes results.
        sections: fields of whole sections of the job that can change a result.
        files: SHA-256 of what earlier phases committed, by what it is here.
        images: hashes of the images in use, by what they are used for; who makes views of them.
        network: the unpruned network and its input normalisation.
        choices: values of other places that matter here, such as a seed.
        device: kind of device that computes, "cpu" or "cuda"; empty where nothing is computed.
        threads: torch threads that compute; 0 where nothing is computed.
        phase: instance of the phase, since its files are named after it; `Phase.identity` fills it in.
    """

    semantics: int
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, str] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    threads: int = 0
    phase: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON value, with the version of torch where something is computed; the journal has it."""
        values = {name: value for name, value in asdict(self).items() if value}
        return values | ({"torch": torch.__version__.partition("+")[0]} if self.device else {})

    @property
    def key(self) -> str:
        """Identity of the phase (hex): equal keys stand for equal results."""
        return content_hash(self.to_dict())


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A phase that has been computed; its files are complete on the disk.

    Attributes:
        files: names of the files in the run directory that the journal names.
        extras: names of files that belong to it and are no part of the result, since they hold times.
        fields: what else the journal says.
    """

    files: Sequence[str] = ()
    extras: Sequence[str] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


class Phase(ABC):
    """One phase of a run.

    Attributes:
        kind: what its device-hours are charged to, and the kind of its line in the journal.
        name: of this instance, such as `finetune-slim`; a run has each once.
        needs_workers: whether it works with the team of search workers, which stays from one such phase to the next.
        training: network that it trains, as the table of epochs calls it; empty where it trains none.
        lines: kinds of the journal lines that it writes before the one that commits it.
    """

    kind: PhaseKind
    name: str
    needs_workers: bool = False
    training: str = ""
    lines: Sequence[str] = ()

    @abstractmethod
    def inputs(self, context: "RunContext") -> Inputs:
        """What its result depends on; the phases before it have been committed."""

    @abstractmethod
    def run(self, context: "RunContext") -> Result:
        """Compute it, or go on with what a stopped attempt has left."""

    def identity(self, context: "RunContext") -> Inputs:
        """What its result depends on, with its own name: what its key is the hash of."""
        return replace(self.inputs(context), phase=self.name)

    @property
    def trainings(self) -> Sequence[str]:
        """Networks that it trains, as the table of epochs calls them."""
        return [self.training] if self.training else []

    def check(self, context: "RunContext") -> None:  # noqa: B027 (most have nothing to find out)
        """Find out, before any work of the run, what would stop this phase."""

    def is_there(self, context: "RunContext") -> bool:
        """Whether what it has committed is there, beyond the files that its journal line names."""
        return True

    def is_shared(self, context: "RunContext") -> bool:
        """Whether the phase store of a run may have its result: whoever copies the files has all of it."""
        return True


def differences(before: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """In words, how the inputs of a phase (`Inputs.to_dict`) differ: `warmup.epochs was 1, is 2`.

    Args:
        before: as they were recorded.
        now: as they are.
        ignored: inputs that are not compared.
    """
    old, new = (dict(_flat({name: item for name, item in one.items() if name not in ignored})) for one in (before, now))
    return [
        f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values as one level of dotted names; fields of the job's sections have the names of the job."""
    for name, value in values.items():
        path = "" if not prefix and name in ("sections", "choices") else f"{prefix}{name}."
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield f"{prefix}{name}", value


def _short(value: Any) -> str:
    text = canonical_json(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
