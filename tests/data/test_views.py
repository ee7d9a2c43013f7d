import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ekgsearch.data import choices
from ekgsearch.data.views import Augmentation, Normalisation, view
from ekgsearch.errors import DataError

NORMALISATION = Normalisation((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
IDENTITY = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NOTHING = Augmentation(pad=0, flip=False)
PAD = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2)
RESIZED = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, lighting=0.1, crop="resized")
KEY = {"seed": 3, "epoch": 2, "view": 1}


def some_images(num: int, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (num, 3, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def make(images: Tensor, ids: Tensor, augmentation: Augmentation, **changes: Any) -> Tensor:
    return view(
        images, ids, augmentation=augmentation, normalisation=changes.pop("norm", IDENTITY), **{**KEY, **changes}
    )


def test_normalisation_works_on_pixels_per_channel() -> None:
    images = some_images(4)
    expected = (images.numpy().astype(np.float64) - np.array(NORMALISATION.mean)[:, None, None]) / np.array(
        NORMALISATION.std
    )[:, None, None]
    assert NORMALISATION(images).dtype == torch.float32
    assert np.allclose(NORMALISATION(images).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_view_without_augmentation_is_the_normalised_image() -> None:
    images = some_images(4)
    assert torch.equal(make(images, torch.arange(4), NOTHING, norm=NORMALISATION), NORMALISATION(images))


@pytest.mark.parametrize("augmentation", [PAD, RESIZED], ids=["pad", "resized"])
def test_a_view_replays_in_any_batch_and_order(augmentation: Augmentation) -> None:
    images, ids = some_images(24), torch.arange(100, 124)
    whole = make(images, ids, augmentation, norm=NORMALISATION)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    assert torch.equal(make(images[order], ids[order], augmentation, norm=NORMALISATION), whole[order])
    for index in (0, 7, 23):
        one = make(images[index : index + 1], ids[index : index + 1], augmentation, norm=NORMALISATION)
        assert torch.equal(one[0], whole[index])


def test_choices_do_not_change_between_versions() -> None:
    """Recorded once: stored memory banks and resumed runs rely on them."""
    draws = choices.choose(torch.tensor([0, 7, 40]), **KEY)
    assert choices.mirrored(draws).tolist() == [False, False, True]
    assert choices.shifts(draws, 4).tolist() == [[-4, -4], [-2, -4], [-1, 4]]
    sizes = torch.tensor([[300, 400], [40, 50], [1, 2000]])
    assert choices.boxes(draws, sizes).tolist() == [[1, 3, 199, 152], [3, 0, 28, 33], [0, 1775, 1, 35]]
    expected = torch.tensor([[0.575117, 0.438810], [0.622146, 0.748077], [0.712398, 0.783163]]).double()
    assert torch.allclose(choices.parts(draws), expected, atol=1e-6)
    expected = torch.tensor([[0.011352, 0.013549], [0.245683, 0.030577], [0.336968, 0.902994]]).double()
    assert torch.allclose(choices.offsets(draws), expected, atol=1e-6)


@pytest.mark.parametrize("augmentation", [PAD, RESIZED], ids=["pad", "resized"])
@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 3}, {"view": 0}], ids=str)
def test_another_seed_epoch_or_view_gives_other_images(augmentation: Augmentation, change: dict[str, int]) -> None:
    images, ids = some_images(16), torch.arange(16)
    one, two = make(images, ids, augmentation), make(images, ids, augmentation, **change)
    assert all(not torch.equal(one[index], two[index]) for index in range(16))


def test_a_padded_crop_is_one_of_the_possible_windows_and_all_of_them_occur() -> None:
    pad, size, num = 2, 6, 2000
    image = some_images(1, size)
    views = make(image.expand(num, -1, -1, -1), torch.arange(num), Augmentation(pad=pad, flip=True))
    windows: dict[bytes, tuple[bool, int, int]] = {}
    for flip in (False, True):
        source = image[0].flip(2) if flip else image[0]
        padded = torch.nn.functional.pad(source, (pad,) * 4).to(torch.float32)
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                window = padded[:, top : top + size, left : left + size].contiguous()
                windows[window.numpy().tobytes()] = (flip, top, left)
    assert len(windows) == 2 * (2 * pad + 1) ** 2
    counts = dict.fromkeys(windows.values(), 0)
    for one in views:
        counts[windows[one.contiguous().numpy().tobytes()]] += 1
    # 40 expected of each; a Poisson count leaves 10..80 less than once in 10^8.
    assert min(counts.values()) > 10
    assert max(counts.values()) < 80


def test_images_need_not_be_square() -> None:
    pad, ids, images = 3, torch.arange(20), (some_images(20, 12)[:, :, :7] // 4) + 96
    draws = choices.choose(ids, **KEY)
    views = make(images, ids, Augmentation(pad=pad))
    for image, shift, mirrored, found in zip(
        images, choices.shifts(draws, pad), choices.mirrored(draws), views, strict=True
    ):
        padded = torch.nn.functional.pad(image.flip(2) if mirrored else image, (pad,) * 4)
        top, left = (shift + pad).tolist()
        assert torch.equal(found, padded[:, top : top + 7, left : left + 12].float())
    contrasted = make(images, ids, dataclasses.replace(NOTHING, contrast=0.2))
    assert torch.allclose(contrasted.mean((2, 3)), images.float().mean((2, 3)), atol=1e-3)


def test_padding_has_the_mean_colour() -> None:
    images = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    views = make(images, torch.arange(200), Augmentation(pad=4, flip=False), norm=NORMALISATION)
    inside = NORMALISATION(images[:1])[0, :, 0, 0]
    assert all(((views[:, c] == 0) | (views[:, c] == inside[c])).all() for c in range(3))
    assert (views == 0).any()


def test_brightness_adds_the_same_number_to_every_pixel_of_an_image() -> None:
    images = torch.full((500, 3, 4, 4), 128, dtype=torch.uint8)
    change = make(images, torch.arange(500), dataclasses.replace(NOTHING, brightness=0.2)) / 255 - 128 / 255
    assert torch.allclose(change, change[:, :1, :1, :1].expand_as(change), atol=1e-6)
    per_image = change[:, 0, 0, 0]
    assert per_image.abs().max() <= 0.2 + 1e-6
    assert per_image.min() < -0.19
    assert per_image.max() > 0.19
    assert per_image.mean().abs() < 0.02


def test_contrast_scales_the_distance_to_the_channel_mean() -> None:
    images = (some_images(200, 8) // 4) + 96
    out = make(images, torch.arange(200), dataclasses.replace(NOTHING, contrast=0.2)).double()
    pixels = images.double()
    mean = pixels.mean((2, 3), keepdim=True)
    assert torch.allclose(out.mean((2, 3), keepdim=True), mean, atol=1e-3)
    factors = ((out - mean) * (pixels - mean)).sum((1, 2, 3)) / ((pixels - mean) ** 2).sum((1, 2, 3))
    assert torch.allclose(out, mean + factors[:, None, None, None] * (pixels - mean), atol=1e-3)
    assert 0.8 - 1e-6 <= factors.min() < 0.82
    assert 1.18 < factors.max() <= 1.2 + 1e-6


def test_saturation_keeps_the_grey_value_and_scales_the_colour() -> None:
    images = (some_images(200, 8) // 4) + 96
    out = make(images, torch.arange(200), dataclasses.replace(NOTHING, saturation=0.2)).double()
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[None, :, None, None]
    grey_before, grey_after = ((x * luma).sum(1, keepdim=True) for x in (images.double(), out))
    assert torch.allclose(grey_before, grey_after, atol=1e-3)
    colour = images.double() - grey_before
    factors = ((out - grey_after) * colour).sum((1, 2, 3)) / (colour**2).sum((1, 2, 3))
    assert 0.8 - 1e-6 <= factors.min() < 0.82
    assert 1.18 < factors.max() <= 1.2 + 1e-6
    grey = images[:, :1].expand(-1, 3, -1, -1).contiguous()
    unchanged = make(grey, torch.arange(200), dataclasses.replace(NOTHING, saturation=0.2))
    assert torch.allclose(unchanged, grey.float(), atol=1e-3)


def test_lighting_shifts_each_channel_with_the_covariance_of_imagenet_colours() -> None:
    images = torch.full((4000, 3, 2, 2), 128, dtype=torch.uint8)
    out = make(images, torch.arange(4000), dataclasses.replace(NOTHING, lighting=0.1)).double() / 255 - 128 / 255
    assert torch.allclose(out, out[:, :, :1, :1].expand_as(out))
    axes = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = axes @ np.diag(np.array([0.2175, 0.0188, 0.0045]) ** 2) @ axes.T * 0.01
    assert np.allclose(np.cov(out[:, :, 0, 0].T), expected, rtol=0.1)


def test_grey_changes_as_the_colour_picture_that_shows_the_same() -> None:
    grey = (some_images(50)[:, :1] // 2) + 64
    colour = make(grey.expand(-1, 3, -1, -1), torch.arange(50), dataclasses.replace(RESIZED, crop="pad"))
    shares = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
    norm = Normalisation((0.0,), (1.0,))
    found = make(grey, torch.arange(50), dataclasses.replace(RESIZED, crop="pad"), norm=norm)
    assert torch.allclose(found, (colour * shares).sum(1, keepdim=True), atol=1e-3)


def test_alpha_moves_with_the_colours_and_stays_as_it_is() -> None:
    images = torch.cat([some_images(50), some_images(50)[:, :1]], dim=1)
    norm = Normalisation((0.0,) * 4, (1.0,) * 4)
    found = make(images, torch.arange(50), PAD, norm=norm)
    assert torch.equal(found[:, :3], make(images[:, :3], torch.arange(50), PAD))
    without = dataclasses.replace(PAD, brightness=0, contrast=0, saturation=0)
    assert torch.equal(found[:, 3], make(images[:, :3], torch.arange(50), without)[:, 0])


def test_pixels_stay_between_black_and_white() -> None:
    out = make(some_images(64), torch.arange(64), dataclasses.replace(RESIZED, brightness=0.8, lighting=0.5))
    assert out.min() >= 0
    # Interpolation between white pixels may round to a hair above white.
    assert 254 < out.max() <= 255.001


def test_a_resized_crop_of_a_ramp_is_a_shallower_ramp_inside_it() -> None:
    size, num = 32, 400
    ramp = torch.arange(size, dtype=torch.uint8) * 8
    images = torch.stack(
        [ramp[None, :].expand(size, -1), ramp[:, None].expand(-1, size), ramp[None, :].expand(size, -1)]
    )
    views = make(
        images[None].expand(num, -1, -1, -1).contiguous(), torch.arange(num), Augmentation(crop="resized", flip=True)
    ).double()
    steps_x = (views[:, 0, 8, 24] - views[:, 0, 8, 8]) / (16 * 8)
    steps_y = (views[:, 1, 24, 8] - views[:, 1, 8, 8]) / (16 * 8)
    inner = views[:, 0, 8, 8:25].diff(dim=1) / 8
    assert torch.allclose(inner.mean(1), steps_x)
    area = steps_x.abs() * steps_y
    assert 0.07 < area.min() < 0.12
    assert 0.95 < area.max() <= 1.001
    ratio = steps_x.abs() / steps_y
    assert ratio.min() > 0.74
    assert ratio.max() < 1.34
    assert 0.4 < (steps_x < 0).double().mean() < 0.6
    assert (views >= 0).all()
    assert (views <= 31 * 8).all()


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Augmentation(pad=-1), "pad must not be negative, found -1"),
        (lambda: Augmentation(contrast=-0.1), "contrast"),
        (lambda: Augmentation(crop="centre"), "'centre'"),  # type: ignore[arg-type]
        (lambda: Normalisation((0, 0, 0), (1, 0, 1)), "positive deviation"),
        (lambda: Normalisation((0, 0), (1, 1, 1)), "a mean and a positive deviation of each channel"),
        (lambda: Normalisation((), ()), "found"),
        (
            lambda: NORMALISATION(some_images(1)[:, :1]),
            "expected images of 3 channels, as the normalisation has, found 1",
        ),
        (lambda: make(some_images(1)[:, :2], torch.arange(1), PAD), "images of 1, 3 or 4 channels .*, found 2"),
    ],
)
def test_impossible_settings_are_refused(make_it: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_it()


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [PAD, RESIZED], ids=["pad", "resized"])
def test_the_accelerator_makes_the_same_views(augmentation: Augmentation) -> None:
    images, ids = some_images(64, 32), torch.arange(64)
    on_cpu = make(images, ids, augmentation, norm=NORMALISATION)
    on_gpu = make(images.cuda(), ids.cuda(), augmentation, norm=NORMALISATION)
    assert torch.allclose(on_cpu, on_gpu.cpu(), atol=1e-4)
