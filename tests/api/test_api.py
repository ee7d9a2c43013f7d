"""The Python API, as a person uses it: on a network of their own, with their own loop."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import own_net
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ekgsearch
from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.errors import BudgetError, EkgError, JobError, NetworkError, ResumeError
from ekgsearch.storage.journal import read_journal

EXPORTED = ["__version__", "analyse", "cost", "latency", "load_network", "masked", "save_network", "search", "slim"]
SHAPE = (3, 16, 16)


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose class is their brightest quarter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    pictures = torch.randn(count, *SHAPE, generator=generator) * 0.5
    for index, label in enumerate(labels.tolist()):
        y, x = 8 * (label // 2), 8 * (label % 2)
        pictures[index, :, y : y + 8, x : x + 8] += 1
    return pictures, labels


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return own_net.Own(width=8, num_classes=4)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [images(32, seed) for seed in range(3)]


def test_the_exported_names_are_stable_and_loaded_where_they_are_used() -> None:
    assert ekgsearch.__all__ == EXPORTED
    assert dir(ekgsearch) == sorted(EXPORTED)
    for name in EXPORTED[1:]:
        function = getattr(ekgsearch, name)
        assert function.__doc__
        assert set(inspect.signature(function).parameters) <= set(function.__annotations__)
    with pytest.raises(AttributeError, match="has no attribute 'prune'; it exports"):
        ekgsearch.prune  # type: ignore[attr-defined]  # noqa: B018
    program = "import ekgsearch, sys; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_analysis_prints_as_the_table_of_groups(network: nn.Module) -> None:
    graph = ekgsearch.analyse(network, SHAPE)
    lines = str(graph).splitlines()
    assert lines[0].split() == ["channel", "group", "width", "MACs", "members"]
    assert len([line for line in lines if line.startswith(tuple(group.name for group in graph.groups))]) >= 3
    assert any("reachable" in line for line in lines)


@pytest.mark.parametrize("method", ["ekg", "l2", "epruner"])
def test_every_method_searches_any_images_and_leaves_the_network_alone(
    method: str, network: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    network.train()
    network.stem[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    graph = ekgsearch.analyse(network, SHAPE)
    given = iter(batches) if method == "ekg" else ()
    limit = {"beta": 0.9} if method == "epruner" else {"reduction": 0.4}
    subnetwork = ekgsearch.search(graph, given, method=method, progress=False, **limit)
    full, kept = ekgsearch.cost(graph), ekgsearch.cost(graph, subnetwork)
    assert kept.macs < full.macs
    if method != "epruner":
        assert 0.4 <= 1 - kept.macs / full.macs < 0.6
    assert network.training
    assert [parameter.requires_grad for parameter in network.parameters()].count(False) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    small = ekgsearch.slim(graph, subnetwork).eval()
    assert sum(parameter.numel() for parameter in small.parameters()) == kept.params
    pictures = batches[0][0]
    torch.testing.assert_close(ekgsearch.masked(graph, subnetwork)(pictures), small(pictures))


def test_a_search_in_a_folder_continues_and_is_not_made_twice(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    graph = ekgsearch.analyse(network, SHAPE)
    whole = ekgsearch.search(graph, batches, reduction=0.4, folder=tmp_path / "whole", progress=False)
    journal = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    assert ekgsearch.search(graph, batches, reduction=0.4, folder=tmp_path / "whole", progress=False) == whole
    assert (tmp_path / "whole" / "journal.jsonl").read_bytes() == journal
    (tmp_path / "part").mkdir()
    lines = journal.splitlines(keepends=True)
    (tmp_path / "part" / "journal.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"torn')
    assert ekgsearch.search(graph, batches, reduction=0.4, folder=tmp_path / "part", progress=False) == whole
    assert (tmp_path / "part" / "journal.jsonl").read_bytes() == journal
    with pytest.raises(ResumeError, match="holds another search: images differ"):
        ekgsearch.search(graph, batches[:2], reduction=0.4, folder=tmp_path / "part")
    with torch.no_grad():
        network.head.bias.add_(1)
    with pytest.raises(ResumeError, match="holds another search: network differ"):
        ekgsearch.search(graph, batches, reduction=0.4, folder=tmp_path / "part")


def test_a_quirk_counts_batches_as_a_run_does(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    graph, losses = ekgsearch.analyse(network, SHAPE), {}
    for quirks in ((), ("nominal_batch_means",)):
        folder = tmp_path / str(len(quirks))
        ekgsearch.search(graph, batches, reduction=0.1, quirks=quirks, batch_size=40, folder=folder, progress=False)
        losses[quirks] = read_journal(folder / "journal.jsonl")[1]["loss"]
    assert losses["nominal_batch_means",] == pytest.approx(losses[()] * 32 / 40)


def test_a_slim_network_is_trained_by_ones_own_loop_saved_cut_again_and_resumed(
    network: nn.Module, batches: list[tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "small.safetensors"
    sizes = [sum(parameter.numel() for parameter in network.parameters())]
    for _ in range(2):
        train(network, batches)
        graph = ekgsearch.analyse(network, SHAPE)
        small = ekgsearch.slim(graph, ekgsearch.search(graph, batches, reduction=0.3, progress=False))
        train(small, batches)
        ekgsearch.save_network(
            path,
            small,
            own_net.Own,
            {"width": 8, "num_classes": 4},
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            classes=list("abcd"),
        )
        network = ekgsearch.load_network(path, factory=own_net.Own)
        assert torch.equal(network(batches[0][0]), small.eval()(batches[0][0]))
        sizes.append(sum(parameter.numel() for parameter in network.parameters()))
    assert sizes[0] > sizes[1] > sizes[2]
    assert ekgsearch.latency(own_net.Own(8, 4), network, SHAPE, batch_size=2).ratio > 0
    with pytest.raises(NetworkError, match="own_net:Own, code outside ekgsearch"):
        ekgsearch.load_network(path)
    assert torch.equal(ekgsearch.load_network(path, trust_factory=True)(batches[0][0]), network(batches[0][0]))


def train(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    optimiser = torch.optim.SGD(network.train().parameters(), lr=0.05)
    for pictures, labels in batches:
        optimiser.zero_grad()
        F.cross_entropy(network(pictures), labels).backward()
        optimiser.step()


def test_a_zoo_network_is_saved_by_its_name(tmp_path: Path) -> None:
    network = build(zoo_factory("resnet20", 4, SHAPE), seed=1)
    ekgsearch.save_network(tmp_path / "net.safetensors", network, "resnet20", {"num_classes": 4}, input_shape=SHAPE)
    again = ekgsearch.load_network(tmp_path / "net.safetensors")
    assert torch.equal(again(images(2)[0]), network.eval()(images(2)[0]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda graph: ekgsearch.search(graph, reduction=0.3), JobError, "method ekg looks at images"),
        (lambda graph: ekgsearch.search(graph, [images(8)], reduction=1.5), JobError, "reduction = 1.5"),
        (lambda graph: ekgsearch.search(graph, [images(8)]), JobError, "exactly one of search.reduction"),
        (lambda graph: ekgsearch.search(graph, method="l3", reduction=0.3), JobError, "l3"),
        (lambda graph: ekgsearch.search(graph, method="l1", reduction=0.3, bta=1), JobError, "bta is no field of this"),
        (
            lambda graph: ekgsearch.search(graph, [(images(8)[0], images(8)[1] + 100)], reduction=0.3),
            JobError,
            "as many as the network has outputs, found 1",
        ),
        (lambda graph: ekgsearch.search(graph, method="l1", reduction=0.9999), BudgetError, "cannot be reached"),
        (lambda graph: ekgsearch.search(graph, [images(8)[0]], reduction=0.3), JobError, "expected a pair of tensors"),
        (
            lambda graph: ekgsearch.search(graph, [(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())], reduction=0.3),
            JobError,
            r"expected images \(B, 3, 16, 16\)",
        ),
        (
            lambda graph: ekgsearch.search(graph, [(images(8)[0].byte(), images(8)[1])], reduction=0.3),
            JobError,
            "expected normalised float images",
        ),
        (lambda _: ekgsearch.analyse(json, SHAPE), NetworkError, "expected a torch.nn.Module, found module"),
        (lambda graph: ekgsearch.save_network("x", graph.network, own_net.Own), NetworkError, "expected input_shape"),
        (
            lambda graph: ekgsearch.save_network("x", graph.network, own_net.Own, input_shape=SHAPE),
            NetworkError,
            r"makes another network than the one to save: .* tensors differ",
        ),
        (
            lambda graph: ekgsearch.save_network("x", graph.network, own_net.other, input_shape=SHAPE),
            NetworkError,
            "needs the arguments classes",
        ),
    ],
)
def test_bad_input_is_refused_in_words(call: object, error: type[EkgError], message: str, network: nn.Module) -> None:
    with pytest.raises(error, match=message):
        call(ekgsearch.analyse(network, SHAPE))  # type: ignore[operator]
