"""Exemplars that EPruner keeps in trained networks, layer by layer, and what they save over beta.

Nothing is compared: the search of EPruner (arXiv 2101.07985) cuts each network once per beta. Two tables and their
pictures are written next to the rows: `epruner_exemplars` holds the filters that each layer keeps at a few betas,
`epruner_reduction` the shares of operations (counter thop_old) and parameters that go, over beta from 0 to 1 and in
finer steps from 0.7 to 0.8.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.recipe import Recipe
from ekgsearch.artefact.sidecar import read_sidecar
from ekgsearch.artefact.weights import load_weights
from ekgsearch.bench.base import BenchSettings, Measurement
from ekgsearch.channels.graph import ChannelGraph, analyse
from ekgsearch.errors import JobError
from ekgsearch.fields import Mark, Text, expand_path
from ekgsearch.methods.base import Decision, Materials
from ekgsearch.methods.budget import Budget
from ekgsearch.methods.choice import chosen_groups
from ekgsearch.methods.epruner.section import EprunerSection
from ekgsearch.report.exemplars import ExemplarRow, ReductionRow, plot_exemplars, plot_reduction
from ekgsearch.report.style import to_png
from ekgsearch.storage.files import write_atomically
from ekgsearch.storage.tables import read_table, write_table

Beta = Annotated[float, Field(gt=0, le=1)]

COARSE = tuple(step / 100 for step in range(1, 101))
"""Betas from 0 to 1."""

FINE = tuple(step / 1000 for step in range(700, 801))
"""Betas around those that were published for CIFAR."""


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["exemplars"]
    weights: Annotated[tuple[Text, ...], Mark.PATH] = Field(
        (),
        description="safetensors files of trained networks, each with its sidecar; none: a ResNet-20, random weights",
    )
    betas: tuple[Beta, ...] = Field(
        (0.5, 0.6, 0.65, 0.7, 0.73, 0.76, 0.8, 0.9, 1.0),
        min_length=1,
        description="betas at which the filters of every layer are counted",
    )
    curves: bool = Field(True, description="also cut at the betas of the curves, 0 to 1 and 0.7 to 0.8")

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """One beta, without the curves, of a ResNet-20 with random weights."""
        return {"weights": (), "betas": self.betas[:1], "curves": False}, ()


@dataclass(frozen=True, slots=True)
class _Network:
    name: str
    graph: ChannelGraph


def run(settings: Settings) -> Iterator[Measurement]:
    """Cut every network at every beta; write the tables and the pictures.

    Raises:
        JobError: a path names a variable that is not set.
        NetworkError: weights are missing, damaged, or of another network than their sidecar says.
        StorageError: a table or a picture cannot be written.
    """
    curves = (*COARSE, *FINE) if settings.curves else ()
    betas = sorted({*settings.betas, *curves})
    counts: list[ExemplarRow] = []
    reductions: list[ReductionRow] = []
    for network in _networks(settings.weights):
        full, decisions = _cut(network.graph, betas)
        for beta, decision in zip(betas, decisions, strict=True):
            reductions.append(_reduction(network, beta, full, decision))
            if beta in settings.betas:
                rows = _counts(network, beta, decision)
                counts += rows
                kept = sum(row.num_kept for row in rows)
                yield Measurement.count(f"{network.name}, beta {beta:g}", "filters kept", "", kept)
                yield Measurement.count(
                    f"{network.name}, beta {beta:g}", "MACs removed", "share", reductions[-1].macs_reduction
                )
    _write(settings, counts, reductions)


def _networks(weights: Sequence[str]) -> Iterator[_Network]:
    """Trained networks, or a small one with random weights where none is named."""
    if not weights:
        yield _Network("resnet20, random weights", _analysed(zoo_factory("resnet20", 10, (3, 32, 32)), None))
    for text in weights:
        path = expand_path(text, "weights")
        if not path.is_file():
            raise JobError(f"weights = {text}: there is no file {path}; name files of trained networks")
        net = read_sidecar(path).net
        if net is None:
            raise JobError(f"weights = {text}: expected a sidecar next to it that names the network, found none")
        yield _Network(path.stem, _analysed(net, path))


def _analysed(net: Recipe, weights: Path | None) -> ChannelGraph:
    network = build(net, seed=0).eval()
    if weights is not None:
        load_weights(network, weights)
    return analyse(network, net.input_shape)


def _cut(graph: ChannelGraph, betas: Sequence[float]) -> tuple[Decision, list[Decision]]:
    """The unpruned network, and the network at every beta."""
    section = EprunerSection(beta=1.0)
    materials = Materials(
        graph=graph,
        groups=chosen_groups(graph, section),
        open_graph=lambda: graph,
        budget=Budget(math.inf, "macs", "thop_old"),
        seed=0,
        threads=1,
        evaluator=_no_evaluator,
        batches=(),
        tie_tolerance=0.0,
        betas=tuple(betas),
    )
    full, *decisions = islice(section.open(materials).run(), 1 + len(betas))
    return full, decisions


def _no_evaluator() -> NoReturn:
    raise AssertionError("EPruner looks at no image")


def _counts(network: _Network, beta: float, decision: Decision) -> list[ExemplarRow]:
    return [
        ExemplarRow(network.name, beta, place, name, network.graph.group(name).size, layer["num_kept"])
        for place, (name, layer) in enumerate(decision.own["layers"].items())
    ]


def _reduction(network: _Network, beta: float, full: Decision, decision: Decision) -> ReductionRow:
    macs, params = decision.macs, decision.params
    return ReductionRow(network.name, beta, macs, 1 - macs / full.macs, params, 1 - params / full.params)


def _write(settings: Settings, counts: Sequence[ExemplarRow], reductions: Sequence[ReductionRow]) -> None:
    """Write both tables and their pictures next to the rows of the benchmark."""
    output = Path(settings.output)
    ending = "".join(output.suffixes)
    for name, rows, kind, plot in (
        ("epruner_exemplars", counts, ExemplarRow, plot_exemplars),
        ("epruner_reduction", reductions, ReductionRow, plot_reduction),
    ):
        table = output.with_name(name + ending)
        write_table(table, rows, kind)
        write_atomically(table.with_suffix(".png"), to_png(plot(read_table(table))))
