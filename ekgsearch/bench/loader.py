"""Images per second of processor time that loaders turn into views: DALI and torch here, against torchvision.

The reference is what is usually written: a torchvision dataset that opens a JPEG with Pillow, once for all views, the
transforms v2 of each view (random resized crop, flip, colour jitter, tensor, PCA lighting, normalisation), and torch's
DataLoader with as many worker processes as the loaders here have threads. All read the same files, make the same number
of float32 views of the same size in batches of the same size, and are charged for all their threads and processes. The
loaders here also check every file against its hash; the reference starts its workers anew for each epoch, which costs
it 2 % of an epoch of 1000 pictures. An image with two views counts once. Pairs are interleaved; torch computes with one
thread. Where a network is named, it is also trained on what the loader gives, and the share of the time that it waits
is measured: over epochs of at least 50 batches, whose pictures repeat where there are fewer, from the moment when the
first batch is there, since every epoch waits for its first and real ones are long.
"""

import itertools
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bench.base import BenchSettings, Measurement, abab, gpu_lacking, pixels_in_small, ratio
from ekgsearch.channels.arithmetic import EXACT
from ekgsearch.data import dali
from ekgsearch.data.encoded import EncodedImages
from ekgsearch.data.folder import IMAGENET_MEAN, IMAGENET_STD, folder_images
from ekgsearch.data.generated import open_generated
from ekgsearch.data.index import index_images
from ekgsearch.data.limit import Limit
from ekgsearch.data.loader import LoadedBatch, Loader, LoaderName, LoaderSettings, open_loader
from ekgsearch.data.views import Augmentation, Normalisation
from ekgsearch.errors import DataError, JobError
from ekgsearch.fields import Mark, Pixels, Positive, Text, Threads, expand_path
from ekgsearch.sections.net import NetName, network_error

_NORMALISATION = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
_COLOUR = Augmentation(brightness=0.2, contrast=0.2, saturation=0.2, lighting=0.1, crop="resized")
_PLAIN = Augmentation(crop="resized")
_CASES = (("one view", 1, _PLAIN), ("one view with colour", 1, _COLOUR), ("two views with colour", 2, _COLOUR))
_TRAINED_BATCHES = 50
_PRINCIPAL_VALUES = (0.2175, 0.0188, 0.0045)
_PRINCIPAL_AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


class Settings(BenchSettings):
    """What is loaded."""

    folder: Annotated[Text | None, Mark.PATH] = Field(
        None,
        description="folder with one folder of pictures per class, $VARIABLES are expanded; null: JPEG files of "
        "gradients and noise that are made for the time being",
    )
    max_classes: Positive | None = Field(None, description="verify only the first so many of these folders; null: all")
    images: Positive = Field(1000, description="pictures of one epoch, spread over the folder")
    image_size: Pixels = Field(224, description="side of a view, pixels")
    batch_size: Positive = Field(64, description="pictures of one batch")
    threads: Threads = Field(1, description="threads of the loaders, worker processes of the reference")
    pairs: Positive = Field(5, description="interleaved pairs")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the views go; auto: cuda if there is one")
    net: NetName | None = Field(
        None, description="network that is also trained on two views, e.g. resnet50; null: none"
    )

    @property
    def lacking(self) -> str:
        """The GPU, where the views go to one, or DALI."""
        if found := gpu_lacking(self.device):
            return found
        reason = dali.why_not(_device(self))
        return f"it needs DALI: {reason}" if reason else ""

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A few small pictures in one pair; files that are made where the folder is missing."""
        few = {"images": 16, "batch_size": 4, "threads": 1, "pairs": 1}
        small: dict[str, Any] = {name: min(getattr(self, name), most) for name, most in few.items()}
        small |= {"image_size": pixels_in_small(self.image_size), "max_classes": min(self.max_classes or 16, 16)}
        missing = _missing(self.folder)
        return (small | {"folder": None}, (f"{missing}; generated files take its place",)) if missing else (small, ())

    @model_validator(mode="after")
    def _has_network(self) -> "Settings":
        if self.net and (error := network_error(self.net, self.image_size)):
            raise ValueError(f"net: {error}")
        return self


def run(settings: Settings) -> Iterator[Measurement]:
    """Measure every case.

    Raises:
        DataError: the folder is missing or holds too few pictures.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="ekgsearch-bench-") as made:
            images = _open(settings, Path(made))
            for case in _CASES:
                yield from _case(settings, images, *case)
            if settings.net is not None:
                yield from _supply(settings, images, settings.net)
    finally:
        torch.set_num_threads(threads)


def cpu_seconds() -> float:
    """Processor seconds of all threads of this process and of all its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _missing(folder: str | None) -> str:
    """In words, that the folder is not there; empty where it is, or none is named."""
    try:
        is_there = folder is None or expand_path(folder, "folder").is_dir()
    except JobError as error:
        return str(error)
    return "" if is_there else f"folder = {folder}: there is no such folder"


def _open(settings: Settings, made: Path) -> EncodedImages:
    """Open the pictures that are loaded; those that nobody has are made in a folder."""
    limit = Limit(settings.max_classes)
    if settings.folder is None:
        _make_files(made, settings)
    folder = made if settings.folder is None else expand_path(settings.folder, "folder")
    index = index_images(folder, num_threads=settings.threads, limit=limit)
    index.check_bad(0, limit)
    images = folder_images(index, settings.image_size, num_threads=settings.threads)
    if len(images) < settings.images:
        raise DataError(f"{folder}: expected {settings.images} pictures, found {len(images)}; lower `images`")
    return images.take(torch.arange(settings.images) * len(images) // settings.images)


def _make_files(folder: Path, settings: Settings) -> None:
    """Write as many generated pictures as JPEG files as are loaded, or a few more, in folders of classes."""
    classes = settings.max_classes or 10
    dataset = open_generated(classes, settings.image_size, limit=Limit(images=-(-settings.images // classes)))
    pixels = dataset.train.read(torch.arange(len(dataset.train))).permute(0, 2, 3, 1).numpy()
    for number, (label, picture) in enumerate(zip(dataset.train.labels.tolist(), pixels, strict=True)):
        path = folder / f"class{label:05d}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path, quality=90)


def _case(
    settings: Settings, images: EncodedImages, name: str, views: int, augmentation: Augmentation
) -> Iterator[Measurement]:
    reference = _drained(_reference(settings, images, views, augmentation))
    for backend in ("dali", "torch"):
        ours = _drained(_epochs(_loader(settings, images, views, augmentation, backend)))
        seconds, theirs = abab(ours, reference, pairs=settings.pairs, clock=cpu_seconds)
        for case, times in ((backend, seconds), (f"torchvision beside {backend}", theirs)):
            rates = [settings.images / value for value in times]
            yield Measurement.of(f"{name}, {case}", "per core", "images/s", rates)
        yield ratio(f"{name}, {backend} against torchvision", "per core", theirs, seconds)


def _drained(epochs: Iterator[Iterator[Any]]) -> Callable[[], None]:
    """A function that runs through the next epoch."""

    def drain() -> None:
        for _ in next(epochs):
            pass

    return drain


def _loader(
    settings: Settings, images: EncodedImages, views: int, augmentation: Augmentation, backend: LoaderName
) -> Loader:
    return open_loader(
        images,
        LoaderSettings(
            batch_size=settings.batch_size,
            views=views,
            augmentation=augmentation,
            normalisation=_NORMALISATION,
            seed=1,
            drop_last=False,
            loader=backend,
            threads=settings.threads,
            device=_device(settings),
        ),
    )


def _device(settings: Settings) -> torch.device:
    asked = settings.device
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked)


def _epochs(loader: Loader) -> Iterator[Iterator[LoadedBatch]]:
    return (loader.epoch(number) for number in itertools.count(1))


class _TorchvisionPictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Pictures as most programs read them."""

    def __init__(self, images: EncodedImages, views: int, augmentation: Augmentation) -> None:
        self._files = [(images.source.where(image), image.label) for image in images.images]
        self._views = views
        self._transform = _transform(images.image_size, augmentation)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        path, label = self._files[position]
        with Image.open(path) as file:
            picture = file.convert("RGB")
        return torch.stack([self._transform(picture) for _ in range(self._views)]), label


def _transform(size: int, augmentation: Augmentation) -> Callable[[Image.Image], Tensor]:
    from torchvision.transforms import v2

    jitter = v2.ColorJitter(augmentation.brightness, augmentation.contrast, augmentation.saturation)
    colour = augmentation.changes_colour
    mean, std = ([value / 255 for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
    steps = [
        v2.RandomResizedCrop(size, antialias=True),
        v2.RandomHorizontalFlip(),
        *([jitter] if colour else []),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        *([_Lighting(augmentation.lighting)] if colour else []),
        v2.Normalize(mean, std),
    ]
    composed: Callable[[Image.Image], Tensor] = v2.Compose(steps)
    return composed


class _Lighting:
    """Noise along the principal components of ImageNet's colours."""

    def __init__(self, deviation: float) -> None:
        self._components = torch.tensor(_PRINCIPAL_AXES) * torch.tensor(_PRINCIPAL_VALUES) * deviation

    def __call__(self, image: Tensor) -> Tensor:
        return image + (self._components @ torch.randn(3))[:, None, None]


def _reference(
    settings: Settings, images: EncodedImages, views: int, augmentation: Augmentation
) -> Iterator[Iterator[Any]]:
    loader = torch.utils.data.DataLoader(
        _TorchvisionPictures(images, views, augmentation),
        batch_size=settings.batch_size,
        shuffle=True,
        num_workers=settings.threads,
        pin_memory=_device(settings).type == "cuda",
    )
    return (iter(loader) for _ in itertools.count())


def _supply(settings: Settings, images: EncodedImages, name: str) -> list[Measurement]:
    """Train a network on two views of each picture, and see how long it waits for them."""
    EXACT.set_backends()  # the kernels of any training
    num_images = max(len(images), _TRAINED_BATCHES * settings.batch_size)
    images = images.take(torch.arange(num_images) % len(images))
    device = _device(settings)
    network = build(zoo_factory(name, 1000, (3, settings.image_size, settings.image_size)), seed=1).to(device).train()
    network = network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loader = _loader(settings, images, 2, _COLOUR, "auto")
    rates, waits = [], []
    for number in range(settings.pairs + 1):
        begin, waited = 0.0, 0.0
        for index, batch in enumerate(loader.epoch(number + 1)):
            if index:
                waited += batch.wait_seconds
            else:
                begin = time.perf_counter()
            inputs = batch.views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = network(inputs)
            assert batch.labels is not None
            F.cross_entropy(logits.float(), batch.labels.repeat_interleave(2)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:  # the first epoch builds pipelines and chooses kernels
            seconds = time.perf_counter() - begin
            rates.append(num_images / seconds)
            waits.append(100.0 * waited / seconds)
    return [
        Measurement.of(f"training {name}, two views with colour", "wall time", "images/s", rates),
        Measurement.of(f"training {name}, two views with colour", "waiting for images", "%", waits),
    ]
