"""A network of somebody's own: stem, residual, squeeze-excitation, depthwise convolution and group norm."""

import torch
from torch import Tensor, nn


class Excite(nn.Module):
    """Squeeze-excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width // 4, 1)
        self.up = nn.Conv2d(width // 4, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scale each channel by a number between 0 and 1."""
        squeezed = torch.relu(self.down(images.mean((2, 3), keepdim=True)))
        return images * torch.sigmoid(self.up(squeezed))


class Block(nn.Module):
    """An inverted residual with group norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.expand = nn.Conv2d(width, inner, 1, bias=False)
        self.norm1 = nn.GroupNorm(4, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.excite = Excite(inner)
        self.project = nn.Conv2d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map to one of the same shape."""
        inner = torch.relu(self.norm1(self.expand(images)))
        inner = self.excite(torch.relu(self.norm2(self.depthwise(inner))))
        return images + self.norm3(self.project(inner))


class Own(nn.Module):
    """Logits (B, num_classes) of images (B, 3, H, W)."""

    def __init__(self, width: int = 16, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width), nn.MaxPool2d(2), Block(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images."""
        features = self.blocks(self.stem(images))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def other(classes: int, depth: int = 3) -> nn.Module:
    """A chain of convolutions."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def broken(num_classes: int) -> nn.Module:
    """Fail as a network under construction does."""
    return nn.Linear(num_classes, undefined)  # type: ignore[name-defined]  # noqa: F821


NUMBER = 3
