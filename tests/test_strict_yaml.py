"""YAML: what is written is what is meant, the rest is refused with its line, and nothing costs a second or 500 MB."""

import resource
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ekgsearch.cli import cli
from ekgsearch.errors import JobError
from ekgsearch.jobfile import load_job
from ekgsearch.strict_yaml import MOST_BYTES, MOST_LEVELS, MOST_NODES, StrictYamlError, read_yaml, write_yaml

JOB = """\
output: results/test
seed: 1
net: {name: resnet20, weights: null}
data:
  name: cifar10
  download: true
search:
  reduction: 0.5
  quirks: [rounded_rates]
finetune: {objective: ekg, learning_rate: 5e-4, milestones: [0.3, 0.6], flip: false}
cluster: {address: "10.0.0.1:6379"}
"""


# fmt: off
PLAIN = [
    "yes", "No", "on", "OFF", "y", "010", "0o10", "0x1F", "0b1", "1_000", "1:30", "1:30.5", "2026-01-31", "00", "1e",
    "-.5.0", ".nan2", "tRUE", "<<", "=",
]
FIELD_NAMES = [
    "output", "seed", "search_run", "net", "net.name", "net.weights", "data.name", "data.image_size", "search.quirks",
    "search.budget", "search.trim", "bank.uri", "bank.dtype", "finetune.milestones", "finetune.seed", "cluster.address",
    "cluster.timeout_seconds", "bench", "study", "a.b",
]
# fmt: on
"""Text without quotes that some version of YAML takes for something else; fields that may break when read."""


def test_scalars_are_what_they_look_like() -> None:
    for text, value in {
        "1": 1,
        "-0": 0,
        "+7": 7,
        "0.5": 0.5,
        ".5": 0.5,
        "5.": 5.0,
        "1e-3": 0.001,
        "5.0E+2": 500.0,
        "-.inf": -float("inf"),
        "true": True,
        "False": False,
        "TRUE": True,
        "null": None,
        "~": None,
        "": None,
        "'5'": "5",
        '"true"': "true",
        "[1, [a, 2.0]]": (1, ("a", 2.0)),
        "{a: {b: c}}": {"a": {"b": "c"}},
        "&a 5": 5,
    }.items():
        found = read_yaml(text).value
        assert (found, type(found)) == (value, type(value)), text
    for text in PLAIN:
        assert read_yaml(text).value == text


def test_what_is_written_is_read_back_by_either_version_of_yaml() -> None:
    texts = [*PLAIN, "", "~", "null", "true", "1", "1e-3", ".5", "-", "#", "é: ü", "a\nb"]
    value = {"texts": texts, "numbers": [1, 0.5, 5e-05, 1e22, True, None], "below": {"yes": 1}}
    text = write_yaml(value)
    assert yaml.safe_load(text) == value
    assert write_yaml(yaml.safe_load(text)) == text
    assert read_yaml(text).value == {**value, "texts": tuple(texts), "numbers": tuple(value["numbers"])}


BILLION = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))


def nested(levels: int) -> str:
    """A mapping in so many levels, the innermost value counted."""
    return "{a: " * (levels - 1) + "1" + "}" * (levels - 1)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("net: {}\nseed: 1\nnet: {}\n", 3, "net is given twice, first in line 1"),
        ("net:\n  b: 1\n  name: a\n  'name': b\n", 4, "name is given twice, first in line 3"),
        ("a:\n  - {b: 1, c: 2, b: 3}\n", 2, "b is given twice, first in line 2"),
        ("a: 1\n<<: {b: 2}\n", 2, "merge key"),
        ("a: 1\n2: 3\n", 2, "name of a field"),
        ("a: 1\n? [b]\n: 3\n", 2, "name of a field"),
        ("a: 1\ntrue: 3\n", 2, "name of a field"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "a tag"),
        ("a: !!int '5'\n", 1, "a tag"),
        ("a: ! b\n", 1, "a tag"),
        ("a: 1\n--- \nb: 1\n", 2, "single document"),
        ("a: &a [1, *a]\n", 1, "holds itself"),
        ("a: *b\n", 1, "undefined alias"),
        ("a: 1\nb: [1\nc: 2\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ('a: 1\nb: "\\U00110000"\n', 2, "not valid YAML"),
        ('a: "\\0"\n', 1, "U+0000"),
        ('a: "\\ud800"\n', 1, "U+D800"),
        ("a: 1\nb: \x00\n", 2, "U+0000"),
        (b"a: 1\nb: \xff\n", 2, "byte 0xFF at offset 8"),
        ("a: 1\n".encode("utf-16"), 1, "text in UTF-8"),
        ("a: " + "9" * 65, 1, "at most 64 characters, found 65"),
        (nested(MOST_LEVELS + 1), 1, f"at most {MOST_LEVELS} levels"),
        ("[" * 60_000, 1, f"at most {MOST_LEVELS} levels"),
        ("- " * 30_000, 1, f"at most {MOST_LEVELS} levels"),
        (CHAIN, MOST_LEVELS, f"at most {MOST_LEVELS} levels"),
        (BILLION, None, f"at most {MOST_NODES:,} keys and values, aliases written out"),
        (BILLION.replace("x", "[]"), None, f"at most {MOST_NODES:,} keys and values, aliases written out"),
        (f"a: &a {'x' * 60_000}\nb: [*a, *a]\n", None, f"at most {MOST_BYTES:,} characters, aliases written out"),
        ("[" + "1," * MOST_NODES + "]", 1, f"at most {MOST_NODES:,} keys and values"),
        ("#" * (MOST_BYTES + 1), None, f"at most {MOST_BYTES:,} bytes"),
        ("ä" * (MOST_BYTES // 2 + 1), None, f"at most {MOST_BYTES:,} bytes"),
    ],
)
def test_the_rest_is_refused_with_its_line(text: str | bytes, line: int | None, words: str) -> None:
    start = time.process_time()
    with pytest.raises(StrictYamlError) as refused:
        read_yaml(text)
    assert time.process_time() - start < 1
    assert [mistake.line for mistake in refused.value.mistakes] == [line]
    assert words in refused.value.mistakes[0].text


def test_the_last_size_of_everything_is_read() -> None:
    assert read_yaml("a: " + "9" * 64).value == {"a": int("9" * 64)}
    assert read_yaml(nested(MOST_LEVELS)).value
    assert len(read_yaml("[" + "1," * (MOST_NODES - 1) + "]").value) == MOST_NODES - 1
    assert read_yaml("#" * MOST_BYTES).value is None
    assert read_yaml("\ufeffa: &a [1]\r\nb: [*a, *a]\r\n").value == {"a": (1,), "b": ((1,), (1,))}


def test_every_mistake_of_a_file_is_told_in_its_order() -> None:
    with pytest.raises(StrictYamlError) as refused:
        read_yaml("a: 1\na: 2\n3: x\nb: {c: 1, c: 1}\n")
    assert [mistake.line for mistake in refused.value.mistakes] == [2, 3, 4]


def test_lines_of_fields_are_found_through_sections_and_lists() -> None:
    document = read_yaml("a: 1\nb:\n  c:\n    - 1\n    - d: 2\n")
    found = {location: document.line(location) for location in ((), ("a",), ("b", "c", 1, "d"), ("b", "c", 9), ("x",))}
    assert found == {(): None, ("a",): 1, ("b", "c", 1, "d"): 5, ("b", "c", 9): 3, ("x",): None}


def test_a_huge_file_a_folder_and_no_file_are_refused_at_once(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(100_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, words in ((huge, "at most 65,536 bytes"), (tmp_path, "cannot be read"), (Path("a\0b"), "cannot be read")):
        with pytest.raises(JobError, match=words):
            load_job(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_a_file_of_many_mistakes_is_not_told_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.replace("[0.3, 0.6]", f"[{', '.join('x' * 9000)}]"))
    with pytest.raises(JobError) as refused:
        load_job(path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 51
    assert lines[-1] == f"{path}: and 8950 more"
    assert lines[0].startswith(f"{path}:10: finetune.milestones.0 = 'x': must be a number")


SCALARS = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=12),
    st.sampled_from(
        ["yes", "010", "1:30", "1e-3", ".nan", "digits", "ekg", "reference", "$HOME", "s3://a:b@c/d", "1e999"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | SCALARS, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(FIELD_NAMES)
PIECES = st.sampled_from(
    ["[", "]", "{", "}", ": ", "- ", "? ", "&a ", "*a", "!!", "!", "|", ">", "'", '"', "\n", "#", "%YAML "]
)


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """A job in which pieces are put in, taken out or doubled."""
    text = JOB
    for _ in range(draw(st.integers(1, 6))):
        at, size = draw(st.integers(0, len(text))), draw(st.integers(0, 8))
        put = draw(st.one_of(PIECES, st.text(max_size=4), st.just(text[at : at + 40])))
        text = text[:at] + put + text[at + size :]
    return text.encode(errors="surrogatepass")


def written(value: object) -> bytes:
    return yaml.dump(value, allow_unicode=True).encode(errors="surrogatepass")


def refuse_in_words(folder: Path, data: bytes, override: str | None) -> None:
    """A job is read or refused in words, quickly and in little memory."""
    path = folder / "job.yaml"
    path.write_bytes(data)
    arguments = ["validate", str(path), *(["--set", override] if override is not None else [])]
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    result = CliRunner().invoke(cli, arguments)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # kB
    if result.exit_code and not isinstance(result.exception, JobError):
        raise AssertionError(f"{data!r} {override!r}") from result.exception
    if isinstance(result.exception, JobError):
        message = str(result.exception)
        assert message.isprintable() or message.replace("\n", "").isprintable()
        message.encode()


def fuzz(examples: int, folder: Path) -> None:
    """Read hostile bytes, edited jobs, and jobs with hostile values, in the file and on the command line."""
    (folder / "job.yaml").write_text(JOB)
    assert CliRunner().invoke(cli, ["validate", str(folder / "job.yaml")]).exit_code == 0  # imports take their time

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(
            st.tuples(st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | edited(), st.none()),
            st.tuples(st.dictionaries(FIELDS | st.text(max_size=5), VALUES, max_size=5).map(written), st.none()),
            st.tuples(
                st.just(JOB.encode()), st.tuples(FIELDS, SCALARS | VALUES).map(lambda pair: f"{pair[0]}={pair[1]}")
            ),
            st.tuples(st.just(JOB.encode()), st.text(st.characters(exclude_characters="\0"), max_size=30)),
        )
    )
    def one(given_job: tuple[bytes, str | None]) -> None:
        refuse_in_words(folder, *given_job)

    one()


def test_any_file_and_any_setting_is_read_or_refused_in_words(tmp_path: Path) -> None:
    fuzz(150, tmp_path)


@pytest.mark.slow
def test_many_files_and_settings_are_read_or_refused_in_words(tmp_path: Path) -> None:
    fuzz(8_000, tmp_path)
