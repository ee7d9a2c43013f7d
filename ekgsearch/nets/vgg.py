"""VGG-16 for 32x32 images: 13 convolutions with bias and batch norm, one linear layer (arXiv 1409.1556, config D)."""

from torch import Tensor, nn

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG-16 with batch norm; parameter names of the convolutional part as in torchvision's vgg16_bn.

    Images (B, C, H, W) with H and W at least 16; logits (B, num_classes).
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = channels
        for stage, widths in enumerate(_WIDTHS):
            if stage:
                layers.append(nn.MaxPool2d(2, 2))
            for width in widths:
                layers += [
                    nn.Conv2d(in_channels, width, 3, 1, 1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=False),
                ]
                in_channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.classifier(self.avgpool(self.features(images)).flatten(1))
        return logits
