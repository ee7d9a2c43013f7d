"""Measure the latency of the networks of runs or files, next to the networks that they were cut from."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ekgsearch.artefact.convert import convert, open_converted
from ekgsearch.artefact.file import load_file, read_file
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.recipe import Constructor, InputShape
from ekgsearch.artefact.slim import Slim
from ekgsearch.artefact.targets import finder
from ekgsearch.errors import NetworkError
from ekgsearch.pipeline.finished import Given
from ekgsearch.rows.run import LatencyRow
from ekgsearch.runtime.environment import device_name, provenance
from ekgsearch.runtime.latency import compare_calls

BackendName = Literal["eager", "compile", "onnx"]
"""eager: torch as it is. compile: torch.compile. onnx: ONNX Runtime, on the CPU."""

TABLE = "latencies"
"""Table of a run directory that the rows of its networks are added to."""


def measure(
    given: Given,
    batches: Sequence[int],
    backends: Sequence[BackendName],
    *,
    device: str = "cpu",
    factory: Constructor | str | None = None,
    trust: bool = False,
) -> Iterator[LatencyRow]:
    """Compare a slim network with the unpruned one, for every backend and size of a batch.

    The unpruned network has fresh weights: they change no time.

    Args:
        given: where the slim network lies.
        batches: images of one pass.
        backends: what runs the networks.
        device: "cpu" or "cuda".
        factory: what makes the unpruned network; see `load_file`.
        trust: whether the code that the file names may run.

    Raises:
        NetworkError: the file holds no slim network, or a backend cannot run it.
        StorageError: the file is damaged.
    """
    _, description = read_file(given.path)
    recipe = description.recipe
    if not isinstance(recipe, Slim):
        raise NetworkError(
            f"{given.path} holds a {description.contents}, which was not cut; give a slim network, such as "
            "final.safetensors of a run"
        )
    slim = load_file(given.path, factory=factory, trust=trust)
    full = build(recipe.base, seed=0, find=finder(factory, trust)).eval()
    place, cpu = torch.device(device), provenance()["cpu"]
    with tempfile.TemporaryDirectory(prefix="ekgsearch-latency-") as folder:
        for backend in backends:
            calls = [
                _call(network, backend, recipe.input_shape, place, Path(folder) / f"{name}.onnx")
                for name, network in (("full", full), ("slim", slim))
            ]
            for batch in batches:
                images = torch.rand(batch, *recipe.input_shape, generator=torch.Generator().manual_seed(0)).to(place)
                yield LatencyRow(
                    run=given.run,
                    network=given.path.stem,
                    contents=description.contents,
                    backend=backend,
                    batch=batch,
                    **asdict(compare_calls(calls[0], calls[1], images)),
                    device=device_name(place),
                    cpu=cpu,
                    threads=torch.get_num_threads(),
                    torch=torch.__version__,
                )


def latency_table(rows: Sequence[LatencyRow]) -> str:
    """The rows as text."""
    head = f"{'network':<28} {'backend':<8} {'batch':>5} {'full ms':>9} {'slim ms':>9}  times as fast        noise"
    lines = [
        f"{f'{row.run}/{row.network}':<28} {row.backend:<8} {row.batch:>5} {row.full_ms:>9.3g} {row.slim_ms:>9.3g}  "
        f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})  {row.noise - 1:>5.0%}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def _call(
    network: nn.Module, backend: BackendName, input_shape: InputShape, device: torch.device, path: Path
) -> Callable[[Tensor], object]:
    match backend:
        case "eager":
            return network.to(device)
        case "compile":
            compiled: Callable[[Tensor], object] = torch.compile(network.to(device), dynamic=False)
            return compiled
        case "onnx":
            if device.type != "cpu":
                raise NetworkError("--backend onnx is measured on the CPU; leave --device out")
            convert(network.cpu(), input_shape, "onnx", path)
            return open_converted(path, "onnx")
