"""`validate --paths`: every missing file and folder is one line, and without it nothing is opened."""

import os
import sys
from pathlib import Path

import pytest

from ekgsearch.__main__ import main

JOB = """\
output: results/test
search_run: {there}/run
net:
  name: resnet20
  weights: {there}/weights.safetensors
data:
  name: {name}
  root: {there}/data
search: {{reduction: 0.5}}
bank: {{uri: {there}/banks/one}}
"""


def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    """What the command line says on a mistake; none where it ends with exit status 0."""
    monkeypatch.setattr(sys, "argv", ["ekgsearch", "validate", *map(str, arguments)])
    status: object = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    told = [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]
    assert status == (2 if told else 0)
    return told


def fill(there: Path, *names: str) -> None:
    for name in names:
        path = there / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if "." not in path.name else path.touch()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("image_folder", ("data/train", "data/val")),
        ("image_folder", ("data/train", "data/test")),
        ("parquet", ("data/train-0.parquet", "data/validation-0.parquet")),
        ("parquet", ("data/train", "data/val")),
        ("cifar10", ("data/x.bin",)),
    ],
)
def test_every_missing_file_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    data: tuple[str, ...],
) -> None:
    path, there = tmp_path / "job.yaml", tmp_path / "there"
    path.write_text(JOB.format(there=there, name=name))
    opened: list[str] = []
    with monkeypatch.context() as patched:
        for function in ("isfile", "isdir"):
            patched.setattr(os.path, function, lambda place: opened.append(str(place)) or False)
        assert lines(monkeypatch, capsys, path) == []
    assert not [place for place in opened if str(there) in place]
    weights, root = f"{there}/weights.safetensors", f"{there}/data"
    assert lines(monkeypatch, capsys, path, "--paths") == [
        f"{path}:5: net.weights = {weights}: there is no file {weights}",
        f"{path}:8: data.root = {root}: there is no folder {root}",
        f"{path}:2: search_run = {there}/run: there is no file {there}/run/journal.jsonl",
        f"{path}:10: bank.uri = {there}/banks/one: there is no folder {there}/banks",
    ]
    fill(there, "weights.safetensors", "run/journal.jsonl", "banks", "data")
    splits = lines(monkeypatch, capsys, path, "--paths")
    assert [line.partition(": there is no ")[2].partition(" in ")[0] for line in splits] == {
        "image_folder": ["train", "val or test"],
        "parquet": ["train*.parquet", "val*.parquet or validation*.parquet or test*.parquet"],
        "cifar10": [],
    }[name]
    fill(there, *data)
    assert lines(monkeypatch, capsys, path, "--paths") == []
    other = f"{tmp_path}/other.safetensors"
    expected = f"--set net.weights={other}: net.weights = {other}: there is no file {other}"
    found = lines(monkeypatch, capsys, path, "--paths", "--set", f"net.weights={other}")
    assert [line[:60] for line in found] == [expected[:60]]


def test_variables_stores_and_the_folder_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("output: a\nnet: {weights: $NOWHERE/w}\ndata: {name: cifar10}\nsearch: {reduction: 0.5}\n")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.delenv("EKGSEARCH_DATA", raising=False)
    unset = f"{path}:2: net.weights = $NOWHERE/w: the environment variable NOWHERE is not set; set it or give a path"
    assert lines(monkeypatch, capsys, path, "--paths") == [unset]
    assert lines(monkeypatch, capsys, path, "--paths", "--set", "data.root=$NOWHERE")[1].startswith(
        "--set data.root=$NOWHERE: data.root = $NOWHERE: the environment variable NOWHERE"
    )
    monkeypatch.setenv("EKGSEARCH_DATA", f"{tmp_path}/none")
    assert lines(monkeypatch, capsys, path, "--paths") == [
        unset,
        f"{path}:3: $EKGSEARCH_DATA = {tmp_path}/none: there is no folder {tmp_path}/none",
    ]
    fill(tmp_path, "w")
    monkeypatch.setenv("NOWHERE", str(tmp_path))
    monkeypatch.setenv("EKGSEARCH_DATA", str(tmp_path))
    assert "there is no file" in lines(monkeypatch, capsys, path, "--paths")[0], "a folder is no file"
    (tmp_path / "w").rmdir()
    (tmp_path / "w").touch()
    for uri in ("s3://bucket/bank", f"{tmp_path}/bank", f"file://{tmp_path}/bank"):
        assert lines(monkeypatch, capsys, path, "--paths", "--set", f"bank.uri={uri}") == []
    missing = lines(monkeypatch, capsys, path, "--paths", "--set", f"bank.uri=file://{tmp_path}/no/bank")
    assert missing[0].endswith(f"there is no folder {tmp_path}/no")


def test_what_benchmarks_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, path = tmp_path / "job.yaml", tmp_path / "bench.yaml"
    path.write_text(f"bench: search\njob: {job}\njournal: {tmp_path}/j\noverrides: [net.weights={tmp_path}/w]\n")
    assert lines(monkeypatch, capsys, path) == []
    journal = f"{path}:3: journal = {tmp_path}/j: there is no file {tmp_path}/j"
    assert lines(monkeypatch, capsys, path, "--paths") == [journal, f"{path}:2: job = {job}: there is no file {job}"]
    job.write_text("output: a\ndata: {name: digits}\nwarmup: {images_per_class: 9}\nsearch: {reduction: 0.5}\n")
    nested = f"{path}:2: {job}: net.weights = {tmp_path}/w: there is no file {tmp_path}/w"
    assert lines(monkeypatch, capsys, path, "--paths") == [journal, nested]
    (tmp_path / "j").touch()
    own = lines(monkeypatch, capsys, path, "--paths", "--set", f"weights={tmp_path}/own")
    assert [line.partition(": there is no ")[2] for line in own] == [f"file {tmp_path}/own"]
    loader = tmp_path / "loader.yaml"
    loader.write_text(f"bench: loader\nfolder: {tmp_path}/pictures\n")
    assert lines(monkeypatch, capsys, loader, "--paths")[0].endswith(f"there is no folder {tmp_path}/pictures")
    fill(tmp_path, "pictures")
    assert lines(monkeypatch, capsys, loader, "--paths") == []
    epruner = tmp_path / "epruner.yaml"
    epruner.write_text(f"bench: epruner\nwide_weights: {tmp_path}/wide\n")
    assert lines(monkeypatch, capsys, epruner, "--paths")[0].endswith(f"there is no file {tmp_path}/wide")
