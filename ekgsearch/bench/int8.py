"""Accuracy, size and latency of networks in 8-bit integers, next to the same networks in 32-bit floats.

The unpruned and the slim network of a run become ONNX files with folded batch norms. ONNX Runtime quantises them after
training: weights of each channel and activations of each tensor to signed 8-bit integers, whose ranges are those of
training images. Both files classify the whole test set; latencies are measured in turns in this process. Without a run,
a ResNet-20 with random weights on the digits stands in, and only the times mean something.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ekgsearch.artefact.convert import INPUT, convert, open_converted
from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.file import Description, load_file, read_file
from ekgsearch.artefact.fold import fold_norms
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.recipe import InputShape
from ekgsearch.bench.base import BenchSettings, Measurement, abab
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim
from ekgsearch.data.datasets import Dataset, open_dataset
from ekgsearch.data.subset import batches
from ekgsearch.errors import JobError
from ekgsearch.fields import Mark, Positive, Text, expand_path
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.finished import normalised
from ekgsearch.pipeline.images import data_request

_BATCH = 250


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["int8"]
    run: Annotated[Text | None, Mark.PATH] = Field(
        None, description="directory of a finished run, whose networks are quantised; null: one with random weights"
    )
    calibration_images: Positive = Field(512, description="training images that the ranges of activations come from")
    test_images: Positive | None = Field(None, description="test images that are classified; null: all")
    batch_sizes: tuple[Positive, ...] = Field((1, 64), description="images of one pass whose latency is measured")
    pairs: Positive = Field(15, description="interleaved pairs of passes")

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Random weights, few images, one pair."""
        return {"run": None, "calibration_images": 16, "test_images": 20, "batch_sizes": (1,), "pairs": 1}, ()


@dataclass(frozen=True, slots=True)
class _Networks:
    """The two networks of a run, and its images."""

    full: nn.Module
    slim: nn.Module
    description: Description
    dataset: Dataset

    def read(self, split: Literal["train", "test"], count: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Network input and labels in batches, evenly spread over a split."""
        images = getattr(self.dataset, split)
        ids = torch.linspace(0, len(images) - 1, min(count or len(images), len(images))).long()
        for part in batches(ids, _BATCH):
            yield normalised(self.description, images.read(part)), images.labels[part]


def run(settings: Settings) -> Iterator[Measurement]:
    """Quantise both networks, and measure.

    Raises:
        JobError: ONNX Runtime is missing.
        NetworkError, StorageError, DataError: the run has no network, or its images are missing.
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise JobError("bench int8 needs onnxruntime: pip install 'ekgsearch[onnx]'") from error
    networks = _random() if settings.run is None else _of_run(expand_path(settings.run, "run"))
    shape = networks.description.recipe.input_shape
    with tempfile.TemporaryDirectory(prefix="ekgsearch-int8-") as folder:
        for name, network in (("full", networks.full), ("slim", networks.slim)):
            floats, integers = (Path(folder) / f"{name}-{kind}.onnx" for kind in ("fp32", "int8"))
            convert(fold_norms(network)[0], shape, "onnx", floats)
            _quantise(floats, integers, networks.read("train", settings.calibration_images))
            calls = {}
            for kind, path in (("fp32", floats), ("int8", integers)):
                calls[kind] = open_converted(path, "onnx")
                top1 = _top1(calls[kind], networks.read("test", settings.test_images))
                yield Measurement.count(f"{name}, {kind}", "top-1", "%", top1)
                yield Measurement.count(f"{name}, {kind}", "size of the file", "MB", path.stat().st_size / 1e6)
            yield from _latencies(name, calls, shape, settings)


def _latencies(
    name: str, calls: dict[str, Callable[[Tensor], Tensor]], shape: InputShape, settings: Settings
) -> Iterator[Measurement]:
    for batch in settings.batch_sizes:
        images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
        floats, integers = abab(
            lambda images=images: calls["fp32"](images),  # type: ignore[misc]  # bound here, not at the call
            lambda images=images: calls["int8"](images),  # type: ignore[misc]
            pairs=settings.pairs,
            clock=time.perf_counter,
        )
        ratios = [before / after for before, after in zip(floats, integers, strict=True)]
        yield Measurement.of(f"{name}, batch {batch}", "int8 against fp32, wall time", "x", ratios)


def _quantise(source: Path, target: Path, images: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Quantise an ONNX file after training, with ranges from images."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def get_next(self) -> dict[str, Any] | None:
            batch = next(images, None)
            return None if batch is None else {INPUT: batch[0].numpy()}

    quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def _top1(call: Callable[[Tensor], Tensor], images: Iterator[tuple[Tensor, Tensor]]) -> float:
    correct = count = 0
    for pixels, labels in images:
        correct += int((call(pixels).argmax(1) == labels).sum())
        count += len(labels)
    return 100 * correct / count


def _of_run(run_dir: Path) -> _Networks:
    path = run_dir / "final.safetensors"
    return _Networks(
        full=load_file(run_dir / "initial.safetensors", trust=True),
        slim=load_file(path, trust=True),
        description=read_file(path)[1],
        dataset=data_request(load_job(run_dir / "job.yaml")).open(),
    )


def _random() -> _Networks:
    """A ResNet-20 with random weights, and half of the channels of each of its channel groups."""
    dataset = open_dataset("digits")
    recipe = zoo_factory("resnet20", 10, dataset.image_shape)
    full = build(recipe, seed=1).eval()
    graph = analyse(full, recipe.input_shape)
    half = graph.full()
    for group in graph.groups:
        half = half.replace(group.name, range(group.size // 2))
    description = Description(recipe, "random weights", dataset.mean, dataset.std)
    return _Networks(full, slim(graph, half).eval(), description, dataset)
