"""A network of somebody's own, by a job: its groups without data, its run, and weights of other classes."""

import json
from pathlib import Path
from typing import Any

import own_net
import pytest
import torch
from click.testing import CliRunner
from command_line import JOB

import ekgsearch
from ekgsearch.artefact.file import read_file
from ekgsearch.cli import cli
from ekgsearch.errors import JobError, NetworkError
from ekgsearch.jobfile import load_job
from ekgsearch.pipeline.network import open_network
from ekgsearch.pipeline.run import run_job
from ekgsearch.pipeline.setup import set_up
from ekgsearch.workers.backend import InProcessBackend

OWN = JOB.replace("{{name: resnet20}}", "{{factory: nets/mine.py:Own, arguments: {{width: 8}}}}")
SHAPE = (3, 8, 8)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file with a network in a file next to it."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").write_text(Path(own_net.__file__).read_text())
    (tmp_path / "job.yaml").write_text(OWN.format(output=tmp_path / "run"))
    return tmp_path / "job.yaml"


def groups(*arguments: object) -> Any:
    found = CliRunner(catch_exceptions=False).invoke(cli, ["groups", *map(str, arguments)])
    assert found.exit_code == 0
    return found.stdout


def test_a_job_with_ones_own_network_and_weights_of_torch_save_runs_to_its_end(job: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": own_net.Own(8, 10).state_dict()}, job.parent / "weights.pt")
    settings = [f"net.weights={job.parent}/weights.pt", "search.reduction=0.2", "finetune.epochs=1", "bank.teachers=2"]
    checked = load_job(job, settings)
    assert checked.net.factory == f"{job.parent}/nets/mine.py:Own"
    (job.parent / "run").mkdir()
    run_job(checked, InProcessBackend())
    path = job.parent / "run" / "final.safetensors"
    with pytest.raises(NetworkError, match=r"made by .*nets/mine.py:Own, code outside ekgsearch"):
        ekgsearch.load_network(path)
    network = ekgsearch.load_network(path, factory=own_net.Own)
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 10)
    assert read_file(path)[1].contents == "slim network, fine-tuned"
    with pytest.raises(NetworkError, match=r"holds a slim network, fine-tuned: a network that was cut"):
        open_network(load_job(job, [f"net.weights={path}"]), 10, SHAPE)
    assert ekgsearch.load_network(path, trust_factory=True)(torch.zeros(1, *SHAPE)).shape == (1, 10)


def test_an_edited_network_is_another_run(job: Path) -> None:
    before = set_up(load_job(job)).network_identity
    assert set_up(load_job(job)).network_identity == before
    with (job.parent / "nets" / "mine.py").open("a") as file:
        file.write("\nNUMBER = 5\n")
    after = set_up(load_job(job)).network_identity
    assert [name for name in before if before[name] != after[name]] == ["source"]


def test_weights_of_other_classes_keep_all_but_the_last_layer(job: Path) -> None:
    torch.save(own_net.Own(8, 4).state_dict(), job.parent / "weights.pt")
    settings = [f"net.weights={job.parent}/weights.pt"]
    with pytest.raises(NetworkError, match=r"head.bias \(4,\) where the network has \(10,\).*net.new_classifier: true"):
        open_network(load_job(job, settings), 10, SHAPE)
    opened = open_network(load_job(job, [*settings, "net.new_classifier=true"]), 10, SHAPE)
    given, found = torch.load(job.parent / "weights.pt"), opened.network.state_dict()
    assert [name for name in found if not torch.equal(found[name], given[name])] == ["head.weight", "head.bias"]
    with pytest.raises(JobError, match=r"net.new_classifier is true and pretrain.epochs is 0"):
        load_job(job, [*settings, "net.new_classifier=true", "pretrain.epochs=0"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["net.name=resnet20"], r"net.name = resnet20 and net.factory = .*: give one of them"),
        (["net.factory=mine"], r"net.factory = mine: expected package.module:callable"),
        (["net.factory=null", "net.name=null"], r"net.name is null"),
        (["net.shortcut=option_a"], r"net.shortcut = option_a belongs to the networks of ekgsearch"),
        (["net.new_classifier=true"], r"keeps all but the last layer of net.weights, which is null"),
        (["net.factory=null", "net.name=resnet20"], r"net.arguments are those of factory"),
        (["net.factory=null", "net.name=torchvision/resnet19"], r"did you mean torchvision/resnet18\?"),
        (["net.factory=null", "net.name='mine:Net'"], r"your own is named by net.factory"),
    ],
)
def test_contradictions_are_one_line_each(job: Path, settings: list[str], message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_job(job, settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["net.arguments={width: 8, num_classes: 7}"], r"expected logits of 10 classes.*found \(2, 7\)"),
        (["net.factory=nets/absent.py:Own"], r"there is no file .*/nets/absent.py"),
        (["net.arguments={wdth: 8}"], r"unexpected keyword argument 'wdth'"),
    ],
)
def test_a_network_that_cannot_be_made_is_said(
    job: Path, settings: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(job.parent)
    with pytest.raises(NetworkError, match=message):
        open_network(load_job(job, settings), 10, SHAPE)


def test_groups_are_told_without_data_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EKGSEARCH_DATA", raising=False)
    shipped = Path(__file__).parents[2] / "jobs" / "ekg_resnet50_imagenet.yaml"
    small = ("--set", "net.name=resnet18")
    found = json.loads(groups(shipped, *small, "--input", "3x64x64", "--classes", "100", "--json"))
    assert (found["network"], found["input_shape"], found["counter"]) == ("resnet18", [3, 64, 64], "macs")
    assert found["params"] == 11_227_812
    assert 0 < found["reachable_macs"] < found["macs"]
    assert {"name", "size", "share_of_macs"} == set(found["groups"][0])
    assert {"name", "size", "reason"} == set(found["frozen"][0])
    assert found["warnings"] == []
    missing = CliRunner().invoke(cli, ["groups", str(shipped), *small])
    assert "give --input 3x224x224 and --classes 1000" in str(missing.exception)
    listed = json.loads(groups("--list", "--json"))
    assert "resnet56" in listed["ekgsearch"]
    assert len(listed["torchvision"]) >= 80
    assert "timm/resnet18" in listed["timm"]
    assert "path/file.py:callable" in groups("--list")


def test_networks_of_libraries_are_named_in_the_schema_and_open(job: Path) -> None:
    schema = json.dumps(json.loads(CliRunner().invoke(cli, ["schema"]).stdout))
    assert "torchvision/convnext_tiny" in schema
    clean = ["net.factory=null", "net.arguments={}"]
    for name in ("torchvision/mobilenet_v3_small", "timm/resnet10t"):
        opened = open_network(load_job(job, [*clean, f"net.name={name}"]), 10, (3, 32, 32))
        assert opened.recipe.name == name
        assert opened.graph.groups
