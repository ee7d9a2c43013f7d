"""GoogLeNet for 32x32 images: nine inception blocks; the 5x5 branch is two 3x3 convolutions (arXiv 1409.4842)."""

import torch
from torch import Tensor, nn

_BLOCKS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
"""Widths: 1x1 branch; 3x3 branch, reduced and out; 5x5 branch, reduced and out; pooling branch (table 1 there)."""

_POOLED_BEFORE = ("inception4a", "inception5a")


def _conv(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=False),
    ]


class Inception(nn.Module):
    """Four parallel branches, concatenated over the channels: 1x1, 3x3, 5x5 (as two 3x3) and pooling."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_reduced, three, five_reduced, five, pooled = widths
        self.branch1 = nn.Sequential(*_conv(in_channels, one, 1))
        self.branch3 = nn.Sequential(*_conv(in_channels, three_reduced, 1), *_conv(three_reduced, three, 3))
        self.branch5 = nn.Sequential(
            *_conv(in_channels, five_reduced, 1), *_conv(five_reduced, five, 3), *_conv(five, five, 3)
        )
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *_conv(in_channels, pooled, 1))
        self.out_channels = one + three + five + pooled

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to the next one, of the same height and width."""
        branches = [self.branch1(images), self.branch3(images), self.branch5(images), self.branch_pool(images)]
        return torch.cat(branches, 1)


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norm and conv biases, without auxiliary heads.

    Images (B, C, H, W) with H and W at least 4; logits (B, num_classes).
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(channels, 192, 3))
        self.blocks = nn.Sequential()
        channels = 192
        for name, widths in _BLOCKS.items():
            if name in _POOLED_BEFORE:
                self.blocks.add_module(f"{name}_pool", nn.MaxPool2d(3, 2, 1))
            block = Inception(channels, widths)
            self.blocks.add_module(name, block)
            channels = block.out_channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.linear(self.avgpool(self.blocks(self.stem(images))).flatten(1))
        return logits
