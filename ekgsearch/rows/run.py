"""Rows of the tables about a whole run: its result, its cost, its speed."""

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ekgsearch.rows.column import column


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
    state: str = column(
        "finished; of runs that have not finished, where they are asked for: stopped, died, failed, interrupted or "
        "running; published: a row of a paper",
        "finished",
    )
    source: str = column("where a published row is from; empty for own runs", "")
    version: str = column("version of ekgsearch that wrote the row; empty in older tables", "")
    search_step: float | None = column("r, share of a channel group that one step of the search removes", None)
    search_beta: float | None = column("beta, preference of the affinity propagation", None)
    search_reduction: float | None = column("tau, share of the cost that was to be removed, 0..1", None)
    search_budget: int | None = column("largest cost allowed, where an absolute number was given", None)
    search_unit: str | None = column("what search_reduction and search_budget limit: macs or params", None)
    search_groups: str | None = column("channel groups that might be cut: all or private", None)
    search_precision: str | None = column("arithmetic of the evaluation of candidates: fp32, tf32 or bf16", None)
    bank_teachers: int | None = column("K, teachers of the memory bank", None)
    finetune_temperature: float | None = column("temperature of the distillation", None)
    finetune_learning_rate: float | None = column("first learning rate of the fine-tuning", None)
    finetune_batch_size: int | None = column("images of one step of the fine-tuning, over all processes", None)
    finetune_precision: str | None = column("arithmetic of the fine-tuning", None)
    threads: int | None = column("torch threads of the process that ran the job", None)
    threads_per_worker: int | None = column("torch threads of one worker", None)
    settings: dict[str, str] = column(  # noqa: RUF009 (it is a field)
        "every field of the job that differs from its default, by dotted name, its value as JSON", factory=dict
    )


def partial_summary(**known: Any) -> SummaryRow:
    """A summary of which little is known: other numbers are NaN, other whole numbers 0, other texts empty."""
    blank: dict[Any, Any] = {float: math.nan, int: 0, str: ""}
    required = (item for item in fields(SummaryRow) if item.default is MISSING and item.default_factory is MISSING)
    return SummaryRow(**{**{item.name: blank[item.type] for item in required}, **known})


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
