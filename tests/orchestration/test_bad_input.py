"""What a person does wrong, or the machine: one clear message, no traceback, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import RunCommand, command, environment
from PIL import Image
from safetensors.numpy import save_file

from ekgsearch.storage.journal import read_journal


def refused(finished: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    for part in parts:
        assert part in finished.stderr


CRAMPED = """
import resource, sys, torch
from pathlib import Path
from ekgsearch.__main__ import main
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 600_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process")
def test_too_little_memory_is_one_message(job_file: Path) -> None:
    settings = ["data.image_size=64", "pretrain.batch_size=1000", "cluster.device=cpu"]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    command = [sys.executable, "-c", CRAMPED, "run", str(job_file), *arguments]
    stopped = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200, check=False)
    assert stopped.returncode == 2, stopped.stderr
    assert "error: out of memory; what is in the journal is kept" in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_a_missing_data_folder_is_named(job_file: Path, ekgsearch: RunCommand, tmp_path: Path) -> None:
    settings = ["data.name=cifar10", f"data.root={tmp_path / 'nowhere'}", "data.download=false", "data.image_size=null"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    refused(ekgsearch("run", job_file, *arguments), str(tmp_path / "nowhere"), "error:")


def test_a_corrupt_image_is_named_with_its_reason(job_file: Path, ekgsearch: RunCommand, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(32):
                pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02d}.jpg")
    bad = tmp_path / "images" / "train" / "dog" / "07.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    settings = ["data.name=image_folder", f"data.root={tmp_path / 'images'}", "data.image_size=8"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    refused(ekgsearch("run", job_file, *arguments), "07.jpg")


def test_a_batch_that_the_images_do_not_fill_is_refused_before_any_work(
    job_file: Path, ekgsearch: RunCommand, tmp_path: Path
) -> None:
    finished = ekgsearch("run", job_file, "--set", "finetune.batch_size=2048")
    refused(finished, "finetune.batch_size = 2048, but only", "lower it")
    assert not (tmp_path / "run" / "training").exists()


def test_weights_of_another_network_are_refused(job_file: Path, ekgsearch: RunCommand, tmp_path: Path) -> None:
    weights = tmp_path / "other.safetensors"
    save_file({"conv1.weight": np.zeros((16, 3, 5, 5), dtype=np.float32)}, weights)
    refused(
        ekgsearch("run", job_file, "--set", f"net.weights={weights}"),
        "other.safetensors",
        "conv1.weight",
        "(16, 3, 3, 3)",
    )
    refused(ekgsearch("run", job_file, "--set", f"net.weights={tmp_path / 'none.safetensors'}"), "there is no file")


def test_the_sidecar_decides_against_the_job(data_dir: Path, job_file: Path, ekgsearch: RunCommand) -> None:
    weights = data_dir / "weights" / "resnet20_cifar10_optionA.safetensors"
    arguments = ["--set", f"net.weights={weights}", "--set", "net.shortcut=projection"]
    refused(ekgsearch("run", job_file, *arguments), "net.shortcut = projection", "option_a")


def test_an_unreachable_budget_is_refused_with_the_range(job_file: Path, ekgsearch: RunCommand) -> None:
    finished = ekgsearch("run", job_file, "--set", "search.reduction=0.9999")
    refused(finished, "a reduction of at most 0.99")
    assert not (job_file.parent / "run" / "journal.jsonl").exists()


def test_too_few_images_per_class_are_counted(job_file: Path, ekgsearch: RunCommand) -> None:
    finished = ekgsearch("run", job_file, "--set", "warmup.images_per_class=200")
    refused(finished, "warmup.images_per_class = 200, but a class of digits has only 139 training images")


@pytest.mark.slow
def test_more_teachers_than_interim_networks_are_cut_to_those_there_are(job_file: Path, ekgsearch: RunCommand) -> None:
    settings = ["bank.teachers=50", "search.reduction=0.1", "pretrain.epochs=1", "finetune.epochs=1"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    finished = ekgsearch("run", job_file, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert "bank.teachers = 50, but the search left" in finished.stderr
    lines = read_journal(job_file.parent / "run" / "journal.jsonl")
    num_iterations = sum(line["kind"] == "iteration" for line in lines)
    teachers = next(line["teachers"] for line in lines if line["kind"] == "bank")
    assert sorted(teachers) == list(range(num_iterations - 1))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_while_the_bank_is_written_loses_nothing(
    job_file: Path, ekgsearch: RunCommand, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    bank.mkdir()
    fields = (f"bank.uri={bank}", "bank.batch_size=480", "bank.dtype=float32")  # blocks of many pages of the disk
    settings = [part for field in fields for part in ("--set", field)]
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", bank], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a file system")
    try:
        too_small = ekgsearch("run", job_file, *settings)
        refused(too_small, str(bank), "free")
        subprocess.run(["mount", "-o", "remount,size=400k", bank], check=True)
        (bank / "ballast").write_bytes(b"x" * 100_000)
        process = subprocess.Popen(
            command("run", job_file, *settings), env=environment(), stderr=subprocess.PIPE, text=True
        )
        journal = job_file.parent / "run" / "journal.jsonl"
        while process.poll() is None and not (journal.exists() and b'"kind":"iteration"' in journal.read_bytes()):
            time.sleep(0.02)
        (bank / "ballast").write_bytes(b"x" * (shutil.disk_usage(bank).free + 100_000 - 90_000))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert "Traceback" not in errors
        assert str(bank) in errors
        before = journal.read_bytes()
        (bank / "ballast").unlink()
        whole_bank, page = 1437 * 3 * 10 * 4, os.sysconf("SC_PAGE_SIZE")
        room = (whole_bank - 1) // page * page  # too little for all of it, enough for what is missing
        (bank / "ballast").write_bytes(b"x" * (shutil.disk_usage(bank).free - room))
        finished = ekgsearch("run", job_file, *settings)
        assert finished.returncode == 0, finished.stderr
        assert journal.read_bytes().startswith(before)
    finally:
        subprocess.run(["umount", bank], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["pretrain", "warmup", "search", "bank", "finetune", "evaluate"])
def test_ctrl_c_in_each_phase_loses_nothing(phase: str, job_file: Path, ekgsearch: RunCommand) -> None:
    run = job_file.parent / "run"
    process = subprocess.Popen(command("run", job_file), env=environment(), stderr=subprocess.PIPE, text=True)
    ledger = run / "ledger" / f"{phase}-0001.json"
    while process.poll() is None and not ledger.exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    before = (run / "journal.jsonl").read_bytes()
    finished = ekgsearch("run", job_file)
    assert finished.returncode == 0, finished.stderr
    assert (run / "journal.jsonl").read_bytes().startswith(before)
    hours = pd.read_parquet(run / "tables" / "device_hours.parquet")
    first, *_, last = hours[hours.phase == phase].exit_state
    assert (first, last) == ("interrupted", "finished")
