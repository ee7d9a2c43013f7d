"""Credentials are taken out of texts; ordinary texts stay as they are."""

import pytest

from ekgsearch.storage.secrets import redact

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
