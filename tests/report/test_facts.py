"""Sentences, sums and headline numbers."""

import math
import re
from dataclasses import replace

import pandas as pd
import pytest

from ekgsearch.report import facts, headline
from ekgsearch.report.html import write_report
from ekgsearch.report.plots import plot_accuracy, plot_latency
from ekgsearch.report.speed import speeds
from ekgsearch.report.tables import load_run, rows_of
from ekgsearch.report.terminal import audit_text, summary_text
from ekgsearch.rows.run import DeviceHoursRow
from ekgsearch.storage.tables import read_table, write_table


@pytest.fixture(scope="module")
def run(finished_run):
    return load_run(finished_run)


def test_hours_by_phase_add_up_over_attempts(run):
    table = facts.hours_by_phase(run).set_index("phase")
    assert list(table.index) == ["pretrain", "warmup", "search", "bank", "finetune", "evaluate"]
    assert table.loc["search", "attempts"] == 2
    assert table.loc["search", "ended"] == "1 died"
    assert table.loc["search", "device_hours"] == pytest.approx((211 + 505) / 3600)
    assert table["device_hours"].sum() == pytest.approx(run.summary.device_hours)
    assert (table["busy_hours"] + table["idle_hours"]).sum() == pytest.approx(run.summary.device_hours)


def test_wall_time_is_not_device_time(run):
    held = run.device_hours.assign(num_devices=8, device_hours=8 * run.device_hours["device_hours"])
    table = facts.hours_by_phase(replace(run, device_hours=held)).set_index("phase")
    assert table.loc["search", "wall_hours"] == pytest.approx((211 + 505) / 3600)
    assert table.loc["search", "device_hours"] == pytest.approx(8 * (211 + 505) / 3600)


def test_the_verdict_sets_the_slim_network_beside_the_unpruned_one_and_the_baselines(run):
    s = replace(
        run.summary, full_top1=94.0, final_top1=93.5, macs_reduction=0.5, plain_top1=93.0, uniform_top1=math.nan
    )
    text = facts.verdict(s, run.baselines)
    assert "needs 50.0 % of the MACs" in text
    assert "0.50 points less" in text
    assert "plain fine-tuning of the same widths reaches 93.00 %" in text
    assert "uniform" not in text


def test_the_verdict_names_the_best_rival_and_how_it_was_cut(run):
    weak = run.baselines.assign(network="uniform", method="uniform", top1=88.0)
    strong = run.baselines.assign(network="l1-private-4-stages", method="l1", groups="private", stages=4, top1=92.25)
    larger = strong.assign(macs_reduction=run.summary.macs_reduction - 0.1, top1=95.0)
    text = facts.verdict(run.summary, pd.concat([weak, strong, larger, run.baselines.assign(top1=99.0)]))
    assert "the best of 2 baselines, l1 over private channel groups in 4 stages reaches 92.25 %" in text
    assert "uniform" not in text
    assert "a uniform-width network" in facts.verdict(run.summary, run.baselines), "as the summary has it"


def test_the_speed_remark_is_silent_where_nothing_was_measured(run):
    nan = math.nan
    text = facts.speed_remark(run.summary)
    assert "at batch 1 no difference beyond the noise of ±9 %; at batch 64 1.61× as fast (1.55 to 1.66), noise" in text
    s = replace(run.summary, full_latency_ms=nan, slim_latency_ms=nan, slim_latency_batch64_ms=nan)
    assert facts.speed_remark(s) == ""


@pytest.mark.parametrize(
    ("ratio", "noise", "factor", "text", "good"),
    [
        (0.5, 1.2, "0.50×", "0.50× as fast (0.40 to 0.60), noise ±20 %", False),
        (0.5, 2.0, "within noise", "no difference beyond the noise of ±100 %", None),
        (0.5, 2.1, "within noise", "no difference beyond the noise of ±110 %", None),
        (1.3, 1.31, "within noise", "no difference beyond the noise of ±31 %", None),
        (1.3, 1.29, "1.30×", "1.30× as fast (0.40 to 0.60), noise ±29 %", True),
        (1.3, math.nan, "1.30×", "1.30× as fast, noise not measured", True),
        (math.nan, math.nan, "1.04×", "1.04× as fast, noise not measured", True),
    ],
)
def test_a_difference_within_the_noise_is_not_called_one(run, ratio, noise, factor, text, good, write_run, tmp_path):
    columns = {"latency_ratio_low": 0.4, "latency_ratio_high": 0.6, "latency_ratio": ratio, "latency_noise": noise}
    folder = write_run(tmp_path / "run", tables=("summary",), **columns)
    noisy = load_run(folder)
    assert speeds(noisy.summary)[0].factor == factor
    assert text in summary_text(noisy)
    assert f"at batch 1 {text}" in facts.speed_remark(noisy.summary)
    tile = next(tile for tile in headline.tiles(noisy) if tile.title == "Latency, batch 1")
    assert (tile.change, tile.good) == (text, good)
    assert plot_latency(noisy).axes[0].get_title("left") == f"batch 1: {factor}"
    assert ("0.50×" in summary_text(noisy)) == (factor == "0.50×")


def test_a_network_without_an_epoch_of_fine_tuning_is_not_called_fine_tuned(write_run, tmp_path):
    nan = math.nan
    tables = ("device_hours", "summary")
    changes = {"finetune_epochs": 0, "best_top1": nan, "plain_top1": nan, "uniform_top1": nan, "dataset": "digits"}
    folder = write_run(tmp_path / "searched", tables=tables, **changes)
    run = load_run(folder)
    texts = [summary_text(run), facts.verdict(run.summary, run.baselines), *(str(tile) for tile in headline.tiles(run))]
    for text in texts:
        assert "fine-tuned" not in text.replace("not fine-tuned", "")
        assert "last epoch" not in text
        assert "best epoch" not in text
    assert "* Slim network, not fine-tuned" in texts[0]
    assert "of the MACs and, without any fine-tuning, reaches" in texts[1]
    labels = [line.get_label() for line in plot_accuracy(run).axes[0].lines]
    assert any(label.startswith("this run, not fine-tuned, ") for label in labels)
    page = write_report([folder]).read_text()
    assert "fine-tuning <b>none</b>" in page
    assert "Slim network, not fine-tuned" in page
    assert "fine-tuned" not in page.replace("not fine-tuned", "")
    assert write_report([folder] * 9, tmp_path / "many.html").read_text().count("ekg + no fine-tuning</td>") == 9
    assert facts.fine_tuning(replace(run.summary, finetune_epochs=-1)) == "ekg"  # tables of older versions
    other = replace(run.summary, seed=7)
    assert "ekg + no fine-tuning" in facts.over_seeds([run.summary, other])["kind"][0]


def test_every_time_of_a_page_has_the_unit_of_its_largest_sum(write_run, tmp_path):
    long = write_run(tmp_path / "long", tables=("device_hours",))
    short = write_run(tmp_path / "short", tables=("device_hours",))
    table = read_table(short / "tables" / "device_hours.parquet")
    for column in ("wall_seconds", "busy_seconds", "idle_seconds", "device_hours"):
        table[column] /= 100
    rows = [DeviceHoursRow(**row) for row in rows_of(table)]
    write_table(short / "tables" / "device_hours.parquet", rows, DeviceHoursRow)
    text = summary_text(load_run(short))
    assert "  device-seconds   held" in text
    assert re.search(r"\n  search +7\.16 +0\.56  2 \(1 died\)\n", text)
    for runs, name in (([short], "seconds"), ([long], "hours"), ([short, long], "hours")):
        page = write_report(runs, tmp_path / f"{len(runs)}.html").read_text()
        assert f"Device-{name}" in page
        assert set(re.findall(r"[Dd]evice-(hours|minutes|seconds)", page)) == {name}
        assert not re.search(r"\d (h|min|s)\b", page)


def test_width_and_search_remarks_count(run):
    last = facts.last_subnetwork(run)
    cut = int((last["num_kept"] < last["size"]).sum())
    assert facts.width_remark(run).startswith(f"{cut} of 30 channel groups were cut")
    assert "0, 22, 34, 43 and 49" in facts.search_remark(run)


def test_an_audit_is_one_line_for_each_iteration_and_a_sentence(run, write_run, tmp_path):
    lines = audit_text(run).splitlines()
    assert len(lines) == 2 + len(run.audit) + 2
    assert lines[2].split()[:2] == ["3", run.audit["channel_group"][0]]
    assert "conv1" in lines[2].split()
    assert "DIFFERS" in lines[2]
    assert "80.0 %" in lines[2]
    assert all("agrees" in line for line in lines[3:6])
    assert lines[-1] == facts.audit_remark(run)
    assert "3 of 4 decisions (75.0 %)" in lines[-1]
    relative = 100 * (run.audit["regret"] / run.audit["exact_score"]).mean()
    assert f"regret 0.001 nats on average ({relative:.2g} % of the reward)" in lines[-1]
    assert "at worst 0.004; 95.0 % of the shortlists" in lines[-1]
    never = load_run(write_run(tmp_path / "never", tables=("iterations", "summary")))
    assert audit_text(never) == facts.audit_remark(never) == ""
    assert "audit" not in never.missing


def test_results_list_before_after_baselines_and_published(run):
    lines = headline.result_lines(run.summary, run.baselines)
    assert [line.kind for line in lines][:8] == [*["run"] * 3, "result", "run", *["baseline"] * 3]
    assert (lines[7].label, lines[7].top1) == ("Baseline: same widths, fresh weights", 87.5)
    result = lines[3]
    assert result.top1 == run.summary.final_top1
    assert result.diff == pytest.approx(run.summary.final_top1 - run.summary.full_top1)
    assert {line.kind for line in lines[8:]} == {"published"}


def test_a_result_without_its_weakest_rivals_says_so(run):
    assert "cut by random to the same cost" in facts.rivals_remark(run)
    both = run.baselines.assign(network="random-private", method="random")
    assert facts.rivals_remark(replace(run, baselines=both)) == ""
    alone = replace(run, summary=replace(run.summary, uniform_top1=math.nan))
    assert "cut by uniform or random" in facts.rivals_remark(alone)
    untrained = replace(run, summary=replace(run.summary, finetune_epochs=0))
    assert facts.rivals_remark(untrained) == ""


def test_a_run_of_epruner_stands_next_to_its_published_networks(run):
    s = replace(run.summary, method="epruner", full_channels=2032, kept_channels=1500, macs_reduction=0.3)
    lines = {line.label: line for line in headline.result_lines(s, run.baselines)}
    published = lines["EPruner"]
    assert (published.channels, published.macs, published.params) == (1450, 49_350_000, 390_000)
    assert {"EPruner, random projection", "EPruner, l1", "EPruner, random"} <= lines.keys()
    assert lines["Unpruned network"].channels == 2032
    assert {line.channels for line in lines.values() if line.kind == "result"} == {1500}


def test_baselines_that_did_not_run_are_left_out(run):
    s = replace(run.summary, plain_top1=math.nan, uniform_top1=math.nan, dataset="digits")
    assert {line.kind for line in headline.result_lines(s, run.baselines[:0])} == {"run", "result"}


def test_tiles_without_a_measurement_are_left_out(run):
    nan = math.nan
    s = replace(run.summary, full_latency_ms=nan, slim_latency_ms=nan)
    titles = [tile.title for tile in headline.tiles(replace(run, summary=s))]
    assert "Latency, batch 1" not in titles
    assert "Latency, batch 64" in titles


def test_a_drop_in_accuracy_is_not_called_good(run):
    worse = replace(run, summary=replace(run.summary, final_top1=90.0))
    assert headline.tiles(worse)[0].good is False


def test_runs_that_differ_in_their_seed_alone_are_averaged(run):
    one = replace(run.summary, seed=1, finetune_seed=1, final_top1=94.0, macs_reduction=0.509)
    two = replace(one, finetune_seed=2, final_top1=94.2, macs_reduction=0.499)
    other = replace(one, seed=3, objective="plain")
    table = facts.over_seeds([one, two, other])
    assert len(table) == 1
    row = table.iloc[0]
    assert (row["runs"], row["top1"]) == (2, pytest.approx(94.1))
    assert row["top1_deviation"] == pytest.approx(pd.Series([94.0, 94.2]).std())
    assert facts.over_seeds([]).empty
    assert facts.over_seeds([one, replace(one, final_top1=94.4)]).empty  # the same seed twice
    assert facts.over_seeds([one, replace(two, macs_reduction=0.48)]).empty


def test_the_console_text_is_aligned_and_complete(run):
    text = summary_text(run)
    assert "* Slim network, fine-tuned" in text
    assert "2 (1 died)" in text
    assert "Latency at batch 64" in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 100
    table = [line for line in lines if line.startswith(("  Unpruned", "* Slim", "  Baseline"))]
    assert len({len(line) for line in table}) == 1


def test_the_console_text_of_a_stopped_run_says_what_is_missing(write_run, tmp_path):
    text = summary_text(load_run(write_run(tmp_path / "stopped", tables=("iterations",))))
    assert "MACs per image" in text
    assert "Not recorded:" in text
    assert "summary" in text


def test_the_console_text_of_a_run_that_wrote_nothing_is_still_text(write_run, tmp_path):
    text = summary_text(load_run(write_run(tmp_path / "begun", tables=())))
    assert text.startswith("begun")
    assert "search iterations" in text


def test_every_training_is_listed_with_its_last_best_and_averaged_accuracy(write_run, tmp_path):
    run = load_run(write_run(tmp_path / "byol", objective="byol"))
    table = facts.last_epochs(run)
    slim = table[table["network"] == "slim"].iloc[0]
    epochs = run.epochs[(run.epochs["network"] == "slim")]
    last = epochs[epochs["epoch"] == epochs["epoch"].max()].iloc[0]
    for name in ("test_top1", "ema_top1", "averaged_top1", "loss_views"):
        assert slim[name] == last[name]
    assert slim["best_top1"] == epochs["test_top1"].max() > slim["test_top1"]
    assert slim["skipped_steps"] == 1
    again = run.epochs[(run.epochs["network"] == "slim") & (run.epochs["epoch"] == 1)].assign(skipped_steps=5)
    repeated = facts.last_epochs(replace(run, epochs=pd.concat([run.epochs, again])))
    assert repeated[repeated["network"] == "slim"]["skipped_steps"].item() == 5  # of the epoch as it was repeated
    assert list(table["phase"])[-1] == "finetune"
    page = write_report([tmp_path / "byol"], tmp_path / "page.html").read_text()
    for name in ("best_top1", "ema_top1", "averaged_top1"):
        assert f'<td class="n">{slim[name]:.2f}</td>' in page


def test_what_the_analysis_warns_of_stands_under_the_costs(write_run, tmp_path):
    warning = "the forward in training runs modules that evaluation does not: aux"
    folder = write_run(tmp_path / "run", tables=("summary",), warnings=warning)
    assert f"Warning: {warning}" in summary_text(load_run(folder))
    assert f"<strong>Network.</strong> {warning}" in write_report([folder]).read_text()
