"""The sections of a job: every field has a type, a default, a range and a sentence."""

import os
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ekgsearch.records import Counter, Precision
from ekgsearch.search.criteria import Criterion, SearchTeacher
from ekgsearch.search.steps import Quirk
from ekgsearch.storage.secrets import credentials_in

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a job: frozen, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NetSection(Section):
    """The network to shrink."""

    name: str = Field("resnet56", description="architecture, e.g. resnet20, resnet56, resnet50, vgg16, mobilenet_v2")
    weights: str | None = Field(
        None, description="safetensors file of trained weights; null trains the network first. $VARIABLES are expanded"
    )
    shortcut: Literal["option_a", "projection"] | None = Field(
        None, description="shortcut of CIFAR ResNets; null: as the weights' sidecar says, else projection"
    )
    padding: Literal["torch", "tf_same"] | None = Field(
        None,
        description="padding of strided convolutions; null: as the weights' sidecar says, else tf_same with all quirks "
        "of search.quirks, else torch",
    )


class DataSection(Section):
    """The images."""

    name: Literal["digits", "cifar10", "cifar100", "image_folder", "parquet"] = Field("digits", description="data set")
    root: str | None = Field(
        None,
        description="folder of the data set; null: $EKGSEARCH_DATA, else the user's cache. $VARIABLES are expanded",
    )
    image_size: Positive | None = Field(
        None, description="side of the square images in pixels; null: the data set's own (digits 16, pictures 224)"
    )
    download: bool = Field(True, description="fetch a missing data set where the network allows")
    max_bad_images: int = Field(
        0, ge=0, description="image_folder, parquet: damaged images that are left out before giving up"
    )
    train_images: Positive | None = Field(
        None, description="use this many training images (the first of each class, evenly); null: all"
    )
    loader: Literal["auto", "dali", "torch"] = Field(
        "auto", description="who decodes pictures for training; auto: DALI where it can run, the log says why not"
    )
    loader_threads: Positive | None = Field(
        None, description="pictures that one process decodes at once; null: one per core, at most 16"
    )
    max_damaged: float = Field(
        1e-4,
        ge=0,
        le=1,
        description="share of the training images that may turn out damaged later and be replaced by others of their "
        "class (rounded up); each process counts its own, anew from every start. The search replaces none",
    )


class TrainingFields(Section):
    """SGD with Nesterov momentum, step schedule, L2 on all parameters."""

    epochs: int = Field(100, ge=0, description="epochs")
    batch_size: Positive = Field(128, description="images of one optimiser step over all workers")
    learning_rate: float = Field(0.01, gt=0, description="first learning rate")
    milestones: tuple[float, ...] = Field(
        (), description="shares of the epochs after which the learning rate is multiplied by `decay`, e.g. [0.3, 0.6]"
    )
    decay: float = Field(0.2, gt=0, le=1, description="factor at each milestone")
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, added to the gradient of all parameters")


class PretrainSection(TrainingFields):
    """Training of the unpruned network; skipped where net.weights is given."""

    epochs: int = Field(200, ge=0, description="epochs")
    learning_rate: float = Field(0.1, gt=0, description="first learning rate")
    milestones: tuple[float, ...] = Field((0.3, 0.6, 0.8), description="shares of the epochs at which the rate decays")
    crop: Literal["auto", "pad", "resized"] = Field(
        "auto",
        description="pad: crop of the padded image; resized: random part of the picture, 8-100 % of its area; "
        "auto: resized for image_folder and parquet",
    )
    pad: int = Field(4, ge=0, description="pixels of padding of the random crop")
    flip: bool = Field(True, description="random horizontal flips")


class WarmupSection(Section):
    """A short training on the warm-up subset before the search."""

    images_per_class: Positive = Field(256, description="images of the warm-up subset per class")
    batch_size: Positive = Field(256, description="images of one step")
    learning_rate: float = Field(1e-3, gt=0, description="constant learning rate")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, added to the gradient of all parameters")
    epochs: int = Field(1, ge=0, description="passes over the warm-up subset; 0 leaves the weights alone")


class SearchSection(Section):
    """The search for channels to remove."""

    method: Literal["ekg", "uniform"] = Field(
        "ekg", description="ekg: ensemble knowledge guided search; uniform: the same share of every channel group"
    )
    reduction: Share | None = Field(None, description="tau, share of the cost to remove, 0..1; this or `budget`")
    budget: Positive | None = Field(None, description="largest cost allowed, an absolute number; this or `reduction`")
    unit: Literal["macs", "params"] = Field("macs", description="what `reduction` and `budget` limit")
    counter: Counter = Field("macs", description="how operations and parameters are counted")
    step: Share = Field(0.2, description="r, share of a private channel group removed by one iteration")
    trim: float = Field(0.2, ge=0, lt=0.5, description="share of the channel groups trimmed before Otsu's threshold")
    images_per_class: Positive = Field(32, description="images of the search subset per class")
    batch_size: Positive = Field(256, description="images of one indivisible batch (batch statistics)")
    criterion: Criterion = Field("taylor_reward", description="what makes a channel important; EKG: taylor_reward")
    search_teacher: SearchTeacher = Field("ensemble", description="whose predictions the score compares with")
    quirks: tuple[Quirk, ...] = Field(
        (), description="what is done as in the program published with the paper (README, Decisions); `reference`: all"
    )
    evaluation: Literal["fast", "naive"] = Field(
        "fast", description="fast: candidates share what they have in common; naive: each by itself, the reference"
    )
    slice_below: float = Field(
        0.9,
        ge=0,
        le=1,
        description="channel groups that keep at most this share are computed on kept channels; 0: none",
    )
    precision: Precision = Field(
        "fp32", description="fp32: exact; tf32 (GPU) and bf16 are faster and approximate: see `run --audit`"
    )
    channels_last: bool = Field(False, description="channels of a pixel together in memory; other rounding")
    compile: bool = Field(False, description="compile norms with what follows them (torch.compile); other rounding")
    racing: Share | None = Field(
        None,
        description="drop candidates that cannot win any more before they have seen all batches; the probability with "
        "which one decision may lose the best candidate, e.g. 0.05. null: every candidate sees all images (exact)",
    )

    @model_validator(mode="after")
    def _has_one_arithmetic(self) -> "SearchSection":
        faster = [name for name in ("channels_last", "compile") if getattr(self, name)]
        faster += [f"precision {self.precision}"] if self.precision != "fp32" else []
        if self.evaluation == "naive" and faster:
            raise ValueError(
                f"search.evaluation naive is the plain network in 32-bit floats, so search.{faster[0]} does nothing; "
                "leave one of them out"
            )
        if "sequential_statistics" in self.quirks and faster:
            raise ValueError(
                f"search.{faster[0]} rounds otherwise than the quirk sequential_statistics, which is there to round as "
                "the published program does; leave one of them out"
            )
        return self


class BankSection(Section):
    """The memory bank of the teachers' outputs."""

    teachers: Positive = Field(5, description="K, number of interim sub-networks kept as teachers")
    uri: str | None = Field(
        None,
        description="folder ($VARIABLES are expanded) or object storage of the bank; null: inside the run directory",
    )
    dtype: Literal["float16", "float32", "int8"] = Field(
        "float16",
        description="how the outputs are stored; int8: with a scale for each image and teacher, which nearly halves "
        "float16 at 1000 classes and saves 8 % at 10",
    )
    embeddings: bool = Field(
        False,
        description="store the teachers' embeddings also for objectives that do without them, so that runs of every "
        "objective can share one bank; contrastive and byol store them anyway",
    )
    batch_size: Positive = Field(256, description="images of one batch (batch statistics)")
    cache: str | None = Field(
        None,
        description="folder on the disk of each machine for its copy of the bank; null: inside the run directory. "
        "$VARIABLES are expanded",
    )
    resident: bool = Field(
        False,
        description="hold the bank in the memory of a GPU if half of what is free there suffices; no effect on CPUs",
    )

    @field_validator("uri")
    @classmethod
    def _no_credentials(cls, value: str | None) -> str | None:
        reason = credentials_in(value or "")
        if reason:
            raise ValueError(f"bank.uri: {reason}")
        return value

    @field_validator("dtype", mode="before")
    @classmethod
    def _whole_rows(cls, value: object) -> object:
        if isinstance(value, str) and re.match(r"top", value, re.IGNORECASE):
            raise ValueError(
                f"bank.dtype = {value!r}: storing only the largest logits is not offered, since at temperature 10 "
                "the ten largest of 1000 hold only about 4 % of the mass; use float16, or int8, which is smaller"
            )
        return value


class FinetuneSection(TrainingFields):
    """Fine-tuning of the slim network."""

    objective: Literal["plain", "single", "ekg", "contrastive", "byol"] = Field(
        "ekg",
        description="plain: cross-entropy; single: distillation from the unpruned network; ekg: from the memory bank; "
        "contrastive, byol: ekg and a term on embeddings (NT-Xent, BYOL)",
    )
    seed: int | None = Field(
        None, ge=0, description="seed of the order of images, the views and the heads; null: the seed of the job"
    )
    learning_rate: float = Field(0.01, gt=0, description="first learning rate")
    milestones: tuple[float, ...] = Field((0.3, 0.6, 0.8), description="shares of the epochs at which the rate decays")
    temperature: float | None = Field(
        None, gt=0, description="tau_T of the distillation; null: 4 below 1000 classes, else 10"
    )
    teacher_gate: Literal["kl_to_top", "ce"] = Field("kl_to_top", description="when a teacher is left out (EKG)")
    label_smoothing: float = Field(0, ge=0, lt=1, description="share of the label target spread over all classes")
    embedding_weight: float = Field(1, ge=0, description="weight of the term on embeddings (contrastive, byol)")
    contrast_temperature: float = Field(0.1, gt=0, description="temperature of NT-Xent")
    negatives: int = Field(
        0, ge=0, description="queue of past teacher projections as negatives; 0: the other images of the micro-batch"
    )
    head_width: Positive = Field(512, description="hidden features of projection and prediction heads")
    projection_width: Positive = Field(128, description="features of a projection")
    target_momentum: float = Field(0.996, ge=0, le=1, description="momentum of BYOL's target at the start; rises to 1")
    ema_decay: float = Field(0, ge=0, lt=1, description="decay per step of a moving average of the weights; 0: none")
    average_last: int = Field(0, ge=0, description="epochs at the end whose final weights are averaged; 0: none")
    recalibrate_images: int = Field(
        0, ge=0, description="training images that give new running statistics before each evaluation; 0: none"
    )
    accumulate: Positive = Field(
        1, description="micro-batches of one step; batch statistics, negatives and teachers in use are of one of them"
    )
    synchronised_norm: bool = Field(
        False, description="batch statistics over all workers; off, the result depends on their number"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast, an approximation")
    channels_last: bool = Field(False, description="memory layout that is faster on GPUs")
    compile: bool = Field(False, description="compile the network's forward and backward passes")
    max_skipped: int = Field(
        3, ge=0, description="steps in a row without a finite loss that are skipped before going back to a checkpoint"
    )
    max_rollbacks: int = Field(1, ge=0, description="times of going back before the run stops")
    checkpoint_every_steps: int = Field(0, ge=0, description="steps between checkpoints within an epoch; 0: none")
    workers: Positive = Field(1, description="processes of distributed data parallel training")
    crop: Literal["auto", "pad", "resized"] = Field(
        "auto",
        description="pad: crop of the padded image; resized: random part of the picture, 8-100 % of its area; "
        "auto: resized for image_folder and parquet",
    )
    pad: int = Field(4, ge=0, description="pixels of padding of the random crop")
    flip: bool = Field(True, description="random horizontal flips")
    brightness: Factor = Field(0.2, description="half range of the brightness jitter, on images in 0..1")
    contrast: Factor = Field(0.2, description="half range of the contrast factor")
    saturation: Factor = Field(0.2, description="half range of the saturation factor")
    lighting: float | None = Field(
        None, ge=0, description="deviation of the noise along ImageNet's colours; null: 0.1 with a resized crop, else 0"
    )
    baselines: tuple[Literal["plain", "uniform"], ...] = Field(
        (), description="also fine-tune: plain (same network, cross-entropy only), uniform (uniform-width network)"
    )


class ClusterSection(Section):
    """Where the work runs."""

    search_workers: int = Field(0, ge=0, description="long-lived Ray workers of search and bank; 0: in this process")
    address: str | None = Field(None, description="address of a running Ray cluster; null: $RAY_ADDRESS, else local")
    placement: Literal["spread", "pack"] = Field(
        "spread", description="search workers over as many nodes as possible, or as few as possible"
    )
    cpus_per_worker: float | None = Field(
        None, gt=0, description="cores that one worker holds; below 1 several share one; null: one for each thread"
    )
    gpus_per_worker: float = Field(
        1, gt=0, description="GPUs that one search worker holds where the device is cuda; below 1 several share one"
    )
    threads_per_worker: Positive = Field(
        1, description="torch threads of one worker of search, bank and fine-tuning (part of the arithmetic)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: cuda where this machine has it; for workers of a named cluster: where a node of it does",
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="times in a row that a lost worker is replaced, with no answer or checkpoint, before the run stops",
    )
    start_timeout_seconds: float = Field(
        300,
        gt=0,
        description="a search worker that has not started for so long is replaced; the next one gets twice as long",
    )
    timeout_seconds: float = Field(1800, gt=0, description="a worker that answers nothing for so long is replaced")
    object_store_mb: Positive = Field(256, description="object store of a local Ray session, megabytes")

    @property
    def session_address(self) -> str | None:
        """Address of the Ray cluster to use: `address`, else $RAY_ADDRESS; None for a session on this machine."""
        return self.address or os.environ.get("RAY_ADDRESS") or None

    @property
    def cores_per_worker(self) -> float:
        """Cores that one worker holds."""
        return self.threads_per_worker if self.cpus_per_worker is None else self.cpus_per_worker

    @model_validator(mode="after")
    def _whole(self) -> "ClusterSection":
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(f"gpus_per_worker = {self.gpus_per_worker}: above 1 it must be a whole number of GPUs")
        return self
