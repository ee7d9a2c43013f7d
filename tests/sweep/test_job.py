import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekgsearch.errors import JobError
from ekgsearch.jobfile import load_job
from ekgsearch.sections.tune import Entry
from ekgsearch.sweep.job import described, load_sweep, short_label
from ekgsearch.sweep.space import assignments, draws, first

from .conftest import SPACE, MakeSweep


def test_a_grid_has_every_combination_of_the_fields_that_apply(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    trials = sweep.known_trials()
    assert trials is not None
    ekg = [
        {"search.method": "ekg", "search.step": step, "search.reduction": reduction}
        for reduction, step in itertools.product((0.3, 0.4, 0.5), (0.2, 0.3))
    ]
    epruner = [{"search.method": "epruner", "search.beta": beta} for beta in (0.6, 0.73)]
    assert [trial.values for trial in trials] == [*ekg[:2], *epruner, *ekg[2:]], "each search once, then each again"
    assert [trial.name for trial in make_sweep("tune.budget.trials=3").known_trials() or ()] == [
        trial.name for trial in trials[:3]
    ]
    assert len({trial.name for trial in trials}) == len(trials)
    for trial in trials:
        assert trial.job.run_dir == sweep.folder / "trials" / trial.name
        assert trial.job.phases.uri == str(sweep.folder / "phases")
        assert trial.job.search.method == trial.values["search.method"]
    assert trials[0].job.search.reduction == 0.3


def test_a_budget_that_is_raised_adds_trials_and_changes_none(make_sweep: MakeSweep) -> None:
    names = [
        [trial.name for trial in make_sweep(f"tune.budget.trials={number}").known_trials() or ()]
        for number in (2, 5, 8)
    ]
    assert names[0] == names[1][:2] == names[2][:2]
    assert names[1] == names[2][:5]


def test_names_depend_on_the_varied_values_alone(make_sweep: MakeSweep) -> None:
    names = [
        [trial.name for trial in make_sweep(*settings).known_trials() or ()] for settings in ((), ("output=other",))
    ]
    assert names[0] == names[1]


def test_a_condition_may_name_a_fixed_field_and_several_values() -> None:
    space = {
        "a": Entry(values=(1, 2, 3)),
        "b": Entry(values=("x", "y"), where={"a": (1, 2), "fixed": True}),
    }
    assert len(list(assignments(space, {"fixed": True}))) == 5
    assert len(list(assignments(space, {"fixed": False}))) == 3


@given(st.integers(0, 2**32), st.floats(1e-6, 1e-2), st.floats(1.1, 1e4))
def test_draws_lie_in_their_ranges_and_repeat_with_their_seed(seed: int, low: float, factor: float) -> None:
    space = {
        "rate": Entry(low=low, high=low * factor, log=True),
        "share": Entry(low=0.25, high=0.5),
        "epochs": Entry(low=2, high=9),
    }
    found = first(draws(space, {}, seed), 5)
    assert found == first(draws(space, {}, seed), 5)
    assert len({str(one) for one in found}) == 5
    for one in found:
        assert low <= one["rate"] <= low * factor * (1 + 1e-9)
        assert 0.25 <= one["share"] <= 0.5
        assert one["epochs"] in range(2, 10)


def test_draws_end_where_the_space_does() -> None:
    assert len(list(draws({"a": Entry(values=(1, 2)), "b": Entry(values=(1, 2))}, {}, 1))) == 4


def test_nested_sections_and_settings_of_the_command_line_name_fields_as_well(make_sweep: MakeSweep) -> None:
    nested = "  space: {search: {method: [uniform], reduction: [0.3, 0.4]}}\n"
    assert len(make_sweep(tune=nested).known_trials() or ()) == 2
    assert len(make_sweep("tune.space.search.reduction=[0.3, 0.4, 0.5]", tune=nested).known_trials() or ()) == 3


def test_values_in_few_words(make_sweep: MakeSweep) -> None:
    values = {"search.method": "ekg", "search.step": 0.2, "finetune.milestones": [0.5, 0.75]}
    assert described(values) == "search.method ekg, search.step 0.2, finetune.milestones [0.5,0.75]"
    assert short_label(values, ["search.method", "search.step"]) == "ekg, step 0.2"


MISTAKES: list[tuple[str, Iterable[str], str]] = [
    ("  space: {}\n", (), "tune.space"),
    ("  algorithm: grid\n", (), "tune.space: missing"),
    ("  space: {search.reductoin: [0.3]}\n", (), "did you mean reduction?"),
    ("  space: {search.beta: [0.7], search.reduction: [0.3]}\n", (), "it belongs to search.method epruner, not to ekg"),
    ("  space: {search.reduction: [0.3, 1.5]}\n", (), "search.reduction = 1.5"),
    ("  space: {search.reduction: []}\n", (), "tune.space.search.reduction"),
    ("  space: {search.reduction: {low: 0.5, high: 0.3}}\n", (), "low = 0.5 must be less than high = 0.3"),
    ("  space: {search.reduction: {low: 0.3, high: 0.5}}\n", (), "a grid needs values, or a range with a step"),
    ("  space: {search.reduction: {low: 0.3}}\n", (), "give either values, or low and high"),
    ("  space: {finetune.epochs: {low: 0, high: 3, log: true}, search.reduction: [0.3]}\n", (), "above 0"),
    ("  space: {output: [a, b]}\n", (), "output cannot be varied"),
    ("  space: {search: [a], search.step: [0.2]}\n", (), "is a section of which search.step is a part"),
    (SPACE, ("tune.metrics={speed: max}",), "speed"),
    (SPACE, ("tune.metrics={accuracy: best}",), "must be 'max' or 'min'"),
    (SPACE, ("tune.algorithm=random",), "give tune.budget.trials"),
    (SPACE, ("tune.scheduler=asha", "tune.metrics={kept_macs: min}"), "asha stops trials by their accuracy"),
    (
        SPACE,
        ("tune.algorithm=optuna", "tune.budget.trials=3", "tune.metrics={latency: min}"),
        "latency is measured when",
    ),
    (SPACE, ("search_run=elsewhere",), "leave search_run out"),
    ("  space: {search.reduction: [0.3], seed: {low: 1, high: 10000}}\n", (), "more than 256 trials"),
    (
        "  space: {search.step: {values: [0.2], where: {search.method: ekg}}, search.method: [ekg]}\n",
        (),
        "write search.method first",
    ),
]


@pytest.mark.parametrize(("tune", "settings", "words"), MISTAKES, ids=[words for _, _, words in MISTAKES])
def test_mistakes_are_lines_with_their_place(
    make_sweep: MakeSweep, tune: str, settings: Iterable[str], words: str
) -> None:
    def check() -> None:
        sweep = make_sweep(*settings, tune=tune)
        sweep.known_trials()

    with pytest.raises(JobError) as caught:
        check()
    assert words in str(caught.value)


def test_a_file_without_the_section_is_sent_to_run(make_sweep: MakeSweep, tmp_path: Path) -> None:
    make_sweep()
    with pytest.raises(JobError, match="is for another command: ekgsearch tune"):
        load_job(tmp_path / "sweep.yaml")
    (tmp_path / "run.yaml").write_text("output: run\nsearch: {reduction: 0.3}\n")
    with pytest.raises(JobError, match="has no section tune"):
        load_sweep(tmp_path / "run.yaml")
