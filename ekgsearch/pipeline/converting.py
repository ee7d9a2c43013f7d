"""Convert the network of a run or of a file, compare it with the original, and write down what it needs."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ekgsearch.artefact.convert import SUFFIXES, Format, convert, open_converted
from ekgsearch.artefact.file import Description, load_file, read_file
from ekgsearch.artefact.fold import fold_norms
from ekgsearch.artefact.kinds import changed_code, recipe_to_dict
from ekgsearch.artefact.recipe import Constructor
from ekgsearch.artefact.slim import Slim
from ekgsearch.artefact.targets import finder
from ekgsearch.channels.cost import cost
from ekgsearch.channels.graph import analyse
from ekgsearch.errors import NetworkError, StorageError
from ekgsearch.pipeline.finished import Given, real_images
from ekgsearch.storage.files import write_atomically

NUM_IMAGES = 64
"""Images on which the converted network is compared."""

TOLERANCE = 1e-3
"""Largest difference of a logit that is rounding, as a share of the largest logit: programs add in another order."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A network in another format.

    Attributes:
        path: the file.
        about: JSON file next to it with what is needed to use it.
        difference: largest difference of a logit from the original's.
        largest: largest logit.
        num_images: images that were compared; real ones, unless `is_noise`.
        is_noise: whether they were random numbers, since no images were at hand.
        agree: images whose most likely class is the same.
        folded: batch norms that became part of convolutions.
    """

    path: Path
    about: Path
    difference: float
    largest: float
    num_images: int
    is_noise: bool
    agree: int
    folded: int


def convert_network(
    place: Path,
    to: Format,
    out: Path | None = None,
    *,
    fold: bool = False,
    images: Path | None = None,
    factory: Constructor | str | None = None,
    trust: bool = False,
) -> Converted:
    """Convert a network, open the result by the program that it is for, and compare the two.

    Args:
        place: run directory, or a file of a network.
        to: the format.
        out: file to write; None for one next to the network's.
        fold: make batch norms part of the convolutions before them.
        images: folder of pictures to compare on; None for the test images of the run.
        factory: what makes the unpruned network; see `load_file`.
        trust: whether the code that the file names may run.

    Raises:
        NetworkError: there is no network, the format cannot express it, or the result computes something else.
        StorageError: a file is damaged, or the disk refuses.
    """
    given = Given.find(place)
    _, description = read_file(given.path)
    network, folded = load_file(given.path, factory=factory, trust=trust), 0
    path = given.path.with_suffix(SUFFIXES[to]) if out is None else out
    if path.suffix in {*SUFFIXES.values()} - {SUFFIXES[to]}:
        raise StorageError(f"{path}: expected a file that ends in {SUFFIXES[to]}, the format of --to {to}")
    if not path.parent.is_dir():
        raise StorageError(f"{path}: there is no folder {path.parent}; make it, or choose another --out")
    shape = description.recipe.input_shape
    graph = analyse(network, shape)
    costs = cost(graph, graph.full())
    compared = real_images(given, description, NUM_IMAGES, images)
    noise = torch.randn(NUM_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    inputs = noise if compared is None else compared
    with torch.no_grad():
        expected = network(inputs)
    if fold:
        network, folded = fold_norms(network)
    # A file that is there stays until the new one has proved to compute the same.
    draft = path.with_name(f"{path.stem}.unchecked{path.suffix}")
    try:
        convert(network, shape, to, draft)
        found = _run(draft, to, inputs)
        _check_equal(path, found, expected)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    result = Converted(
        path=path,
        about=path.with_name(f"{path.name}.json"),
        difference=float((found - expected).abs().max()),
        largest=float(expected.abs().max()),
        num_images=len(inputs),
        is_noise=compared is None,
        agree=int((found.argmax(1) == expected.argmax(1)).sum()),
        folded=folded,
    )
    about = {
        **_about(description),
        "format": to,
        "file": path.name,
        "macs": costs.macs,
        "params": costs.params,
        "folded_norms": folded,
        "top1": None if changed_code(description.recipe, finder(factory, trust)) else given.top1(),
        "largest_difference": result.difference,
        "compared_images": 0 if result.is_noise else result.num_images,
    }
    write_atomically(result.about, (json.dumps(about, indent=2) + "\n").encode())
    return result


def _check_equal(path: Path, found: Tensor, expected: Tensor) -> None:
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(largest, 1e-6):
        raise NetworkError(
            f"{path}: the converted network computes something else: logits differ by {difference:.3g} where the "
            f"largest is {largest:.3g} (allowed {TOLERANCE:.1%}); nothing was written; try another format, or leave "
            "--fold-norms out"
        )


def _about(description: Description) -> dict[str, object]:
    """What somebody needs who uses the network elsewhere."""
    recipe = description.recipe
    kept = recipe.subnetwork.num_kept if isinstance(recipe, Slim) else {}
    return {
        "contents": description.contents,
        "input_shape": list(recipe.input_shape),
        "input": "(pixels - mean) / std, pixels 0..255, float32 (batch, channels, height, width)",
        "mean": list(description.mean),
        "std": list(description.std),
        "classes": list(description.classes),
        "widths": kept,
        "recipe": recipe_to_dict(recipe),
    }


def _run(path: Path, to: Format, inputs: Tensor) -> Tensor:
    """Logits of the converted network, asked for one image alone, two, and the rest."""
    run = open_converted(path, to)
    with torch.no_grad():
        return torch.cat([run(part) for part in (inputs[:1], inputs[1:3], inputs[3:]) if len(part)])
