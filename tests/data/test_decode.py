"""From the bytes of a picture to pixels: damaged metadata, missing ends, and work that the result bounds."""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data.loading import PAD, encoded, photograph, settings
from PIL import Image

from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.decode import examine, middle_part, open_picture, square_geometry, square_pixels
from ekgsearch.data.index import index_images
from ekgsearch.data.loader import open_loader
from ekgsearch.errors import DataError

JPEG = encoded(photograph(1), quality=90)
PNG = encoded(photograph(1), "PNG")


def with_segment(marker: int, payload: bytes, jpeg: bytes = JPEG) -> bytes:
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def with_chunk(kind: bytes, payload: bytes, checksum: int | None = None) -> bytes:
    after_header, crc = 33, zlib.crc32(kind + payload) if checksum is None else checksum
    return PNG[:after_header] + struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc) + PNG[33:]


def exif(orientation: int, *, kind: int = 3) -> bytes:
    """An EXIF block of one entry; 3 is the right kind of number."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x112, kind, 1, orientation, 0)


SOUND_JPEGS = {
    "short colour profile": with_segment(0xE2, b"ICC_PROFILE\0"),
    "short mark of Adobe": with_segment(0xEE, b"Adobe"),
    "short mark of JFIF": JPEG[:2] + b"\xff\xe0\0\x07JFIF\0" + JPEG[20:],
    "garbage for EXIF": with_segment(0xE1, b"Exif\0\0garbage"),
    "orientation of an unknown type": with_segment(0xE1, b"Exif\0\0" + exif(6, kind=99)),
    "no end": JPEG[:-2],
    "half an end": JPEG[:-1],
    "zeros for an end": JPEG[:-2] + bytes(2),
    "more after the end": JPEG + b"garbage" * 9,
    "no end, a short profile": with_segment(0xE2, b"ICC_PROFILE\0")[:-2],
}
SOUND_PNGS = {
    "text with a wrong checksum": with_chunk(b"tEXt", b"a\0b", 0),
    "text that grows too large": with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 2**20))),
    "profile without a name": with_chunk(b"iCCP", b"icc"),
    "garbage for EXIF": with_chunk(b"eXIf", b"garbage"),
    "short colour": with_chunk(b"tRNS", b"a"),
    "short gamma": with_chunk(b"gAMA", b"a"),
    "short animation": with_chunk(b"acTL", bytes(3)),
    "animation": with_chunk(b"acTL", struct.pack(">II", 2, 0)),
    "no end": PNG[:-12],
}


def test_sound_pixels_are_used_under_any_metadata() -> None:
    for whole, cases in ((JPEG, SOUND_JPEGS), (PNG, SOUND_PNGS)):
        expected = np.asarray(open_picture(whole))
        for name, data in cases.items():
            assert np.array_equal(np.asarray(open_picture(data)), expected), name


def test_how_colours_are_coded_is_no_metadata() -> None:
    uncoded = with_segment(0xEE, b"Adobe\0\x64\0\0\0\0\0", JPEG[:2] + JPEG[20:])
    expected = np.asarray(open_picture(uncoded))
    assert not np.array_equal(expected, np.asarray(open_picture(JPEG)))
    assert np.array_equal(np.asarray(open_picture(with_segment(0xE2, b"ICC_PROFILE\0", uncoded))), expected)


def test_a_picture_with_damaged_metadata_is_upright_all_the_same() -> None:
    turned = np.rot90(np.asarray(open_picture(JPEG)), -1)
    for data in (
        with_segment(0xE1, b"Exif\0\0" + exif(6)),
        with_segment(0xE2, b"ICC_PROFILE\0", with_segment(0xE1, b"Exif\0\0" + exif(6))),
        with_segment(0xE1, b"Exif\0\0" + exif(6))[:-2],
    ):
        assert np.array_equal(np.asarray(open_picture(data)), turned)
    expected = np.rot90(np.asarray(open_picture(PNG)), -1)
    assert np.array_equal(np.asarray(open_picture(with_chunk(b"eXIf", exif(6)))), expected)


@pytest.mark.parametrize("orientation", range(1, 10))
def test_every_orientation_is_undone(orientation: int) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(PNG)))
    mirrored = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
    quarters = {3: 2, 4: 2, 5: 1, 6: -1, 7: -1, 8: 1}.get(orientation, 0)
    found, plain = examine(with_chunk(b"eXIf", exif(orientation)))
    assert np.array_equal(np.asarray(found), np.rot90(mirrored, quarters))
    assert plain == (orientation == 1)


def truncated() -> Iterator[bytes]:
    """Pictures without some of their pixels, cut at every kind of place."""
    image = photograph(1, (64, 64))
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 1}, {"optimize": True, "quality": 95}):
        data = encoded(image, **options)
        yield from (data[:-cut] for cut in (*range(4, 30), *range(30, len(data) - 600, 41)))
        yield from (data[: mark.start()] for mark in re.finditer(rb"\xff[\xd0-\xd7]", data))


def test_a_jpeg_that_lacks_pixels_is_refused_wherever_it_is_cut() -> None:
    for data in truncated():
        with pytest.raises(DataError, match=r"it cannot be decoded: .*[Tt]runcated"):
            open_picture(data)


@pytest.mark.usefixtures("cache")
def test_files_and_pictures_that_are_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="8000x8001 pixels, at most 64000000 are decoded"):
        open_picture(encoded(Image.new("1", (8000, 8001)), "PNG"))
    with pytest.raises(DataError, match="the file has 67108865 bytes, at most 67108864 are read"):
        open_picture(JPEG.ljust(64 * 2**20 + 1))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.jpg").write_bytes(JPEG)
    os.truncate(tmp_path / "cat" / "0.jpg", 64 * 2**20 + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    [bad] = index_images(tmp_path, num_threads=1).bad
    assert bad.reason == "the file has 67108865 bytes, at most 67108864 are read"


def test_reasons_show_no_object_of_the_program() -> None:
    for data in (JPEG[:2] + b"\xff\xee\0\x07Adobe\xff\xd9", PNG[:40] + bytes(9)):
        with pytest.raises(DataError, match=r"it cannot be decoded: \w") as caught:
            open_picture(data)
        assert " at 0x" not in str(caught.value)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = np.asarray(open_picture(encoded(Image.fromarray(levels), "PNG")))
    assert np.array_equal(pixels[:, :, 1].astype(int), levels.astype(int) // 256)


def test_the_short_side_becomes_256_of_224_and_the_centre_is_cut() -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 64:] = 255
    pixels = square_pixels(Image.fromarray(wide), 56)
    assert pixels.shape == (3, 56, 56)
    assert (pixels[:, :, :28] == 0).all()
    assert (pixels[:, :, 28:] == 255).all()
    gradient = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    assert square_pixels(Image.fromarray(gradient), 56)[0, :, 0].tolist() == list(range(4, 60))


def test_alpha_weighs_no_colours() -> None:
    colours, alpha = photograph(1), photograph(2).split()[0]
    square = square_pixels(Image.merge("RGBA", [*colours.split(), alpha]), 24)
    assert np.array_equal(square, np.concatenate([square_pixels(colours, 24), square_pixels(alpha, 24)]))


def test_the_short_side_never_falls_below_the_square() -> None:
    for side in range(1, 700):
        width, height, left, top = square_geometry(side, 2 * side, 224)
        assert (width, left) == (256, 16)
        assert height >= 511
        assert top == (height - 224) // 2


@pytest.mark.parametrize(("width", "height", "expected"), [(80, 10, (0, 0, 80, 10)), (8, 83, (0, 9, 8, 74))])
def test_of_a_very_long_picture_the_middle_is_used(width: int, height: int, expected: tuple[int, ...]) -> None:
    assert middle_part(width, height) == expected
    assert middle_part(height, width) == (*expected[1::-1], *expected[:1:-1])


def test_the_middle_of_a_long_picture_is_what_its_square_shows() -> None:
    stripes = np.repeat(np.arange(0, 201, 2, dtype=np.uint8), 4)[None, :, None].repeat(3, axis=2).repeat(4, axis=0)
    for pixels in (stripes, stripes.transpose(1, 0, 2)):
        square = square_pixels(Image.fromarray(pixels), 28)
        assert (square.min(), square.max()) == (100, 100)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_the_work_is_bounded_by_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """A file of some hundred bytes asked for 5 million x 256 pixels."""
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for number, size in enumerate(((20_000, 1), (1, 20_000))):
            (tmp_path / split / "cat" / f"{number}.png").write_bytes(encoded(Image.new("RGB", size, 77), "PNG"))
    areas: list[int] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *given: object) -> Image.Image:
        areas.append(size[0] * size[1])
        return resize(image, size, *given) if areas[-1] < 10**8 else pytest.fail(f"resized to {size}")

    monkeypatch.setattr(Image.Image, "resize", noted)
    dataset = open_dataset("image_folder", tmp_path, image_size=56, num_threads=1)
    assert (dataset.train.read(torch.arange(2))[:, 0] == 77).all()
    [batch] = open_loader(dataset.train, settings(loader=backend, augmentation=PAD)).epoch(1)
    assert batch.views.shape == (2, 2, 3, 56, 56)
    assert areas == [8 * 64 * 64] * 4
