"""The report of a sweep shows what its tables hold, whatever is missing."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ekgsearch.cli import cli
from ekgsearch.errors import StorageError
from ekgsearch.report.importance import importance
from ekgsearch.report.sweep import load_sweep_table, sweep_text, write_sweep_report
from ekgsearch.report.sweep_results import plot_front, plot_parallel
from ekgsearch.report.sweep_timeline import plot_timeline
from ekgsearch.storage.tables import write_table
from ekgsearch.sweep.rows import SpanRow, TrialRow

EMPTY = TrialRow(
    sweep="s",
    run="",
    number=0,
    label="",
    values={},
    method="ekg",
    state="waiting",
    reason="",
    epochs=0,
    accuracy=math.nan,
    device_hours=0.0,
    added_hours=0.0,
    saved_hours=0.0,
)


def _trial(number: int, method: str, values: dict[str, Any], accuracy: float, removed: float) -> TrialRow:
    texts = {name: json.dumps(value) for name, value in {"search.method": method, **values}.items()}
    return dataclasses.replace(
        EMPTY,
        run=f"{number:012x}",
        number=number,
        label=f"{method} {number}",
        values=texts,
        method=method,
        state="finished",
        epochs=6,
        accuracy=accuracy,
        macs_reduction=removed,
        params_reduction=removed,
        kept_macs=int(1e6 * (1 - removed)),
        latency_ms=2 - removed,
        device_hours=0.01 + removed / 100,
        added_hours=0.01,
        saved_hours=removed / 100,
        on_front=number == 0,
    )


TRIALS = [
    _trial(0, "ekg", {"search.step": 0.2, "search.reduction": 0.3}, 95.0, 0.3),
    _trial(1, "ekg", {"search.step": 0.4, "search.reduction": 0.3}, 94.0, 0.3),
    _trial(2, "ekg", {"search.step": 0.2, "search.reduction": 0.5}, 93.0, 0.5),
    _trial(3, "ekg", {"search.step": 0.4, "search.reduction": 0.5}, 92.0, 0.5),
    _trial(4, "epruner", {"search.beta": 0.8}, 94.5, 0.2),
    _trial(5, "epruner", {"search.beta": 0.9}, 91.0, 0.6),
    dataclasses.replace(
        EMPTY,
        run="f" * 12,
        number=6,
        label="<b>ekg 6</b>",
        state="stopped",
        reason="stopped by the scheduler",
        epochs=1,
        accuracy=40.0,
        values={"search.method": '"ekg"', "search.step": "0.2", "search.reduction": "0.7"},
    ),
]

SPANS = [
    SpanRow(
        sweep="s",
        run=TRIALS[0].run,
        phase="search",
        call=1,
        start_seconds=1,
        end_seconds=9,
        producer=TRIALS[0].run,
        end="committed",
    ),
    SpanRow(
        sweep="s",
        run=TRIALS[1].run,
        phase="search",
        call=1,
        start_seconds=2,
        end_seconds=9,
        producer=TRIALS[0].run,
        end="committed",
    ),
    SpanRow(
        sweep="s",
        run=TRIALS[6].run,
        phase="finetune-slim",
        call=2,
        start_seconds=0,
        end_seconds=4,
        producer=TRIALS[6].run,
        end="stopped",
    ),
]


def _write(folder: Path, trials: list[TrialRow], spans: list[SpanRow]) -> Path:
    (folder / "tables").mkdir(parents=True)
    write_table(folder / "tables" / "trials.parquet", trials, TrialRow)
    write_table(folder / "tables" / "spans.parquet", spans, SpanRow)
    (folder / "tune.yaml").write_text("tune: {}\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _write(tmp_path / "sweep", TRIALS, SPANS)


def test_the_page_has_every_trial_with_its_values_and_state(folder: Path) -> None:
    page = write_sweep_report(folder).read_text()
    for trial in TRIALS:
        assert trial.run in page
    for head in ("method", "step", "reduction", "beta"):
        assert f'<th scope="col" class="n">{head}</th>' in page
    assert "stopped by the scheduler" in page
    assert "95.00" in page
    assert "<b>ekg 6</b>" not in page
    assert page.count("<svg") == 6
    assert "http:" not in page.replace("http://www.w3.org", "")
    assert {path.name for path in (folder / "plots").iterdir()} == {
        f"{name}.png" for name in ("front", "front_device_hours", "front_latency", "parallel", "importance", "timeline")
    }


def test_the_front_joins_the_trials_that_no_other_surpasses(folder: Path) -> None:
    trials = load_sweep_table(folder, "trials")
    (axes,) = plot_front(trials, "macs").axes
    line = next(line for line in axes.lines if line.get_label() == "no other is better in both")
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [(30, 95.0), (50, 93.0), (60, 91.0)]
    texts = {text.get_text() for text in axes.texts}
    assert texts == {trial.label for trial in TRIALS[:6]}


def test_parallel_lines_go_through_the_values_that_a_trial_has(folder: Path) -> None:
    trials = load_sweep_table(folder, "trials")
    (axes,) = plot_parallel(trials, ["search.method", "search.step", "search.reduction", "search.beta"]).axes
    lengths = sorted(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o")
    assert lengths == [5, 5, 5, 6, 6, 6, 6]  # 2 of epruner, 1 without MACs; 4 of ekg


def test_a_field_that_decides_is_the_most_important() -> None:
    draw = np.random.default_rng(0)
    rows = []
    for number in range(24):
        step, reduction = draw.choice([0.1, 0.2, 0.3]), draw.choice([0.3, 0.5, 0.7])
        rows.append(
            _trial(number, "ekg", {"search.step": step, "search.reduction": reduction}, 95 - 10 * reduction, 0.3)
        )
    table = pd.DataFrame([dataclasses.asdict(row) for row in rows])
    found = importance(table, ["search.step", "search.reduction"], "accuracy")
    assert found["search.reduction"] > 1
    assert abs(found["search.step"]) < 0.05
    assert importance(table.head(4), ["search.step"], "accuracy") == {}
    assert importance(table.assign(accuracy=90.0), ["search.step"], "accuracy") == {}


def test_trials_that_ran_at_one_time_have_lanes_of_their_own(folder: Path) -> None:
    (axes,) = plot_timeline(load_sweep_table(folder, "spans"), load_sweep_table(folder, "trials")).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2"]
    assert [bar.get_hatch() is not None for bar in axes.patches] == [False, True, False]
    starts = [bar.get_x() for bar in axes.patches]
    assert starts == [1, 2, 9], "the second call goes on where the first one ended"


@pytest.mark.parametrize("trials", [[], [dataclasses.replace(EMPTY, run="a" * 12)], TRIALS[6:]], ids=len)
def test_a_sweep_that_has_only_begun_has_a_report(tmp_path: Path, trials: list[TrialRow]) -> None:
    folder = _write(tmp_path / "sweep", trials, [])
    assert "No trial has finished." in write_sweep_report(folder).read_text()
    assert f"{len(trials)} trials" in sweep_text(folder)


def test_the_command_reports_on_a_sweep_and_refuses_what_is_none(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(folder)])
    assert done.exit_code == 0, done.exception
    assert done.output.strip() == str(folder / "report.html")
    with pytest.raises(StorageError, match="is no sweep"):
        load_sweep_table(tmp_path, "trials")
    assert "on the Pareto front:\n  ekg 0  top-1 95.00 %" in sweep_text(folder)
