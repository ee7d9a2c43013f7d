"""A training state comes back equal, whatever it is made of; damage is found."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ekgsearch.errors import StorageError
from ekgsearch.runtime.checkpoint import checkpoint_path, load_state, save_state
from ekgsearch.storage.tensors import save_tensors

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.integers(), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def is_equal(first: Any, second: Any) -> bool:
    """Equal with types, NaN and tensors considered."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(is_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_equal, first, second))
    if isinstance(first, float) and math.isnan(first):
        return math.isnan(second)
    return bool(first == second)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 4, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_model_optimizer_and_generators_come_back_equal(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generators": {"torch": torch.get_rng_state(), "python": random.getstate()},
        "epoch": 3,
        "best": float("-inf"),
        "nothing": torch.empty(0, 2),
    }
    assert save_state(tmp_path / "run" / "finetune", state) == tmp_path / "run" / "finetune" / "checkpoint.safetensors"
    loaded = load_state(tmp_path / "run" / "finetune")
    assert is_equal({**state, "model": dict(state["model"])}, loaded)
    expected = torch.randn(3)
    torch.set_rng_state(loaded["generators"]["torch"])
    random.setstate(loaded["generators"]["python"])
    assert torch.equal(torch.randn(3), expected)
    fresh_model, fresh_optimizer = trained()
    fresh_model.load_state_dict(loaded["model"])
    fresh_optimizer.load_state_dict(loaded["optimizer"])
    assert is_equal(fresh_optimizer.state_dict(), optimizer.state_dict())


@given(state=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), PLAIN, max_size=3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_plain_value_comes_back_equal(tmp_path: Path, state: dict[str, Any]) -> None:
    save_state(tmp_path, state)
    assert is_equal(load_state(tmp_path), state)


def test_tensors_under_keys_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {"a": {"b/c": torch.tensor(1)}, "a/b": {"c": torch.tensor(2)}, 1: torch.tensor(3), "1": torch.tensor(4)}
    save_state(tmp_path, state)
    assert is_equal(load_state(tmp_path), state)


def test_equal_states_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model, optimizer = trained()
        save_state(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, name=name)
    assert checkpoint_path(tmp_path, "a").read_bytes() == checkpoint_path(tmp_path, "b").read_bytes()


@pytest.mark.parametrize("value", [object(), {1.5: 0}, {True: 0}, b"bytes", {1, 2}, 1j])
def test_other_values_are_refused_by_their_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(StorageError, match="state/model/1"):
        save_state(tmp_path, {"model": [0, value]})
    assert not checkpoint_path(tmp_path).exists()


def test_tensors_go_to_the_device_that_is_asked_for(tmp_path: Path) -> None:
    save_state(tmp_path, {"x": torch.ones(4), "inner": [torch.zeros(2)]})
    loaded = load_state(tmp_path, device="meta")
    assert loaded["x"].device.type == loaded["inner"][0].device.type == "meta"


def test_a_missing_damaged_or_other_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"checkpoint\.safetensors does not exist"):
        load_state(tmp_path)
    path = save_state(tmp_path, {"x": torch.ones(4)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"checkpoint\.safetensors is damaged"):
        load_state(tmp_path)
    save_tensors(path, {"x": torch.ones(4)}, {"kind": "weights"})
    with pytest.raises(StorageError, match=r"checkpoint\.safetensors is no checkpoint: its metadata lack 'state'"):
        load_state(tmp_path)


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"\.\."):
        save_state(tmp_path / "a", {}, name="../b")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/below: a part of its path is no folder"):
        save_state(tmp_path / "file" / "below", {})
