import math
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from ekgsearch.artefact.factory import Factory, zoo_factory
from ekgsearch.artefact.kinds import build
from ekgsearch.errors import NetworkError
from ekgsearch.nets.zoo import NAMES

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
OF_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def small_spec(name: str) -> Factory:
    return zoo_factory(name, 10, (3, 64, 64) if name in (*OF_TORCHVISION, "mobilenet_v2") else CIFAR)


def counted_macs(network: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image, counted from the real shapes of a forward pass on the meta device."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        positions = output.numel() // module.weight.shape[0]
        total += positions * module.weight.numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network.to("meta")(torch.empty((1, *input_shape), device="meta"))
    return total


@pytest.mark.parametrize(
    ("spec", "params", "macs"),
    [
        (zoo_factory("resnet56", 10, CIFAR), 855_770, 125_747_840),
        (zoo_factory("resnet56", 100, CIFAR), 861_620, 125_753_600),
        (zoo_factory("resnet20", 10, CIFAR), 272_474, 40_813_184),
        (zoo_factory("resnet56", 10, CIFAR, padding="tf_same"), 855_770, 125_747_840),
        (zoo_factory("resnet56", 10, CIFAR, "option_a"), 853_018, 125_485_696),
        (zoo_factory("resnet110", 10, CIFAR, "option_a"), 1_727_962, 252_887_680),
        (zoo_factory("resnet18", 1000, IMAGENET), 11_689_512, 1_814_073_344),
        (zoo_factory("resnet34", 1000, IMAGENET), 21_797_672, 3_663_761_408),
        (zoo_factory("resnet50", 1000, IMAGENET), 25_557_032, 4_089_184_256),
        (zoo_factory("resnet101", 1000, IMAGENET), 44_549_160, 7_801_405_440),
        (zoo_factory("resnet152", 1000, IMAGENET), 60_192_808, 11_513_626_624),
        (zoo_factory("vgg16", 10, CIFAR), 14_728_266, 313_201_664),
        (zoo_factory("googlenet", 10, CIFAR), 6_166_250, 1_521_756_160),
        (zoo_factory("mobilenet_v2", 1000, IMAGENET), 3_504_872, 300_774_272),
    ],
    ids=lambda value: value.name if isinstance(value, Factory) else "",
)
def test_parameters_and_macs_equal_the_published_numbers(spec: Factory, params: int, macs: int) -> None:
    network = build(spec, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == params
    assert counted_macs(network, spec.input_shape) == macs


@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_finite_logits_and_can_be_traced(name: str) -> None:
    spec = small_spec(name)
    network = build(spec, seed=0).eval()
    images = torch.randn(2, *spec.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images)
        traced = torch.fx.symbolic_trace(network)(images)
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, traced)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2_cifar", "vgg16", "googlenet"])
def test_a_network_takes_images_of_any_number_of_channels(name: str, channels: int) -> None:
    network = build(zoo_factory(name, 10, (channels, 32, 32)), seed=0).eval()
    colour = build(zoo_factory(name, 10, (3, 32, 32)), seed=0)
    with torch.no_grad():
        assert network(torch.zeros(1, channels, 32, 32)).shape == (1, 10)
    shapes = [{key: value.shape for key, value in each.state_dict().items()} for each in (network, colour)]
    [first] = [key for key in shapes[0] if shapes[0][key] != shapes[1][key]]
    assert shapes[0][first] == (shapes[1][first][0], channels, *shapes[1][first][2:])


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2_cifar", "vgg16"])
def test_a_seed_fixes_all_weights_and_leaves_the_global_generator_alone(name: str) -> None:
    spec = small_spec(name)
    before = torch.random.get_rng_state()
    first = build(spec, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again, other = build(spec, seed=3).state_dict(), build(spec, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_initial_weights_follow_he_fan_out_and_residual_branches_start_closed() -> None:
    network = build(zoo_factory("resnet56", 10, CIFAR), seed=0)
    weight = network.get_submodule("layer3.4.conv2").weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    linear = network.get_submodule("linear")
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not linear.bias.any()
    gammas = {name: p for name, p in network.named_parameters() if ".bn2." in name and name.endswith("weight")}
    assert len(gammas) == 27
    assert not any(gamma.any() for gamma in gammas.values())
    assert (network.get_submodule("layer2.0.shortcut.1").weight == 1).all()


def test_depthwise_weights_are_scaled_by_the_connections_of_one_channel() -> None:
    network = build(zoo_factory("mobilenet_v2_cifar", 10, CIFAR), seed=0)
    depthwise = network.get_submodule("features.17.conv.1.0")
    assert depthwise.groups == 960
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)


def test_cifar_resnet_parameters_have_the_common_names() -> None:
    names = set(build(zoo_factory("resnet20", 10, CIFAR), seed=0).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias"} <= names
    assert {"layer3.2.conv1.weight", "layer3.2.bn2.weight", "linear.weight", "linear.bias"} <= names
    plain = set(build(zoo_factory("resnet20", 10, CIFAR, "option_a"), seed=0).state_dict())
    assert {name for name in names if ".shortcut." in name} == names - plain


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_an_imagenet_resnet_has_the_state_of_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs: nn.Module = getattr(torchvision.models, name)()
    ours = build(zoo_factory(name, 1000, IMAGENET), seed=0)
    states = [{key: value.shape for key, value in network.state_dict().items()} for network in (ours, theirs)]
    assert states[0] == states[1]
    assert counted_macs(ours, IMAGENET) == counted_macs(theirs, IMAGENET)


@pytest.mark.parametrize(("name", "num_shortcuts"), [("resnet20", 2), ("resnet50", 4)])
def test_a_down_sampling_block_computes_its_shortcut_first(name: str, num_shortcuts: int) -> None:
    network = build(small_spec(name), seed=0).eval()
    order: list[str] = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, path=path: order.append(path))
    network(torch.zeros(1, 3, 64, 64))
    shortcuts = [path for path in order if "shortcut" in path or "downsample" in path]
    assert len(shortcuts) == num_shortcuts
    for path in shortcuts:
        block = ".".join(path.split(".")[:2])
        assert order.index(path) == min(order.index(other) for other in order if other.startswith(block + "."))


def test_option_a_takes_every_second_pixel_and_centres_the_channels() -> None:
    network = build(zoo_factory("resnet20", 10, CIFAR, "option_a"), seed=0).eval()
    images = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    out = network.get_submodule("layer2.0")(images)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2_cifar"])
def test_tf_same_padding_shifts_the_stride_two_windows_only(name: str) -> None:
    one_sided = build(zoo_factory(name, 10, CIFAR, padding="tf_same"), seed=0)
    both_sided = build(zoo_factory(name, 10, CIFAR), seed=0)
    assert one_sided.state_dict().keys() == both_sided.state_dict().keys()
    for (path, one), (_, both) in zip(one_sided.named_modules(), both_sided.named_modules(), strict=True):
        if isinstance(one, nn.Conv2d) and isinstance(both, nn.Conv2d):
            shifted = one.stride == (2, 2) and one.kernel_size == (3, 3)
            assert one.padding == ((0, 0) if shifted else both.padding), path
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert one_sided.eval()(images).shape == (1, 10)


def test_tf_same_equals_a_window_by_window_convolution() -> None:
    network = build(zoo_factory("resnet20", 10, CIFAR, padding="tf_same"), seed=0).double().eval()
    block = network.get_submodule("layer2.0")
    inputs: list[torch.Tensor] = []
    block.conv1.register_forward_hook(lambda _, args, output: inputs.append(output))
    images = torch.rand(1, 16, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block(images)
    padded = torch.zeros(16, 5, 5, dtype=torch.float64)
    padded[:, :4, :4] = images[0]
    for y in range(2):
        for x in range(2):
            window = padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
            expected = (block.conv1.weight * window).sum((1, 2, 3))
            assert torch.allclose(inputs[0][0, :, y, x], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "resnet57"}, "resnet56"),
        ({"name": "vgg16", "input_shape": (3, 8, 8)}, "at least 16x16"),
        ({"name": "vgg16", "shortcut": "option_a"}, "option_a"),
        ({"name": "resnet18", "padding": "tf_same"}, "tf_same"),
        ({"name": "mobilenet_v2", "input_shape": (3, 200, 224), "padding": "tf_same"}, "multiples of 32"),
        ({"name": "resnet56", "shortcut": "option_b"}, "option_b"),
        ({"name": "resnet56", "num_classes": 0}, "num_classes must be .* found 0"),
        ({"name": "resnet56", "input_shape": (3, 0, 32)}, "three positive numbers"),
    ],
)
def test_impossible_networks_are_refused_in_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        zoo_factory(**{"num_classes": 10, "input_shape": CIFAR, **fields})
