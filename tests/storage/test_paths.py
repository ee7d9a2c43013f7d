"""Names that would lead out of their folder are refused."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ekgsearch.errors import StorageError
from ekgsearch.storage.paths import inside

PARTS = st.sampled_from(
    [
        "..",
        ".",
        "",
        "a",
        "out",
        "next",
        "loop",
        "\0",
        "~",
        "C:",
        "\\",
        "\\..",
        "..\\",
        "...",
        "..a",
        "%2e%2e",
        "\ud800",
        "\n",
        "é",
    ]
)
NAMES = st.one_of(
    st.lists(PARTS, max_size=6).map("/".join), st.lists(PARTS, max_size=4).map("\\".join), st.text(max_size=12)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside a canary, with a link that leads out and one that leads to itself."""
    top = tmp_path_factory.mktemp("names")
    (top / "canary").write_text("untouched")
    root = top / "root"
    (root / "a").mkdir(parents=True)
    (root / "out").symlink_to(top)
    (top / "root2").mkdir()
    (root / "next").symlink_to(top / "root2")
    (root / "loop").symlink_to(root / "loop")
    (root / "within").symlink_to(root / "a")
    return root


def check_stays_inside(root: Path, name: str) -> None:
    try:
        path = inside(root, name)
    except StorageError:
        return
    real = os.path.realpath(path)
    assert real == str(root) or real.startswith(f"{root}{os.sep}")
    assert ".." not in path.relative_to(root).parts
    assert (root.parent / "canary").read_text() == "untouched"


@given(name=NAMES)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_leads_out_of_its_root(root: Path, name: str) -> None:
    check_stays_inside(root, name)


@pytest.mark.slow
@given(name=NAMES)
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_none_of_ten_thousand_names_leads_out_of_its_root(root: Path, name: str) -> None:
    check_stays_inside(root, name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "names no file"),
        (".", "names no file"),
        ("/etc/passwd", "absolute"),
        ("C:\\Windows", "absolute"),
        ("\\\\host\\share", "absolute"),
        ("\\Windows", "absolute"),
        ("a/../../canary", r"\.\."),
        ("..\\canary", r"\.\."),
        ("a\0b", "NUL"),
        ("\ud800", "Unicode"),
        ("out/canary", "link that leads out"),
        ("next/canary", "link that leads out"),
    ],
)
def test_a_refused_name_is_told_why(root: Path, name: str, reason: str) -> None:
    with pytest.raises(StorageError, match=reason):
        inside(root, name)


def test_ordinary_names_and_links_within_the_root_are_taken(root: Path) -> None:
    assert inside(root, "a/b/c.json") == root / "a" / "b" / "c.json"
    assert inside(root, "within/x") == root / "within" / "x"
    assert inside(root, "..a") == root / "..a"
    assert inside(root / "not there", "x") == root / "not there" / "x"
