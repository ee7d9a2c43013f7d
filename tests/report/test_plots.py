"""The figures show what the tables hold."""

import dataclasses
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from ekgsearch.report.curves import plot_objectives, plot_search
from ekgsearch.report.facts import over_seeds
from ekgsearch.report.html import write_report
from ekgsearch.report.plots import PLOTS, plot_accuracy, plot_comparison, plot_rewards, plot_widths
from ekgsearch.report.style import PALETTE, to_png, to_svg
from ekgsearch.report.tables import load_run
from ekgsearch.report.varied import labels_of


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
    assert "resnet20, digits" in labels


def test_every_fine_tuning_is_a_line_and_seeds_share_their_colour(run, write_run, tmp_path):
    runs = [run, *(load_run(write_run(tmp_path / f"byol{seed}", seed=seed, objective="byol")) for seed in (1, 2))]
    (axes,) = plot_objectives(runs).axes
    labels = [line.get_label() for line in axes.lines]
    assert labels[:2] == ["objective ekg", "objective byol"]
    assert labels[2].startswith("_")
    colours = [line.get_color() for line in axes.lines]
    assert colours[0] != colours[1] == colours[2]
    for line, one in zip(axes.lines, runs, strict=True):
        tested = one.epochs[(one.epochs["network"] == "slim") & (one.epochs["phase"] == "finetune")]
        assert line.get_ydata()[-1] == tested.sort_values("epoch")["test_top1"].iloc[-1]


def test_a_fine_tuning_of_one_epoch_is_a_dot(run):
    epochs = run.epochs[(run.epochs["epoch"] == 1)]
    (axes,) = plot_objectives([dataclasses.replace(run, epochs=epochs)]).axes
    (line,) = axes.lines
    assert len(line.get_xdata()) == 1
    assert line.get_marker() == "o"


def test_runs_are_told_apart_by_what_differs(write_run, tmp_path):
    """No mean over different settings, a colour for each, a column for each differing field."""
    changes = [{"search_step": step, "search_reduction": tau} for step in (0.2, 0.4) for tau in (0.3, 0.5)]
    runs = [
        load_run(write_run(tmp_path / str(number), seed=number, reduction=one["search_reduction"], **one))
        for number, one in enumerate(changes, start=1)
    ]
    assert labels_of([one.summary for one in runs]) == [
        f"step {one['search_step']:g}, reduction {one['search_reduction']:g}" for one in changes
    ]
    labels = [line.get_label() for line in plot_comparison(runs).axes[0].lines]
    assert {"step 0.2, reduction 0.3", "step 0.4, reduction 0.5"} <= set(labels)
    page = write_report([one.path for one in runs], tmp_path / "page.html").read_text()
    heads = re.findall(r'<th scope="col" class="n">([^<]*)</th>', page)
    assert {"step", "reduction"} <= set(heads)
    assert over_seeds([one.summary for one in runs[:2]]).empty


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
