"""Networks in the formats of other programs compute the same, and open where ekgsearch is not installed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from ekgsearch.artefact.convert import SUFFIXES, Format
from ekgsearch.artefact.factory import factory_of, zoo_factory
from ekgsearch.artefact.file import Description, save_file
from ekgsearch.artefact.fold import fold_norms
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.slim import Slim
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim
from ekgsearch.cli import cli
from ekgsearch.errors import NetworkError
from ekgsearch.pipeline import converting
from ekgsearch.runtime import latency

SHAPE = (3, 16, 16)

OPEN = {
    "onnx": "import onnxruntime as o; run = lambda x: o.InferenceSession(path).run(None, {'images': x})[0]",
    "pt2": "import torch; m = torch.export.load(path).module(); run = lambda x: m(torch.tensor(x)).detach().numpy()",
    "torchscript": "import torch; m = torch.jit.load(path); run = lambda x: m(torch.from_numpy(x)).detach().numpy()",
}
"""How each format is opened, with nothing but its own program."""

PROGRAM = """
import sys, numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ekgsearch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
path, images, out = sys.argv[1:]
{open}
x = np.load(images)
np.save(out, np.concatenate([run(x[:1]), run(x[1:4]), run(x[4:])]))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A slim network with batch norms that have seen something."""
    recipe = zoo_factory("resnet20", 10, SHAPE)
    network = build(recipe, seed=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    graph = analyse(network.eval(), SHAPE)
    subnetwork = graph.full()
    for group in graph.groups[::2]:
        subnetwork = subnetwork.replace(group.name, range(0, group.size, 2))
    cut = slim(graph, subnetwork).eval()
    path = tmp_path_factory.mktemp("convert") / "small.safetensors"
    names = tuple(f"class {number}" for number in range(10))
    save_file(path, cut.state_dict(), Description(Slim(recipe, subnetwork), "slim", (100.0,) * 3, (50.0,) * 3, names))
    folder = path.parent / "pictures" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return path, cut


def command(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize(("to", "fold"), [("onnx", ("--fold-norms",)), ("pt2", ()), ("torchscript", ("--fold-norms",))])
def test_a_converted_network_opens_elsewhere_and_computes_the_same(
    to: Format, fold: tuple[str, ...], small: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path, network = small
    out = tmp_path / f"net{SUFFIXES[to]}"
    said = command("convert", path, "--to", to, "--out", out, "--images", path.parent / "pictures", *fold).output
    assert "on 3 real images, the same class for 3" in said
    assert ("batch norms folded" in said) == bool(fold)
    images = torch.randn(6, *SHAPE)
    np.save(tmp_path / "images.npy", images.numpy())
    program = PROGRAM.format(open=OPEN[to])
    arguments = [sys.executable, "-c", program, str(out), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    with torch.no_grad():
        expected = network(images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
    about = json.loads((tmp_path / f"{out.name}.json").read_text())
    assert about["classes"][3] == "class 3"
    assert (about["mean"], about["std"], about["input_shape"]) == ([100.0] * 3, [50.0] * 3, [3, 16, 16])
    assert about["params"] == sum(parameter.numel() for parameter in network.parameters())
    assert about["recipe"]["kind"] == "slim"
    assert about["largest_difference"] < 1e-3
    assert about["compared_images"] == 3
    assert about["folded_norms"] == (21 if fold else 0)


def test_folding_leaves_norms_that_are_used_twice_or_stand_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)
            self.last = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images = self.norm(self.conv(self.first(images)))
            images = self.norm(self.conv(images)) + images
            both = self.last[0](images)
            return self.last[1](both) + both

    network = Shared().eval()
    images = torch.randn(2, 3, 4, 4)
    folded, count = fold_norms(network)
    assert count == 0
    torch.testing.assert_close(folded(images), network(images))


def test_parametrised_and_hooked_convolutions_are_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    nn.init.constant_(network[1].running_mean, 0.5)
    nn.utils.parametrizations.weight_norm(network[0])
    network[2].register_forward_hook(lambda *given: 2 * given[-1])
    images = torch.randn(2, 3, 4, 4)
    traced = torch.fx.symbolic_trace(network)
    folded, count = fold_norms(traced)
    assert count == 0
    torch.testing.assert_close(folded(images), network(images))


def test_a_file_stays_where_the_new_one_computes_something_else(
    small: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.pt2").write_text("the old file")
    monkeypatch.setattr(converting, "TOLERANCE", -1.0)
    with pytest.raises(NetworkError, match=r"computes something else: .* nothing was written"):
        command("convert", small[0], "--to", "pt2", "--out", tmp_path / "net.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    assert (tmp_path / "net.pt2").read_text() == "the old file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.safetensors"], "there is no such run directory or file"),
        (["{folder}"], "expected a run directory with final.safetensors or slim.safetensors"),
        (["{folder}/own.safetensors"], "not run unless you name it"),
        (["{small}", "--out", "{folder}/absent/net.pt2"], "there is no folder"),
    ],
)
def test_what_cannot_be_converted_is_said(
    arguments: list[str], message: str, small: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    recipe = factory_of("own_net:Own", {"width": 8}, SHAPE, 10, nn.Module)
    save_file(tmp_path / "own.safetensors", {}, Description(recipe, "a network"))
    filled = [one.format(folder=tmp_path, small=small[0]) for one in arguments]
    with pytest.raises(Exception, match=message):
        command("convert", *filled, "--to", "pt2")


def test_latencies_of_a_file_are_measured_in_turns_and_kept(
    small: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "PASS_SECONDS", 0.001)
    monkeypatch.setattr(latency, "ROUNDS", 5)
    out = tmp_path / "rows.parquet"
    measured = command("latency", small[0], "--batch", "1,4", "--backend", "eager", "--backend", "onnx", "--out", out)
    assert measured.exit_code == 0
    rows = pd.read_parquet(out)
    assert list(zip(rows.backend, rows.batch, strict=True)) == [("eager", 1), ("eager", 4), ("onnx", 1), ("onnx", 4)]
    assert ((rows.full_ms > 0) & (rows.slim_ms > 0) & (rows.noise >= 1) & (rows.ratio_low <= rows.ratio_high)).all()
    assert len(measured.output.splitlines()) == 5
