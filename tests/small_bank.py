"""A bank of three teachers that are single layers, on images of four numbers."""

import torch
from torch import Tensor

from ekgsearch.bank.build import (
    Outputs,
    bank_layout,
    build_block,
    write_block,
)
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankRows
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


def without_embeddings(images: Tensor, teacher: Subnetwork) -> Outputs:
    return Outputs(forward(images, teacher).logits)


def pixels() -> Tensor:
    return torch.randn(IMAGES, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def block(spec: BankSpec, index: int) -> BankRows:
    ids = bank_layout(spec)[index]
    batches = [pixels()[batch] for batch in torch.split(ids, spec.batch_size)]
    return build_block(forward if spec.embeddings else without_embeddings, batches, SUBNETWORKS)


def build(store: ObjectStore, spec: BankSpec, blocks: list[int] | None = None) -> None:
    for index in range(spec.num_blocks) if blocks is None else blocks:
        write_block(store, spec, index, block(spec, index))
