"""Networks in the formats of other programs: ONNX, torch.export and TorchScript."""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ekgsearch.artefact.recipe import InputShape
from ekgsearch.errors import NetworkError

Format = Literal["onnx", "pt2", "torchscript"]
"""onnx: for ONNX Runtime and others. pt2: torch.export, read by torch.export.load. torchscript: torch.jit.load."""

FORMATS: tuple[Format, ...] = get_args(Format)

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".ts"}

MOST_IMAGES = 65_536
"""Images of one batch that a converted network takes, at most."""

INPUT, OUTPUT = "images", "logits"
"""Names of what goes in and what comes out of an ONNX file."""


def convert(network: nn.Module, input_shape: InputShape, to: Format, path: Path) -> None:
    """Write a network in another format, for batches of any size.

    Args:
        network: in evaluation mode, on the CPU.
        input_shape: shape of one image.
        to: the format.
        path: file to write; its folder must exist.

    Raises:
        NetworkError: the format cannot express the network, or its packages are missing.
    """
    missing = [name for name in _packages(to) if importlib.util.find_spec(name) is None]
    if missing:
        raise NetworkError(f"--to {to} needs {' and '.join(missing)}; install them: pip install 'ekgsearch[onnx]'")
    images = torch.zeros(2, *input_shape)
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    try:
        with torch.no_grad(), _quiet():
            match to:
                case "pt2":
                    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=({0: batch},)), path)
                case "torchscript":
                    torch.jit.save(torch.jit.trace(network, images), str(path))  # type: ignore[no-untyped-call]
                case "onnx":
                    torch.onnx.export(
                        network,
                        (images,),
                        str(path),
                        dynamo=True,
                        dynamic_shapes=({0: batch},),
                        input_names=[INPUT],
                        output_names=[OUTPUT],
                        external_data=False,
                        verbose=False,
                    )
    except OSError as error:
        raise NetworkError(f"{path} cannot be written: {error.strerror or error}") from error
    except Exception as error:  # the exporters raise what they come across
        raise NetworkError(
            f"the network cannot be converted to {to}: {type(error).__name__}: {str(error)[:300]}; try another format: "
            f"{', '.join(FORMATS)}"
        ) from error


def open_converted(path: Path, to: Format) -> Callable[[Tensor], Tensor]:
    """Open a file of `convert` by the program that it is for.

    Args:
        path: the file.
        to: its format.

    Returns:
        A function from images (B, C, H, W) to logits (B, classes), both on the CPU.

    Raises:
        NetworkError: ONNX Runtime is missing.
    """
    match to:
        case "pt2":
            exported: Callable[[Tensor], Tensor] = torch.export.load(path).module()
            return exported
        case "torchscript":
            scripted: Callable[[Tensor], Tensor] = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
            return scripted
        case "onnx":
            return _onnx_session(path)


def _onnx_session(path: Path) -> Callable[[Tensor], Tensor]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise NetworkError("ONNX files are run by onnxruntime, which is missing: pip install 'ekgsearch[onnx]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for work by spinning would slow down what runs next in this process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _packages(to: Format) -> tuple[str, ...]:
    return ("onnx", "onnxscript") if to == "onnx" else ()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the chatter of the exporters, which is about themselves."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
