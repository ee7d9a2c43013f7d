"""Pictures that turn bad after a run has opened them: the bank and the evaluation survive them like the loader."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import JOB
from data.loading import picture_folder

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.bank.commit import MissingBlock
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.norm import recalibrate
from ekgsearch.errors import DataError, StorageError
from ekgsearch.jobfile import load_job
from ekgsearch.orchestration.session import ray_session
from ekgsearch.pipeline.evaluate import _recalibrate
from ekgsearch.pipeline.replaced import note_replaced, replaced_in_bank
from ekgsearch.pipeline.setup import set_up
from ekgsearch.sections.cluster import ClusterSection
from ekgsearch.storage.objects import open_store
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.images import DataRequest, Loading, Selection
from ekgsearch.workers.spec import BuiltBlock, SearchSpec
from ekgsearch.workers.team import BankOrder, Team
from ekgsearch.workers.worker import Worker
from ekgsearch.workers.workload import Workload

PLAN = SearchSpec(run="run", batches=((0, (0, 7)),), nominal_batch=None)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures of two classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return picture_folder(tmp_path / "pictures", train=4)


@pytest.fixture
def workload(root: Path, tmp_path: Path) -> Workload:
    request = DataRequest(Selection(name="image_folder", image_size=8), Loading(root=root, threads=1, max_damaged=0.25))
    net, path = zoo_factory("resnet20", 2, (3, 8, 8)), tmp_path / "weights.safetensors"
    save_tensors(path, build(net, seed=3).state_dict(), {})
    mean, std = (120.0,) * 3, (60.0,) * 3
    return Workload(recipe=net, weights=path, data=request, mean=mean, std=std, device="cpu", threads=1)


def test_a_block_of_the_bank_holds_what_stands_in(workload: Workload, root: Path, tmp_path: Path) -> None:
    teacher = analyse(workload.open_network(), workload.recipe.input_shape).full()
    hashes = {"dataset_hash": "d", "weights_hash": "w", "teachers": (teacher.sha256,)}
    spec = BankSpec(num_images=8, num_classes=2, batch_size=8, dtype="float32", **hashes)  # type: ignore[arg-type]
    files = root / "train" / "cat"
    worker = Worker(workload, PLAN, [0])
    (files / "01.jpg").write_bytes(b"")
    worker.build_block(spec, [teacher], MissingBlock(0, (0,)), str(tmp_path / "damaged"))
    (files / "01.jpg").write_bytes((files / "02.jpg").read_bytes())
    Worker(workload, PLAN, [0]).build_block(spec, [teacher], MissingBlock(0, (0,)), str(tmp_path / "copied"))
    damaged, copied = (open_store(str(tmp_path / name)).list("column/") for name in ("damaged", "copied"))
    assert list(damaged) == list(copied), "the key of a block ends in the checksum of its rows"


def test_what_stands_in_is_among_the_images_that_the_bank_covers(
    workload: Workload, root: Path, tmp_path: Path
) -> None:
    """Picture 1 of four cats is damaged: 2 would be the next, but fine-tuning uses 0, 1, 3 and a dog."""
    teacher = analyse(workload.open_network(), workload.recipe.input_shape).full()
    hashes = {"dataset_hash": "d", "weights_hash": "w", "teachers": (teacher.sha256,), "ids": ((0, 2), (3, 5))}
    spec = BankSpec(num_images=4, num_classes=2, batch_size=4, dtype="float32", **hashes)  # type: ignore[arg-type]
    files = root / "train" / "cat"
    worker = Worker(workload, PLAN, [0])
    (files / "01.jpg").write_bytes(b"")
    built = worker.build_block(spec, [teacher], MissingBlock(0, (0,)), str(tmp_path / "damaged")).value
    assert built == BuiltBlock(0, 4, 1)
    (files / "01.jpg").write_bytes((files / "03.jpg").read_bytes())
    Worker(workload, PLAN, [0]).build_block(spec, [teacher], MissingBlock(0, (0,)), str(tmp_path / "copied"))
    damaged, copied = (open_store(str(tmp_path / name)).list("column/") for name in ("damaged", "copied"))
    assert list(damaged) == list(copied)


def built_blocks(team: Team, workload: Workload, root: Path, uri: str) -> list[BuiltBlock]:
    """Both blocks of a bank, built after a picture of the first has become damaged."""
    graph = analyse(workload.open_network(), workload.recipe.input_shape)
    hashes = {"dataset_hash": "d", "weights_hash": "w", "teachers": (graph.full().sha256,)}
    spec = BankSpec(num_images=8, num_classes=2, batch_size=4, batches_per_block=1, **hashes)  # type: ignore[arg-type]
    team.begin([graph.full()])  # the workers have opened the images
    damaged = bank_layout(spec)[0][0].item()
    (root / "train" / ("cat", "dog")[damaged // 4] / f"{damaged % 4:02d}.jpg").write_bytes(b"")
    built: list[BuiltBlock] = []
    order = BankOrder(
        spec=spec, teachers=(graph.full(),), missing=(MissingBlock(0, (0,)), MissingBlock(1, (0,))), uri=uri
    )
    team.build_bank(order, built.append)
    return built


def test_replaced_pictures_are_counted_with_each_block(workload: Workload, root: Path, tmp_path: Path) -> None:
    with InProcessBackend().team(workload, PLAN) as team:
        built = built_blocks(team, workload, root, str(tmp_path / "bank"))
    assert built == [BuiltBlock(0, 4, 1), BuiltBlock(1, 4, 0)]


@pytest.mark.ray
def test_replaced_pictures_are_counted_and_logged_where_workers_on_ray_build_the_bank(
    workload: Workload, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from ekgsearch.orchestration.backend import RayBackend

    cluster = ClusterSection(search_workers=1, cpus_per_worker=0.5)
    with ray_session(cluster, num_cpus=1), RayBackend(cluster).team(workload, PLAN) as team:
        built = built_blocks(team, workload, root, str(tmp_path / "bank"))
        said, deadline = "", time.monotonic() + 20
        while "is damaged" not in said and time.monotonic() < deadline:
            said += "".join(capfd.readouterr())
            time.sleep(0.1)
    assert built == [BuiltBlock(0, 4, 1), BuiltBlock(1, 4, 0)]
    assert "is damaged, the next sound one of its class stands in for it (1 of at most 2)" in said


def test_the_replaced_images_of_all_blocks_are_kept_with_the_run(tmp_path: Path) -> None:
    state: Any = SimpleNamespace(folder=tmp_path)
    note_replaced(state, 0, 0)
    assert list(tmp_path.iterdir()) == []
    for block, replaced in ((3, 2), (11, 1), (3, 2), (11, 0), (12, 4)):  # some were built again
        note_replaced(state, block, replaced)
    assert replaced_in_bank(state) == 6
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"12":4', b'"12":5'))
    with pytest.raises(StorageError, match=r"is damaged: .*; restore it, or delete it: replaced_bank_images then"):
        replaced_in_bank(state)


def test_the_evaluation_recalibrates_on_what_stands_in(workload: Workload, root: Path) -> None:
    dataset = workload.data.open()
    (root / "train" / "cat" / "01.jpg").write_bytes(b"")
    (root / "train" / "dog" / "03.jpg").unlink()
    setup = SimpleNamespace(dataset=dataset, train_ids=None, data=workload.data, job=SimpleNamespace(seed=1))
    found, expected = workload.open_network(), workload.open_network()
    context: Any = SimpleNamespace(setup=setup, workload=workload, check=lambda: None)
    _recalibrate(context, found, torch.device("cpu"))
    images = dataset.train.read(torch.tensor([0, 2, 2, 3, 4, 5, 6, 4]))
    recalibrate(expected, [workload.normalisation(images)])
    torch.testing.assert_close(found.bn1.running_mean, expected.bn1.running_mean)


def test_a_process_that_opens_other_images_than_the_run_is_told(root: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB.format(output=tmp_path / "run"))
    settings = ["data.name=image_folder", f"data.root={root}", "data.image_size=8", "search.images_per_class=2"]
    settings += [f"{name}.batch_size=4" for name in ("pretrain", "finetune")]
    setup = set_up(load_job(tmp_path / "job.yaml", [*settings, "warmup.epochs=0", "data.max_bad_images=1"]))
    assert setup.data.open().content_hash == setup.dataset.content_hash == setup.data.selection.content_hash
    (root / "train" / "cat" / "01.jpg").write_bytes(b"")
    message = f"expected images of SHA-256 {setup.dataset.content_hash}.*, found .*, 7 for training.*restore them"
    with pytest.raises(DataError, match=message):
        setup.data.open()
    with pytest.raises(DataError, match=r"01\.jpg: .*at most 0 are allowed"):
        replace(setup.data, loading=replace(setup.data.loading, max_bad=0)).open()
