"""The benchmark of the exemplars compares every network with scikit-learn, and its exemplars are equal."""

from pathlib import Path

import pytest
import torch

from ekgsearch.bench.base import load_bench, run_bench
from ekgsearch.bench.epruner import Settings
from ekgsearch.errors import JobError
from ekgsearch.storage.tensors import save_tensors

JOB = Path(__file__).parents[2] / "jobs" / "bench_epruner.yaml"


def weights(path: Path, names: tuple[str, ...], width: int) -> str:
    generator = torch.Generator().manual_seed(0)
    shape = (width, 4, 3, 3)
    tensors = {f"{name}.weight": torch.randn(1, *shape[1:], generator=generator) for name in names}
    tensors = {name: (tensor + 0.9 * torch.randn(shape, generator=generator)) for name, tensor in tensors.items()}
    tensors["depthwise.weight"], tensors["linear.weight"] = torch.ones(5, 1, 3, 3), torch.ones(5, 5)
    tensors[f"{names[0]}.weight"][3] = tensors[f"{names[0]}.weight"][0]
    save_tensors(path, tensors)
    return str(path)


def test_exemplars_are_as_scikit_learns_and_every_network_has_its_ratios(tmp_path: Path) -> None:
    settings = [
        f"weights={weights(tmp_path / 'narrow.safetensors', ('layer1.0.conv1', 'layer1.0.conv2'), 16)}",
        f"wide_weights={weights(tmp_path / 'wide.safetensors', ('features.0', 'features.1'), 70)}",
        "betas=[0.6, 0.9]",
        "pairs=1",
        f"output={tmp_path / 'rows.parquet'}",
    ]
    found = {(row.case, row.quantity): row for row in run_bench(JOB, settings)[1]}
    cases = {
        "narrow, first convolutions of the blocks, beta 0.76": 1,
        "vgg16, random weights, 2 betas": 13,
        "wide, 2 betas": 2,
    }
    assert {case for case, _ in found} == set(cases)
    for case, layers in cases.items():
        assert found[case, "layers"].value == layers
        assert found[case, "exemplars as scikit-learn's"].value == 1
        assert 0 < found[case, "filters kept"].value <= 1
        for other in ("scikit-learn", "scikit-learn, shared distances"):
            ratio = found[case, f"{other} / ekgsearch"]
            assert (ratio.unit, ratio.repeats) == ("x", 1)
            assert ratio.low > 0


def test_weights_without_the_convolutions_are_refused(tmp_path: Path) -> None:
    path = weights(tmp_path / "wide.safetensors", ("features.0",), 4)
    with pytest.raises(
        JobError, match=r"weights = .*: expected weights of convolutions with '\.conv1\.' in their name"
    ):
        run_bench(JOB, [f"weights={path}", f"output={tmp_path / 'rows.parquet'}"])


def test_in_small_missing_weights_are_random_and_given_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EKGSEARCH_DATA", raising=False)
    small = load_bench(JOB)[1].smoke()
    assert isinstance(small.checked, Settings)
    assert (small.checked.weights, small.checked.wide_weights, small.checked.pairs) == (None, None, 1)
    assert "EKGSEARCH_DATA is not set" in small.notes[0]
    assert "random weights take their place" in small.notes[0]
    none = load_bench(JOB, [f"weights={tmp_path}/none"])[1].smoke()
    assert f"there is no file {tmp_path}/none; random weights" in none.notes[0]
    path = weights(tmp_path / "narrow.safetensors", ("layer1.0.conv1",), 4)
    given = load_bench(JOB, [f"weights={path}"])[1].smoke()
    assert isinstance(given.checked, Settings)
    assert (given.checked.weights, given.notes) == (path, ())
