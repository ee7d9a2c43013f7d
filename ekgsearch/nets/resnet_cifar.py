"""ResNets for 32x32 images: three stages of basic blocks, 16, 32 and 64 channels wide (arXiv 1512.03385, sec. 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ekgsearch.nets.options import Padding, Shortcut


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is computed first.

    Input (B, in_channels, H, W), output (B, out_channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut, padding: Padding) -> None:
        super().__init__()
        self.pads_one_side = stride == 2 and padding == "tf_same"
        self.pads_channels = (out_channels - in_channels) // 2 if shortcut == "option_a" else 0
        first_padding = 0 if self.pads_one_side else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, first_padding, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels and shortcut == "projection":
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to the next one."""
        if self.pads_channels:
            shortcut = F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.pads_channels, self.pads_channels))
        else:
            shortcut = self.shortcut(images)
        if self.pads_one_side:
            images = F.pad(images, (0, 1, 0, 1))
        branch = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(branch)) + shortcut)


def _stage(num_blocks: int, in_channels: int, width: int, shortcut: Shortcut, padding: Padding) -> nn.Sequential:
    stride = 1 if in_channels == width else 2
    first = CifarBlock(in_channels, width, stride, shortcut, padding)
    return nn.Sequential(first, *(CifarBlock(width, width, 1, shortcut, padding) for _ in range(num_blocks - 1)))


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 for small images; parameter names as in the common PyTorch CIFAR ResNets.

    Images (B, C, H, W) with H and W multiples of 4; logits (B, num_classes).
    """

    def __init__(
        self, channels: int, blocks_per_stage: int, num_classes: int, shortcut: Shortcut, padding: Padding
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks_per_stage, 16, 16, shortcut, padding)
        self.layer2 = _stage(blocks_per_stage, 16, 32, shortcut, padding)
        self.layer3 = _stage(blocks_per_stage, 32, 64, shortcut, padding)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.linear(self.avgpool(features).flatten(1))
        return logits
