"""An objective that exists in tests alone: an auto-encoder on images without labels, with a rate that waits for it."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ekgsearch.data.images import ImageSet
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.evaluate import total_over
from ekgsearch.finetune.metrics import EpochMetrics, Metric
from ekgsearch.finetune.objectives.base import Given, Objective
from ekgsearch.finetune.objectives.registry import Entry, Needs

LEVEL = 0.05
"""Most that the head of the objective may add."""


class Reconstruction(Objective):
    """Squared error of the image itself, with a head that shifts each channel by a little."""

    parts = ("loss", "loss_shape", "loss_size")
    metric = Metric("error", highest_is_best=False)

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.level = nn.Parameter(torch.full((3, 1, 1), LEVEL / 2, device=given.world.device))

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        return {"images": batch.views.clone()}

    def forward(self, batch: Batch, targets: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        outputs = self.student(batch.views).outputs
        shape = (outputs + self.level - targets["images"]).square().mean()
        size = 0.01 * outputs.square().mean()
        return {"loss": shape + size, "loss_shape": shape, "loss_size": size}, outputs

    @torch.no_grad()
    def after_step(self, done: int, num_steps: int) -> None:
        self.level.clamp_(-LEVEL, LEVEL)

    def learning_rate(self, progress: float, history: Sequence[EpochMetrics]) -> float:
        """Fall by the factor of the configuration after an epoch that is no better than the best before it."""
        rate, best = self.given.config.learning_rate, math.inf
        for error in (epoch.values["test_error"] for epoch in history if "test_error" in epoch.values):
            rate, best = (rate, error) if error < 0.98 * best else (rate * self.given.config.decay, best)
        return rate

    def measure(
        self, network: nn.Module, images: ImageSet, normalisation: Normalisation, check: Callable[[], None]
    ) -> float:
        def errors(_ids: Tensor, inputs: Tensor, outputs: Tensor) -> Tensor:
            return (outputs - inputs).square().mean(dim=(1, 2, 3)).sum().double().reshape(1)

        (total,) = total_over(network, images, normalisation, self.given.world, errors, count=1, check=check)
        return total / len(images)


ENTRY = Entry(f"{__name__}:Reconstruction", Needs(views=1, labels=False))
"""Its line among the objectives; the tests that train with it add it there."""

CONFIG = FinetuneConfig(
    epochs=9,
    batch_size=8,
    learning_rate=0.1,
    momentum=0.5,
    decay=0.5,
    augmentation=Augmentation(pad=1, flip=True),
)
"""All but the name of the objective, which is unknown without the line."""


class UnlabelledImages:
    """Images in memory of which only the pixels are known."""

    channels = 3

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.content_hash = pixels, str(pixels.double().sum().item())

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, ids: Tensor) -> Tensor:
        return self.pixels[ids]


def unlabelled(data: TrainData) -> TrainData:
    """The same images without their labels."""
    train, test = (UnlabelledImages(images.read(torch.arange(len(images)))) for images in (data.train, data.test))
    return TrainData(train, data.normalisation, test=test)


def make_autoencoder() -> nn.Module:
    """Images (N, 3, H, W) to images, through four channels at half the size."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        down, up = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv2d(4, 3, 3, padding=1)
        return nn.Sequential(down, nn.ReLU(), nn.Upsample(scale_factor=2), up)
