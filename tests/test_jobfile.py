"""Jobs: what is refused, and how it is said."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ekgsearch.cli import cli
from ekgsearch.errors import JobError
from ekgsearch.experiment import Job, job_schema
from ekgsearch.fields import expand_path
from ekgsearch.jobfile import fields_text, load_fields, load_job
from ekgsearch.methods.ekg.quirks import QUIRKS

GOOD = """\
output: results/test
net:
  name: resnet20
data: {name: cifar10}
search:
  reduction: 0.5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_a_job_survives_writing_and_reading(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD), ["seed=7", "finetune.milestones=[0.5]", "bank.uri=/tmp/bank"])
    assert job.seed == 7
    assert job.finetune.milestones == (0.5,)
    assert load_job(write(tmp_path, fields_text(job))) == job


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("0.5", "1.5"), ["job.yaml:6: search.reduction = 1.5: must be less than 1"]),
        (
            GOOD.replace("reduction", "reductoin"),
            ["job.yaml:6: search.reductoin: unknown key", "did you mean reduction"],
        ),
        (GOOD.replace("cifar10", "imagenet"), ["job.yaml:4: data.name = 'imagenet'", "'cifar10'"]),
        (GOOD + "bank: {dtype: top32}\n", ["job.yaml:7: bank.dtype = 'top32'", "about 4 % of the mass; use float16"]),
        (GOOD + "  step: fast\n", ["job.yaml:7: search.step = 'fast'", "must be a number"]),
        (GOOD + "  budget: 100\n", ["job.yaml:6: search: give exactly one of search.reduction"]),
        (GOOD + "finetune: {workers: 3}\n", ["finetune.batch_size = 128 does not divide", "workers = 3"]),
        (
            GOOD + "finetune: {objective: byol, batch_size: 8, workers: 2, accumulate: 4}\n",
            ["finetune.objective byol compares images: expected at least 2 per process", "found 1", "batch_size = 8"],
        ),
        (GOOD + "pretrain: {epochs: 0}\n", ["net.weights is null and pretrain.epochs is 0"]),
        (GOOD + "  method: uniform\n", ["finetune.objective ekg has no teachers"]),
        (
            GOOD + "  method: uniform\n  racing: 0.05\nfinetune: {objective: plain}\n",
            ["search.racing: unknown key (value 0.05); it belongs to search.method ekg, not to uniform: leave it out"],
        ),
        (
            GOOD + "  evaluation: naive\n  slice_below: 0.5\n",
            ["search.evaluation naive slices nothing: search.slice_below = 0.5 would do nothing"],
        ),
        (GOOD.replace("cifar10", "image_folder"), ["data.root is null"]),
        (GOOD.replace("output: results/test\n", ""), ["output: missing"]),
        ("- 1\n- 2\n", ["expected sections"]),
        ("net: [1\n", ["not valid YAML"]),
    ],
)
def test_every_mistake_is_one_line_with_place_value_and_what_is_allowed(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, text))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    "text",
    [
        "bank: {secret_access_key: hunter2hunter2}\n",
        "bank: {s3: {region: eu, secret_access_key: hunter2hunter2}}\n",
        "bank: {dtype: {password: hunter2hunter2}}\n",
    ],
)
def test_a_credential_in_a_job_is_never_repeated(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, GOOD + text)
    result = CliRunner().invoke(cli, ["validate", str(path)])
    assert isinstance(result.exception, JobError)
    assert "job.yaml:7: " in str(result.exception)
    assert "hunter2" not in str(result.exception)


def test_two_mistakes_are_two_lines(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, GOOD.replace("0.5", "2")), ["seed=-1"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("override", ["search.reduction", "=1", "output.a=1", "seed=[1", "search..step=1"])
def test_a_malformed_setting_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(JobError, match="--set"):
        load_job(write(tmp_path, GOOD), [override])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["search.reduction=2"], "--set search.reduction=2: search.reduction = 2: must be less than 1"),
        (["search={reduction: 0.5}", "search.step=3"], "--set search.step=3: search.step = 3: must be less than 1"),
        (["search={reduction: 0.5, step: 3}"], "--set search={reduction: 0.5, step: 3}: search.step = 3: must be"),
        (["finetune.milestones=0.5"], "--set finetune.milestones=0.5: finetune.milestones = 0.5: must be a list"),
        (
            ["finetune.milestones=[0.1, a]"],
            "--set finetune.milestones=[0.1, a]: finetune.milestones.1 = 'a': must be a",
        ),
        (["nett.name=vgg16"], "--set nett.name=vgg16: nett: unknown key (value {name: 'vgg16'}); did you mean net?"),
        (["net=null"], "--set net=null: net = null: must be a section; write its fields below it, or leave it out"),
        (["output="], "--set output=: output = null: must be text; put it in quotes"),
        (["data.download=yes"], "--set data.download=yes: data.download = 'yes': must be true or false"),
        (["seed=1", "seed=2"], "--set seed=2: sets again what --set seed=1 sets; leave one of them out"),
        (
            ["search.step=0.1", "search={reduction: 0.4}"],
            "--set search={reduction: 0.4}: sets again what --set search.step",
        ),
        (["seed={a: 1, a: 2}"], "--set seed={a: 1, a: 2}: a is given twice, first in line 1; leave one of them out"),
        ([f"{'a.' * 16}b=1"], f"--set {'a.' * 16}b=1: expected path=value"),
        (
            ["bank.secret_key={a: hunter2hunter2}"],
            "--set bank.secret_key: unknown key bank.secret_key, which looks like",
        ),
        (
            ["bank.secret_key.a=hunter2hunter2"],
            "--set bank.secret_key.a: unknown key bank.secret_key, which looks like",
        ),
    ],
)
def test_a_mistake_in_a_setting_names_the_option(tmp_path: Path, overrides: list[str], told: str) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(JobError) as caught:
        load_job(path, overrides)
    assert str(caught.value).startswith(told)
    assert len(str(caught.value).splitlines()) == 1
    assert "hunter2" not in str(caught.value)


def test_settings_refine_each_other_and_mistakes_of_the_file_keep_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    job = load_job(
        path, ["search={reduction: 0.4}", "search.step=0.1", f"bank.uri={tmp_path}/1e-3", "output=2026-01-31"]
    )
    assert (job.search.reduction, job.search.step, job.output) == (0.4, 0.1, str(Path.cwd() / "2026-01-31"))
    path.write_text(GOOD + "bank: 5\n  \nwarmup: {epochs: 010}\nfinetune:\n")
    with pytest.raises(JobError) as caught:
        load_job(path, ["seed=3"])
    assert [line.removeprefix(f"{path}:")[:40] for line in str(caught.value).splitlines()] == [
        "9: warmup.epochs = '010': must be a whol",
        "7: bank = 5: must be a section; write it",
        "10: finetune = null: must be a section; ",
    ]
    with pytest.raises(JobError, match=r"--set bank.uri=a: bank is a value, not a section"):
        load_job(path, ["bank.uri=a"])


def test_a_missing_file_and_a_missing_variable_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match=r"nothing\.yaml: the job file cannot be read"):
        load_job(tmp_path / "nothing.yaml")
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    with pytest.raises(JobError, match="NO_SUCH_VARIABLE is not set"):
        expand_path("$NO_SUCH_VARIABLE/weights", "net.weights")


def test_the_number_of_workers_counts_where_each_has_its_own_batch_statistics(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    shared, own = ("finetune.synchronised_norm=true",), ()
    hashes = [[load_job(path, [*norm, f"finetune.workers={n}"]).sha256 for n in (1, 2)] for norm in (shared, own)]
    assert hashes[0][0] == hashes[0][1]
    assert hashes[1][0] != hashes[1][1]


def test_the_hash_ignores_where_a_run_happens_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    base = load_job(path).sha256
    for same in (
        "output=elsewhere",
        "cluster.search_workers=2",
        "bank.uri=/tmp/bank",
        "finetune.checkpoint_every_steps=5",
    ):
        assert load_job(path, [same]).sha256 == base, same
    for other in ("seed=2", "search.step=0.1", "bank.teachers=3", "finetune.epochs=2", "data.train_images=5000"):
        assert load_job(path, [other]).sha256 != base, other


def test_the_address_of_the_job_comes_before_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, GOOD)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert load_job(path).cluster.session_address is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert load_job(path).cluster.session_address == "10.0.0.1:6379"
    assert load_job(path, ["cluster.address=10.0.0.2:6379"]).cluster.session_address == "10.0.0.2:6379"


def test_the_schema_documents_every_field() -> None:
    schema = job_schema()
    assert schema["properties"].keys() == {*Job.model_fields, "tune"}
    for definition in schema["$defs"].values():
        for name, field in definition["properties"].items():
            assert "description" in field, name


def test_reference_stands_for_all_quirks_and_their_counter(tmp_path: Path) -> None:
    text = GOOD + "  quirks: reference\n"
    job = load_job(write(tmp_path, text))
    assert job.search.quirks == QUIRKS
    assert job.search.counter == "ekg"
    assert job.net.padding is None  # it depends on the weights; see the tests of the setup
    assert load_job(write(tmp_path, fields_text(job))) == job
    assert load_job(write(tmp_path, text), ["net.padding=tf_same"]).search.quirks == QUIRKS
    assert load_job(write(tmp_path, text), ["net.padding=null"]).net.padding is None
    with pytest.raises(JobError, match=r"net.padding = torch, but search.quirks reference pads as tf_same"):
        load_job(write(tmp_path, text), ["net.padding=torch"])
    for faster in ("precision=bf16", "compile=true", "channels_last=true"):
        with pytest.raises(JobError, match=r"rounds otherwise than the quirk sequential_statistics"):
            load_job(write(tmp_path, text), [f"search.{faster}"])
        with pytest.raises(JobError, match=r"search.evaluation naive is the plain network"):
            load_job(write(tmp_path, GOOD), [f"search.{faster}", "search.evaluation=naive"])
    with pytest.raises(JobError, match=r"search\.counter = macs, but search\.quirks reference counts with `ekg`"):
        load_job(write(tmp_path, text), ["search.counter=macs"])


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_shipped_job_is_valid_and_says_which_command_starts_it(path: Path) -> None:
    checked = CliRunner().invoke(cli, ["validate", str(path)])
    assert checked.exit_code == 0, checked.exception
    command = (
        "tune"
        if "tune" in load_fields(path).values
        else path.stem.split("_")[0]
        if path.stem.startswith(("bench_", "study_", "tune_"))
        else "run"
    )
    assert checked.output == f"{path}: valid; start it with: ekgsearch {command} {path}\n"
    if command != "run":
        with pytest.raises(JobError, match=f"is for another command: ekgsearch {command}"):
            load_job(path)
