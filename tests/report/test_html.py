"""The report file: whole, self-contained, readable by a real browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from ekgsearch.errors import StorageError
from ekgsearch.report.html import write_report
from ekgsearch.report.style import PALETTE

VOID = {"meta", "link", "img", "br", "hr", "input", "col"}


class Page(HTMLParser):
    """Collects elements, identifiers and texts, and checks that every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.identifiers = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.identifiers += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.identifiers += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page_of_finished(finished_run, tmp_path_factory):
    out = write_report([finished_run], tmp_path_factory.mktemp("out") / "report.html")
    return out, out.read_text()


def check_self_contained(text):
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}:
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"https?:|@import|<script|url\((?!#)", text)
    assert len(page.identifiers) == len(set(page.identifiers))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert target in page.identifiers
    return page


def test_the_report_loads_nothing_and_is_well_formed(page_of_finished):
    check_self_contained(page_of_finished[1])


def test_the_report_shows_all_parts_of_a_finished_run(page_of_finished):
    page = Page(page_of_finished[1])
    for heading in ("Result", "Search", "Sub-network", "Training", "Cost and speed", "Recipe"):
        assert heading in page.text
    for part in (
        "resnet56 on cifar10",
        "93.84 %",
        "125.7 M",
        "Baseline: uniform width",
        "CHIP",
        "1 died",
        "NVIDIA H200",
    ):
        assert part in page.text
    assert page_of_finished[1].count('<svg class="plot"') == 8
    assert "Incomplete run" not in page.text
    assert "None" not in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_the_figures_lie_beside_the_report(page_of_finished):
    names = {path.stem for path in (page_of_finished[0].parent / "plots").glob("*.png")}
    assert names == {"accuracy", "search", "widths", "rewards", "learning", "stages", "device_hours", "latency"}


def test_a_report_is_written_into_its_run_directory_by_default(write_run, tmp_path):
    folder = write_run(tmp_path / "run", tables=("summary",))
    assert write_report([folder]) == folder / "report.html"
    assert (folder / "plots" / "accuracy.png").is_file()


@pytest.mark.parametrize(
    "tables",
    [
        (),
        ("iterations",),
        ("iterations", "candidates", "device_hours"),
        ("epochs", "device_hours"),
        ("summary",),
        ("subnetworks", "summary"),
    ],
)
def test_a_stopped_run_gets_a_report_that_says_what_is_missing(write_run, tmp_path, tables):
    text = write_report([write_run(tmp_path / "stopped", tables=tables)]).read_text()
    page = check_self_contained(text)
    assert "Incomplete run." in page.text
    assert "Not recorded:" in page.text
    assert ("summary (it is written when a run finishes)" in page.text) == ("summary" not in tables)


def test_names_and_job_text_cannot_inject_markup(write_run, tmp_path):
    folder = write_run(tmp_path / "run", method="<script>alert(1)</script>")
    (folder / "job.yaml").write_text("name: </pre><img src=x>")
    (folder / "provenance.json").write_text('{"<b>": "<img src=http://x>"}')
    text = write_report([folder]).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


def test_several_runs_are_compared_and_seeds_averaged(finished_run, write_run, tmp_path):
    runs = [finished_run, write_run(tmp_path / "second", seed=2), write_run(tmp_path / "third", tables=("iterations",))]
    out = write_report(runs, tmp_path / "comparison.html")
    page = check_self_contained(out.read_text())
    assert "Comparison of 3 runs" in page.text
    assert "Runs that differ in their seed alone" in page.text
    assert page.text.count("Incomplete run.") == 1
    assert (tmp_path / "plots" / "comparison.png").is_file()
    assert (tmp_path / "plots" / "objectives.png").is_file()


def test_many_runs_are_compared_without_their_details(write_run, tmp_path):
    folder = write_run(tmp_path / "run", tables=("summary",))
    text = write_report([folder] * 9).read_text()
    assert "Too many runs to show each in full" in text
    assert text.count("<svg") == 2


def test_a_few_runs_are_compared_with_their_details(write_run, tmp_path):
    text = write_report([write_run(tmp_path / "run", tables=())] * 8).read_text()
    assert "Too many runs" not in text
    assert text.count('<details class="run">') == 8


def test_the_best_run_of_a_comparison_is_bold(write_run, tmp_path):
    values = {"worse": 91.25, "best": 93.75, "failed": float("nan")}
    runs = [write_run(tmp_path / name, tables=("summary",), final_top1=value) for name, value in values.items()]
    assert re.findall(r"<strong>([\d.]+)</strong>", write_report(runs * 3).read_text()) == ["93.75"] * 3


def test_no_run_directory_is_refused():
    with pytest.raises(StorageError, match="at least one run directory"):
        write_report([])


def test_a_report_that_cannot_be_written_says_where(finished_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of its path is no folder"):
        write_report([finished_run], tmp_path / "file" / "report.html")


def test_the_page_declares_every_colour_of_the_figures_for_light_and_dark():
    text = files("ekgsearch.report").joinpath("style.css").read_text()
    for name, value in PALETTE.items():
        values = re.findall(rf"--{name}: (#[0-9a-f]{{6}});", text)
        assert len(values) >= 2, name
        assert values[0] == value


def test_a_real_browser_draws_the_report(page_of_finished, tmp_path):
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not browser:
        pytest.skip("no chromium on this machine: the report is not looked at in a browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    shot = tmp_path / "shot.png"
    page = page_of_finished[0].as_uri()
    command = [browser, *flags, "--window-size=1200,1600", f"--screenshot={shot}", page]
    subprocess.run(command, check=True, timeout=90, capture_output=True)
    from PIL import Image

    with Image.open(shot) as image:
        assert image.size == (1200, 1600)
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 24)}
    assert tuple(bytes.fromhex(PALETTE["blue"][1:])) in colours
    assert tuple(bytes.fromhex(PALETTE["orange"][1:])) in colours


def test_latencies_that_were_measured_later_are_in_the_report(write_run, tmp_path):
    page = write_report([write_run(tmp_path / "run")]).read_text()
    assert "as ekgsearch latency has measured it" in page
    assert re.search(r"<td>onnx</td><td class=\"n\">64</td>", page)
    assert "2.00 (1.90 to 2.10)" in page
