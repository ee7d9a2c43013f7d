"""Tiny classifiers, one for each thing that classification networks do to channels."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Head(nn.Module):
    """Base: global average pool and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 4)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Plain(Head):
    def __init__(self) -> None:
        super().__init__(7)
        self.first, self.second = conv(3, 6), conv(6, 7)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


class OptionA(Head):
    """Residual blocks with parameter-free shortcuts: every second pixel, zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem = conv(3, 8)
        self.a, self.b = conv(8, 5), nn.Conv2d(5, 8, 3, padding=1)
        self.c, self.d, self.norm = conv(8, 6, stride=2), nn.Conv2d(6, 16, 3, padding=1), nn.BatchNorm2d(16)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.b(self.a(x)))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(shortcut + self.norm(self.d(self.c(x))))
        return self.head(x)


class ZeroCat(Head):
    """Parameter-free shortcut by concatenating a zeroed copy."""

    def __init__(self) -> None:
        super().__init__(10)
        self.stem, self.body = conv(3, 5), nn.Conv2d(5, 10, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.body(x) + torch.cat([x, x.mul(0)], 1)))


class Depthwise(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem = conv(3, 6)
        self.expand, self.filter = conv(6, 9, 1), conv(9, 9, groups=9)
        self.project, self.norm = nn.Conv2d(9, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.norm(self.project(self.filter(self.expand(x)))))


class DepthMultiplier(Head):
    """A depthwise convolution with three outputs for each input."""

    def __init__(self) -> None:
        super().__init__(5)
        self.stem, self.spread, self.last = conv(3, 4), conv(4, 12, groups=4), conv(12, 5)

    def forward(self, x):
        return self.head(self.last(self.spread(self.stem(x))))


class Grouped(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.grouped, self.last = conv(3, 8), conv(8, 12, groups=4), conv(12, 6, groups=2)

    def forward(self, x):
        return self.head(self.last(self.grouped(self.stem(x))))


class OneChannel(Head):
    """One-channel convolutions, which are no depthwise ones."""

    def __init__(self) -> None:
        super().__init__(5)
        self.squeeze, self.single, self.last = conv(3, 1), conv(1, 1), conv(1, 5)

    def forward(self, x):
        return self.head(self.last(self.single(self.squeeze(x))))


class Dense(Head):
    def __init__(self) -> None:
        super().__init__(11)
        self.a, self.b, self.c = conv(3, 4), conv(7, 5), conv(12, 6)
        self.norm = nn.BatchNorm2d(11)

    def forward(self, x):
        y = torch.cat([x, self.a(x)], 1)
        y = torch.cat([y, self.b(y)], 1)
        y = torch.cat([self.c(y), y[:, -5:]], 1)
        return self.head(torch.relu(self.norm(y)))


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    b, c, h, w = x.size()
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class Shuffle(Head):
    """Two units of ShuffleNet v2: split, one branch, join, shuffle."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = conv(3, 12)
        self.one = nn.Sequential(conv(6, 6, 1), conv(6, 6, groups=6), conv(6, 6, 1))
        self.two = nn.Sequential(conv(6, 6, 1), conv(6, 6, groups=6), conv(6, 6, 1))

    def forward(self, x):
        x = self.stem(x)
        for branch in (self.one, self.two):
            left, right = x.chunk(2, dim=1)
            x = shuffle(torch.cat([left, branch(right)], 1), 2)
        return self.head(x)


class LiteralShuffle(Head):
    """The same shuffle with sizes written as numbers, and the shuffle layer of torch."""

    def __init__(self) -> None:
        super().__init__(8)
        self.stem, self.middle, self.last = conv(3, 8), conv(8, 8), conv(8, 8)
        self.shuffle = nn.ChannelShuffle(4)

    def forward(self, x):
        x = self.stem(x).reshape(-1, 2, 4, 8, 8).permute(0, 2, 1, 3, 4).reshape(-1, 8, 8, 8)
        return self.head(self.last(self.shuffle(self.middle(x))))


class Slices(Head):
    """Channel slices: both halves, every second channel, split by sizes, a flip."""

    def __init__(self) -> None:
        super().__init__(9)
        self.stem = conv(3, 10)
        self.a, self.b, self.c, self.d = conv(4, 6), conv(6, 3), conv(5, 3), conv(10, 3)

    def forward(self, x):
        x = self.stem(x)
        y = self.a(x[:, :4]) + x[:, 4:]
        left, right = torch.split(y, [2, 4], 1)
        y = torch.cat([right, left], 1)
        return self.head(torch.cat([self.b(y), self.c(x[:, ::2]), self.d(x.flip(1))], 1))


class SqueezeExcite(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem, self.body = conv(3, 6), conv(6, 6)
        self.down, self.up = nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x):
        x = self.body(self.stem(x))
        b, c, _, _ = x.size()
        gate = F.adaptive_avg_pool2d(x, 1).view(b, c)
        gate = torch.sigmoid(self.up(F.relu(self.down(gate)))).view(b, c, 1, 1)
        return self.head(x * gate.expand_as(x))


class FlattenLiteral(nn.Module):
    """A feature map flattened into a linear layer, the size written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.b = conv(3, 5), nn.MaxPool2d(2), conv(5, 6)
        self.hidden, self.norm, self.last = nn.Linear(6 * 4 * 4, 7), nn.BatchNorm1d(7), nn.Linear(7, 4)

    def forward(self, x):
        x = self.b(self.pool(self.a(x))).view(-1, 6 * 4 * 4)
        x = F.dropout(F.relu(self.norm(self.hidden(x))), 0.5, self.training)
        return self.last(x)


class PreActivation(Head):
    def __init__(self) -> None:
        super().__init__(6)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.inner = nn.ModuleList(conv(6, 5) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(5, 6, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for norm, inner, outer in zip(self.norms, self.inner, self.outer, strict=False):
            x = x + outer(inner(F.relu(norm(x))))
        return self.head(F.relu(self.norms[2](x)))
