"""The file of a sweep, and what tests make of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ekgsearch.sweep.job import SweepJob, load_sweep

SWEEP = """\
output: sweep
net: {name: resnet20}
data: {name: digits}
pretrain: {epochs: 1}
warmup: {images_per_class: 16}
finetune: {epochs: 4, objective: plain}
search: {images_per_class: 6}
tune:
"""

SPACE = """\
  space:
    search.method: [ekg, epruner]
    search.step: {values: [0.2, 0.3], where: {search.method: ekg}}
    search.reduction: {low: 0.3, high: 0.5, step: 0.1, where: {search.method: ekg}}
    search.beta: {values: [0.6, 0.73], where: {search.method: epruner}}
"""

MakeSweep = Callable[..., SweepJob]


@pytest.fixture
def make_sweep(tmp_path: Path) -> MakeSweep:
    """Check the file of a sweep."""

    def make(*overrides: str, tune: str = SPACE) -> SweepJob:
        path = tmp_path / "sweep.yaml"
        path.write_text(SWEEP + tune)
        return load_sweep(path, overrides)

    return make
