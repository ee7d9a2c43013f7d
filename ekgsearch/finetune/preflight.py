"""Before the first step: what would fail later is refused, and what the result depends on is written down."""

import dataclasses

import torch
from torch import nn

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.errors import JobError
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.resume import Facts, state_hash
from ekgsearch.finetune.world import World
from ekgsearch.records import content_hash


def check(
    data: TrainData,
    config: FinetuneConfig,
    world: World,
    bank: MemoryBank | None,
    teacher: nn.Module | None,
    classifier: str | None,
) -> None:
    """Refuse what would fail after the first expensive step.

    Raises:
        JobError: the objective lacks its teacher, or batches, images and processes do not fit.
    """
    name, needs = config.objective, config.needs
    if needs.bank and bank is None:
        raise JobError(f"objective '{name}' distils from a memory bank, found none; build one and pass it")
    if needs.teacher and teacher is None:
        raise JobError(f"objective '{name}' distils from the unpruned network, found none; pass it as the teacher")
    if bank is not None and not _covers(bank, data):
        raise JobError(
            f"expected a memory bank that covers the {_num_images(data)} training images in use, found one of "
            f"{len(bank)} images; build it for these"
        )
    if needs.embeddings and (bank is None or not bank.spec.embeddings):
        raise JobError(
            f"objective '{name}' needs a memory bank with embeddings, found one of logits only; build it for this "
            "objective, or use ekg"
        )
    if needs.embeddings and classifier is None:
        raise JobError(f"objective '{name}' needs to know the network's classifier, found none; pass its path")
    _check_batches(_num_images(data), config, world)


def _num_images(data: TrainData) -> int:
    return len(data.train) if data.ids is None else len(data.ids)


def _covers(bank: MemoryBank, data: TrainData) -> bool:
    """Whether a bank has a row for every training image in use."""
    used = torch.arange(len(data.train)) if data.ids is None else data.ids.cpu()
    return bool(torch.isin(used, bank.spec.image_ids).all())


def _check_batches(images: int, config: FinetuneConfig, world: World) -> None:
    if config.batch_size > images:
        raise JobError(
            f"expected a batch size of at most the {images} training images, found {config.batch_size}; lower it"
        )
    if config.micro_batch < world.size:
        raise JobError(
            f"expected at least one image per process and micro-batch, found micro-batches of {config.micro_batch} "
            f"for {world.size} processes; raise the batch size, accumulate less or use fewer processes"
        )
    shares, compared = config.accumulate * world.size, config.needs.images
    if (config.accumulate > 1 or compared > 1) and config.batch_size % shares:
        raise JobError(
            f"expected a batch size that {config.accumulate} micro-batches x {world.size} processes divide, found "
            f"{config.batch_size}; use a multiple of {shares}"
        )
    if config.batch_size < compared * shares:
        raise JobError(
            f"objective '{config.objective}' compares images: expected at least {compared} per process and "
            f"micro-batch, found {config.batch_size // shares}; raise the batch size"
        )


def facts_of(
    model: nn.Module, data: TrainData, config: FinetuneConfig, bank: MemoryBank | None, classifier: str | None
) -> Facts:
    """Collect what the result depends on, for the comparison with a checkpoint.

    The number of processes is left out, so that a training may continue on fewer devices. Where it matters, because
    each process has batch statistics of its own, the job tells (`finetune.workers` is part of its hash then) and so
    does a warning.
    """
    facts = {f"config.{name}": value for name, value in _plain(dataclasses.asdict(config)).items()}
    facts["initial weights"] = state_hash(model)
    facts["train images"] = data.train.content_hash
    facts["input mean"], facts["input std"] = data.normalisation.mean, data.normalisation.std
    facts["train ids"] = "all" if data.ids is None else content_hash(data.ids.tolist())
    facts["memory bank"] = bank.spec.sha256 if bank is not None and config.needs.bank else None
    facts["classifier"] = classifier if config.needs.embeddings else None
    return facts


def _plain(value: object) -> dict[str, object]:
    """Flatten nested settings to texts and numbers."""
    assert isinstance(value, dict)
    flat: dict[str, object] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat.update({f"{name}.{inner}": content for inner, content in _plain(item).items()})
        else:
            flat[name] = item
    return flat


def arithmetic(data: TrainData, config: FinetuneConfig, world: World) -> str:
    """Say in words how images become steps, and over what batch statistics are taken."""
    images = _num_images(data)
    steps, left_out = divmod(images, config.batch_size)
    share = config.micro_batch / world.size
    processes = "1 process" if world.size == 1 else f"{world.size} processes"
    micro_batches = "1 micro-batch" if config.accumulate == 1 else f"{config.accumulate} micro-batches"
    views = "1 view" if config.needs.views == 1 else f"{config.needs.views} views"
    together = config.micro_batch if config.synchronised_norm else share
    whose = "of all processes" if config.synchronised_norm and world.size > 1 else "of one process"
    return (
        f"training ({config.objective}) for {config.epochs} epochs of {steps} steps: one step takes "
        f"{config.batch_size} of {images} images = {processes} x {micro_batches} x {share:g} "
        f"images, each in {views}; {left_out} images sit out each epoch; batch statistics cover "
        f"{together * config.needs.views:g} views {whose}"
    )
