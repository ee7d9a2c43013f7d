"""Both modes of batch normalisation, and recalibration."""

import pytest
import torch
from networks import NETWORKS, images, make
from torch import nn

from ekgsearch.channels.norm import norm_mode, recalibrate
from ekgsearch.errors import NetworkError


def _network() -> nn.Module:
    network = make(NETWORKS["literal flatten"][0]).train()
    network.b.eval()
    return network


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("mode", ["batch", "running"])
def test_a_mode_leaves_buffers_flags_and_dropout_as_they_were(mode):
    network = _network()
    before, modes = _state(network), [module.training for module in network.modules()]
    with norm_mode(network, mode):
        assert torch.equal(network(images()), network(images()))
    with pytest.raises(RuntimeError), norm_mode(network, mode):
        network(torch.zeros(1))
    assert [module.training for module in network.modules()] == modes
    assert all(module.track_running_stats for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_batch_mode_normalises_by_the_batch_and_running_mode_by_the_running_statistics():
    norm = nn.BatchNorm2d(2).double()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64) * 3 + 1
    with norm_mode(norm, "batch"):
        y = norm(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-12
    with norm_mode(norm, "running"):
        assert torch.allclose(norm(x), x / (1 + norm.eps) ** 0.5)


def test_a_norm_without_running_statistics_uses_the_batch_in_both_modes():
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    x = torch.randn(4, 2, 3, 3)
    with norm_mode(norm, "running"):
        running = norm(x)
    with norm_mode(norm, "batch"):
        assert torch.equal(norm(x), running)


def test_another_mode_is_refused():
    with pytest.raises(NetworkError, match="'train'"), norm_mode(nn.BatchNorm2d(1), "train"):
        pass


def test_recalibration_gives_the_average_over_batches():
    network = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)).double().eval()
    batches = [torch.randn(n, 3, 4, 4, dtype=torch.float64) * 2 + n for n in (2, 5, 3)]
    recalibrate(network, iter(batches))
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([batch.transpose(0, 1).flatten(1).var(1) for batch in batches]).mean(0)
    assert torch.allclose(network[0].running_mean, means, atol=1e-12)
    assert torch.allclose(network[0].running_var, variances, atol=1e-12)
    assert network[0].momentum == 0.3
    assert not network[0].training


def test_recalibration_keeps_weights_and_modes_and_runs_without_dropout():
    network = _network()
    weights = {name: parameter.clone() for name, parameter in network.named_parameters()}
    modes = [module.training for module in network.modules()]
    recalibrate(network, [images(), images()])
    first = _state(network)
    recalibrate(network, [images(), images()])
    assert all(torch.equal(tensor, first[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in network.named_parameters())
    assert [module.training for module in network.modules()] == modes


@pytest.mark.parametrize("batches", [[], [images(), torch.zeros(1)]])
def test_a_failed_recalibration_puts_the_old_statistics_back(batches):
    network = _network()
    before = _state(network)
    with pytest.raises((NetworkError, RuntimeError)):
        recalibrate(network, batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
