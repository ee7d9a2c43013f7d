"""Rows of the tables about trainings."""

import math
from dataclasses import dataclass

from ekgsearch.rows.column import column


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """One epoch of training of one network."""

    run: str = column("name of the run")
    phase: str = column("phase: pretrain, warmup or finetune")
    network: str = column("which network is trained: full, slim, or the name of a baseline")
    objective: str = column("training objective: plain, single, ekg, contrastive, byol")
    epoch: int = column("epoch, from 1")
    learning_rate: float = column("learning rate at the end of the epoch")
    loss: float = column("mean total loss per image over the epoch, nats")
    loss_label: float = column("mean cross-entropy to the labels, nats per image; NaN without labels", math.nan)
    loss_distillation: float = column("mean distillation term per image; 0 without a teacher", 0.0)
    num_teachers_used: float = column("mean number of teachers in use per batch; 0 without a memory bank", 0.0)
    train_top1: float = column("accuracy on the training views of this epoch, percent; NaN without labels", math.nan)
    test_top1: float = column("accuracy on the test set in running mode, percent; NaN where not evaluated", math.nan)
    images: int = column("training images seen in this epoch (views are not counted twice)")
    wall_seconds: float = column("wall time of the epoch, seconds, evaluation included")
    loss_contrastive: float = column("mean NT-Xent term, nats per image; 0 for other objectives", 0.0)
    loss_views: float = column("mean BYOL term between the views, -1..1; 0 for other objectives", 0.0)
    loss_regression: float = column(
        "mean BYOL term towards the teachers' embeddings, -1..1; 0 for other objectives", 0.0
    )
    ema_top1: float = column(
        "test accuracy of the exponential moving average of the weights, percent; NaN without one", math.nan
    )
    averaged_top1: float = column(
        "test accuracy of the mean of the weights after the last epochs, percent; NaN before the last epoch and "
        "without averaging",
        math.nan,
    )
    skipped_steps: int = column("steps left out because a loss or gradient was not finite", 0)
    replaced_images: int = column("training images seen that stood in for a damaged one of their class", 0)
    wait_seconds: float = column(
        "part of wall_seconds in which the first process waited for images and rows of the memory bank, seconds; "
        "views that torch makes, not DALI, are made while it waits, on a GPU launched only; NaN in older tables",
        math.nan,
    )
    test_images: int = column(
        "test images that each of its test accuracies is measured on; 0 where none is measured, and in older tables", 0
    )


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """One network that the slim network is compared with, fine-tuned at the same cost."""

    run: str = column("name of the run")
    network: str = column(
        "plain: the slim network itself; scratch: with fresh weights; else the method that cut it, with its choices"
    )
    method: str = column("method that decided which channels go")
    groups: str = column("channel groups that were cut: all, or private, those with one producer")
    stages: int = column("stages in which it was cut, with a training after each; 1: at once")
    objective: str = column("objective of its fine-tuning")
    counter: str = column("how operations and parameters are counted")
    kept_macs: int = column("multiply-accumulates per image")
    macs_reduction: float = column("share of the unpruned multiply-accumulates removed, 0..1")
    kept_params: int = column("parameters")
    params_reduction: float = column("share of the unpruned parameters removed, 0..1")
    epochs: int = column("epochs of fine-tuning")
    top1: float = column("accuracy after the last epoch, percent; NaN without epochs")
    best_top1: float = column("accuracy after the best epoch, percent, selected on the test set")
    latency_ms: float = column("measured time of one image, milliseconds, on this machine", math.nan)
    latency_batch64_ms: float = column("measured time of 64 images at once, milliseconds, on this machine", math.nan)
    latency_ratio: float = column(
        "time of the unpruned network over that of this one, one image; above 1: faster", math.nan
    )
    latency_ratio_batch64: float = column("the same for 64 images at once", math.nan)
    latency_noise: float = column(
        "third quartile of the ratio of two passes of the unpruned network, one image: a ratio that is no further from "
        "1 tells nothing",
        math.nan,
    )
    latency_noise_batch64: float = column("the same for 64 images at once", math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage of a cut that is made in stages, after its training."""

    run: str = column("name of the run")
    network: str = column("slim, or the name of the baseline")
    method: str = column("method that decided which channels go")
    groups: str = column("channel groups that were cut: all, or private, those with one producer")
    stage: int = column("stage, from 1")
    kept_macs: int = column("multiply-accumulates per image")
    macs_reduction: float = column("share of the unpruned multiply-accumulates removed, 0..1")
    kept_params: int = column("parameters")
    params_reduction: float = column("share of the unpruned parameters removed, 0..1")
    epochs: int = column("epochs of the training after its cut")
    top1: float = column("accuracy on the test set after them, percent")
    held: bool = column("false where it fell further than stop_below allows; the stage before it is what stays")
