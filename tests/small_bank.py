"""A bank of three teachers that are single layers, on images of four numbers."""

import torch
from torch import Tensor

from ekgsearch.bank.build import Outputs, build_block, write_block
from ekgsearch.bank.commit import missing_blocks
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
from ekgsearch.bank.shards import write_shard
from ekgsearch.records import Subnetwork
from ekgsearch.storage.objects import ObjectStore

IMAGES, CLASSES, PIXELS = 50, 3, 4
SUBNETWORKS = [Subnetwork.of({"conv": range(kept)}) for kept in (4, 3, 2)]


def make_spec() -> BankSpec:
    return BankSpec(
        dataset_hash="d" * 64,
        weights_hash="w" * 64,
        teachers=tuple(teacher.sha256 for teacher in SUBNETWORKS),
        num_images=IMAGES,
        num_classes=CLASSES,
        batch_size=8,
        batches_per_block=2,
    )


def forward(images: Tensor, teacher: Subnetwork) -> Outputs:
    """A network whose result depends on the batch, as one with batch statistics does."""
    weight = torch.arange(CLASSES * PIXELS, dtype=torch.float32).view(CLASSES, PIXELS)
    mask = torch.zeros(PIXELS)
    mask[list(teacher["conv"])] = 1
    features = images.flatten(1)[:, :PIXELS] * mask
    embeddings = (features - features.mean(dim=0)).relu()
    return Outputs(embeddings @ weight.T - 10, embeddings)


def pixels() -> Tensor:
    return torch.randn(IMAGES, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def batches(spec: BankSpec, index: int) -> list[Tensor]:
    return [pixels()[batch] for batch in torch.split(bank_layout(spec)[index], spec.batch_size)]


def block(spec: BankSpec, index: int) -> BankRows:
    made = build_block(forward, batches(spec, index), SUBNETWORKS, spec.columns)
    logits, embeddings = made[: spec.num_teachers], made[spec.num_teachers :]
    return BankRows(torch.stack(logits, dim=-1), torch.stack(embeddings, dim=-1) if embeddings else None)


def build(store: ObjectStore, spec: BankSpec, blocks: list[int] | None = None) -> None:
    for index in range(spec.num_blocks) if blocks is None else blocks:
        write_block(store, spec, index, block(spec, index))


def build_missing(store: ObjectStore, spec: BankSpec) -> list[tuple[int, int]]:
    """Do what a run does for what its bank lacks. Returns (block, forward passes of a batch) for each block built."""
    passes = []

    def counted(images: Tensor, teacher: Subnetwork) -> Outputs:
        passes.append(teacher)
        return forward(images, teacher)

    built = []
    for missing in missing_blocks(store, spec, verify=True):
        columns = [spec.columns[position] for position in missing.columns]
        passes.clear()
        made = build_block(counted, batches(spec, missing.block), SUBNETWORKS, columns)
        for column, values in zip(columns, made, strict=True):
            write_shard(store, column, missing.block, values)
        built.append((missing.block, len(passes)))
    return built
