"""The figures show what the tables hold."""

import dataclasses
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from ekgsearch.report.curves import plot_objectives, plot_search
from ekgsearch.report.plots import PLOTS, plot_accuracy, plot_comparison, plot_rewards, plot_widths
from ekgsearch.report.style import PALETTE, to_png, to_svg
from ekgsearch.report.tables import load_run


@pytest.fixture(scope="module")
def run(finished_run):
    return load_run(finished_run)


def test_kept_widths_are_the_lengths_of_the_bars(run):
    axes = plot_widths(run).axes[0]
    kept = [bar.get_width() for bar in axes.containers[1]]
    last = run.subnetworks[run.subnetworks["iteration"] == run.summary.iterations]
    assert kept == list(last["num_kept"])[::-1]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(last["channel_group"])[::-1]


def test_every_finite_reward_is_drawn_and_winners_are_marked(run):
    rewards = run.candidates["reward"].copy()
    rewards[rewards.index[~run.candidates["won"]][0]] = -np.inf
    changed = load_run(run.path)
    object.__setattr__(changed, "candidates", run.candidates.assign(reward=rewards))
    rest, won = plot_rewards(changed).axes[0].lines
    assert len(rest.get_xdata()) + len(won.get_xdata()) == len(rewards) - 1
    assert list(won.get_ydata()) == list(run.candidates.loc[run.candidates["won"], "reward"])
    assert "1 more not finite" in rest.get_label()


@pytest.mark.parametrize("top1", [100.0, 40.0])
def test_no_axis_of_the_search_goes_far_beyond_all_images(run, top1):
    searched = dataclasses.replace(run, iterations=run.iterations.assign(search_top1=top1))
    low, high = plot_search(searched).axes[1].get_ylim()
    assert low < top1 < high <= 101


def test_the_accuracy_figure_holds_before_after_baselines_and_published_points(run):
    lines = {line.get_label(): line for line in plot_accuracy(run).axes[0].lines}
    s = run.summary
    after = next(line for label, line in lines.items() if label.startswith("this run"))
    assert (after.get_xdata()[0], after.get_ydata()[0]) == (100 * s.macs_reduction, s.final_top1)
    assert lines["same widths, plain fine-tuning"].get_ydata()[0] == s.plain_top1
    assert len(lines["published"].get_xdata()) > 10


@pytest.mark.parametrize("name", list(PLOTS))
def test_a_run_without_rows_gives_a_figure_that_says_so(write_run, tmp_path, name):
    empty = load_run(write_run(tmp_path / "empty", tables=()))
    figure = PLOTS[name](empty)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any(re.search("not finished|No |not measured", text) for text in texts)


def test_runs_of_other_data_are_compared_without_published_points(run, write_run, tmp_path):
    other = load_run(write_run(tmp_path / "other", seed=2, dataset="digits", architecture="resnet20"))
    labels = [line.get_label() for line in plot_comparison([run, other]).axes[0].lines]
    assert "published" not in labels
    assert "ekg + ekg, resnet20, digits" in labels


def test_fine_tunings_are_averaged_by_objective(run, write_run, tmp_path):
    runs = [run, *(load_run(write_run(tmp_path / f"byol{seed}", seed=seed, objective="byol")) for seed in (1, 2))]
    (axes,) = plot_objectives(runs).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    tested = pd.concat(run.epochs[run.epochs["network"] == "slim"] for run in runs[1:])
    last = tested[tested["epoch"] == 100]["test_top1"]
    assert lines["byol (2 runs)"].get_ydata()[-1] == pytest.approx(last.mean())
    assert "ekg" in lines
    stopped = load_run(write_run(tmp_path / "stopped", tables=("iterations",)))
    assert "None of the runs" in plot_objectives([stopped]).axes[0].texts[0].get_text()


def test_an_epoch_that_was_repeated_is_drawn_as_it_was_last(run):
    is_first = (run.epochs["network"] == "slim") & (run.epochs["epoch"] == 1)
    epochs = pd.concat([run.epochs, run.epochs[is_first].assign(test_top1=12.5)])
    figure = PLOTS["learning"](dataclasses.replace(run, epochs=epochs))
    drawn = next(line for axes in figure.axes for line in axes.lines if line.get_label() == "slim, ekg")
    assert drawn.get_ydata()[0] == 12.5


def test_markup_takes_its_colours_from_the_page_and_no_address(run):
    markup = to_svg(PLOTS["learning"](run), 'a "label" <&>', "key")
    assert 'aria-label="a &quot;label&quot; &lt;&amp;>"' in markup
    assert "var(--blue)" in markup
    assert not any(value in markup for value in PALETTE.values())
    assert "http" not in markup
    assert "<style" not in markup


def test_identifiers_of_two_figures_of_a_page_differ(run):
    first, second = (to_svg(PLOTS["search"](run), "x", key) for key in ("one", "two"))
    identifiers = [set(re.findall(r'id="([^"]+)"', markup)) for markup in (first, second)]
    assert identifiers[0]
    assert not identifiers[0] & identifiers[1]


def test_equal_tables_give_equal_files(run):
    assert to_svg(PLOTS["search"](run), "x", "k") == to_svg(PLOTS["search"](run), "x", "k")
    assert to_png(PLOTS["latency"](run)) == to_png(PLOTS["latency"](run))


def test_drawing_leaves_matplotlib_as_it_was(run):
    before = dict(mpl.rcParams)
    to_png(PLOTS["latency"](run))
    assert dict(mpl.rcParams) == before


def test_the_stages_of_a_cut_are_a_line_and_the_one_that_fell_too_far_a_cross(run):
    axes = PLOTS["stages"](run).axes[0]
    line, cross = axes.lines
    assert list(line.get_xdata()) == [0, 20, 20]
    assert list(line.get_ydata()) == [run.summary.full_top1, 92.0, 92.5]
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([40], [80.0])
