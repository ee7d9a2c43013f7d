"""Names of what the published program does otherwise than the paper, and what they change outside the search."""

from collections.abc import Collection
from typing import Any, Literal, get_args

from ekgsearch.records import NormMode

Quirk = Literal[
    "halved_warmup_divisor",
    "nominal_batch_means",
    "rank_removed_channels",
    "rounded_rates",
    "sequential_statistics",
    "two_decimal_refinement",
    "unchanged_candidates",
    "whole_vector_shortlist",
]
"""What the program published with the paper does differently where a number depends on it.

halved_warmup_divisor: the warm-up divides the loss of a batch by 128, half its images; this doubles the gradient, not
the weight decay. nominal_batch_means: a batch's sums are divided by the nominal batch size, also for a short last
batch, and the batches are averaged as equals. rank_removed_channels: all channels are ranked anew in every iteration;
removed ones score 0 and so tie with dead ones. rounded_rates: rates are rounded to five decimals and multiplied in
float32. sequential_statistics: batch statistics are float32 sums over one element after the other, as its CPU kernels
form them. two_decimal_refinement: the last step tries widths rounded to two decimals. unchanged_candidates: a channel
group is a candidate until its rate is 0, although its last step may remove nothing. whole_vector_shortlist: a channel
group that was never cut is judged by the sum of all its scores, one that was cut by 0, and so is always on the
shortlist.
"""

QUIRKS: tuple[Quirk, ...] = get_args(Quirk)
"""All of them: the program that was published with the paper."""

REFERENCE = "reference"
"""Value of `search.quirks` in a job that stands for that program."""


def expand_reference(fields: Any) -> Any:
    """Write out ``search.quirks: reference`` in the fields of a job: all quirks, and the counter `ekg`.

    The padding that goes with them depends on the weights: `default_padding`.

    Raises:
        ValueError: the fields name another counter or padding.
    """
    match fields:
        case {"search": {"quirks": quirks, **search}} if quirks == REFERENCE:
            pass
        case _:
            return fields
    if search.setdefault("counter", "ekg") != "ekg":
        raise ValueError(
            f"search.counter = {search['counter']}, but search.quirks reference counts with `ekg`; leave the counter "
            "out, or list the quirks that you want one by one"
        )
    net = fields.get("net")
    if isinstance(net, dict) and net.get("padding") not in (None, "tf_same"):
        raise ValueError(
            f"net.padding = {net['padding']}, but search.quirks reference pads as tf_same; leave the padding out, or "
            "list the quirks that you want one by one"
        )
    return {**fields, "search": {**search, "quirks": QUIRKS}}


def default_padding(quirks: Collection[Quirk]) -> Literal["torch", "tf_same"]:
    """Padding of a network where neither the job nor the sidecar of its weights says one.

    The program published with the paper pads as TensorFlow does; so does a search that has all of its quirks.
    """
    return "tf_same" if set(QUIRKS) <= set(quirks) else "torch"


def nominal_batch(quirks: Collection[Quirk], batch_size: int) -> int | None:
    """With `nominal_batch_means`, what every batch counts as; else None, for the true number of its images."""
    return batch_size if "nominal_batch_means" in quirks else None


def norm_mode(quirks: Collection[Quirk]) -> NormMode:
    """How batch norms are computed: with `sequential_statistics` by sums over one element after the other."""
    return "batch_sequential" if "sequential_statistics" in quirks else "batch"


def warmup_factor(quirks: Collection[Quirk]) -> int:
    """What the gradient of the warm-up's loss is multiplied by: 2 with `halved_warmup_divisor`, else 1."""
    return 2 if "halved_warmup_divisor" in quirks else 1
