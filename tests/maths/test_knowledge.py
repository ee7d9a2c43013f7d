"""Ensemble knowledge and the score, against sums written out."""

import math

import torch

from ekgsearch.maths.knowledge import add_to_mean, cross_entropy_terms, is_correct


def test_score_terms_equal_sums_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, knowledge = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0])
    to_label, to_ensemble = cross_entropy_terms(logits, labels, knowledge)
    for image in range(5):
        row, teacher = logits[image].tolist(), knowledge[image].tolist()
        log_sum = math.log(sum(math.exp(value) for value in row))
        teacher_sum = sum(math.exp(value) for value in teacher)
        assert math.isclose(to_label[image].item(), log_sum - row[int(labels[image])])
        expected = sum(math.exp(t) / teacher_sum * (log_sum - z) for t, z in zip(teacher, row, strict=True))
        assert math.isclose(to_ensemble[image].item(), expected)


def test_running_mean_equals_the_arithmetic_mean() -> None:
    logits = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(1))
    mean = logits[0].double()
    for count in range(1, 7):
        mean = add_to_mean(mean, count, logits[count])
    torch.testing.assert_close(mean, logits.double().mean(0), rtol=0, atol=1e-12)


def test_a_tie_between_classes_goes_to_the_lowest() -> None:
    assert is_correct(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1])).tolist() == [True, False]
