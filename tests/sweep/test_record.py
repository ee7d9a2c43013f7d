"""Proposals and the record of a sweep: what an earlier driver has left is gone on with as if nothing had happened."""

import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest

from ekgsearch.errors import JobError, ResumeError, StorageError
from ekgsearch.sweep.proposals import OPTUNA_FILE, Learning, proposer_of
from ekgsearch.sweep.record import Record, opened

from .conftest import SPACE, MakeSweep

OPTUNA = """\
  algorithm: optuna
  budget: {trials: 14}
  metrics: {accuracy: max, kept_macs: min, latency: min}
  space:
    search.method: [ekg, epruner]
    search.step: {low: 0.1, high: 0.5, where: {search.method: ekg}}
    search.reduction: {low: 0.3, high: 0.5, step: 0.1, where: {search.method: ekg}}
    search.beta: {low: 0.5, high: 0.9, where: {search.method: epruner}}
    finetune.learning_rate: {low: 0.001, high: 0.1, log: true}
"""


def _result(values: Mapping[str, float]) -> dict[str, float]:
    """A made-up outcome, better for a small step and beta."""
    x = values.get("search.step", values.get("search.beta", 0.0))
    return {"accuracy": 90 - x, "kept_macs": 1e6 * (1 + x), "device_hours": 0.1}


def _go_on(record: Record, most: int) -> None:
    for _ in range(most):
        trial = record.next_trial()
        if trial is None:
            return
        number = record.entries[trial.name].number
        if number % 4 == 3:
            record.report(trial.name, 1.0, 40.0)
            record.end(trial.name, "stopped", "stopped by the scheduler after epoch 1")
        else:
            record.end(trial.name, "finished", metrics=_result(trial.values))


def test_optuna_proposes_the_same_after_any_number_of_kills(make_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep = make_sweep(tune=OPTUNA)
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        _go_on(record, 100)
        expected = list(record.entries)
    assert len(expected) == 14
    draw = random.Random(5)
    killed = make_sweep(f"output={tmp_path / 'killed'}", tune=OPTUNA)
    found: list[str] = []
    while len(found) < 14:
        with opened(killed, proposer_of(killed, killed.known_trials())) as record:
            _go_on(record, draw.randrange(3))
            found = list(record.entries)
        if draw.random() < 0.5:  # the kill comes after a proposal that the journal does not know
            Learning(killed).propose(len(found))
    assert found == expected


def test_a_proposal_that_was_cut_off_is_completed_as_it_would_have_been(make_sweep: MakeSweep, tmp_path: Path) -> None:
    whole, cut = (make_sweep(f"output={tmp_path / name}", tune=OPTUNA) for name in ("whole", "cut"))
    expected = Learning(whole).propose(0)
    assert expected is not None
    learning = Learning(cut)
    asked = learning._study.ask()
    name, entry = next(iter(cut.section.space.items()))
    learning._suggest(asked, name, entry)
    found = Learning(cut).propose(0)
    assert found is not None
    assert found.values == expected.values


def test_a_stopped_trial_is_told_as_pruned_and_a_repeat_with_its_result(make_sweep: MakeSweep) -> None:
    few = (
        "  algorithm: optuna\n  budget: {trials: 9}\n  metrics: {accuracy: max, kept_macs: min}\n"
        "  space: {search.method: [uniform], search.reduction: [0.3, 0.4]}\n"
    )
    sweep = make_sweep(tune=few)
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        first = record.next_trial()
        assert first is not None
        record.end(first.name, "stopped", "by asha")
        second = record.next_trial()
        assert second is not None
        record.end(second.name, "finished", metrics={"accuracy": 90.0, "kept_macs": 5.0})
        assert record.next_trial() is None, "two combinations are all there are"
        numbers = {name: [entry.number, *entry.repeats] for name, entry in record.entries.items()}
    trials = Learning(sweep)._study.trials
    assert {trials[number].state for number in numbers[first.name]} == {optuna.trial.TrialState.PRUNED}
    assert all(trials[number].values == [90.0, 5.0] for number in numbers[second.name])


def test_unfinished_trials_come_first_and_finished_ones_never_again(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        names = [trial.name for trial in (record.next_trial() for _ in range(4)) if trial]
        record.end(names[0], "finished", metrics=_result({}))
        record.end(names[1], "died", "killed")
        record.end(names[2], "stopped", "by asha")
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        again = [trial.name for trial in (record.next_trial() for _ in range(20)) if trial]
    assert again[:2] == [names[1], names[3]]
    assert len(again) == 8 - 2
    assert not set(again) & {names[0], names[2]}


def test_reports_are_kept_once_and_in_order(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        one, two = (record.next_trial() for _ in range(2))
        assert one is not None
        assert two is not None
        for name, progress in ((one.name, 1.0), (two.name, 1.0), (one.name, 1.0), (one.name, 2.0)):
            record.report(name, progress, 80 + progress)
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        found = [(entry.trial.name, progress, accuracy) for entry, progress, accuracy in record.events()]
    assert found == [(one.name, 1.0, 81.0), (two.name, 1.0, 81.0), (one.name, 2.0, 82.0)]


def test_a_changed_file_is_refused_with_what_has_changed(make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    with opened(sweep, proposer_of(sweep, sweep.known_trials())), pytest.raises(StorageError, match="journal"):
        opened(sweep, proposer_of(sweep, sweep.known_trials())).__enter__()
    for setting, words in (
        ("finetune.epochs=5", "finetune.epochs was 4, is 5"),
        ("tune.factor=2", "tune.factor was 3, is 2"),
        ("tune.space.search.step={values: [0.2], where: {search.method: ekg}}", r"tune.space.search.step.values"),
    ):
        changed = make_sweep(setting)
        with pytest.raises(ResumeError, match=words):
            opened(changed, proposer_of(changed, changed.known_trials())).__enter__()
    may = ("tune.budget.trials=3", "tune.concurrent=1", "tune.max_failed=9", "cluster.max_restarts=7")
    with opened(make_sweep(*may), proposer_of(sweep, sweep.known_trials())) as record:
        assert not record.entries


def test_the_folder_of_a_run_is_refused(make_sweep: MakeSweep) -> None:
    from ekgsearch.storage.journal import Journal

    sweep = make_sweep()
    sweep.folder.mkdir()
    with Journal.open(sweep.folder / "journal.jsonl") as journal:
        journal.append("run", job="x")
    with pytest.raises(ResumeError, match="is the directory of a run, not of a sweep"):
        opened(sweep, proposer_of(sweep, sweep.known_trials())).__enter__()


def test_a_damaged_storage_of_optuna_is_one_line(make_sweep: MakeSweep) -> None:
    sweep = make_sweep(tune=OPTUNA)
    with opened(sweep, proposer_of(sweep, sweep.known_trials())) as record:
        _go_on(record, 3)
    path = sweep.folder / OPTUNA_FILE
    path.write_bytes(b"{garbage}\n" + path.read_bytes())
    with pytest.raises(StorageError, match=r"expected the trials of this sweep as Optuna writes them"):
        Learning(sweep)
    shutil.rmtree(sweep.folder)


def test_random_trials_are_known_from_the_start(make_sweep: MakeSweep) -> None:
    settings = ("tune.algorithm=random", "tune.budget.trials=6")
    first, second = (make_sweep(*settings).known_trials() for _ in range(2))
    assert first is not None
    assert [trial.name for trial in first] == [trial.name for trial in second or ()]
    assert len(first) == 6
    with pytest.raises(JobError, match=r"finetune\.epochs"):
        make_sweep(*settings, "tune.space.finetune.epochs=[-1]", tune=SPACE).known_trials()
