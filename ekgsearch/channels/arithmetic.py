"""The numbers that a network is run in: 32-bit floats, or faster and coarser ones where they are asked for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ekgsearch.records import Precision


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a network computes. The default is exact; all else rounds otherwise.

    Attributes:
        precision: the numbers; tf32 differs from fp32 on GPUs only.
        channels_last: keep the channels of a pixel together in memory.
        compile: compile norms and what follows them into one kernel each (torch.compile).
    """

    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False

    def images(self, images: Tensor) -> Tensor:
        """Give normalised images (B, 3, H, W) the type and layout that the network runs in."""
        return self.kernel(images)

    def kernel(self, tensor: Tensor) -> Tensor:
        """Give a kernel or a bias its type and layout."""
        dtype = torch.bfloat16 if self.precision == "bf16" else tensor.dtype
        if self.channels_last and tensor.ndim == 4:
            return tensor.to(dtype=dtype, memory_format=torch.channels_last)
        return tensor.to(dtype)

    def mask(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Give a bool mask the type of the feature maps, `dtype` where that is the network's own."""
        return mask.to(torch.bfloat16 if self.precision == "bf16" else dtype)

    def set_backends(self) -> None:
        """Set the switches of this process: deterministic kernels, and TF32 only where it is asked for."""
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"


EXACT = Arithmetic()
"""32-bit floats, nothing compiled: the arithmetic of the masked network."""
