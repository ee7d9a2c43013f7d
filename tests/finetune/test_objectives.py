"""The terms on embeddings against loops, and what they leave untouched."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from ekgsearch.bank.rows import BankRows
from ekgsearch.finetune.batches import Batch
from ekgsearch.finetune.config import FinetuneConfig, TrainData
from ekgsearch.finetune.loop import train
from ekgsearch.finetune.objectives.base import Given
from ekgsearch.finetune.objectives.registry import OBJECTIVES, ObjectiveName, objective_class
from ekgsearch.finetune.objectives.self_supervised import ByolTerm, ContrastiveTerm, MomentumTarget
from ekgsearch.finetune.state import start
from ekgsearch.finetune.student import Student
from ekgsearch.finetune.world import World
from ekgsearch.maths.distillation import distillation_loss, ensemble_embedding, label_losses

ALONE = World(torch.device("cpu"))
CLASSIFIER = "6"
IMAGES, WIDTH, TEACHER_WIDTH, TEACHERS = 5, 6, 8, 4
Make = Callable[[], nn.Module]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(values: Tensor) -> Tensor:
    return values / values.norm(dim=-1, keepdim=True)


@pytest.fixture
def small(config: FinetuneConfig) -> FinetuneConfig:
    return replace(config, head_width=16, projection_width=8)


def make(name: str, config: FinetuneConfig) -> ContrastiveTerm | ByolTerm:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3))
    student = Student(network, config, "3")
    return objective_class(name)(Given(student=student, config=config, world=ALONE, teacher_width=TEACHER_WIDTH)).term


def test_the_ensemble_embedding_is_the_mean_direction_of_the_teachers_in_use() -> None:
    embeddings, use = draw(IMAGES, TEACHER_WIDTH, TEACHERS, seed=1), torch.tensor([True, False, True, False])
    embeddings[0, :, 0] = embeddings[0, :, 2] = 0.0
    found = ensemble_embedding(embeddings, use)
    for image in range(IMAGES):
        total = torch.zeros(TEACHER_WIDTH)
        for teacher in (0, 2):
            row = embeddings[image, :, teacher]
            total += row / max(row.norm().item(), 1e-12)
        expected = total / max(total.norm().item(), 1e-12)
        torch.testing.assert_close(found[image], expected)
    scaled = ensemble_embedding(embeddings * torch.tensor([3.0, 1.0, 0.2, 1.0]), use)
    torch.testing.assert_close(found, scaled)


def test_the_contrastive_term_is_nt_xent_over_images_and_views(small: FinetuneConfig) -> None:
    term = make("contrastive", small).eval()
    assert isinstance(term, ContrastiveTerm)
    embeddings, target = draw(IMAGES, 2, WIDTH, seed=1), unit(draw(IMAGES, TEACHER_WIDTH, seed=2))
    found = term(embeddings, target)["loss_contrastive"]
    teachers = unit(term.teacher_projection(target))
    total = 0.0
    for view in range(2):
        views = unit(term.projection(embeddings[:, view]))
        both = torch.cat([views, teachers])
        for index in range(2 * IMAGES):
            similar = [(both[index] @ other).item() / 0.1 for other in both]
            rest = sum(math.exp(value) for other, value in enumerate(similar) if other != index)
            total -= similar[(index + IMAGES) % (2 * IMAGES)] - math.log(rest)
    assert found.item() == pytest.approx(total / (2 * 2 * IMAGES), rel=1e-5)


def test_a_queue_takes_each_teacher_once_and_serves_both_views_alike(small: FinetuneConfig) -> None:
    term = make("contrastive", replace(small, negatives=12)).eval()
    assert isinstance(term, ContrastiveTerm)
    embeddings, target = draw(IMAGES, 2, WIDTH, seed=1), unit(draw(IMAGES, TEACHER_WIDTH, seed=2))
    queue = term.criterion.memory_bank.bank.clone()
    found = term(embeddings, target)["loss_contrastive"]
    teachers = unit(term.teacher_projection(target))
    total = 0.0
    for view in range(2):
        for image, row in enumerate(unit(term.projection(embeddings[:, view]))):
            right = (row @ teachers[image]).item() / 0.1
            rest = math.exp(right) + sum(math.exp((row @ other).item() / 0.1) for other in queue)
            total -= right - math.log(rest)
    assert found.item() == pytest.approx(total / (2 * IMAGES), rel=1e-5)
    torch.testing.assert_close(term.criterion.memory_bank.bank[:IMAGES], teachers)
    assert torch.equal(term.criterion.memory_bank.bank[IMAGES:], queue[IMAGES:])
    assert int(term.criterion.memory_bank.bank_ptr) == IMAGES


def test_the_byol_term_compares_with_the_other_view_and_with_the_teachers(small: FinetuneConfig) -> None:
    term = make("byol", small).eval()
    assert isinstance(term, ByolTerm)
    embeddings, target = draw(IMAGES, 2, WIDTH, seed=1), unit(draw(IMAGES, TEACHER_WIDTH, seed=2))
    momentum = draw(IMAGES, 2, 8, seed=3)
    parts = term(embeddings, target, momentum)
    views = regression = 0.0
    for image in range(IMAGES):
        for view in range(2):
            hidden = embeddings[image, view][None]
            online, regressed = term.predictor(term.projection(hidden))[0], term.regressor(hidden)[0]
            views -= (unit(online) @ unit(momentum[image, 1 - view])).item()
            regression -= (unit(regressed) @ target[image]).item()
    assert parts["loss_views"].item() == pytest.approx(views / (2 * IMAGES), rel=1e-4)
    assert parts["loss_regression"].item() == pytest.approx(regression / (2 * IMAGES), rel=1e-4)


def test_the_momentum_target_follows_along_half_a_cosine(small: FinetuneConfig, make_network: Make) -> None:
    student, term = Student(make_network(), small, CLASSIFIER), make("byol", small)
    target = MomentumTarget(student, term.projection)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    before = [value.clone() for value in target.parameters()]
    with torch.no_grad():
        for value in [*student.parameters(), *term.projection.parameters()]:
            value += 1.0
    new = [*student.parameters(), *term.projection.parameters()]
    for step, momentum in ((0, 0.9), (4, 0.95), (8, 1.0)):
        expected = [momentum * old + (1 - momentum) * value for old, value in zip(before, new, strict=True)]
        target.follow(student, term.projection, start=0.9, step=step, num_steps=9)
        torch.testing.assert_close(list(target.parameters()), expected)
        before = [value.clone() for value in target.parameters()]


def test_the_momentum_target_sees_batch_statistics_without_dropout(small: FinetuneConfig, make_network: Make) -> None:
    network = make_network()
    network[5].p = 0.9  # type: ignore[index]
    student, term = Student(network, small, CLASSIFIER).train(), make("byol", small)
    target = MomentumTarget(student, term.projection)
    views, random = draw(IMAGES, 2, 3, 8, 8, seed=1), torch.get_rng_state()
    first, second = target(views), target(views)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), random)
    shifted = target(views * 2.0)
    torch.testing.assert_close(shifted, first, rtol=1e-2, atol=1e-2)  # what scale there was, the batch norm takes out


def test_a_job_may_name_every_objective_and_no_other() -> None:
    assert get_args(ObjectiveName) == tuple(OBJECTIVES)


@pytest.mark.parametrize("objective", ["contrastive", "byol"])
def test_at_weight_0_the_network_is_that_of_ekg_to_the_bit(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, objective: str
) -> None:
    results, networks = {}, {}
    for name, weight in ((objective, 0.0), (objective, 1.0), ("ekg", 1.0)):
        key, networks[name, weight] = (name, weight), make_network()
        config = replace(small, objective=name, embedding_weight=weight)
        given = {"world": ALONE, "bank": bank, "classifier": CLASSIFIER}
        results[key] = train(networks[key], data, config, **given)
    without, plain = results[objective, 0.0], results["ekg", 1.0]
    names = ("loss", "loss_label", "loss_distillation", "num_teachers_used", "train_top1", "test_top1")
    for one, other in zip(without.epochs, plain.epochs, strict=True):
        assert [one.values[name] for name in names] == [other.values[name] for name in names]
    expected = networks["ekg", 1.0].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in networks[objective, 0.0].state_dict().items())
    assert not torch.equal(networks[objective, 1.0].state_dict()["0.weight"], expected["0.weight"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_part_of_the_loss_is_measured_and_they_add_up(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, objective: str
) -> None:
    config = replace(small, objective=objective, embedding_weight=0.5, epochs=1, milestones=())
    given = {"world": ALONE, "bank": bank, "classifier": CLASSIFIER, "teacher": make_network()}
    network = make_network()
    (epoch,) = train(network, data, config, **given).epochs
    row = epoch.row(run="r", phase="finetune", network="slim", objective=objective, test_images=30)
    extra = row.loss_contrastive + row.loss_views + row.loss_regression
    assert row.loss == pytest.approx(row.loss_label + row.loss_distillation + 0.5 * extra, rel=1e-5)
    assert (row.loss_contrastive > 0) == (objective == "contrastive")
    assert (row.loss_views != 0) == (row.loss_regression != 0) == (objective == "byol")
    assert (row.num_teachers_used >= 1) == (objective != "plain")
    assert network.state_dict().keys() == make_network().state_dict().keys(), "heads are dropped"
    assert not network[6]._forward_pre_hooks  # type: ignore[index]


def test_heads_are_the_same_for_equal_seeds_and_leave_the_random_numbers_alone(small: FinetuneConfig) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make("byol", small)
    torch.manual_seed(2)
    second, other = make("byol", small), make("byol", replace(small, seed=9))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.predictor.layers[0].weight, other.predictor.layers[0].weight)


def test_label_smoothing_mixes_the_label_with_all_classes() -> None:
    logits, labels = draw(IMAGES, 2, 3, seed=1), torch.tensor([0, 1, 2, 0, 1])
    found = label_losses(logits, labels, 0.3)
    logs = torch.log_softmax(logits, dim=-1)
    for image in range(IMAGES):
        for view in range(2):
            expected = -0.7 * logs[image, view, labels[image]] - 0.1 * logs[image, view].sum()
            torch.testing.assert_close(found[image, view], expected)
    parts = distillation_loss(logits, labels, draw(IMAGES, 1, 3, seed=2), 4.0, smoothing=0.3)
    torch.testing.assert_close(parts["loss_label"], found.mean())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_label_smoothing_reaches_every_objective(
    small: FinetuneConfig, make_network: Make, bank, objective: str
) -> None:
    views, labels = draw(6, 2, 3, 8, 8, seed=1), torch.arange(6) % 3
    measured = []
    for smoothing in (0.0, 0.2):
        config = replace(small, objective=objective, label_smoothing=smoothing)
        state = start(make_network().eval(), config, ALONE, classifier=CLASSIFIER, teacher_width=TEACHER_WIDTH)
        rows: BankRows = bank.read(torch.arange(6))
        targets = {"teacher": draw(6, 2, 3, seed=2), "projections": draw(6, 2, 8, seed=3)}
        parts, logits = state.objective.eval()(Batch(labels, views, rows, 6), targets)
        assert set(parts) == set(state.objective.parts)
        torch.testing.assert_close(parts["loss_label"], label_losses(logits, labels, smoothing).mean())
        measured.append(parts["loss_label"].item())
    assert measured[0] != measured[1]


@pytest.mark.parametrize("option", [{"precision": "bfloat16"}, {"channels_last": True}, {"accumulate": 2}])
@pytest.mark.parametrize("objective", ["ekg", "byol"])
def test_options_for_speed_change_losses_by_rounding_only_where_they_may(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, objective: str, option: dict
) -> None:
    config = replace(small, objective=objective, epochs=1, milestones=(), learning_rate=1e-3)
    given = {"world": ALONE, "bank": bank, "classifier": CLASSIFIER}
    (plain,) = train(make_network(), data, config, **given).epochs
    (other,) = train(make_network(), data, replace(config, **option), **given).epochs
    tolerance = {"precision": 2e-2, "channels_last": 1e-5, "accumulate": 0.2}[next(iter(option))]
    assert other.loss == pytest.approx(plain.loss, rel=tolerance)
    assert (other.loss != plain.loss) or "channels_last" in option


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ekg", "byol"])
def test_a_compiled_network_trains_to_the_same_losses(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, objective: str
) -> None:
    config = replace(small, objective=objective, epochs=2, milestones=())
    given = {"world": ALONE, "bank": bank, "classifier": CLASSIFIER}
    eager, compiled = make_network(), make_network()
    eager[5].p = compiled[5].p = 0.0  # type: ignore[index]
    expected = train(eager, data, config, **given)
    found = train(compiled, data, replace(config, compile=True), **given)
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)


def test_the_momentum_of_a_target_rises_over_the_steps_of_all_epochs(
    data: TrainData, small: FinetuneConfig, make_network: Make, bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr(MomentumTarget, "follow", lambda *_, **options: told.append(options))
    config = replace(small, objective="byol", epochs=2, milestones=(), target_momentum=0.75)
    train(make_network(), data, config, world=ALONE, bank=bank, classifier=CLASSIFIER)
    assert told == [{"start": 0.75, "step": step, "num_steps": 6} for step in range(6)]
