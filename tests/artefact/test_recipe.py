"""Recipes: what is written down builds the same network, and nothing else runs."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import own_net
import pytest
import torch
from torch import nn

from ekgsearch.artefact.factory import Factory, factory_of, zoo_factory
from ekgsearch.artefact.kinds import build, recipe_of, recipe_to_dict
from ekgsearch.artefact.recipe import Recipe
from ekgsearch.artefact.slim import Slim
from ekgsearch.artefact.targets import find_any, find_given, target_of
from ekgsearch.channels.graph import analyse
from ekgsearch.channels.slim import slim
from ekgsearch.errors import NetworkError

OWN = Path(own_net.__file__)
SHAPE = (3, 16, 16)


def own(target: str = f"{OWN}:Own", **arguments: Any) -> Factory:
    return factory_of(target, arguments, SHAPE, 10)


@pytest.mark.parametrize(
    ("recipe", "filled"),
    [
        (lambda: zoo_factory("resnet20", 10, SHAPE, "option_a"), "num_classes"),
        (lambda: own(width=8), "num_classes"),
        (lambda: own(f"{OWN}:other", depth=2), "classes"),
        (lambda: own("own_net:Own"), "num_classes"),
        (lambda: own("torch.nn:Sequential"), None),
        (lambda: factory_of("torchvision/mobilenet_v3_small", {"dropout": 0.1}, (3, 32, 32), 10), "num_classes"),
    ],
)
def test_a_factory_survives_json_and_a_seed_fixes_its_weights(recipe: Any, filled: str | None) -> None:
    factory = recipe()
    assert recipe_of(json.loads(json.dumps(recipe_to_dict(factory)))) == factory
    assert [name for name in ("num_classes", "classes") if name in factory.arguments] == ([filled] if filled else [])
    if filled is None:
        return
    torch.manual_seed(7)
    before = torch.get_rng_state()
    networks = [build(factory, seed=seed, find=find_any).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    first = next(name for name, tensor in networks[0].items() if tensor.dim() == 4)
    assert torch.equal(networks[0][first], networks[1][first])
    assert not torch.equal(networks[0][first], networks[2][first])


def test_a_slim_network_of_a_slim_network_of_somebodys_own_is_built_again() -> None:
    recipe: Recipe = own()
    network = build(recipe, seed=3, find=find_any)
    for kept in (12, 6):
        graph = analyse(network.eval(), SHAPE)
        subnetwork = graph.full()
        for group in graph.groups:
            subnetwork = subnetwork.replace(group.name, range(min(kept, group.size)))
        network, recipe = slim(graph, subnetwork), Slim(recipe, subnetwork)
    read = recipe_of(json.loads(json.dumps(recipe_to_dict(recipe))))
    assert read == recipe
    again = build(read, find=find_any)
    again.load_state_dict(network.state_dict())
    images = torch.randn(2, *SHAPE)
    assert torch.equal(again.eval()(images), network.eval()(images))


def test_an_edited_file_is_another_network_and_a_moved_one_is_not(tmp_path: Path) -> None:
    shutil.copy(OWN, tmp_path / "own_net.py")
    moved = own(f"{tmp_path}/own_net.py:Own")
    assert moved.identity() == own().identity()
    assert moved.name == "own_net.py:Own"
    with (tmp_path / "own_net.py").open("a") as file:
        file.write("\nNUMBER = 4\n")
    edited = own(f"{tmp_path}/own_net.py:Own")
    assert edited.identity() != own().identity()
    assert factory_of("torchvision/resnet18", {}, (3, 32, 32), 10).source.startswith("torchvision 0.")


def test_code_of_others_runs_only_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nM = dict\n")
    recipe = Factory(f"{tmp_path}/mine.py:M", {}, SHAPE)
    with pytest.raises(NetworkError, match=r"not run unless you name it: factory=\.\.\. in Python"):
        build(recipe)
    assert not (tmp_path / "mine.ran").exists()
    with pytest.raises(NetworkError, match=r"makes a dict, expected a torch.nn.Module"):
        build(recipe, find=find_any)
    assert (tmp_path / "mine.ran").exists()
    given = build(recipe, find=find_given(lambda: own_net.Own(num_classes=3)))
    assert isinstance(given, own_net.Own)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("resnet57", {}, r"did you mean resnet56\?"),
        ("torchvision/resnet19", {}, r"one of the \d+ networks of torchvision, .* did you mean torchvision/resnet18\?"),
        ("torchvision/fcn_resnet50", {}, "networks of torchvision"),
        ("torchvision/resnet18", {"weights": "DEFAULT"}, "argument weights is not passed on"),
        ("torchvision/resnet18", {"num_classes": 10**12}, "num_classes must be a whole number from 1"),
        (f"{OWN}:Missing", {}, "no class or function Missing .* found .*Own"),
        (f"{OWN}:NUMBER", {}, "no class or function NUMBER"),
        (f"{OWN}:Own", {"depth": 3}, "unexpected keyword argument 'depth'"),
        (f"{OWN}:broken", {}, "NameError: name 'undefined' is not defined"),
        ("/absent/mine.py:Net", {}, "there is no file /absent/mine.py"),
        ("absent_module.nets:Net", {}, "no module absent_module.nets; install the package"),
        ("own_net:", {}, "expected package.module:callable"),
        ("own_net:Own()", {}, "expected package.module:callable"),
        ("__import__('os'):x", {}, "is no name of a module"),
    ],
)
def test_what_cannot_be_made_is_said(target: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build(factory_of(target, arguments, SHAPE, 10), find=find_any)


def test_a_file_that_cannot_be_imported_is_said_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text("import absent_package\n")
    with pytest.raises(NetworkError, match=r"wrong\.py cannot be imported: ModuleNotFoundError"):
        own(f"{path}:Net")
    (tmp_path / "sibling.py").write_text("import torch\nNet = torch.nn.Identity\n")
    path.write_text("from sibling import Net\n")
    known = list(sys.path)
    assert isinstance(build(Factory(f"{path}:Net", {}, SHAPE), find=find_any), nn.Identity)
    assert sys.path == known


def test_a_class_knows_its_target() -> None:
    assert target_of(own_net.Own) == "own_net:Own"
    assert find_any(target_of(own_net.other)) is own_net.other
