"""Sections of a job: everything that trains a network."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ekgsearch.fields import Count, Factor, Mark, Positive, Section, Seed, Width
from ekgsearch.finetune.objectives.registry import ObjectiveName, needs_of
from ekgsearch.methods.baselines.choice import BaselineChoice


class TrainingFields(Section):
    """SGD with momentum, step schedule, L2 on all parameters; how images are cut and mirrored."""

    epochs: Count = Field(100, description="epochs")
    batch_size: Positive = Field(128, description="images of one optimiser step over all workers")
    learning_rate: float = Field(0.01, gt=0, description="first learning rate")
    milestones: tuple[float, ...] = Field(
        (0.3, 0.6, 0.8), description="shares of the epochs after which the learning rate is multiplied by `decay`"
    )
    decay: float = Field(0.2, gt=0, le=1, description="factor at each milestone")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum")
    nesterov: bool = Field(True, description="Nesterov's momentum; off: plain momentum")
    warmup_epochs: Count = Field(
        0, description="epochs at the start over which the learning rate rises in a line, step by step; 0: none"
    )
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, added to the gradient of all parameters")
    crop: Literal["auto", "pad", "resized"] = Field(
        "auto",
        description="pad: crop of the padded image; resized: random part of the picture, 8-100 % of its area; "
        "auto: resized for image_folder and parquet",
    )
    pad: int = Field(4, ge=0, le=4096, description="pixels of padding of the random crop")
    flip: bool = Field(True, description="random horizontal flips")

    def contradictions(self, name: str, num_images: int | None) -> Iterator[str]:
        """What does not go together in this section; one line each.

        Args:
            name: of the section.
            num_images: training images in use; None where only the data set knows.
        """
        shares = list(self.milestones)
        if any(not 0 < share < 1 for share in shares):
            yield f"{name}.milestones = {shares}: expected shares of the epochs, each above 0 and below 1"
        elif shares != sorted(set(shares)):
            yield f"{name}.milestones = {shares}: expected ascending shares of the epochs, each once"
        if self.warmup_epochs > self.epochs:
            yield f"{name}.warmup_epochs = {self.warmup_epochs}, but there are only {name}.epochs = {self.epochs}"
        if num_images is not None and self.epochs and self.batch_size > num_images:
            yield (
                f"{name}.batch_size = {self.batch_size}, but only {num_images} training images are in use "
                "(data.train_images); lower it"
            )


class PretrainSection(TrainingFields):
    """Training of the unpruned network; skipped where net.weights is given."""

    epochs: Count = Field(200, description="epochs")
    learning_rate: float = Field(0.1, gt=0, description="first learning rate")


class WarmupSection(Section):
    """A short training on the warm-up subset before the search."""

    images_per_class: Positive = Field(256, description="images of the warm-up subset per class")
    batch_size: Positive = Field(256, description="images of one step")
    learning_rate: float = Field(1e-3, gt=0, description="constant learning rate")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, added to the gradient of all parameters")
    epochs: Count = Field(1, description="passes over the warm-up subset; 0 leaves the weights alone")


class FinetuneSection(TrainingFields):
    """Fine-tuning of the slim network."""

    objective: ObjectiveName = Field(
        "ekg",
        description="plain: cross-entropy; single: distillation from the unpruned network; ekg: from the memory bank; "
        "contrastive, byol: ekg and a term on embeddings (NT-Xent, BYOL)",
    )
    seed: Seed | None = Field(
        None, description="seed of the order of images, the views and the heads; null: the seed of the job"
    )
    temperature: float | None = Field(
        None, gt=0, description="tau_T of the distillation; null: 4 below 1000 classes, else 10"
    )
    teacher_gate: Literal["kl_to_top", "ce"] = Field("kl_to_top", description="when a teacher is left out (EKG)")
    label_smoothing: float = Field(0, ge=0, lt=1, description="share of the label target spread over all classes")
    embedding_weight: float = Field(1, ge=0, description="weight of the term on embeddings (contrastive, byol)")
    contrast_temperature: float = Field(0.1, gt=0, description="temperature of NT-Xent")
    negatives: int = Field(
        0,
        ge=0,
        le=2**20,
        description="queue of past teacher projections as negatives; 0: the other images of the micro-batch",
    )
    head_width: Width = Field(512, description="hidden features of projection and prediction heads")
    projection_width: Width = Field(128, description="features of a projection")
    target_momentum: float = Field(0.996, ge=0, le=1, description="momentum of BYOL's target at the start; rises to 1")
    ema_decay: float = Field(0, ge=0, lt=1, description="decay per step of a moving average of the weights; 0: none")
    average_last: Count = Field(0, description="epochs at the end whose final weights are averaged; 0: none")
    recalibrate_images: Count = Field(
        0, description="training images that give new running statistics before each evaluation; 0: none"
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
    max_skipped: Count = Field(
        3, description="steps in a row without a finite loss that are skipped before going back to a checkpoint"
    )
    max_rollbacks: Count = Field(1, description="times of going back before the run stops")
    checkpoint_every_steps: Annotated[Count, Mark.NO_RESULT] = Field(
        0, description="steps between checkpoints within an epoch; 0: none"
    )
    workers: int = Field(1, ge=1, le=4096, description="processes of distributed data parallel training")
    brightness: Factor = Field(0.2, description="half range of the brightness jitter, on images in 0..1")
    contrast: Factor = Field(0.2, description="half range of the contrast factor")
    saturation: Factor = Field(0.2, description="half range of the saturation factor")
    lighting: float | None = Field(
        None, ge=0, description="deviation of the noise along ImageNet's colours; null: 0.1 with a resized crop, else 0"
    )
    # NO_RESULT, since each of them is a phase of its own that no other phase depends on
    baselines: Annotated[tuple[BaselineChoice, ...], Mark.NO_RESULT] = Field(
        (),
        description="also fine-tune, by cross-entropy: plain (the same network), scratch (the same with fresh "
        "weights), or the network that another method leaves at the same cost: uniform, l1, l2, fpgm, taylor, "
        "bn_scale, random; with choices: {method: l1, groups: private, stages: 4}",
    )

    def stage_contradictions(self, name: str, stages: int | None) -> Iterator[str]:
        """Whether every stage has an epoch; one line where not.

        Args:
            name: of the section.
            stages: of a cut; None for one that is made at once.
        """
        if stages is not None and stages > self.epochs:
            yield f"{name}.epochs = {self.epochs}, but each of {stages} stages needs one; raise it, or use fewer stages"

    def identity(self) -> dict[str, Any]:
        """Fields that can change a result.

        Several workers without `synchronised_norm` have batch statistics of their own, each over its share of a batch;
        then their number is part of the result, and otherwise stands as 1.
        """
        return super().identity() | ({"workers": 1} if self.synchronised_norm else {})

    def contradictions(self, name: str, num_images: int | None) -> Iterator[str]:
        """What does not go together in this section; see `TrainingFields.contradictions`."""
        yield from super().contradictions(name, num_images)
        share, rest = divmod(self.batch_size, self.workers * self.accumulate)
        compared = needs_of(self.objective).images
        if rest:
            yield (
                f"{name}.batch_size = {self.batch_size} does not divide over {name}.workers = {self.workers} x "
                f"{name}.accumulate = {self.accumulate}"
            )
        elif share < compared:
            yield (
                f"{name}.objective {self.objective} compares images: expected at least {compared} per process and "
                f"micro-batch, found {share} ({name}.batch_size = {self.batch_size} over {name}.workers x "
                f"{name}.accumulate); raise {name}.batch_size"
            )
        names = [choice.name for choice in self.baselines]
        if twice := sorted({one for one in names if names.count(one) > 1}):
            yield f"{name}.baselines: expected each baseline once, found {twice[0]} more often"
        for choice in self.baselines:
            yield from choice.contradictions(f"{name}.baselines")
            yield from self.stage_contradictions(name, choice.stages)
        if self.average_last > self.epochs:
            yield f"{name}.average_last = {self.average_last}, but there are only {name}.epochs = {self.epochs}"
