"""Views of pictures against slow and plain versions, and the same from both back ends."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data.loading import (
    NORMALISATION,
    PAD,
    RESIZED,
    by_id,
    encoded,
    photograph,
    picture_folder,
    settings,
    sixteen_bit_png,
)
from data.test_decode import SOUND_JPEGS, SOUND_PNGS
from PIL import Image
from torchvision.transforms.v2 import functional

from ekgsearch.data import choices, dali, dali_loader, loader
from ekgsearch.data.colours import ColourMap
from ekgsearch.data.datasets import open_dataset
from ekgsearch.data.decode import open_picture
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.loader import open_loader
from ekgsearch.data.views import Augmentation, Normalisation, recoloured, view
from ekgsearch.errors import DataError

pytestmark = pytest.mark.usefixtures("cache")

SIZE = 32
ONE_LEVEL = 1 / min(NORMALISATION.std)
"""One of 255 levels in network input."""

SEE_THROUGH = Image.merge("RGBA", [*photograph(5).split(), photograph(12).split()[0]])
ODD: dict[str, bytes] = {
    "grey": encoded(photograph(1).convert("L")),
    "cmyk": encoded(photograph(2).convert("CMYK")),
    "png named jpeg": encoded(photograph(3), "PNG"),
    "palette": encoded(photograph(4).convert("P"), "PNG"),
    "alpha": encoded(SEE_THROUGH, "PNG"),
    "bilevel": encoded(photograph(6).convert("1"), "PNG"),
    "16 bit": encoded(Image.fromarray(np.asarray(photograph(7).convert("L")).astype(np.uint16) * 257), "PNG"),
    "16 bit colour": sixteen_bit_png(np.asarray(photograph(7)).astype(np.uint16) * 256 + 200),
    "progressive": encoded(photograph(8), progressive=True),
    "tiny": encoded(photograph(9, (2, 1))),
    "long": encoded(photograph(11, (401, 20))),
    "tall": encoded(photograph(13, (20, 402))),
    **{f"jpeg, {name}": data for name, data in SOUND_JPEGS.items()},
    **{f"png, {name}": data for name, data in SOUND_PNGS.items()},
}


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(10), exif=exif)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures and odd ones among them."""
    root = picture_folder(tmp_path_factory.mktemp("pictures"))
    for name, data in {**ODD, "rotated": rotated()}.items():
        (root / "train" / "cat" / f"{name}.jpg").write_bytes(data)
    return root


def opened(folder: Path) -> EncodedImages:
    images = open_dataset("image_folder", folder, image_size=SIZE, num_threads=1).train
    assert isinstance(images, EncodedImages)
    return images


@pytest.mark.parametrize("backend", ["torch", "dali"])
@pytest.mark.parametrize("augmentation", [RESIZED, Augmentation(crop="resized")], ids=["colour", "plain"])
def test_views_are_those_of_a_plain_version(folder: Path, backend: str, augmentation: Augmentation) -> None:
    images = opened(folder)
    loaded = by_id(
        list(open_loader(images, settings(loader=backend, augmentation=augmentation, drop_last=False)).epoch(2))
    )
    assert len(loaded) == len(images) == 13 + len(ODD)
    for image_id, views in loaded.items():
        if not images.images[image_id].plain:
            continue
        whole = functional.pil_to_tensor(Image.open(io.BytesIO(images.read_bytes(image_id))).convert("RGB"))
        for number, found in enumerate(views):
            draws = choices.choose(torch.tensor([image_id]), seed=3, epoch=2, view=number)
            [[top, left, height, width]] = choices.boxes(draws, torch.tensor([whole.shape[1:]])).tolist()
            crop = functional.resize(whole[:, top : top + height, left : left + width], [SIZE, SIZE], antialias=True)
            plain = NORMALISATION(recoloured(crop[None], draws, augmentation))[0]
            expected = plain.flip(2) if choices.mirrored(draws) else plain
            assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("augmentation", [RESIZED, PAD], ids=["resized", "pad"])
def test_both_back_ends_make_the_same_bits(folder: Path, augmentation: Augmentation) -> None:
    images = opened(folder)
    by_torch, by_dali = (
        by_id(list(open_loader(images, settings(loader=name, augmentation=augmentation, drop_last=False)).epoch(3)))
        for name in ("torch", "dali")
    )
    assert by_torch.keys() == by_dali.keys() == set(range(len(images)))
    for image_id, views in by_torch.items():
        assert torch.equal(views, by_dali[image_id]), images.images[image_id].path


@pytest.mark.parametrize(
    ("augmentation", "levels"),
    [(Augmentation(crop="resized"), 1.01), (RESIZED, 1.5), (PAD, 1.5)],
    ids=["resized", "colour", "pad"],
)
def test_what_dali_cuts_and_resizes_is_within_a_level_of_torch(
    folder: Path, augmentation: Augmentation, levels: float
) -> None:
    """DALI's triangular filter rounds once, torch's twice; colours multiply a difference by up to 1.2 squared.

    Only the dots of a bilevel picture, of which nothing is left but the difference of large numbers, differ by more.
    """
    images = opened(folder)
    ids = torch.tensor([number for number, image in enumerate(images.images) if "bilevel" not in image.path])
    asked = settings(loader="dali", augmentation=augmentation, drop_last=False)
    by_torch = by_id(list(open_loader(images, settings(augmentation=augmentation, drop_last=False), ids).epoch(3)))
    by_dali = by_id(list(dali_loader.dali_loader(images, asked, ids, crop_with_dali=True).epoch(3)))
    differences = torch.stack([(views - by_dali[image_id]).abs() for image_id, views in by_torch.items()])
    assert differences.max() <= levels * ONE_LEVEL
    assert 0 < differences.mean() < 0.25 * ONE_LEVEL


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_affine_map_changes_colours_as_the_steps_do(channels: int) -> None:
    images = torch.randint(60, 200, (16, channels, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    draws = choices.choose(torch.arange(16), seed=1, epoch=1, view=0)
    for augmentation in (RESIZED, Augmentation(contrast=0.9), Augmentation(saturation=0.5), Augmentation(lighting=0.3)):
        out = torch.empty(16, channels, 64)
        ColourMap.chosen(draws, augmentation, channels).apply(images.float().flatten(2), out)
        assert torch.allclose(out, recoloured(images, draws, augmentation).flatten(2), atol=2e-3)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
@pytest.mark.parametrize("augmentation", [Augmentation(crop="resized"), PAD], ids=["resized", "pad"])
def test_pictures_of_other_channels_give_views_of_them(
    folder: Path, channels: int, mode: str, augmentation: Augmentation, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset("image_folder", folder, image_size=SIZE, channels=channels, num_threads=1)
    images = dataset.train
    assert isinstance(images, EncodedImages)
    assert (dataset.image_shape, len(dataset.mean), len(dataset.std)) == ((channels, SIZE, SIZE), channels, channels)
    assert images.content_hash not in (opened(folder).content_hash, images.take(torch.arange(5)).content_hash)
    loader._say_once.cache_clear()
    caplog.set_level("INFO")
    norm = Normalisation(dataset.mean, dataset.std)
    asked = settings(loader="auto", augmentation=augmentation, normalisation=norm, drop_last=False)
    loaded = by_id(list(open_loader(images, asked).epoch(2)))
    assert any(f"and data.channels is {channels}" in line for line in caplog.messages)
    assert len(loaded) == len(images)
    squares = images.read(torch.arange(len(images)))
    assert torch.equal(images.take(torch.tensor([3])).read(torch.tensor([0])), squares[3:4])
    for image_id, views in loaded.items():
        draws = choices.choose(torch.tensor([image_id]), seed=3, epoch=2, view=1)
        if augmentation.crop == "pad":
            expected = view(
                squares[image_id][None],
                torch.tensor([image_id]),
                augmentation=augmentation,
                normalisation=norm,
                seed=3,
                epoch=2,
                view=1,
            )[0]
        else:
            path, data = images.images[image_id].path, images.read_bytes(image_id)
            whole = functional.pil_to_tensor((SEE_THROUGH if "alpha" in path else open_picture(data)).convert(mode))
            [[top, left, height, width]] = choices.boxes(draws, torch.tensor([whole.shape[1:]])).tolist()
            crop = functional.resize(whole[:, top : top + height, left : left + width], [SIZE, SIZE], antialias=True)
            expected = norm(crop[None].flip(3) if choices.mirrored(draws) else crop[None])[0]
        assert torch.allclose(views[1], expected, atol=1e-5), images.images[image_id].path
    with pytest.raises(
        DataError, match=rf"dali was asked for, but it decodes .* and data\.channels is {channels}; use"
    ):
        open_loader(images, settings(loader="dali", augmentation=augmentation, normalisation=norm))


def test_boxes_lie_inside_and_have_the_published_sizes() -> None:
    draws = choices.choose(torch.arange(20_000), seed=1, epoch=1, view=0)
    for height, width in ((300, 400), (400, 300), (1, 2), (500, 500)):
        top, left, tall, wide = choices.boxes(draws, torch.tensor([[height, width]]).expand(20_000, 2)).unbind(1)
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + tall <= height).all()
        assert (left + wide <= width).all()
        assert (tall >= 1).all()
        assert (wide >= 1).all()
    area, ratio = (tall * wide) / 250_000, wide / tall
    assert 0.078 < area.min() < 0.085
    assert area.max() > 0.98
    assert 0.74 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 1.34
    assert abs(area.mean() - 0.54) < 0.02


def test_a_decoder_goes_on_after_a_batch_that_it_cannot_decode(caplog: pytest.LogCaptureFixture) -> None:
    decoder = dali.Decoder(2, 1, torch.device("cpu"), crops=0, size=SIZE)
    good = encoded(photograph(1))
    for bad in (b"", b"text", good[: len(good) // 2], encoded(photograph(1), "GIF")):
        with pytest.raises(DataError, match=r"empty|expected JPEG or PNG|cannot be decoded"):
            decoder.run([good, bad])
        assert "DALI could not decode a batch, it is decoded without DALI" in caplog.messages[-1]
        [decoded] = decoder.run([good, good])
        assert np.array_equal(np.asarray(decoded[1]), np.asarray(Image.open(io.BytesIO(good))))


def test_auto_takes_dali_for_pictures_and_says_once_why_not(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader._say_once.cache_clear()
    caplog.set_level("INFO")
    images, asked = opened(folder), settings(loader="auto", augmentation=RESIZED)
    batch = next(iter(open_loader(images, asked).epoch(1)))
    assert "loader: DALI, on cpu" in caplog.messages
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    dali.why_not.cache_clear()
    for _ in range(2):
        without = next(iter(open_loader(images, asked).epoch(1)))
    assert torch.equal(without.views, batch.views)
    said = [line for line in caplog.messages if line.startswith("loader: torch, not DALI, since nvidia.dali cannot be")]
    assert len(said) == 1
    with pytest.raises(DataError, match=r"dali was asked for, but nvidia\.dali cannot be imported.*use auto or torch"):
        open_loader(images, settings(loader="dali"))
    dali.why_not.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_dali_without_a_gpu_to_decode_on_says_so(folder: Path) -> None:
    with pytest.raises(DataError, match=r"but DALI cannot decode on cuda \(.*(CUDA|driver).*\); use auto or torch"):
        open_loader(opened(folder), settings(loader="dali", device=torch.device("cuda")))


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [RESIZED, PAD], ids=["resized", "pad"])
def test_views_decoded_on_a_gpu_replay_and_are_near_those_of_torch(folder: Path, augmentation: Augmentation) -> None:
    images, device = opened(folder), torch.device("cuda")
    common = {"augmentation": augmentation, "drop_last": False}
    by_torch = by_id(list(open_loader(images, settings(**common)).epoch(3)))
    by_gpu = [
        by_id(list(open_loader(images, settings(loader="dali", device=device, batch_size=size, **common)).epoch(3)))
        for size in (3, 7)
    ]
    for image_id, views in by_torch.items():
        assert by_gpu[0][image_id].is_cuda
        assert torch.equal(by_gpu[0][image_id], by_gpu[1][image_id])
        assert (by_gpu[0][image_id].cpu() - views).abs().mean() < 1.5 * ONE_LEVEL
