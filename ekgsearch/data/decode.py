"""From the bytes of one picture file to pixels, or to the reason why that cannot be."""

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ekgsearch.errors import DataError

MAX_BYTES = 64 * 2**20
"""Largest picture file that is opened."""

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a few bytes of a prepared file can ask for all the memory there is."""

_PNG = b"\x89PNG\r\n\x1a\n"
_MAGIC = {b"\xff\xd8\xff": "JPEG", _PNG: "PNG"}
_PNG_BIT_DEPTH = 24
"""Place of the bits per channel in a PNG, whose header is always its first chunk."""

_KNOWN_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF", b"%PDF": "PDF"}


def open_picture(data: bytes) -> Image.Image:
    """Decode a whole JPEG or PNG, whatever its file name says, upright and in RGB.

    Greyscale, palette, CMYK and 16-bit pictures are converted; EXIF rotation is applied.

    Raises:
        DataError: with the reason in words: empty, another format, truncated, too large.
    """
    if not data:
        raise DataError("the file is empty")
    if len(data) > MAX_BYTES:
        raise DataError(f"the file has {len(data)} bytes, at most {MAX_BYTES} are read")
    if not data.startswith(tuple(_MAGIC)):
        kind = next((name for magic, name in _KNOWN_OTHERS.items() if data.startswith(magic)), "")
        raise DataError(f"expected JPEG or PNG, found {kind or 'a file that starts with ' + repr(data[:8])}")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{picture.width}x{picture.height} pixels, at most {MAX_PIXELS} are decoded")
            return _rgb(ImageOps.exif_transpose(picture))
    except DataError:
        raise
    # A damaged file can make a decoder raise nearly anything; all of it means the same here.
    except Exception as error:
        raise DataError(f"it cannot be decoded: {error}") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64) >> 8
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def is_plain(data: bytes) -> bool:
    """Tell whether every decoder makes the same of a sound picture: 8-bit grey or RGB, upright, nothing see-through.

    What is not plain (CMYK, palettes, 16 bit, EXIF rotation) has to go through `open_picture`. The mode does not tell
    of 16 bit: Pillow opens them as RGB, too, and cuts the low bits off where other decoders round.
    """
    if data.startswith(_PNG) and data[_PNG_BIT_DEPTH] > 8:
        return False
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
        upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return upright and picture.mode in ("RGB", "L") and "transparency" not in picture.info


def square_pixels(picture: Image.Image, size: int) -> np.ndarray:
    """Resize the short side to 256/224 of the size (bilinear) and cut the centre, the usual ImageNet evaluation.

    Args:
        picture: RGB picture.
        size: height and width of the result, pixels.

    Returns:
        Pixels (3, size, size), uint8.
    """
    width, height, left, top = square_geometry(*picture.size, size)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def square_geometry(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Find what a picture is resized to, and where the square is cut out of that.

    Args:
        width: of the picture, pixels.
        height: of the picture, pixels.
        size: height and width of the square, pixels.

    Returns:
        Width and height of the resized picture, left and top of the square in it.
    """
    short = round(size * 256 / 224)
    scale = short / min(width, height)
    width, height = (max(short, int(side * scale)) for side in (width, height))
    return width, height, (width - size) // 2, (height - size) // 2
