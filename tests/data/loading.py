"""Small sets of pictures and settings with which loaders are tested."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ekgsearch.data.images import ArrayImages
from ekgsearch.data.loader import LoadedBatch, Loader, LoaderSettings
from ekgsearch.data.views import Augmentation, Normalisation

NORMALISATION = Normalisation((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
PAD = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2)
RESIZED = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, lighting=0.1, crop="resized")


def photograph(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture of smooth colours, (width, height) pixels: what cameras make, unlike noise."""
    width, height = size
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sixteen_bit_png(levels: np.ndarray) -> bytes:
    """Encode levels (H, W, 3), uint16, of red, green and blue, which Pillow can only read."""
    height, width = levels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def picture_folder(root: Path, *, train: int = 6, test: int = 1) -> Path:
    """Two classes of pictures of different sizes."""
    for split, num in (("train", train), ("val", test)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(num):
                image = photograph(100 * label + number, (40 + 3 * (number % 7), 52 - 2 * (number % 7)))
                (folder / f"{number:02d}.jpg").write_bytes(encoded(image, quality=95))
    return root


def arrays(num: int, size: int = 16, *, channels: int = 3) -> ArrayImages:
    pixels = torch.randint(0, 256, (num, channels, size, size), generator=torch.Generator().manual_seed(1))
    return ArrayImages(pixels.to(torch.uint8), torch.arange(num) % 10)


def settings(**changes: Any) -> LoaderSettings:
    fields: dict[str, Any] = {
        "batch_size": 4,
        "views": 2,
        "augmentation": PAD,
        "normalisation": NORMALISATION,
        "seed": 3,
        "loader": "torch",
    }
    return LoaderSettings(**{**fields, **changes})


def all_ids(loader: Loader, epoch: int, start: int = 0) -> list[int]:
    return torch.cat([batch.ids for batch in loader.epoch(epoch, start=start)]).tolist()


def by_id(batches: list[LoadedBatch]) -> dict[int, Tensor]:
    return {int(i): view for batch in batches for i, view in zip(batch.ids, batch.views, strict=True)}
