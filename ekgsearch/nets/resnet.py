"""ResNets for ImageNet: a 7x7 stem, four stages of basic or bottleneck blocks (arXiv 1512.03385, sec. 4.1)."""

from torch import Tensor, nn


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if in_channels == out_channels and stride == 1:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is computed first."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=False)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to the next one."""
        shortcut = images if self.downsample is None else self.downsample(images)
        branch = self.relu(self.bn1(self.conv1(images)))
        out: Tensor = self.relu(self.bn2(self.conv2(branch)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 (which carries the stride) and a 1x1 convolution, and a shortcut, which is computed first."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=False)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to the next one."""
        shortcut = images if self.downsample is None else self.downsample(images)
        branch = self.relu(self.bn1(self.conv1(images)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        out: Tensor = self.relu(self.bn3(self.conv3(branch)) + shortcut)
        return out


Block = type[BasicBlock] | type[Bottleneck]
"""Kind of residual block."""


def _stage(block: Block, num_blocks: int, in_channels: int, width: int, *, stride: int) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(num_blocks - 1)))


class ResNet(nn.Module):
    """ResNet-18, 34, 50, 101 or 152; parameter names as in torchvision.

    Images (B, C, H, W), usually 224x224; logits (B, num_classes).
    """

    def __init__(
        self, channels: int, block: Block, blocks_per_stage: tuple[int, int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=False)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        num1, num2, num3, num4 = blocks_per_stage
        self.layer1 = _stage(block, num1, 64, 64, stride=1)
        self.layer2 = _stage(block, num2, 64 * block.expansion, 128, stride=2)
        self.layer3 = _stage(block, num3, 128 * block.expansion, 256, stride=2)
        self.layer4 = _stage(block, num4, 256 * block.expansion, 512, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits
