"""Rules by which networks and channels are measured on the search subset."""

from dataclasses import dataclass
from typing import Literal

Criterion = Literal["taylor_reward", "taylor_loss", "l1", "l2", "fpgm", "random"]
"""What makes a channel important.

taylor_reward: |sum of f * dR/df| over its feature maps f, R the reward (EKG, arXiv 2203.02651). taylor_loss: the same
with the cross-entropy to the labels alone (GBN, arXiv 1909.08174). l1: sum of the absolute weights of its filters.
l2: sum of the Euclidean norms of its filters.
fpgm: summed Euclidean distances of its filters to all other filters (FPGM, arXiv 1811.00250). random: a draw.
"""

SearchTeacher = Literal["none", "single", "ensemble"]
"""Whose predictions the score compares with: nobody's, the unpruned network's, or the mean of all networks so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How networks and channels are measured on the search subset.

    Attributes:
        criterion: what makes a channel important.
        search_teacher: whose predictions are part of the score.
        seed: of the criterion `random`.
    """

    criterion: Criterion = "taylor_reward"
    search_teacher: SearchTeacher = "ensemble"
    seed: int = 0

    @property
    def needs_gradient(self) -> bool:
        """Whether the criterion looks at images."""
        return self.criterion in ("taylor_reward", "taylor_loss")


PUBLISHED = Rules()
"""Those of EKG (arXiv 2203.02651)."""
