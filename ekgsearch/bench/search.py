"""Iterations of a search, each way of evaluating candidates against the naive masked evaluation.

All ways repeat the same iterations of one search, from the same network, ensemble knowledge and images, one after the
other in one process with one set of threads; each pair is interleaved (ABAB), so that other work on the machine falls
on both; the baseline against itself, in as many pairs at the first iteration, shows the noise. On a CPU the clock is
the processor time of the process, on a GPU the wall time up to its last kernel. The sub-network, candidates and winner
of every iteration are compared with the naive ones. The warm-up is left out: the search starts from the weights that
the job names, or from given ones. Where `net.weights` is null they are drawn at random, and then only times mean
something.

Without cases it only searches, so that a whole search gets its times.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from ekgsearch.bench.base import BenchSettings, Measurement, abab, ekg_section, gpu_lacking, job_in_small, ratio
from ekgsearch.bench.ceilings import ceilings, convolution_bytes
from ekgsearch.bench.macs import draw_norms
from ekgsearch.channels.arithmetic import EXACT, Arithmetic
from ekgsearch.errors import JobError
from ekgsearch.fields import Mark, Positive, Text, expand_path
from ekgsearch.jobfile import load_job
from ekgsearch.maths.racing import LEAST_BATCHES
from ekgsearch.methods.base import Decision, Evaluator, decisions_from_records
from ekgsearch.methods.ekg.method import ekg_settings
from ekgsearch.methods.ekg.racing import Racing
from ekgsearch.methods.ekg.search import EkgSearch
from ekgsearch.pipeline.lines import content
from ekgsearch.pipeline.setup import Setup, set_up
from ekgsearch.storage.journal import read_journal
from ekgsearch.storage.tensors import save_tensors
from ekgsearch.workers.backend import InProcessBackend
from ekgsearch.workers.spec import SearchSpec
from ekgsearch.workers.team import Team
from ekgsearch.workers.workload import Workload

Case = (
    Literal[
        "naive", "naive tf32", "shared", "exact", "channels last", "compiled", "tf32", "bf16", "bf16 compiled", "racing"
    ]
    | Annotated[float, Field(ge=0, le=1)]
)
"""shared: candidates branch off one walk, nothing is sliced. exact: the default. racing: exact, but candidates that
cannot win drop out; it needs more than 4 batches. A number: exact, with this `search.slice_below`. The others:
`search.precision` etc."""

RACING_ERROR = 0.05
"""Error of one race where the job does not race."""


class Settings(BenchSettings):
    """Fields of this benchmark."""

    bench: Literal["search"]
    job: Annotated[Text, Mark.PATH] = Field(description="job whose search is repeated; it names the weights")
    overrides: tuple[str, ...] = Field((), description="fields of the job to replace, path=value")
    weights: Annotated[Text | None, Mark.PATH] = Field(
        None, description="weights to start from in place of the job's, e.g. of a run"
    )
    journal: Annotated[Text | None, Mark.PATH] = Field(
        None, description="journal of a finished run of this job, whose decisions are repeated; null: search first"
    )
    cases: tuple[Case, ...] = Field(
        ("shared", "exact"),
        description="ways of evaluating, each against naive; a number is a search.slice_below, [] only searches",
    )
    baseline: Literal["naive", "naive tf32"] = Field("naive", description="what they are compared with")
    iterations: tuple[Positive, ...] = Field(
        (1, 20, 40, 60),
        min_length=1,
        description="iterations that are repeated; the search ends after the last of them",
    )
    pairs: Positive = Field(5, description="interleaved pairs per iteration and case")

    @property
    def lacking(self) -> str:
        """The GPU, where the job or a case is about one."""
        is_about_tf32 = {"tf32", "naive tf32"} & {self.baseline, *self.cases}
        device = "cuda" if is_about_tf32 else load_job(Path(self.job), self.overrides).cluster.device
        return gpu_lacking(device)

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The only iteration of the job's smoke form, searched here from the job's weights, in one pair."""
        changes, notes = job_in_small(self.job, self.overrides)
        return {**changes, "weights": None, "journal": None, "iterations": (1,), "pairs": 1}, notes

    @model_validator(mode="after")
    def _is_not_idle(self) -> "Settings":
        if self.journal is not None and not self.cases:
            raise ValueError("cases: [] only searches, and journal names a finished search; leave one of them out")
        return self


def run(settings: Settings) -> Iterator[Measurement]:
    """Search with the exact tier, then repeat the chosen iterations."""
    with tempfile.TemporaryDirectory(prefix="ekgsearch-bench-") as folder:
        yield from _measure(settings, *open_search(settings, Path(folder)))


def _measure(settings: Settings, setup: Setup, workload: Workload) -> Iterator[Measurement]:
    backend = InProcessBackend()
    if settings.journal is not None:
        decisions = journaled(setup, expand_path(settings.journal, "journal"))
    else:
        with backend.team(workload, _spec(setup, "exact")) as exact:
            start = time.process_time(), time.perf_counter()
            decisions = _decisions(setup, exact, max(settings.iterations))
            times = time.process_time() - start[0], time.perf_counter() - start[1]
        last = decisions[-1]
        is_over = setup.budget.is_met(last.macs, last.params)
        span = "whole search" if is_over else f"search up to iteration {last.iteration}"
        yield Measurement.count("exact", "iterations searched", "", last.iteration)
        yield Measurement.count("exact", "candidates evaluated", "", sum(len(made.candidates) for made in decisions))
        yield Measurement.count("exact", f"{span}, processor time", "s", times[0])
        yield Measurement.count("exact", f"{span}, wall", "s", times[1])
    if not settings.cases:
        return
    chosen = [iteration for iteration in settings.iterations if iteration < len(decisions)]
    if not chosen:
        raise JobError(
            f"iterations = {list(settings.iterations)}: the search ended after {max(0, len(decisions) - 1)}; name some "
            "of those, or another journal"
        )
    most = ceilings(torch.device(setup.device))
    yield from most
    bandwidth = most[0].value * 1e9 if most else None
    baseline = settings.baseline
    with backend.team(workload, _spec(setup, baseline)) as naive:
        repeat = _repetition(setup, naive, baseline, decisions[: chosen[0]])
        noise = abab(repeat, repeat, pairs=settings.pairs, clock=_clock(setup.device))
        yield ratio(baseline, f"{baseline} / {baseline}, iteration {chosen[0]}", *noise)
        for case in settings.cases:
            with backend.team(workload, _spec(setup, case)) as team:
                yield from _compare(setup, case, team, baseline, naive, decisions, chosen, settings.pairs, bandwidth)


def open_search(settings: Settings, folder: Path) -> tuple[Setup, Workload]:
    """Open the network, the images and the weights of the search that is repeated.

    Args:
        settings: what is measured.
        folder: takes random weights where none are named.

    Raises:
        JobError, DataError, NetworkError, BudgetError: something is missing, damaged or out of reach.
    """
    setup = set_up(load_job(Path(settings.job), settings.overrides))
    only_gpu = [case for case in (*settings.cases, settings.baseline) if case in ("tf32", "naive tf32")]
    if only_gpu and setup.device == "cpu":
        field = "cases" if only_gpu[0] in settings.cases else "baseline"
        raise JobError(f"{field}: {only_gpu[0]}: only GPUs multiply in TF32, and this is a CPU; leave it out")
    num_batches = len(setup.search_spec.batches)
    if "racing" in settings.cases and num_batches <= LEAST_BATCHES:
        raise JobError(
            f"cases: racing needs more than {LEAST_BATCHES} batches, but the search subset has {num_batches}; leave it "
            "out, or lower search.batch_size in overrides"
        )
    weights = settings.weights or setup.job.net.weights
    if weights is not None:
        return setup, setup.workload(expand_path(weights, "weights"))
    draw_norms(setup.network, torch.Generator().manual_seed(setup.job.seed))
    drawn = folder / "weights.safetensors"
    save_tensors(drawn, setup.network.state_dict(), {})
    return setup, setup.workload(drawn)


def _compare(
    setup: Setup,
    case: Case,
    team: Team,
    baseline: Case,
    naive: Team,
    decisions: Sequence[Decision],
    chosen: Sequence[int],
    pairs: int,
    bandwidth: float | None,
) -> Iterator[Measurement]:
    name = case if isinstance(case, str) else f"slice_below {case:g}"
    moved = 0
    totals: tuple[list[float], list[float]] = ([0.0] * pairs, [0.0] * pairs)
    same, worst, images = 0, 0.0, 0
    for iteration in chosen:
        repeat_naive = _repetition(setup, naive, baseline, decisions[:iteration])
        repeat = _repetition(setup, team, case, decisions[:iteration])
        expected, decision = repeat_naive(), repeat()
        same += _without_numbers(decision) == _without_numbers(expected)
        worst = max(worst, *(_deviations(decision, expected) or [float("inf")]))
        moved += convolution_bytes(repeat)
        images += sum(outcome.evaluation.images for outcome in decision.candidates)
        slow, fast = abab(repeat_naive, repeat, pairs=pairs, clock=_clock(setup.device))
        yield ratio(name, f"{baseline} / {name}, iteration {iteration}", slow, fast)
        for total, seconds in zip(totals, (slow, fast), strict=True):
            total[:] = [one + other for one, other in zip(total, seconds, strict=True)]
    rates = [images / seconds for seconds in totals[1]]
    if bandwidth is not None:
        shares = [moved / bandwidth / seconds for seconds in totals[1]]
        yield Measurement.of(name, "share of the bandwidth bound of its convolutions", "share", shares)
    yield Measurement.count(name, "moved by convolutions, per iteration", "GB", moved / len(chosen) / 1e9)
    yield ratio(name, f"{baseline} / {name}, all {len(chosen)}", *totals)
    yield Measurement.of(name, f"{baseline}, per iteration", "s", [seconds / len(chosen) for seconds in totals[0]])
    yield Measurement.of(name, f"{name}, per iteration", "s", [seconds / len(chosen) for seconds in totals[1]])
    yield Measurement.of(name, "candidate images", "images/s", rates)
    yield Measurement.count(name, f"decisions as {baseline}", "share", same / len(chosen))
    yield Measurement.count(name, "largest relative deviation of a score", "", worst)


def _spec(setup: Setup, case: Case) -> SearchSpec:
    """The job's search, evaluated in one of the ways compared here."""
    exact = replace(setup.search_spec, evaluation="fast", arithmetic=EXACT)
    match case:
        case float():
            return replace(exact, slice_below=case)
        case "naive":
            return replace(exact, evaluation="naive")
        case "naive tf32":
            return replace(exact, evaluation="naive", arithmetic=Arithmetic("tf32"))
        case "shared":
            return replace(exact, slice_below=0.0)
        case "exact" | "racing":
            return exact
        case "channels last":
            return replace(exact, arithmetic=Arithmetic(channels_last=True))
        case "compiled":
            return replace(exact, arithmetic=Arithmetic(compile=True))
        case "tf32":
            return replace(exact, arithmetic=Arithmetic("tf32", channels_last=True))
        case "bf16":
            return replace(exact, arithmetic=Arithmetic("bf16", channels_last=True))
        case "bf16 compiled":
            return replace(exact, arithmetic=Arithmetic("bf16", channels_last=True, compile=True))


def journaled(setup: Setup, path: Path) -> list[Decision]:
    """The decisions in the journal of a finished run.

    Raises:
        JobError: it is the journal of another network.
    """
    lines = read_journal(path)
    groups = {group.name: group.size for group in setup.graph.groups}
    found = lines[0].get("groups") if lines else None
    if found != groups:
        raise JobError(
            f"journal = {path}: expected decisions on the {len(groups)} channel groups of {setup.recipe.name}, found "
            f"those of another network with {len(found or ())}; name the journal of a run of this job"
        )
    return decisions_from_records((content(line) for line in lines if line["kind"] == "iteration"), setup.graph.full())


def _decisions(setup: Setup, team: Team, last: int) -> list[Decision]:
    """The search of the job, up to its end or an iteration."""
    decisions: list[Decision] = []
    search = EkgSearch(
        setup.graph, team, setup.budget, ekg_settings(ekg_section(setup.job), _spec(setup, "exact").tie_tolerance)
    )
    for decision in search.run():
        decisions.append(decision)
        if decision.iteration == last:
            break
    return decisions


def _repetition(setup: Setup, team: Team, case: Case, made: Sequence[Decision]) -> Callable[[], Decision]:
    """A function that makes the decision after others, as often as it is called."""
    spec = _spec(setup, case)
    evaluator: Evaluator = team
    spec.arithmetic.set_backends()
    team.begin([decision.subnetwork for decision in made])
    if case == "racing":
        error = ekg_section(setup.job).racing or RACING_ERROR
        evaluator = Racing(team, [index for index, _ in spec.batches], error, spec.nominal_batch)
    search = EkgSearch(setup.graph, evaluator, setup.budget, ekg_settings(ekg_section(setup.job), spec.tie_tolerance))
    rates = search.rates_after(made)

    def decide() -> Decision:
        spec.arithmetic.set_backends()
        return search.decide(made[-1], rates)

    return decide


def _without_numbers(decision: Decision) -> dict[str, Any]:
    """What was decided, without what was measured."""
    record = decision.to_record()
    candidates = [(line["group"], line["num_kept"], line["macs"], line["params"]) for line in record["candidates"]]
    return {name: record[name] for name in ("group", "kept", "rate", "macs", "subnetwork")} | {"candidates": candidates}


def _deviations(decision: Decision, expected: Decision) -> list[float]:
    """Relative deviation of the score of every candidate that both evaluated on the same images."""
    evaluations = {outcome.group: outcome.evaluation for outcome in expected.candidates}
    return [
        abs(outcome.evaluation.score / evaluations[outcome.group].score - 1)
        for outcome in decision.candidates
        if outcome.group in evaluations and outcome.evaluation.images == evaluations[outcome.group].images
    ]


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised
