"""The objectives by name: what each of them needs.

Free of torch, so that a job can be read and checked without it.
"""

from dataclasses import dataclass
from typing import Literal

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


_ON_EMBEDDINGS = Needs(views=2, bank=True, embeddings=True, images=2, package="lightly >= 1.6")

OBJECTIVES: dict[str, Needs] = {
    "plain": Needs(views=1),
    "single": Needs(views=2, teacher=True),
    "ekg": Needs(views=2, bank=True),
    "contrastive": _ON_EMBEDDINGS,
    "byol": _ON_EMBEDDINGS,
}
"""Every objective by its name in jobs and tables."""


def needs_of(name: str) -> Needs:
    """Look up what an objective takes."""
    return OBJECTIVES[name]
