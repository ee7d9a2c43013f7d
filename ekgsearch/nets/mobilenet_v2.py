"""MobileNet-v2: inverted residuals with depthwise convolutions and linear outputs (arXiv 1801.04381)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ekgsearch.nets.options import Padding

IMAGENET_STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)
"""Strides of the stem and the seven stages for 224x224 images (arXiv 1801.04381, table 2)."""

CIFAR_STRIDES = (1, 1, 1, 2, 2, 1, 2, 1)
"""Strides for 32x32 images: the stem and the second stage keep the resolution, so that 4x4 maps remain."""

_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""Expansion, output channels and number of blocks of each stage."""


class ConvNormActivation(nn.Sequential):
    """Convolution without bias, batch norm and ReLU6, named 0, 1, 2."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int, groups: int, padding: Padding
    ) -> None:
        self.pads_one_side = stride == 2 and kernel == 3 and padding == "tf_same"
        conv_padding = 0 if self.pads_one_side else kernel // 2
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, conv_padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to the next one."""
        if self.pads_one_side:
            images = F.pad(images, (0, 1, 0, 1))
        for layer in self:
            images = layer(images)
        return images


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection; the identity is added where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, padding: Padding) -> None:
        super().__init__()
        self.adds_identity = stride == 1 and in_channels == out_channels
        width = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(in_channels, width, 1, stride=1, groups=1, padding=padding))
        layers += [
            ConvNormActivation(width, width, 3, stride=stride, groups=width, padding=padding),
            nn.Conv2d(width, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map a feature map (B, C, H, W) to the next one."""
        branch: Tensor = self.conv(images)
        return images + branch if self.adds_identity else branch


class MobileNetV2(nn.Module):
    """MobileNet-v2 of width 1.0; parameter names as in torchvision.

    Images (B, C, H, W); logits (B, num_classes).
    """

    def __init__(
        self, channels: int, strides: tuple[int, ...], num_classes: int, padding: Padding, dropout: float
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvNormActivation(channels, 32, 3, stride=strides[0], groups=1, padding=padding),
        )
        in_channels = 32
        for (expansion, out_channels, num_blocks), stage_stride in zip(_STAGES, strides[1:], strict=True):
            for index in range(num_blocks):
                stride = stage_stride if index == 0 else 1
                self.features.append(InvertedResidual(in_channels, out_channels, stride, expansion, padding))
                in_channels = out_channels
        self.features.append(ConvNormActivation(in_channels, 1280, 1, stride=1, groups=1, padding=padding))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits
