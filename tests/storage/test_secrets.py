"""Credentials are taken out of texts; ordinary texts stay as they are."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import JOB, command, environment

from ekgsearch import __main__ as program
from ekgsearch.errors import StorageError
from ekgsearch.storage.secrets import credentials_in, redact

CANARY = "c4n4ry-S3cret/Value+0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"aws_secret_access_key = {CANARY}",
        f'{{"password": "{CANARY} with a space"}}',
        f"api_key='{CANARY}'",
        f"Authorization: Bearer {CANARY}",
        f"RAY_AUTH_TOKEN={CANARY}",
        f"s3://user:{CANARY}@host/path".replace("/Value", "Value"),
        f"https://host/x?X-Amz-Signature={CANARY}&X-Amz-Date=1",
        f"https://host/x?secret_key={CANARY}&scheme=http",
        f"the password: {CANARY}",
        f"password:\n  {CANARY}",
        f"it has a token: the{CANARY}",
        f"BEARER {CANARY}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_credentials_are_taken_out(text: str) -> None:
    cleaned = redact(text)
    assert CANARY not in cleaned
    assert "S3cret" not in cleaned
    assert "with a space" not in cleaned
    assert "[redacted]" in cleaned


def test_cloud_keys_are_known_by_their_form() -> None:
    assert redact("key AKIAIOSFODNN7EXAMPLE used") == "key [redacted] used"
    assert redact("Authorization: Bearer abcdefghijk") == "Authorization: Bearer [redacted]"
    assert redact(f"hf_{'a' * 30} and ghp_{'b' * 36}") == "[redacted] and [redacted]"


def test_values_of_telling_environment_variables_are_taken_out_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", CANARY + CANARY)
    monkeypatch.setenv("SOME_TOKEN_FILE", str(tmp_path))
    assert redact(f"server said <{CANARY}{CANARY}> and <{CANARY}>") == "server said <[redacted]> and <[redacted]>"
    assert redact(f"reads {tmp_path}") == f"reads {tmp_path}"


def test_redacting_twice_changes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    once = redact(f"secret_key={CANARY} s3://a:b@c password: x")
    assert redact(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "search  12/30 iterations  loss 0.31  ETA 1:02",
        "s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000&region=us-east-1",
        "conda file:///tmp/results/run-1/tables/candidates.parquet at 12:30:05",
        "channel group layer3.0.conv1 keeps 12 of 64",
    ],
)
def test_ordinary_lines_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("value", ["hunter", "hunter for bob", "theodore", "correct horse", "so-long", "it.s"])
def test_a_password_of_plain_letters_goes_also_in_a_sentence(value: str) -> None:
    assert value.split()[0] not in redact(f"the server refused the password: {value}")


@pytest.mark.parametrize(
    "text",
    [
        "check that this machine has its token: the same ~/.ray/auth_token",
        "The token: It is kept on every node.",
        "the password: leave it out; credentials: none are needed",
        "Credentials: see README.md",
        "signature: a function of two arguments",
        "the bearer certificate, long-lived bearer credentials. Both",
        "tokenizer: bert, secretary: John",
        "a job holds no password:\nset it elsewhere",
    ],
)
def test_sentences_about_secrets_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def prose(root: Path) -> Iterator[str]:
    """Every text that the project shows: its documents, docstrings, messages."""
    for path in (*root.glob("*.md"), *root.glob("*/README.md"), *root.glob("jobs/*.yaml")):
        yield path.read_text()
    for path in (root / "ekgsearch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "12" for part in node.values)


def test_no_text_of_the_project_is_taken_for_a_secret() -> None:
    texts = list(prose(Path(__file__).parents[2]))
    assert len(texts) > 1000
    assert [text for text in texts if redact(text) != text] == []


@pytest.mark.parametrize(
    "address",
    [
        f"s3://AKIAIOSFODNN7EXAMPLE:{CANARY}@bucket/prefix",
        "s3://AKIAIOSFODNN7EXAMPLE:c4n4ry-S3cret@bucket/prefix",
        "gs://c4n4ry-S3cret@bucket/prefix",
        "s3://bucket/prefix?secret_key=c4n4ry-S3cret",
        "s3://bucket/prefix?secret_key=&region=us-east-1",
        "s3://bucket/prefix?endpoint_override=http://user:c4n4ry-S3cret@host:9000",
        "s3://bucket/prefix?endpoint_override=http%3A%2F%2Fuser%3Ac4n4ry-S3cret%40host%3A9000",
    ],
)
def test_addresses_with_credentials_are_refused_without_repeating_them(address: str) -> None:
    reason = credentials_in(address)
    assert "holds credentials" in reason
    for part in ("S3cret", "Value", "AKIA"):
        assert part not in reason


@pytest.mark.parametrize(
    "address",
    [
        "/data/user@host/bank",
        "$HOME/bank",
        "file:///data/bank",
        "s3://bucket/user@host/bank?endpoint_override=http://127.0.0.1:9000&region=us-east-1",
        "hdfs://host:8020/bank",
    ],
)
def test_addresses_without_credentials_are_taken(address: str) -> None:
    assert credentials_in(address) == ""


@pytest.mark.parametrize(
    ("uri", "is_in_file"),
    [(f"s3://{CANARY}:{CANARY}@bucket/p", True), (f"s3://bucket/p?secret_key={CANARY}", False)],
)
def test_a_job_with_credentials_is_refused_before_anything_is_written(
    tmp_path: Path, uri: str, is_in_file: bool
) -> None:
    job = JOB.format(output=tmp_path / "run")
    path = tmp_path / "job.yaml"
    path.write_text(job.replace("bank: {", f'bank: {{uri: "{uri}", ') if is_in_file else job)
    settings = [] if is_in_file else ["--set", f"bank.uri={uri}"]
    done = subprocess.run(command("run", path, *settings), env=environment(), capture_output=True, text=True)
    assert done.returncode == program.EXIT_ERROR
    assert "bank.uri: the address of the store (s3://...) holds credentials" in done.stderr
    assert "S3cret" not in done.stdout + done.stderr
    assert list(tmp_path.rglob("*")) == [path]


def test_what_ends_a_command_is_shown_without_credentials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise StorageError(f"cannot open s3://user:S3cret@host/path: secret_key={CANARY}")

    monkeypatch.setattr(program, "cli", fail)
    with pytest.raises(SystemExit):
        program.main()
    assert capsys.readouterr().err == "error: cannot open s3://[redacted]@host/path: secret_key=[redacted]\n"
