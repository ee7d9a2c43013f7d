"""Taking the metadata out of JPEG and PNG files, which may be damaged where the pixels are sound."""

import struct
from collections.abc import Iterator

_JPEG = b"\xff\xd8"
_START_OF_SCAN, _BASELINE, _RESTART, _COMMENT = b"\xda", b"\xc0", b"\xdd", b"\xfe"
_APP0, _APP1, _APP14, _APP15 = b"\xe0", b"\xe1", b"\xee", b"\xef"
_NUM_COMPONENTS, _NUM_SCANNED = 9, 4
"""Place of the number of colour components in the header of a picture, and of those in the header of a scan."""

_PNG_HEADER = 8
_SHORTEST_JFIF, _SHORTEST_ADOBE = 14, 12


def without_metadata(data: bytes, *, keep_rotation: bool) -> bytes:
    """Leave out of a picture what does not decide its pixels.

    Args:
        data: a JPEG or PNG, possibly damaged.
        keep_rotation: keep its EXIF block, which says what is up, and the see-through colour of a PNG.

    Returns:
        The same file without the rest of its metadata; what follows a damaged length is kept as it is.
    """
    if data.startswith(_JPEG):
        return _JPEG + b"".join(_jpeg_segments(data, keep_rotation))
    return data[:_PNG_HEADER] + b"".join(_png_chunks(data, keep_rotation))


def has_one_plain_scan(data: bytes) -> bool:
    """Tell whether all pixels of a JPEG are one run of codes, so that each pixel depends on those before it.

    Progressive pictures have several runs, each of which makes a picture; restart marks begin a new run, too.
    """
    segments = {segment[1:2]: segment for segment in _jpeg_segments(data, False)}
    frame, scan = segments.get(_BASELINE, b""), segments.get(_START_OF_SCAN, b"")
    components = frame[_NUM_COMPONENTS : _NUM_COMPONENTS + 1]
    return components != b"" and components == scan[_NUM_SCANNED : _NUM_SCANNED + 1] and _RESTART not in segments


def _jpeg_segments(data: bytes, keep_exif: bool) -> Iterator[bytes]:
    """Segments before the first scan that decide pixels, and then, in one piece, all that follows."""
    position = len(_JPEG)
    while position + 4 <= len(data) and data[position] == 0xFF:
        _, marker, length = struct.unpack_from(">ccH", data, position)
        if marker == _START_OF_SCAN:
            break
        segment = data[position : position + 2 + length]
        payload = segment[4:]
        if _APP0 <= marker <= _APP15:
            # Two programs tell in such segments how colours are coded, and decoders trust them where they are whole.
            wanted = (
                (marker == _APP0 and payload.startswith(b"JFIF\0") and len(payload) >= _SHORTEST_JFIF)
                or (marker == _APP14 and payload.startswith(b"Adobe") and len(payload) >= _SHORTEST_ADOBE)
                or (marker == _APP1 and payload.startswith(b"Exif\0") and keep_exif)
            )
        else:
            wanted = marker != _COMMENT
        if wanted:
            yield segment
        position += 2 + length
    yield data[position:]


def _png_chunks(data: bytes, keep_exif: bool) -> Iterator[bytes]:
    """Chunks that decide pixels: those whose name begins with a capital letter."""
    position = _PNG_HEADER
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind[:1].isupper() or (keep_exif and kind in (b"eXIf", b"tRNS")):
            yield data[position : position + 12 + length]
        position += 12 + length
