import hashlib
import json
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ekgsearch.artefact.factory import zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.artefact.sidecar import Sidecar, read_sidecar
from ekgsearch.artefact.weights import load_weights
from ekgsearch.errors import NetworkError

SPEC = zoo_factory("resnet20", 10, (3, 32, 32))
NET = {"name": "resnet20", "num_classes": 10, "input_shape": [3, 32, 32]}


FIVE = ("conv1.weight", "bn1.weight", "bn1.bias", "linear.weight", "linear.bias")


State = dict[str, torch.Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def save(path: Path, **changes: torch.Tensor | None) -> Path:
    tensors = {**build(SPEC, seed=5).state_dict(), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return path


def sidecar(path: Path, **changes: Any) -> Path:
    values = {
        "net": NET,
        "mean": [120, 121, 122.5],
        "std": [60, 61, 62],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **changes,
    }
    path.with_suffix(".json").write_text(json.dumps(values))
    return path


def test_weights_without_a_sidecar_load_and_say_that_the_input_is_unknown(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.safetensors")
    network = build(SPEC, seed=1)
    load_weights(network, path)
    expected = build(SPEC, seed=5).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert read_sidecar(path) == Sidecar()


def test_a_plain_sidecar_is_read_and_its_checksum_verified(tmp_path: Path) -> None:
    path = sidecar(save(tmp_path / "weights.safetensors"), expected_top1=91.5)
    found = read_sidecar(path)
    assert (found.net, found.normalisation) == (SPEC, ((120.0, 121.0, 122.5), (60.0, 61.0, 62.0)))
    assert found.expected_top1 == 91.5
    load_weights(build(SPEC), path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(NetworkError, match="expected SHA-256"):
        load_weights(build(SPEC), path)


def test_counters_of_seen_batches_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {k: v for k, v in build(SPEC, seed=5).state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(tensors, path)
    network = build(SPEC, seed=1)
    load_weights(network, path)
    assert torch.equal(network.state_dict()["layer3.2.conv2.weight"], tensors["layer3.2.conv2.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear.bias": None}, "missing linear.bias"),
        ({"head.bias": torch.zeros(3)}, "unexpected head.bias"),
        ({"linear.weight": torch.zeros(7, 64)}, r"linear.weight \(7, 64\) where the network has \(10, 64\)"),
        (
            {"conv1.weight": torch.zeros(16, 1, 3, 3)},
            r"first layer, conv1\.weight, takes images of 1 channels, .* of 3;",
        ),
        ({"conv1.weight": torch.zeros(64, 1, 3, 3)}, r"other shape conv1\.weight \(64, 1, 3, 3\) where"),
        (dict.fromkeys(FIVE[:4]), r"missing conv1\.weight, bn1\.weight, bn1\.bias, linear\.weight\. Give"),
        (dict.fromkeys(FIVE), r"missing conv1\.weight, bn1\.weight, bn1\.bias, linear\.weight and 1 more\. Give"),
        ({"linear.bias": torch.tensor([0.0] * 9 + [math.nan])}, r"not finite in linear\.bias;"),
        ({"linear.bias": torch.full((10,), 1e300, dtype=torch.float64)}, r"not finite in linear\.bias;"),
        ({"bn1.running_var": torch.tensor([1.0] * 15 + [-1e-9])}, r"negative variances in bn1\.running_var;"),
        ({"bn1.bias": torch.zeros(16, dtype=torch.int32)}, r"integers instead of .* in bn1\.bias of int32;"),
        ({"bn1.bias": torch.zeros(16, dtype=torch.bool)}, r"integers instead of .* in bn1\.bias of bool;"),
    ],
)
def test_weights_of_another_network_are_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    network = build(SPEC, seed=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(NetworkError, match=message):
        load_weights(network, save(tmp_path / "weights.safetensors", **changes))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda state: state, ""),
        (lambda state: OrderedDict(state), ""),
        (lambda state: {"state_dict": state, "epoch": 3}, "took the entry 'state_dict' (128 tensors)"),
        (lambda state: {"model": prefixed(state, "module."), "optimizer": {}}, "'model', names without 'module.'"),
        (lambda state: prefixed(state, "_orig_mod.module."), "names without '_orig_mod.', names without 'module.'"),
        (lambda state: {"model_state_dict": {"model": state}}, "the entry 'model_state_dict', the entry 'model'"),
        (lambda state: {"model": zeros(state), "model_ema": prefixed(state, "module.")}, "the entry 'model_ema'"),
        (lambda state: {"n_averaged": torch.tensor(3), **prefixed(state, "module.")}, "names without 'module.'"),
        (lambda state: {n.replace("layer1.0", "layer1._orig_mod.0"): t for n, t in state.items()}, "'_orig_mod.'"),
    ],
)
def test_state_dicts_of_torch_save_load_out_of_containers_and_wrappers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrap: Callable[[State], Any], said: str
) -> None:
    path, state = tmp_path / "weights.pt", build(SPEC, seed=5).state_dict()
    torch.save(wrap(state), path)
    network = build(SPEC, seed=1)
    with caplog.at_level(logging.INFO):
        load_weights(network, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    lines = [line for line in caplog.messages if "took" in line]
    assert (len(lines) == 1 and said in lines[0]) if said else not lines


def test_an_old_file_of_torch_save_loads_too(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", build(SPEC, seed=5).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    network = build(SPEC, seed=1)
    load_weights(network, path)
    assert torch.equal(network.state_dict()["conv1.weight"], state["conv1.weight"])


def test_a_pickled_module_is_refused_with_the_lines_that_save_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    torch.save(build(SPEC), path)
    with pytest.raises(NetworkError, match=r"(?s)run code that it holds.*torch\.save\(network\.state_dict\(\)"):
        load_weights(build(SPEC), path)


def test_a_pickle_that_runs_code_runs_none(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    for name, written in (("evil.pt", {"state_dict": Evil()}), ("evil.safetensors", Evil())):
        torch.save(written, tmp_path / name)
        with pytest.raises(NetworkError, match=r"run code that it holds|cannot be read"):
            load_weights(build(SPEC), tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_a_file_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "log.pt")
    with pytest.raises(NetworkError, match=r"expected a state dict, alone or under one of .* found epoch, lr;"):
        load_weights(build(SPEC), tmp_path / "log.pt")


@pytest.mark.parametrize("prefix", ["encoder.", "module.encoder."])
def test_a_prefix_that_is_of_no_wrapper_is_named(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in build(SPEC, seed=5).state_dict().items()}, path)
    with pytest.raises(NetworkError, match=r"all 128 names begin with 'encoder\.', which the network's do not"):
        load_weights(build(SPEC, seed=1), path)


def test_a_prefix_of_some_names_is_none_of_all(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    given = {f"module.{name}": tensor for name, tensor in build(SPEC, seed=5).state_dict().items()}
    save_file({**given, "queue": torch.zeros(1)}, path)
    with pytest.raises(NetworkError, match=r"unexpected .*module\.bn1"):
        load_weights(build(SPEC, seed=1), path)


def test_other_floating_point_types_and_a_variance_of_zero_are_converted(tmp_path: Path) -> None:
    changes = {"linear.weight": torch.full((10, 64), 0.5, dtype=torch.float16), "bn1.running_var": torch.zeros(16)}
    network = build(SPEC, seed=1)
    load_weights(network, save(tmp_path / "weights.safetensors", **changes))
    assert network.state_dict()["linear.weight"].dtype == torch.float32
    assert (network.state_dict()["linear.weight"] == 0.5).all()
    assert not network.state_dict()["bn1.running_var"].any()


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="no weights file"):
        load_weights(build(SPEC), tmp_path / "absent.safetensors")
    path = save(tmp_path / "short.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(NetworkError, match="cannot be read"):
        load_weights(build(SPEC), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [1, 2]}, "'mean' as 3 finite numbers, one per input channel"),
        ({"net": {**NET, "input_shape": [1, 32, 32]}}, "'mean' as 1 finite numbers"),
        ({"mean": [1, 2, math.nan]}, "'mean' as 3 finite numbers"),
        ({"std": [1, 0, 1]}, "positive deviations in 'std'"),
        ({"net": {"name": "resnet20"}}, "num_classes"),
        ({"net": {**NET, "name": "resnet21"}}, "must be one of"),
        ({"net": {**NET, "num_classes": "ten"}}, "num_classes must be a whole number"),
        ({"sha256": 3}, "'sha256' with the checksum"),
        ({"expected_top1": 931}, "'expected_top1' in percent"),
    ],
)
def test_a_sidecar_with_an_impossible_value_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = sidecar(save(tmp_path / "weights.safetensors"), **changes)
    with pytest.raises(NetworkError, match=message):
        read_sidecar(path)


@pytest.mark.parametrize(
    ("stem", "net", "mean", "top1"),
    [
        ("resnet56_cifar10_ekg", ("resnet56", "projection", "tf_same"), (113.9, 123.0, 125.3), 93.84),
        ("resnet56_cifar10_optionA", ("resnet56", "option_a", "torch"), (123.675, 116.28, 103.53), 93.39),
        ("resnet32_cifar10_optionA", ("resnet32", "option_a", "torch"), (123.675, 116.28, 103.53), 92.63),
        ("resnet20_cifar10_optionA", ("resnet20", "option_a", "torch"), (123.675, 116.28, 103.53), 91.73),
        ("mobilenet_v2_imagenet_dequantised", ("mobilenet_v2", "projection", "tf_same"), (128.0,) * 3, None),
    ],
)
def test_pretrained_weights_load_into_the_network_their_sidecar_describes(
    data_dir: Path, stem: str, net: tuple[str, str, str], mean: tuple[float, ...], top1: float | None
) -> None:
    path = data_dir / "weights" / f"{stem}.safetensors"
    found = read_sidecar(path)
    assert found.net is not None
    assert found.normalisation is not None
    said = found.net.arguments
    assert (found.net.target, said["shortcut"], said["padding"]) == net
    assert found.normalisation[0] == pytest.approx(mean)
    assert found.expected_top1 == top1
    network = build(found.net, seed=0)
    load_weights(network, path)
    last = network.get_submodule("classifier.1" if "mobilenet" in stem else "linear")
    assert last.weight.shape[0] == said["num_classes"]
    assert last.bias.abs().sum() > 0
