"""Tiny networks that do something less usual: decode, share, write in place, use own layers or other layouts."""

import torch
import torch.nn.functional as F
from blocks import Head, conv, shuffle
from torch import nn


class Transposed(nn.Module):
    """An auto-encoder; transposed convolutions plain, grouped and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 6), nn.MaxPool2d(2), conv(6, 8))
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(6, 4, 3, padding=1, groups=2)
        self.depthwise = nn.ConvTranspose2d(4, 8, 3, padding=1, groups=4, bias=False)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.up(self.encoder(x)))
        return self.last(F.relu(self.depthwise(F.relu(self.grouped(x)))))


class Decoder(nn.Module):
    """A vector unfolded into a feature map, and pixel shuffling."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3 * 8 * 8, 6), nn.Linear(6, 5 * 4 * 4)
        self.unfold, self.body, self.pixels = nn.Unflatten(1, (5, 4, 4)), conv(5, 12), nn.PixelShuffle(2)
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.unfold(F.relu(self.decode(F.relu(self.encode(x.flatten(1))))))
        return self.last(self.pixels(self.body(x)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep, self.up, self.last = conv(3, 5), conv(5, 6), conv(11, 5), nn.Conv2d(5, 2, 1)

    def forward(self, x):
        high = self.down(x)
        low = F.interpolate(self.deep(F.avg_pool2d(high, 2)), scale_factor=2, mode="nearest")
        return self.last(self.up(torch.cat([high, low], 1)))


class Shared(Head):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__(7)
        self.stem, self.twice, self.last = conv(3, 6), nn.Conv2d(6, 6, 3, padding=1), conv(6, 7)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(F.relu(self.twice(F.relu(self.twice(x))))))


class Tied(Head):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.a, self.b = conv(3, 6), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(self.stem(x))))))


class ControlFlow(Head):
    """A forward that symbolic tracing cannot follow: it looks at sizes."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.left, self.same = conv(3, 12), conv(6, 6), conv(6, 6, groups=6)
        self.up, self.drop = nn.ConvTranspose2d(12, 12, 2, 2), nn.Dropout(0.3)
        self.act = nn.PReLU(12)

    def forward(self, x):
        if x.shape[-1] > 100:
            raise ValueError("too large")
        x = self.stem(x)
        for _ in range(x.dim() - 3):
            x = x * 2
        left, right = x.chunk(2, 1)
        x = shuffle(torch.cat([self.left(left), self.same(right)], 1), 2)
        x = self.act(self.up(x[:, :, :4, :4])) + x
        x = F.adaptive_avg_pool2d(self.drop(x), 1)
        return self.linear(F.dropout(x.view(x.size(0), 12), 0.2, self.training))


class Scales(Head):
    """PReLU with a slope per channel and with one, instance normalisation."""

    def __init__(self) -> None:
        super().__init__(6)
        self.a, self.b, self.c = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3), nn.Conv2d(7, 6, 1)
        self.slopes, self.slope, self.norm = nn.PReLU(5), nn.PReLU(), nn.InstanceNorm2d(7, affine=True)

    def forward(self, x):
        return self.head(self.slope(self.c(self.norm(self.b(self.slopes(self.a(x)))))))


class InPlace(Head):
    """In-place operations whose effect is read later under the old name."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.body(self.relu(x))
        y += x
        F.relu_(y)
        y.mul_(0.5)
        F.relu(y, True)
        return self.head(y)


class InPlaceOnCopy(Head):
    """An activation that writes into a rolled copy, which a slim network gathers, and whose source is read later."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem, self.other, self.relu = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu(x.roll(12, 1))
        return self.head(self.other(y) + x.tanh())


class PaddedConv(nn.Conv2d):
    """A convolution class of its own that pads at the bottom and right."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class OwnConv(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.a, self.b = PaddedConv(3, 5, 3, stride=2), PaddedConv(5, 6, 3, stride=2)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class ChannelsLast(Head):
    """Linear layers over the last axis, between permutations."""

    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.wide, self.narrow = conv(3, 6), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        x = self.stem(x)
        y = x.permute(0, 2, 3, 1)
        y = self.narrow(F.gelu(self.wide(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


class Selective(Head):
    """Branches stacked on a new axis and averaged."""

    def __init__(self) -> None:
        super().__init__(6)
        self.a, self.b = conv(3, 6), conv(3, 6, 1)

    def forward(self, x):
        return self.head(torch.stack([self.a(x), self.b(x)], dim=1).mean(1))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 6), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return {"boxes": self.a(x), "classes": (self.b(x), x.mean((2, 3)))}
