"""The learning rate over the epochs: its rise at the start, and its drops."""

from collections.abc import Sequence


def step_decay(progress: float, *, base: float, milestones: Sequence[int] = (), decay: float = 0.1) -> float:
    """Learning rate that drops by a factor after each milestone epoch.

    EKG (arXiv 2203.02651): 0.01 x 0.2 after epochs 30, 60 and 80 of 100 on CIFAR; 0.1 x 0.1 after 30, 60 and 90 of 100
    on ImageNet.

    Args:
        progress: epochs done before this step, fractions included, >= 0: 30.0 is the first step of the 31st epoch.
        base: learning rate before the first milestone.
        milestones: epochs after whose end the rate drops.
        decay: factor of one drop, in (0, 1].

    Returns:
        The learning rate of the step.
    """
    drops = sum(progress >= milestone for milestone in milestones)
    return base * decay**drops


def linear_rise(progress: float, *, epochs: int) -> float:
    """Factor of the learning rate that rises in a line to 1 over the first epochs.

    EPruner's program (arXiv 2101.07985) lets the rate rise over 5 of 90 epochs on ImageNet, step by step, and counts
    the step itself: the first one is taken with a small rate, the last one of the rise with the whole.

    Args:
        progress: epochs done after this step, fractions included, > 0.
        epochs: length of the rise; 0 for none.

    Returns:
        The factor, in (0, 1].
    """
    return min(1.0, progress / epochs) if epochs else 1.0
