"""Divergence, teachers in use and the whole loss against loops that follow the formulas word by word."""

import math

import pytest
import torch
from torch import Tensor

from ekgsearch.maths.distillation import (
    divergence,
    ekg_loss,
    ensemble_embedding,
    label_losses,
    teacher_targets,
    teachers_in_use,
)

IMAGES, VIEWS, CLASSES, TEACHERS, TEMPERATURE = 6, 2, 5, 4, 4.0


def draw(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def bank() -> Tensor:
    return draw(IMAGES, CLASSES, TEACHERS, seed=1)


@pytest.fixture
def student() -> Tensor:
    return draw(IMAGES, VIEWS, CLASSES, seed=2)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0])


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def naive_divergence(target: list[float], logits: list[float], temperature: float) -> float:
    p = softmax([value / temperature for value in target])
    q = softmax([value / temperature for value in logits])
    return temperature * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def naive_cross_entropy(logits: list[float], label: int) -> float:
    return -math.log(softmax(logits)[label])


def naive_use(student: Tensor, labels: Tensor, bank: Tensor, gate: str) -> list[bool]:
    mean = student.mean(dim=1).tolist()
    use = []
    for teacher in range(TEACHERS):
        of_teacher = of_student = 0.0
        for image in range(IMAGES):
            top, row = bank[image, :, 0].tolist(), bank[image, :, teacher].tolist()
            if gate == "kl_to_top":
                of_teacher += naive_divergence(top, row, TEMPERATURE)
                of_student += naive_divergence(top, mean[image], TEMPERATURE)
            else:
                of_teacher += naive_cross_entropy(row, int(labels[image]))
                of_student += naive_cross_entropy(mean[image], int(labels[image]))
        use.append(teacher == 0 or (of_teacher < of_student if gate == "kl_to_top" else of_teacher <= of_student))
    return use


def naive_loss(student: Tensor, labels: Tensor, bank: Tensor, gate: str) -> tuple[float, float, int]:
    use = naive_use(student, labels, bank, gate)
    label = distillation = 0.0
    for image in range(IMAGES):
        rows = [bank[image, :, teacher].tolist() for teacher in range(TEACHERS) if use[teacher]]
        target = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        for view in range(VIEWS):
            logits = student[image, view].tolist()
            label += naive_cross_entropy(logits, int(labels[image]))
            distillation += naive_divergence(target, logits, TEMPERATURE)
    count = IMAGES * VIEWS
    return label / count, distillation / count, sum(use)


def test_gradient_of_the_divergence_is_the_difference_of_softened_probabilities() -> None:
    target, logits = draw(IMAGES, CLASSES, seed=3), draw(IMAGES, CLASSES, seed=4).requires_grad_()
    divergence(target, logits, TEMPERATURE).sum().backward()
    expected = torch.softmax(logits.detach() / TEMPERATURE, 1) - torch.softmax(target / TEMPERATURE, 1)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)


def test_divergence_is_zero_for_equal_logits_and_blind_to_a_constant() -> None:
    target = draw(IMAGES, CLASSES, seed=5)
    assert divergence(target, target, TEMPERATURE).abs().max() == 0
    assert divergence(target, target + 7.0, TEMPERATURE).abs().max() < 1e-12
    assert (divergence(target, draw(IMAGES, CLASSES, seed=6), TEMPERATURE) > 0).all()


@pytest.mark.parametrize("gate", ["kl_to_top", "ce"])
@pytest.mark.parametrize("distance", [0.0, 0.5, 1.0, 4.0])
def test_loss_equals_the_loops(student: Tensor, labels: Tensor, bank: Tensor, gate: str, distance: float) -> None:
    near = bank[:, None, :, 0] + distance * student
    parts, _ = ekg_loss(near, labels, bank, TEMPERATURE, gate=gate)  # type: ignore[arg-type]
    label, distillation, count = naive_loss(near, labels, bank, gate)
    assert parts["loss_label"].item() == pytest.approx(label, abs=1e-12)
    assert parts["loss_distillation"].item() == pytest.approx(distillation, abs=1e-12)
    assert parts["loss"].item() == pytest.approx(label + distillation, abs=1e-12)
    assert parts["num_teachers_used"].item() == count


def test_a_student_equal_to_the_best_teacher_leaves_only_that_teacher_in_use(bank: Tensor) -> None:
    student = bank[:, None, :, 0].expand(-1, VIEWS, -1)
    target, use = teacher_targets(bank, student, TEMPERATURE)
    assert use.tolist() == [True, False, False, False]
    assert torch.equal(target, bank[:, :, 0])


def test_a_student_far_from_the_best_teacher_is_pulled_to_the_mean_of_all(bank: Tensor) -> None:
    student = (-20.0 * bank[:, None, :, 0]).expand(-1, VIEWS, -1)
    target, use = teacher_targets(bank, student, TEMPERATURE)
    assert use.all()
    torch.testing.assert_close(target, bank.mean(dim=2), rtol=0, atol=1e-12)


def test_the_best_teacher_is_kept_even_when_its_cross_entropy_is_worse_than_the_students(labels: Tensor) -> None:
    wrong = torch.nn.functional.one_hot((labels + 1) % CLASSES, CLASSES).double() * 9
    right = torch.nn.functional.one_hot(labels, CLASSES).double() * 9
    bank = torch.stack([wrong, wrong - 1.0], dim=2)
    use = teachers_in_use(bank, right[:, None, :], TEMPERATURE, gate="ce", labels=labels)
    assert use.tolist() == [True, False]


def test_a_copy_of_the_best_teacher_does_not_pass_a_student_that_equals_it(bank: Tensor) -> None:
    twice = torch.cat([bank[:, :, :1], bank], dim=2)
    use = teachers_in_use(twice, twice[:, None, :, 0], TEMPERATURE)
    assert use.tolist() == [True, False, False, False, False]


def test_a_teacher_exactly_as_good_as_the_student_is_used_by_the_gate_on_cross_entropy(
    bank: Tensor, labels: Tensor
) -> None:
    best = bank[:, :, :1]
    as_good = torch.cat([best, best, best - 10.0 * torch.nn.functional.one_hot(labels, CLASSES)[:, :, None]], dim=2)
    use = teachers_in_use(as_good, best.transpose(1, 2), TEMPERATURE, gate="ce", labels=labels)
    assert use.tolist() == [True, True, False]


def test_processes_add_their_parts_in_double_precision(bank: Tensor, student: Tensor) -> None:
    added: list[torch.dtype] = []
    teachers_in_use(bank.float(), student.float(), TEMPERATURE, reduce=lambda sums: added.append(sums.dtype) or sums)
    assert added == [torch.float64]


def test_the_gate_on_cross_entropy_needs_labels(bank: Tensor, student: Tensor) -> None:
    with pytest.raises(ValueError, match="labels"):
        teachers_in_use(bank, student, TEMPERATURE, gate="ce")


@pytest.mark.parametrize("gate", ["kl_to_top", "ce"])
def test_processes_that_sum_their_parts_decide_like_one_process(labels: Tensor, gate: str) -> None:
    differences = 0
    for seed in range(20):
        bank = draw(IMAGES, CLASSES, TEACHERS, seed=100 + seed)
        student = bank[:, None, :, 0] + draw(IMAGES, VIEWS, CLASSES, seed=200 + seed)
        whole = teachers_in_use(bank, student, TEMPERATURE, gate=gate, labels=labels)  # type: ignore[arg-type]
        parts = [slice(0, 2), slice(2, IMAGES)]
        sums: list[Tensor] = []

        def use(part: slice, reduce, bank=bank, student=student) -> Tensor:
            return teachers_in_use(
                bank[part], student[part], TEMPERATURE, gate=gate, labels=labels[part], reduce=reduce
            )

        for part in parts:
            differences += use(part, lambda values: values).tolist() != whole.tolist()
            use(part, lambda values, sums=sums: sums.append(values) or values)
        for part in parts:
            assert torch.equal(use(part, lambda values, sums=sums: sums[0] + sums[1]), whole)
    assert differences > 0, "the parts alone always agree, so this test shows nothing"


def test_no_gradient_flows_into_the_choice_of_teachers(bank: Tensor, student: Tensor, labels: Tensor) -> None:
    leaf = student.clone().requires_grad_()
    parts, _ = ekg_loss(leaf, labels, bank.clone().requires_grad_(), TEMPERATURE)
    parts["loss"].backward()
    target, _ = teacher_targets(bank, student, TEMPERATURE)
    soft = torch.softmax(student / TEMPERATURE, -1) - torch.softmax(target / TEMPERATURE, -1)[:, None]
    hard = torch.softmax(student, -1) - torch.nn.functional.one_hot(labels, CLASSES)[:, None]
    torch.testing.assert_close(leaf.grad, (soft + hard) / (IMAGES * VIEWS), rtol=0, atol=1e-12)
    assert not parts["num_teachers_used"].requires_grad


def test_label_losses_of_views_do_not_mix_images(student: Tensor, labels: Tensor) -> None:
    found = label_losses(student, labels)
    assert found.shape == (IMAGES, VIEWS)
    for image in range(IMAGES):
        for view in range(VIEWS):
            expected = naive_cross_entropy(student[image, view].tolist(), int(labels[image]))
            assert found[image, view].item() == pytest.approx(expected, abs=1e-12)


def test_smoothed_labels_spread_their_share_over_all_classes_and_reach_the_whole_loss(
    student: Tensor, labels: Tensor, bank: Tensor
) -> None:
    smoothing = 0.3
    expected = 0.7 * label_losses(student, labels) - 0.3 * torch.log_softmax(student, -1).mean(dim=-1)
    torch.testing.assert_close(label_losses(student, labels, smoothing), expected, rtol=0, atol=1e-12)
    parts, _ = ekg_loss(student, labels, bank, TEMPERATURE, smoothing=smoothing)
    plain, _ = ekg_loss(student, labels, bank, TEMPERATURE)
    assert parts["loss_label"].item() == pytest.approx(expected.mean().item(), abs=1e-12)
    assert parts["loss_distillation"] == plain["loss_distillation"]
    assert parts["loss"] == parts["loss_label"] + parts["loss_distillation"]


def test_an_ensemble_embedding_is_the_direction_of_the_mean_direction_of_the_teachers_in_use() -> None:
    features = 3
    embeddings = draw(IMAGES, features, TEACHERS, seed=7) * torch.tensor([0.1, 1.0, 10.0, 100.0])
    embeddings[0] = 0.0
    use = torch.tensor([True, False, True, True])
    found = ensemble_embedding(embeddings, use)
    assert found[0].tolist() == [0.0] * features
    for image in range(1, IMAGES):
        mean = [0.0] * features
        for teacher in (0, 2, 3):
            column = embeddings[image, :, teacher].tolist()
            mean = [value + part / math.hypot(*column) for value, part in zip(mean, column, strict=True)]
        assert found[image].tolist() == pytest.approx([value / math.hypot(*mean) for value in mean], abs=1e-12)
