"""Bounds of all settings: the last value that is allowed and the first that is refused, on either side."""

import math
from collections.abc import Mapping
from typing import Any

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ekgsearch.bench import bank, distillation, epruner, exemplars, int8, loader, macs, pruners, ray, rivals, search
from ekgsearch.errors import JobError
from ekgsearch.experiment import Job
from ekgsearch.fields import kinds_of
from ekgsearch.finetune.config import FinetuneConfig
from ekgsearch.methods.baselines.section import (
    BnScaleSection,
    FpgmSection,
    L1Section,
    L2Section,
    RandomSection,
    TaylorSection,
    UniformSection,
)
from ekgsearch.methods.epruner.section import EprunerSection
from ekgsearch.pipeline.study import StudySection
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.sections.tune import Budget, TuneSection

MOST = 2**31 - 1
INT64 = 2**63 - 1
TINY = math.ulp(0.0)
HUGE = 1.7976931348623157e308

Bounds = tuple[float | None, float, float, float | None]
"""First refused below, first allowed, last allowed, first refused above; None where there is no bound."""


def whole(low: int, high: int = MOST) -> Bounds:
    return low - 1, low, high, high + 1


def real(low: float, high: float, *, without: str = "") -> Bounds:
    """Real numbers from `low` to `high`, without the ends that are named: `low`, `high`, `both`."""
    first = math.nextafter(low, math.inf) if without in ("low", "both") else low
    last = math.nextafter(high, -math.inf) if without in ("high", "both") else high
    return math.nextafter(first, -math.inf), first, last, math.nextafter(last, math.inf)


ABOVE_0: Bounds = (0.0, TINY, HUGE, math.inf)
FROM_0: Bounds = (-TINY, 0.0, HUGE, math.inf)
SHARE = real(0, 1, without="both")
FACTOR = real(0, 1, without="high")
UP_TO_1 = real(0, 1, without="low")
TRAINING: dict[str, Bounds] = {
    "epochs": whole(0),
    "batch_size": whole(1),
    "learning_rate": ABOVE_0,
    "milestones": (-HUGE, -HUGE, HUGE, math.inf),  # shares, which the whole job checks
    "decay": real(0, 1, without="low"),
    "momentum": FACTOR,
    "warmup_epochs": whole(0),
    "weight_decay": FROM_0,
    "pad": whole(0, 4096),
}
SECTIONS: dict[str, dict[str, Bounds]] = {
    "net": {},
    "data": {
        "image_size": whole(1, 4096),
        "max_bad_images": whole(0),
        "train_images": whole(1),
        "test_images": whole(1),
        "classes": whole(1, 65_536),
        "max_classes": whole(1),
        "max_images_per_class": whole(1),
        "loader_threads": whole(1, 1024),
        "max_damaged": real(0, 1),
    },
    "pretrain": TRAINING,
    "warmup": {
        "images_per_class": whole(1),
        "batch_size": whole(1),
        "learning_rate": ABOVE_0,
        "weight_decay": FROM_0,
        "epochs": whole(0),
    },
    "search": {
        "reduction": SHARE,
        "budget": whole(1, INT64),
        "step": SHARE,
        "trim": real(0, 0.5, without="high"),
        "images_per_class": whole(1),
        "batch_size": whole(1),
        "slice_below": real(0, 1),
        "racing": SHARE,
        "max_candidates": whole(1),
        "width_multiple": whole(1),
    },
    "bank": {"teachers": whole(1), "batch_size": whole(1), "betas": UP_TO_1},
    "finetune": {
        **TRAINING,
        "seed": whole(0, INT64),
        "temperature": ABOVE_0,
        "label_smoothing": FACTOR,
        "embedding_weight": FROM_0,
        "contrast_temperature": ABOVE_0,
        "negatives": whole(0, 2**20),
        "head_width": whole(1, 65_536),
        "projection_width": whole(1, 65_536),
        "target_momentum": real(0, 1),
        "ema_decay": FACTOR,
        "average_last": whole(0),
        "recalibrate_images": whole(0),
        "accumulate": whole(1),
        "max_skipped": whole(0),
        "max_rollbacks": whole(0),
        "checkpoint_every_steps": whole(0),
        "workers": whole(1, 4096),
        "brightness": FACTOR,
        "contrast": FACTOR,
        "saturation": FACTOR,
        "lighting": FROM_0,
    },
    "phases": {},
    "cluster": {
        "search_workers": whole(0, 4096),
        "cpus_per_worker": real(1e-4, 1024),
        "gpus_per_worker": real(1e-4, 1024),
        "threads": whole(1, 1024),
        "threads_per_worker": whole(1, 1024),
        "max_restarts": whole(0, 1000),
        "start_timeout_seconds": real(1, 1e6),
        "timeout_seconds": real(1, 1e6),
        "prefix_mb": whole(0),
        "object_store_mb": whole(75),
    },
}
TUNE: dict[str, Bounds] = {
    "grace_epochs": whole(1),
    "factor": whole(2, 100),
    "seed": whole(0, INT64),
    "concurrent": whole(1),
    "cpus": real(1e-4, 1024),
    "gpus": real(0, 1024),
    "max_failed": whole(0),
}
STUDY: dict[str, Bounds] = {
    "subnetworks": whole(3),
    "by_l1": whole(0),
    "points": whole(2),
    "radius": ABOVE_0,
    "lanczos_iterations": whole(1),
}
BENCHES: dict[type[BaseModel], tuple[dict[str, Any], dict[str, Bounds]]] = {
    bank.Settings: (
        {"bench": "bank"},
        {name: whole(1) for name in ("images", "classes", "teachers", "batch_size", "batches", "pairs")},
    ),
    distillation.Settings: (
        {"bench": "distillation"},
        {
            "num_classes": whole(2, 65_536),
            "image_size": whole(1, 4096),
            "reduction": SHARE,
            "teachers": whole(1),
            "batch_size": whole(2),
            "steps": whole(1),
            "pairs": whole(1),
            "processes": whole(1, 2),
        },
    ),
    epruner.Settings: (
        {"bench": "epruner"},
        {"beta": real(0, 1, without="low"), "betas": real(0, 1, without="low"), "pairs": whole(1)},
    ),
    exemplars.Settings: ({"bench": "exemplars"}, {"betas": real(0, 1, without="low")}),
    loader.Settings: (
        {"bench": "loader", "folder": "pictures"},
        {
            "images": whole(1),
            "image_size": whole(1, 4096),
            "batch_size": whole(1),
            "threads": whole(1, 1024),
            "pairs": whole(1),
            "max_classes": whole(1),
        },
    ),
    macs.Settings: (
        {"bench": "macs"},
        {
            "num_classes": whole(2, 65_536),
            "image_size": whole(1, 4096),
            "images": whole(2),
            "batch_size": whole(1),
            "reductions": SHARE,
            "step": SHARE,
            "slice_below": real(0, 1),
            "prefix_bytes": whole(0, INT64),
            "seed": whole(0, INT64),
        },
    ),
    ray.Settings: ({"bench": "ray", "job": "job.yaml"}, {"workers": whole(0, 4096), "pairs": whole(1)}),
    pruners.Settings: ({"bench": "pruners"}, {"image_size": whole(1, 4096), "reduction": SHARE, "pairs": whole(1)}),
    int8.Settings: (
        {"bench": "int8"},
        {"calibration_images": whole(1), "test_images": whole(1), "batch_sizes": whole(1), "pairs": whole(1)},
    ),
    rivals.Settings: ({"bench": "rivals", "job": "job.yaml"}, {"reductions": SHARE, "aside": whole(0)}),
    search.Settings: (
        {"bench": "search", "job": "job.yaml"},
        {"cases": real(0, 1), "iterations": whole(1), "pairs": whole(1)},
    ),
}


def check(model: type[BaseModel], table: Mapping[str, Bounds], base: Mapping[str, Any] | None = None) -> None:
    """Try both sides of every bound, and see that no field with a bound is missing from the table."""
    assert set(table) == {name for name, field in model.model_fields.items() if is_bounded(field)}
    for name, (below, first, last, above) in table.items():
        length = (2 if name == "betas" else 1) if str(model.model_fields[name].annotation).startswith("tuple") else 0
        given = {**(base or {}), **({"subnetworks": MOST} if name == "by_l1" else {})}
        for value in (first, last):
            model.model_validate({**given, name: (value,) * length if length else value})
        for value in (below, above):
            if value is not None and value != first:
                with pytest.raises(ValidationError, match=name):
                    model.model_validate({**given, name: (value,) * length if length else value})


def is_bounded(field: FieldInfo) -> bool:
    """Whether a field takes numbers."""
    return bool({int, float} & set(parts_of(field.annotation))) or any(
        isinstance(part, annotated_types.Ge | annotated_types.Gt) for part in field.metadata
    )


def parts_of(annotation: Any) -> list[Any]:
    """Types that an annotation is made of; those of literals left out."""
    if "Literal" in str(getattr(annotation, "__origin__", "")):
        return []
    inner = getattr(annotation, "__args__", ())
    return [annotation, *(part for one in inner for part in parts_of(one))]


OF_EVERY_METHOD = {name: SECTIONS["search"][name] for name in ("reduction", "budget", "images_per_class")}
AT_ONCE = OF_EVERY_METHOD | {"stages": whole(3, 1000), "stop_below": real(0, 100, without="low")}
OTHERS: dict[type[BaseModel], dict[str, Bounds]] = {
    **dict.fromkeys((UniformSection, BnScaleSection, RandomSection), AT_ONCE),
    **{kind: {**AT_ONCE, "score_every": SHARE} for kind in (L1Section, L2Section, FpgmSection)},
    TaylorSection: {
        **AT_ONCE,
        "score_every": SHARE,
        "batch_size": whole(1),
        "slice_below": real(0, 1),
    },
    EprunerSection: {**OF_EVERY_METHOD, "beta": UP_TO_1, "late_beta": UP_TO_1, "late_from": whole(0)},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_bounds_of_a_section(name: str) -> None:
    kind, *others = kinds_of(Job, name)
    check(kind, SECTIONS[name])
    for other in others:
        check(other, OTHERS[other])


def test_bounds_of_jobs_studies_and_benchmarks() -> None:
    assert {name for name, field in Job.model_fields.items() if "Section" in str(field.annotation)} == set(SECTIONS)
    job: dict[str, Any] = {"output": "run", "data": {"name": "cifar10"}, "search": {"reduction": 0.5}}
    for value in (0, INT64):
        assert Job.model_validate({**job, "seed": value}).seed == value
        own = Job.model_validate({**job, "seed": 5, "finetune": {"seed": value}})
        assert own.finetune_seed == value, "0 is a seed of its own"
    assert Job.model_validate({**job, "seed": 5}).finetune_seed == 5
    for value in (-1, INT64 + 1):
        with pytest.raises(ValidationError, match="seed"):
            Job.model_validate({**job, "seed": value})
    check(TuneSection, TUNE, {"space": {"search.step": [0.2]}})
    check(Budget, {"trials": whole(1), "device_hours": ABOVE_0, "wall_minutes": ABOVE_0})
    check(StudySection, STUDY, {"by_l1": 0})
    for model, (base, table) in BENCHES.items():
        check(model, table, base)


def test_whole_gpus_above_one() -> None:
    for number in (0.5, 1, 1.0, 2, 3.0):
        assert ClusterSection(gpus_per_worker=number).gpus_per_worker == number
    for number in (math.nextafter(1, 2), 1.5, 2.5):
        with pytest.raises(ValidationError, match=r"cluster.gpus_per_worker = .* whole number of GPUs"):
            ClusterSection(gpus_per_worker=number)


TRAINED: dict[str, Bounds] = {
    "epochs": (-1, 0, MOST, None),
    "batch_size": (0, 1, MOST, None),
    "learning_rate": ABOVE_0,
    "decay": real(0, 1, without="low"),
    "momentum": FACTOR,
    "warmup_epochs": whole(0, 100),
    "weight_decay": FROM_0,
    "temperature": ABOVE_0,
    "label_smoothing": FACTOR,
    "embedding_weight": FROM_0,
    "contrast_temperature": ABOVE_0,
    "negatives": (-1, 0, MOST, None),
    "head_width": (0, 1, MOST, None),
    "projection_width": (0, 1, MOST, None),
    "target_momentum": real(0, 1),
    "ema_decay": FACTOR,
    "average_last": whole(0, 100),
    "recalibrate_images": (-1, 0, MOST, None),
    "max_skipped": (-1, 0, MOST, None),
    "max_rollbacks": (-1, 0, MOST, None),
    "evaluate_every": (0, 1, MOST, None),
}


def test_bounds_of_a_training() -> None:
    for name, (below, first, last, above) in TRAINED.items():
        for value in (first, last):
            FinetuneConfig(**{name: value})
        for value in (below, above):
            if value is not None:
                with pytest.raises(JobError, match=f"expected {name} "):
                    FinetuneConfig(**{name: value})
    for numbers in ({"accumulate": 1}, {"accumulate": 128}, {"milestones": ()}, {"milestones": (1, 2)}):
        FinetuneConfig(**numbers)
    for wrong in ({"accumulate": 0}, {"accumulate": 3}, {"accumulate": 256}):
        with pytest.raises(JobError, match="accumulate"):
            FinetuneConfig(**wrong)
    for milestones in ((0,), (0, 1), (-1, 2), (2, 1), (1, 1)):
        with pytest.raises(JobError, match="expected milestones of 1 epoch or more, ascending, each once"):
            FinetuneConfig(milestones=milestones)


SETTLED: list[tuple[type[BaseModel], dict[str, Any], dict[str, Any], str]] = [
    (StudySection, {"subnetworks": 4, "by_l1": 4}, {"subnetworks": 4, "by_l1": 5}, "study.by_l1 = 5 is more than"),
    (distillation.Settings, {"image_size": 16}, {"image_size": 15}, "at least 16x16 pixels"),
    (macs.Settings, {"image_size": 16}, {"image_size": 15}, "at least 16x16 pixels"),
    (loader.Settings, {"image_size": 16}, {"image_size": 15}, "at least 16x16 pixels"),
    (distillation.Settings, {"batch_size": 4}, {"batch_size": 2}, "batch_size = 2: expected equal shares of 2 or more"),
    (distillation.Settings, {"batch_size": 6}, {"batch_size": 5}, "batch_size = 5: expected equal shares of 2 or more"),
    (
        distillation.Settings,
        {"batch_size": 5, "objectives": ("ekg",)},
        {"device": "cuda"},
        "expected 1 with device cuda",
    ),
    (search.Settings, {"journal": "j"}, {"journal": "j", "cases": ()}, "only searches, and journal names a finished"),
    (search.Settings, {"cases": ()}, {"iterations": ()}, "iterations"),
    (search.Settings, {"cases": ("racing", 1)}, {"cases": (True,)}, "cases"),
    (distillation.Settings, {"processes": 1}, {"processes": True}, "processes"),
]
"""A kind of settings, values that go together, values that do not, and what is said."""


def test_settings_that_do_not_go_together() -> None:
    pairs = {"objectives": ("byol",), "processes": 2}
    for model, good, bad, words in SETTLED:
        base = dict(BENCHES[model][0]) if model in BENCHES else {}
        base |= {"net": "vgg16"} if "image_size" in good else {}
        base |= pairs if model is distillation.Settings else {}
        model.model_validate({**base, **good})
        with pytest.raises(ValidationError, match=words):
            model.model_validate({**base, **bad})
