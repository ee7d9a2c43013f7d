"""Files of networks: what they say is checked, and a file from elsewhere runs no code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_net
import pytest
import torch
from safetensors.torch import save_file as save_safetensors

from ekgsearch.artefact.factory import factory_of, zoo_factory
from ekgsearch.artefact.file import Description, load_file, read_file, save_file
from ekgsearch.artefact.kinds import build, changed_code, recipe_to_dict
from ekgsearch.artefact.slim import Slim
from ekgsearch.artefact.targets import find_any
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim
from ekgsearch.errors import EkgError, NetworkError, StorageError

SHAPE = (3, 8, 8)
ZOO = zoo_factory("resnet20", 10, SHAPE)
OWN = f"{Path(own_net.__file__)}:Own"


def texts(**changes: Any) -> dict[str, str]:
    fields = {"recipe": recipe_to_dict(ZOO), "mean": [1.0] * 3, "std": [2.0] * 3, "classes": ["a", "b"], **changes}
    return {"contents": "a network", **{name: json.dumps(value) for name, value in fields.items()}}


def with_factory(**changes: Any) -> dict[str, Any]:
    return {"recipe": {**recipe_to_dict(ZOO), **changes}}


def nested(levels: int, recipe: dict[str, Any]) -> dict[str, Any]:
    for _ in range(levels):
        recipe = {"kind": "slim", "base": recipe, "subnetwork": {}}
    return recipe


def touching(folder: Path) -> str:
    """A file that tells when it is run."""
    path = folder / "evil.py"
    path.write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\ndef net(**_): pass\n")
    return f"{path}:net"


MALICIOUS: list[Callable[[Path], dict[str, Any]]] = [
    lambda folder: with_factory(target=touching(folder)),
    lambda folder: {
        "recipe": {"kind": "slim", "base": with_factory(target=touching(folder))["recipe"], "subnetwork": {}}
    },
    lambda folder: with_factory(target="os:system", arguments={"command": f"touch {folder}/evil.ran"}),
    lambda _: with_factory(target="builtins:exec", arguments={"object": "1/0"}),
    lambda folder: with_factory(target="subprocess:run", arguments={"args": ["touch", f"{folder}/evil.ran"]}),
    lambda _: with_factory(target="torch.hub:load", arguments={"repo_or_dir": "a/b", "model": "c"}),
    lambda _: with_factory(target="/etc/passwd:root"),
    lambda _: with_factory(target="torchvision/../evil"),
    lambda _: with_factory(target="torchvision/resnet18", arguments={"weights": "DEFAULT"}),
    lambda _: with_factory(target="torchvision/resnet18", arguments={"weights_backbone": "DEFAULT"}),
    lambda _: with_factory(target="timm/hf-hub:someone/evil"),
    lambda _: with_factory(target="timm/resnet18", arguments={"checkpoint_path": "/tmp/evil.pt"}),
    lambda _: with_factory(target="timm/resnet18", arguments={"pretrained": True}),
    lambda _: with_factory(target="timm/resnet18", arguments={"pretrained_cfg": {"url": "x"}}),
    lambda _: with_factory(arguments={"num_classes": 10**15}),
    lambda _: with_factory(arguments={"num_classes": -1}),
    lambda _: with_factory(arguments={"num_classes": True}),
    lambda _: with_factory(arguments={"num_classes": 10, "channels": 10**12}),
    lambda _: with_factory(arguments={"num_classes": 10, "seed": 3}),
    lambda _: with_factory(arguments=["num_classes"]),
    lambda _: with_factory(input_shape=[3, 10**12, 10**12]),
    lambda _: with_factory(input_shape=[3, -8, 8]),
    lambda _: with_factory(input_shape="3x8x8"),
    lambda _: with_factory(extra="field"),
    lambda _: {"recipe": {"kind": "pickle", "data": "gASV"}},
    lambda _: {"recipe": {"kind": ["slim"]}},
    lambda _: {"recipe": nested(40, recipe_to_dict(ZOO))},
    lambda _: {"recipe": {"kind": "slim", "base": recipe_to_dict(ZOO), "subnetwork": {"conv1": [10**30]}}},
    lambda _: {"recipe": {"kind": "slim", "base": recipe_to_dict(ZOO), "subnetwork": {"conv1": "all"}}},
    lambda _: {"recipe": {"kind": "slim", "base": recipe_to_dict(ZOO), "subnetwork": {"__class__": [0]}}},
    lambda _: {"mean": ["__import__('os')"]},
    lambda _: {"mean": [float("nan")] * 3},
    lambda _: {"classes": {"a": 1}},
    lambda _: {"classes": [[1]]},
]


@pytest.mark.parametrize("number", range(len(MALICIOUS)))
def test_a_file_from_elsewhere_runs_no_code(number: int, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_safetensors(build(ZOO, seed=0).state_dict(), path, texts(**MALICIOUS[number](tmp_path)))
    with pytest.raises((NetworkError, StorageError), match=str(path)):
        load_file(path)
    assert not list(tmp_path.glob("*.ran"))


def test_damaged_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_safetensors({"a": torch.zeros(1)}, path)
    with pytest.raises(NetworkError, match=r"expected a network of ekgsearch, .* found none; give final.safetensors"):
        read_file(path)
    save_file(path, build(ZOO, seed=0).state_dict(), Description(ZOO, "a network"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EkgError, match=str(path)):
        read_file(path)
    save_file(path, build(zoo_factory("resnet20", 7, SHAPE), seed=0).state_dict(), Description(ZOO, "a network"))
    with pytest.raises(NetworkError, match="weights do not fit the network of its recipe"):
        load_file(path)


@pytest.mark.parametrize("named", ["class", "target", "trust"])
def test_a_slim_network_of_somebodys_own_opens_where_its_code_is_named(named: str, tmp_path: Path) -> None:
    recipe = factory_of(OWN, {"width": 8}, SHAPE, 10)
    graph = analyse(build(recipe, seed=3, find=find_any).eval(), SHAPE)
    subnetwork = graph.full().replace(graph.groups[0].name, range(5))
    network, path = slim(graph, subnetwork).eval(), tmp_path / "own.safetensors"
    save_file(path, network.state_dict(), Description(Slim(recipe, subnetwork), "slim"))
    with pytest.raises(NetworkError, match="not run unless"):
        load_file(path)
    given: dict[str, Any] = {"class": {"factory": own_net.Own}, "target": {"factory": OWN}, "trust": {"trust": True}}
    images = torch.randn(2, *SHAPE)
    assert torch.equal(load_file(path, **given[named])(images), network(images))


def test_code_that_has_changed_since_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = tmp_path / "mine.py"
    code.write_text(Path(own_net.__file__).read_text())
    target = f"{code}:Own"
    recipe = factory_of(target, {"width": 8}, SHAPE, 10)
    path = tmp_path / "own.safetensors"
    save_file(path, build(recipe, seed=3, find=find_any).state_dict(), Description(recipe, "a network"))
    load_file(path, trust=True)
    assert not caplog.records
    code.write_text(code.read_text() + "\nNUMBER = 5\n")
    for given in ({"trust": True}, {"factory": target}):
        caplog.clear()
        load_file(path, **given)
        assert "has changed since the file was saved" in caplog.text
    assert changed_code(recipe, find_any) == target
    assert changed_code(zoo_factory("resnet20", 10, SHAPE), find_any) == ""
