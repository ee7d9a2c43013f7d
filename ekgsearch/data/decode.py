"""From the bytes of one picture file to pixels, or to the reason why that cannot be."""

import contextlib
import io
import re

import numpy as np
from PIL import ExifTags, Image

from ekgsearch.data.metadata import has_one_plain_scan, without_metadata
from ekgsearch.errors import DataError

MAX_BYTES = 64 * 2**20
"""Largest picture file that is opened."""

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a few bytes of a prepared file can ask for all the memory there is."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_BIT_DEPTH = 24
"""Place of the bits per channel in a PNG, whose header is always its first chunk."""

_KNOWN_OTHERS = {b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP", b"II*\x00": "TIFF", b"MM\x00*": "TIFF", b"%PDF": "PDF"}

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of pictures of some number of channels."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation."""

_JPEG_END = b"\xff\xd9"
_FILLERS = tuple(byte * 1024 for byte in (b"\x00", b"\x55", b"\xaa"))

_MAX_RATIO = 8
"""Long side over short side of what is resized to cut a square out of it; a longer picture is shortened before."""


def open_picture(data: bytes, channels: int = 3) -> Image.Image:
    """Decode a whole JPEG or PNG, no matter what its file name says, upright, in grey, RGB or RGBA.

    Greyscale, palette, CMYK and 16-bit pictures are converted; EXIF rotation is applied. Sound pixels are used whatever
    is wrong with the metadata, and where nothing but the end of the file is missing.

    Args:
        data: the file.
        channels: 1 for grey, 3 for RGB, 4 for RGBA.

    Raises:
        DataError: with the reason in words: empty, another format, truncated, too large.
    """
    return examine(data, channels)[0]


def examine(data: bytes, channels: int = 3) -> tuple[Image.Image, bool]:
    """Decode a picture, and tell whether every decoder makes the same of it; see `open_picture`.

    Returns:
        The picture, and whether it is plain: 8-bit grey or RGB, upright, nothing see-through or moving, nothing wrong
        with the file. What is not plain has to go through `open_picture`. The mode does not tell of 16 bit: Pillow
        opens them as RGB, too, and cuts the low bits off where other decoders round.
    """
    if not data:
        raise DataError("the file is empty")
    if len(data) > MAX_BYTES:
        raise DataError(f"the file has {len(data)} bytes, at most {MAX_BYTES} are read")
    if not data.startswith((_JPEG, _PNG)):
        kind = next((name for magic, name in _KNOWN_OTHERS.items() if data.startswith(magic)), "")
        raise DataError(f"expected JPEG or PNG, found {kind or 'a file that starts with ' + repr(data[:8])}")
    try:
        picture, plain = _decode(data)
    except DataError as error:
        picture, plain = _decode_damaged(data, error), False
    return _converted(picture, channels), plain


def _decode(data: bytes) -> tuple[Image.Image, bool]:
    """Decode a picture, upright, in its own mode, and tell whether it is plain."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{picture.width}x{picture.height} pixels, at most {MAX_PIXELS} are decoded")
            picture.load()
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
            plain = orientation == 1 and picture.mode in ("RGB", "L") and "transparency" not in picture.info
            if data.startswith(_PNG):
                plain = plain and data[_PNG_BIT_DEPTH] <= 8 and not getattr(picture, "is_animated", False)
            return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture.copy(), plain
    except DataError:
        raise
    # A damaged file can make a decoder raise nearly anything; all of it means the same here.
    except Exception as error:
        # Pillow names the object that it reads from, whose address differs every time.
        reason = re.sub(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))
        raise DataError(f"it cannot be decoded: {reason or type(error).__name__}") from error


def _decode_damaged(data: bytes, reason: DataError) -> Image.Image:
    """Decode a picture whose metadata or whose end is damaged, but none of its pixels.

    Raises:
        DataError: the reason why it could not be decoded as it is.
    """
    bare, turned = (without_metadata(data, keep_rotation=keep) for keep in (False, True))
    for attempt in (turned, bare):
        with contextlib.suppress(DataError):
            return _decode(attempt)[0]
    if not data.startswith(_JPEG) or not has_one_plain_scan(bare):
        raise reason
    # The decoder takes what follows a scan without an end for pixels, until it has enough of them. If it has enough
    # already, they are the same no matter what follows. (The first half of the end may be there.)
    try:
        pictures = [_decode(turned.removesuffix(_JPEG_END[:1]) + filler + _JPEG_END)[0] for filler in _FILLERS]
    except DataError:
        raise reason from None
    if any(picture.tobytes() != pictures[0].tobytes() for picture in pictures):
        raise reason
    return pictures[0]


def _converted(picture: Image.Image, channels: int) -> Image.Image:
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64) >> 8
        picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


def pixels_of(picture: Image.Image) -> np.ndarray:
    """Pixels (H, W, C), uint8, of a picture, in new memory."""
    return np.array(picture).reshape(picture.height, picture.width, -1)


def square_pixels(picture: Image.Image, size: int) -> np.ndarray:
    """Resize the short side to 256/224 of the size (bilinear) and cut the centre, the usual ImageNet evaluation.

    Of a picture that is longer than eight times its short side only the middle is resized: the work is bounded by the
    size of the result.

    Args:
        picture: grey, RGB or RGBA picture.
        size: height and width of the result, pixels.

    Returns:
        Pixels (C, size, size), uint8.
    """
    part = middle_part(*picture.size)
    if part != (0, 0, *picture.size):
        picture = picture.crop(part)
    width, height, left, top = square_geometry(*picture.size, size)
    # Pillow would weigh the colours of a picture with alpha by it, unlike the views of training.
    bands = picture.split() if picture.mode == "RGBA" else [picture]
    resized = [band.resize((width, height), Image.Resampling.BILINEAR) for band in bands]
    pixels = [pixels_of(band.crop((left, top, left + size, top + size))) for band in resized]
    return np.ascontiguousarray(np.concatenate(pixels, axis=2).transpose(2, 0, 1))


def middle_part(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is resized of a picture: all of it, unless it is very long."""
    longest = _MAX_RATIO * min(width, height)
    # What is left out is the same on both sides, so that the centre stays where it is.
    out = [max(0, side - longest) // 2 for side in (width, height)]
    return out[0], out[1], width - out[0], height - out[1]


def square_geometry(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Find what a picture is resized to, and where the square is cut out of that.

    Args:
        width: of the picture, or of its `middle_part`, pixels.
        height: of the same.
        size: height and width of the square, pixels.

    Returns:
        Width and height of the resized picture, left and top of the square in it.
    """
    short = round(size * 256 / 224)
    scale = short / min(width, height)
    width, height = (max(short, int(side * scale)) for side in (width, height))
    return width, height, (width - size) // 2, (height - size) // 2
