"""The objectives by name: what each of them needs, and where its class is.

Free of torch, so that a job can be read and checked without it; the class of an objective is imported where a training
begins.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ekgsearch.finetune.objectives.base import Objective

ObjectiveName = Literal["plain", "single", "ekg", "contrastive", "byol"]
"""Cross-entropy on one view; distillation from the unpruned network; distillation from the memory bank; the same with a
contrastive or a BYOL term on embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an objective takes.

    Attributes:
        views: augmented views of each image.
        labels: whether it reads the labels of the images.
        bank: whether it distils from the memory bank.
        embeddings: whether it has a term on embeddings: those of the teachers in the memory bank, and the student's.
        teacher: whether it runs the unpruned network next to the student.
        images: images that one process must have in a micro-batch, since they are compared with each other; 1: none is.
        package: package without which it cannot be made, and its lowest version; None where torch is enough.
    """

    views: int
    labels: bool = True
    bank: bool = False
    embeddings: bool = False
    teacher: bool = False
    images: int = 1
    package: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One objective.

    Attributes:
        place: its class, as `module:class`.
        needs: what it takes.
    """

    place: str
    needs: Needs


_ROOM = "ekgsearch.finetune.objectives"
_ON_EMBEDDINGS = Needs(views=2, bank=True, embeddings=True, images=2, package="lightly >= 1.6")

OBJECTIVES: dict[str, Entry] = {
    "plain": Entry(f"{_ROOM}.labels:Plain", Needs(views=1)),
    "single": Entry(f"{_ROOM}.distilled:Single", Needs(views=2, teacher=True)),
    "ekg": Entry(f"{_ROOM}.distilled:Ekg", Needs(views=2, bank=True)),
    "contrastive": Entry(f"{_ROOM}.embeddings:Contrastive", _ON_EMBEDDINGS),
    "byol": Entry(f"{_ROOM}.embeddings:Byol", _ON_EMBEDDINGS),
}
"""Every objective by its name in jobs and tables."""


def needs_of(name: str) -> Needs:
    """Look up what an objective takes."""
    return OBJECTIVES[name].needs


def objective_class(name: str) -> "type[Objective]":
    """Import the class of an objective."""
    found: type[Objective] = resolve_name(OBJECTIVES[name].place)
    return found
