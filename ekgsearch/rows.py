"""The rows of the result tables; every column says in words what it holds."""

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any


def column(text: str, default: Any = MISSING) -> Any:
    """Declare a table column.

    Args:
        text: the sentence that documents it in the parquet schema.
        default: value of rows that do not give it, and of tables written before the column was there.
    """
    return field(default=default, metadata={"description": text})


@dataclass(frozen=True, slots=True)
class IterationRow:
    """One decision of the search."""

    run: str = column("name of the run")
    iteration: int = column("search iteration, from 1; 0 is the unpruned network")
    channel_group: str = column("channel group that was cut in this iteration; empty in row 0")
    num_kept: int = column("channels that this channel group keeps afterwards")
    num_candidates: int = column("candidates evaluated in this iteration")
    threshold: float = column("trimmed Otsu threshold of the shortlist; NaN where all channel groups were tried")
    loss: float = column("cross-entropy to the labels on the search subset, nats per image, batch statistics")
    score: float = column(
        "loss plus cross-entropy to the ensemble knowledge, nats per image; the reward is its negative"
    )
    search_top1: float = column("accuracy on the search subset, percent, batch statistics")
    kept_macs: int = column("multiply-accumulates per image after this iteration (job's counter)")
    macs_reduction: float = column("share of the unpruned multiply-accumulates removed, 0..1")
    kept_params: int = column("parameters after this iteration (job's counter)")
    params_reduction: float = column("share of the unpruned parameters removed, 0..1")


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One candidate of one search iteration."""

    run: str = column("name of the run")
    iteration: int = column("search iteration, from 1")
    channel_group: str = column("channel group that the candidate cuts")
    num_kept: int = column("channels that this channel group would keep")
    loss: float = column("cross-entropy to the labels on the search subset, nats per image, batch statistics")
    score: float = column("loss plus cross-entropy to the ensemble knowledge, nats per image")
    reward: float = column("negative score")
    search_top1: float = column("accuracy on the search subset, percent, batch statistics")
    kept_macs: int = column("multiply-accumulates per image of the candidate (job's counter)")
    won: bool = column("true for the candidate that was taken")
    images: int = column(
        "images that it was evaluated on; fewer than the search subset where a race dropped it, 0 in older tables", 0
    )


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One decision of the search beside the one that the exact tier makes in its place."""

    run: str = column("name of the run")
    iteration: int = column("search iteration, from 1")
    channel_group: str = column("channel group that the run cut")
    num_kept: int = column("channels that the run kept of it")
    exact_channel_group: str = column("channel group that the exact tier cuts in the same place")
    exact_num_kept: int = column("channels that the exact tier keeps of it")
    agrees: bool = column("true where both leave the same channels")
    score: float = column("score of the run's sub-network by the exact tier, nats per image; lower is better")
    exact_score: float = column("score of the exact tier's sub-network, nats per image")
    regret: float = column("score minus exact_score; below 0 where the run's is better but not on the exact shortlist")
    shortlist_shared: float = column("candidates of both shortlists as a share of those of either, 0..1")


@dataclass(frozen=True, slots=True)
class SubnetworkRow:
    """One channel group of one interim sub-network."""

    run: str = column("name of the run")
    iteration: int = column("search iteration after which this sub-network stood; 0 is the unpruned network")
    teacher: int = column("index in the memory bank if it was chosen as a teacher, else -1; 0 has the lowest loss")
    channel_group: str = column("channel group")
    size: int = column("channels of the channel group in the unpruned network")
    num_kept: int = column("channels kept")
    kept: str = column("kept channel indices, as a JSON list")


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


@dataclass(frozen=True, slots=True)
class DeviceHoursRow:
    """One attempt at one phase: what it cost, also when it died."""

    run: str = column("name of the run")
    phase: str = column("kind of the phase of the run")
    instance: str = column("which phase of this kind it is, e.g. finetune-slim")
    attempt: int = column("attempt at this kind of phase, from 1; resumed runs add attempts")
    device: str = column("kind of device held, e.g. cpu or NVIDIA H200")
    num_devices: int = column("devices held (CPU: cores) for the whole attempt")
    wall_seconds: float = column("wall time of the attempt, seconds")
    busy_seconds: float = column(
        "device seconds in which a process of the run was at work on its devices, summed over devices; a process that "
        "waits for images or for another process counts, so this is no processor time"
    )
    idle_seconds: float = column("device seconds held in which no process of the run was at work")
    device_hours: float = column("wall_seconds x num_devices / 3600")
    exit_state: str = column(
        "finished, failed, interrupted, died (found open by a later attempt), shared (another run's)"
    )
    producer: str = column("name of the run that computed it: this one, or the one that it is shared with")


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """The result of a run in one row."""

    run: str = column("name of the run")
    method: str = column("search method")
    dataset: str = column("data set")
    architecture: str = column("network architecture")
    objective: str = column("fine-tuning objective")
    seed: int = column("seed of the job")
    finetune_seed: int = column("seed of the fine-tuning")
    full_top1: float = column("test accuracy of the unpruned network, percent, running mode")
    searched_top1: float = column("test accuracy of the slim network before fine-tuning, percent, running mode")
    recalibrated_top1: float = column(
        "the same after recalibrating the running statistics on the training set, percent"
    )
    final_top1: float = column(
        "test accuracy of the slim network after the last epoch, percent, running mode; without any epoch as searched"
    )
    best_top1: float = column(
        "test accuracy of its best epoch (selected on the test set), percent; NaN without any epoch"
    )
    plain_top1: float = column(
        "same slim network fine-tuned with plain cross-entropy, last epoch, percent; NaN if not run"
    )
    uniform_top1: float = column(
        "uniform-width network of equal cost, plain fine-tuning, last epoch, percent; NaN if not run"
    )
    counter: str = column("how multiply-accumulates and parameters are counted")
    full_macs: int = column("multiply-accumulates per image of the unpruned network")
    kept_macs: int = column("multiply-accumulates per image of the slim network")
    macs_reduction: float = column("share of the multiply-accumulates removed, 0..1")
    full_params: int = column("parameters of the unpruned network")
    kept_params: int = column("parameters of the slim network")
    params_reduction: float = column("share of the parameters removed, 0..1")
    full_latency_ms: float = column("median latency of the unpruned network at batch 1, milliseconds")
    slim_latency_ms: float = column("median latency of the slim network at batch 1, milliseconds")
    full_latency_batch64_ms: float = column("median latency of the unpruned network at batch 64, milliseconds")
    slim_latency_batch64_ms: float = column("median latency of the slim network at batch 64, milliseconds")
    iterations: int = column("search iterations")
    candidates: int = column("candidates evaluated over the whole search")
    device_hours: float = column("device-hours of all phases and attempts")
    device: str = column("kind of device that ran the search and the fine-tuning")
    ema_top1: float = column(
        "test accuracy of the exponential moving average of the slim network's weights, last epoch, percent; NaN "
        "without one",
        math.nan,
    )
    averaged_top1: float = column(
        "test accuracy of the mean of its weights after the last epochs, percent; NaN without averaging", math.nan
    )
    replaced_bank_images: int = column(
        "images that stand in for damaged ones of their class in the blocks of the memory bank that this run built", 0
    )
    finetune_epochs: int = column(
        "epochs of the fine-tuning; 0: the slim network was not fine-tuned; -1 in older tables", -1
    )
    latency_ratio: float = column(
        "latency at batch 1, unpruned over slim, median over rounds of interleaved passes; above 1 the slim network is "
        "faster; NaN in older tables",
        math.nan,
    )
    latency_ratio_low: float = column("first quartile of this ratio over the rounds; NaN in older tables", math.nan)
    latency_ratio_high: float = column("third quartile of this ratio over the rounds; NaN in older tables", math.nan)
    latency_noise: float = column(
        "two passes of the unpruned network at batch 1 in the same round, the longer over the shorter, third quartile "
        "over the rounds, at least 1; a latency_ratio no further from 1 tells nothing; NaN in older tables",
        math.nan,
    )
    latency_ratio_batch64: float = column("latency_ratio at batch 64", math.nan)
    latency_ratio_low_batch64: float = column("latency_ratio_low at batch 64", math.nan)
    latency_ratio_high_batch64: float = column("latency_ratio_high at batch 64", math.nan)
    latency_noise_batch64: float = column("latency_noise at batch 64", math.nan)
    test_images: int = column("test images that its test accuracies are measured on; 0 in older tables", 0)
    full_channels: int = column("outputs of all convolutions of the unpruned network; 0 in older tables", 0)
    kept_channels: int = column("outputs of all convolutions of the slim network; 0 in older tables", 0)
    warnings: str = column(
        "what the analysis of the network warns of: another forward in training, costs that are not counted; a "
        "sentence each, empty for nothing",
        "",
    )


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One random sub-network of a study."""

    run: str = column("name of the run")
    index: int = column("number of the sub-network, from 0")
    criterion: str = column("which channels go first: random or l1")
    kept_macs: int = column("multiply-accumulates per image (job's counter)")
    macs_reduction: float = column("share of the multiply-accumulates removed, 0..1")
    validation_loss: float = column("cross-entropy on the search subset before fine-tuning, nats, batch statistics")
    eigenvalue_ratio: float = column("|lowest / highest eigenvalue| of the Hessian, mean along the gradient")
    relative_condition: float = column("|weights| |df/dt| / (|gradient| f), mean along the gradient")
    potential_loss: float = column("test loss after plain fine-tuning, nats per image, running statistics")
    final_top1: float = column("test accuracy after plain fine-tuning, percent, running statistics")
    test_images: int = column("test images that loss and accuracy are measured on; 0 in older tables", 0)


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One file of an image folder as it was when its folder was verified."""

    folder: str = column("folder of the training or the test split")
    path: str = column("path inside this folder: class folder and file")
    sha256: str = column("checksum of the file; empty where it is no usable picture")
    height: int = column("height of the upright picture, pixels; 0 where it is no usable picture")
    width: int = column("width of the upright picture, pixels; 0 where it is no usable picture")
    plain: bool = column("true where every decoder makes the same of it")
    reason: str = column("why the file is no usable picture and is left out; empty for a sound one")


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """How long a network takes on one machine, next to the network that it was cut from."""

    run: str = column("name of the run, or of the file")
    network: str = column("file of the network, without ending")
    contents: str = column("what the file holds, in words")
    backend: str = column("what runs the networks: eager (torch), compile (torch.compile), onnx (ONNX Runtime)")
    batch: int = column("images of one pass")
    full_ms: float = column("median time of a pass of the unpruned network, milliseconds")
    slim_ms: float = column("median time of a pass of this network, milliseconds")
    ratio: float = column("full over slim, the median over pairs of passes; above 1 this network is faster")
    ratio_low: float = column("first quartile of the ratio")
    ratio_high: float = column("third quartile of the ratio")
    noise: float = column(
        "third quartile of the ratio of two equal passes, at least 1; a ratio within it tells nothing"
    )
    device: str = column("device that runs them")
    cpu: str = column("processor of the machine")
    threads: int = column("torch threads")
    torch: str = column("version of torch")


TABLES: dict[str, type] = {
    "summary": SummaryRow,
    "iterations": IterationRow,
    "candidates": CandidateRow,
    "audit": AuditRow,
    "baselines": BaselineRow,
    "stages": StageRow,
    "subnetworks": SubnetworkRow,
    "epochs": EpochRow,
    "device_hours": DeviceHoursRow,
    "latencies": LatencyRow,
}
"""Row type of every table of a run, by file name without ending."""


def table_columns() -> dict[str, dict[str, dict[str, str]]]:
    """Type and description of every column of every table."""
    return {
        table: {
            item.name: {"type": getattr(item.type, "__name__", str(item.type)), **item.metadata}
            for item in fields(row_type)
        }
        for table, row_type in TABLES.items()
    }
