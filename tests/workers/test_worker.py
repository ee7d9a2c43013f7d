"""A worker fills the memory bank with what the masked teachers say (invariant E9)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.file import Description, load_file, read_file, save_file
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.slim import Slim
from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.commit import commit, missing_blocks, read_bank
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.select import choose_teachers
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.masks import MaskedNetwork
from ekgsearch.channels.norm import norm_mode
from ekgsearch.channels.slim import slim
from ekgsearch.data.images import ArrayImages
from ekgsearch.records import Subnetwork
from ekgsearch.storage.files import file_sha256
from ekgsearch.storage.objects import open_store
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.images import DataRequest, Selection
from ekgsearch.workers.spec import SearchSpec
from ekgsearch.workers.worker import Worker
from ekgsearch.workers.workload import Workload


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    request = DataRequest(Selection(name="digits", image_size=8))
    dataset = request.open()
    net = zoo_factory("resnet20", 10, dataset.image_shape)
    network = build(net, seed=3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.7)
    path = tmp_path_factory.mktemp("weights") / "start.safetensors"
    save_tensors(path, network.state_dict(), {})
    return Workload(recipe=net, weights=path, data=request, mean=dataset.mean, std=dataset.std, device="cpu", threads=1)


def teachers_of(workload: Workload) -> list[Subnetwork]:
    full = analyse(workload.open_network(), workload.recipe.input_shape).full()
    halved = Subnetwork.of({name: kept[: max(1, len(kept) // 2)] for name, kept in full.kept})
    return [full, full.replace("conv1", range(3, 12)), halved]


def test_bank_rows_equal_the_masked_and_the_slim_teachers(workload: Workload, tmp_path: Path) -> None:
    dataset, teachers = workload.data.open(), teachers_of(workload)
    spec = BankSpec(
        dataset_hash=dataset.train.content_hash,
        weights_hash=file_sha256(workload.weights),
        teachers=tuple(teacher.sha256 for teacher in teachers),
        num_images=len(dataset.train),
        num_classes=10,
        batch_size=200,
        seed=5,
        batches_per_block=2,
        embeddings=64,
        dtype="float32",
    )
    store = open_store(str(tmp_path / "bank"))
    worker = Worker(workload, SearchSpec(run="run", batches=((0, (0, 1)),), nominal_batch=None), [0])
    for missing in reversed(missing_blocks(store, spec)):
        worker.build_block(spec, teachers, missing, str(tmp_path / "bank"))
    commit(store, spec)
    bank = MemoryBank.open(store, spec, cache_dir=tmp_path / "cache")

    graph = analyse(workload.open_network(), workload.recipe.input_shape)
    masked = MaskedNetwork(graph)
    seen = torch.zeros(len(dataset.train), dtype=torch.int64)
    for block in bank_layout(spec):
        for ids in torch.split(block, spec.batch_size):
            images = workload.normalisation(dataset.train.read(ids))
            rows = bank.read(ids)
            seen[ids] += 1
            for index, teacher in enumerate(teachers):
                logits = masked.forward(images, teacher, norm_mode="batch")
                torch.testing.assert_close(rows.logits[:, :, index], logits, rtol=0, atol=1e-5)
                assert rows.embeddings is not None
                embeddings = rows.embeddings[:, :, index]
                again = embeddings @ masked.weights(teacher)["linear"].T + graph.layers["linear"].module.bias
                torch.testing.assert_close(again.detach(), logits, rtol=0, atol=1e-4)
                kept = torch.zeros(64, dtype=torch.bool)
                kept[list(teacher["layer3.0.shortcut.0"])] = True
                assert torch.equal((embeddings != 0).any(dim=0), kept)
    assert (seen == 1).all()
    small = slim(graph, teachers[2])
    with norm_mode(small, "batch"), torch.no_grad():
        expected = small(images)
    torch.testing.assert_close(rows.logits[:, :, 2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("embeddings", [0, 64])
def test_every_image_is_read_once_for_all_teachers(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embeddings: int
) -> None:
    num_images, teachers = len(workload.data.open().train), teachers_of(workload)
    spec = BankSpec(
        dataset_hash="",
        weights_hash="",
        teachers=tuple(teacher.sha256 for teacher in teachers),
        num_images=num_images,
        num_classes=10,
        batch_size=400,
        batches_per_block=2,
        embeddings=embeddings,
    )
    counts, read = torch.zeros(num_images, dtype=torch.int64), ArrayImages.read

    def count(images: ArrayImages, ids: Tensor) -> Tensor:
        counts.index_add_(0, ids, torch.ones_like(ids))
        return read(images, ids)

    monkeypatch.setattr(ArrayImages, "read", count)
    worker = Worker(workload, SearchSpec(run="run", batches=((0, (0, 1)),), nominal_batch=None), [0])
    counts.zero_()  # of the images of the search
    for missing in missing_blocks(open_store(str(tmp_path / "bank")), spec):
        worker.build_block(spec, teachers, missing, str(tmp_path / "bank"))
    assert len(teachers) == 3
    assert (counts == 1).all()


def test_only_the_teachers_that_miss_a_block_are_run(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank that grows, two teachers, a third, embeddings, has the bytes of one that was built at once."""
    teachers = teachers_of(workload)
    bank = BankSpec(
        dataset_hash="",
        weights_hash="",
        teachers=tuple(teacher.sha256 for teacher in teachers),
        num_images=600,
        num_classes=10,
        batch_size=200,
        batches_per_block=2,
        embeddings=64,
    )
    worker = Worker(workload, SearchSpec(run="run", batches=((0, (0, 1)),), nominal_batch=None), [0])
    calls, run = [], MaskedNetwork.run

    def count(network: MaskedNetwork, *arguments: Any, **options: Any) -> Any:
        calls.append(network)
        return run(network, *arguments, **options)

    monkeypatch.setattr(MaskedNetwork, "run", count)

    def num_passes(spec: BankSpec, uri: str) -> int:
        calls.clear()
        for missing in missing_blocks(open_store(uri), spec):
            worker.build_block(spec, teachers, missing, uri)
        commit(open_store(uri), spec)
        return len(calls)

    grown, at_once = str(tmp_path / "grown"), str(tmp_path / "at once")
    logits = replace(bank, embeddings=0)
    assert num_passes(replace(logits, teachers=bank.teachers[1:]), grown) == 2 * 3
    assert num_passes(logits, grown) == 1 * 3
    assert num_passes(bank, grown) == num_passes(bank, at_once) == 3 * 3
    assert num_passes(bank, grown) == 0
    assert read_bank(open_store(grown), bank) == read_bank(open_store(at_once), bank)


def test_teachers_are_distinct_without_the_student_and_start_with_the_lowest_loss() -> None:
    losses = [0.20, 0.19, 0.21, 0.30, 0.42, 0.55, 0.61]
    chosen = choose_teachers(losses, 5)
    assert len(set(chosen)) == 5
    assert losses[chosen[0]] == min(losses)
    assert [losses[index] for index in chosen] == sorted(losses[index] for index in chosen)


def test_a_slim_network_opens_from_its_file_alone(workload: Workload, tmp_path: Path) -> None:
    graph = analyse(workload.open_network(), workload.recipe.input_shape)
    subnetwork = teachers_of(workload)[2]
    network = slim(graph, subnetwork).eval()
    path = tmp_path / "slim.safetensors"
    description = Description(Slim(workload.recipe, subnetwork), "slim", (1.0,) * 3, (2.0,) * 3, ("a", "b"))
    save_file(path, network.state_dict(), description)
    read = read_file(path)[1]
    assert (read.recipe.identity(), read.classes) == (description.recipe.identity(), ("a", "b"))
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_file(path)(images), network(images))
