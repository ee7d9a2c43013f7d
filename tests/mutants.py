"""Check that the tests notice small errors: make one change at a time in a copy of the code, and run its tests.

Run by hand, never by pytest. The changes ("mutants") are written down in ``tests/mutants/ROOM.toml``:

    tests = ["tests/storage"]                   # of the whole file; arguments of pytest

    [[mutant]]
    file = "storage/journal.py"                 # below ekgsearch/
    why = "the link to the line before is not compared"
    old = ' or line["prev"] != previous'        # must be found exactly once
    new = ""
    tests = ["tests/storage/test_journal.py"]   # of this mutant alone; optional

A mutant is killed where a test fails, and survives where all pass: then a test is missing, or the code has a part that
nothing needs. A change that no test could notice does not belong in a table.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = Path(__file__).with_suffix("")
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")
PASSED, FAILED, STOPPED = 0, 1, 2
"""Exit statuses of pytest; it stops where a test file cannot be imported."""

EXAMPLES = """
examples:
  python tests/mutants.py                        all mutants of all tables
  python tests/mutants.py storage runtime        those of two rooms
  python tests/mutants.py storage/journal        those of one module
  python tests/mutants.py storage/journal --tests tests/storage/test_journal.py
                                                 those of one module, against these tests only
  python tests/mutants.py maths --list           say what there is, and whether the table fits the code

exit status: 0 all killed, 1 one survives, 2 a table does not fit the code or the tests fail as they are
"""


@dataclass(frozen=True)
class Mutant:
    """One change of one file, and the tests that should notice it."""

    file: str
    why: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def room(self) -> str:
        """First folder of the file below ekgsearch/, or the module."""
        return self.file.partition("/")[0].removesuffix(".py")

    def applied(self, text: str) -> str:
        """Text of the file with the change.

        Raises:
            SystemExit: the old text is not there exactly once, or the result is no Python.
        """
        place = f"{self.file} ({self.why})"
        if text.count(self.old) != 1:
            _stop(f"{place}: expected the old text exactly once, found it {text.count(self.old)} times: {self.old!r}")
        changed = text.replace(self.old, self.new)
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            _stop(f"{place}: expected Python after the change, found {error}")
        return changed


def _stop(message: str) -> None:
    """End with status 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def read_tables(chosen: Sequence[str], tests: Sequence[str]) -> list[Mutant]:
    """Read the mutants whose file begins with a chosen name.

    Args:
        chosen: rooms or modules such as ``storage`` or ``storage/journal``; all if empty.
        tests: run these instead of those in the tables; those in the tables if empty.
    """
    mutants = []
    for path in sorted(TABLES.glob("*.toml")):
        try:
            table = tomllib.loads(path.read_text())
            common = table.pop("tests", [])
            entries = table.pop("mutant", [])
            found = [Mutant(**{"tests": common, **entry}) for entry in entries]
        except (tomllib.TOMLDecodeError, TypeError) as error:
            _stop(f"{path}: {error}; expected `tests`, and [[mutant]] with file, why, old and new")
        if table or not all(mutant.tests for mutant in found):
            _stop(f"{path}: expected `tests` for every mutant, and nothing else but [[mutant]]")
        mutants += found
    names = [name.rstrip("/").removesuffix(".py") for name in chosen]
    for name in names:
        if not any(_is_part_of(mutant, name) for mutant in mutants):
            _stop(f"no mutants of {name!r}; the tables have {sorted({mutant.file for mutant in mutants})}")
    wanted = [mutant for mutant in mutants if not names or any(_is_part_of(mutant, name) for name in names)]
    return [Mutant(one.file, one.why, one.old, one.new, tuple(tests or one.tests)) for one in wanted]


def _is_part_of(mutant: Mutant, name: str) -> bool:
    return f"{mutant.file.removesuffix('.py')}/".startswith(f"{name}/")


def run_tests(folder: Path, tests: Sequence[str], timeout: float) -> tuple[int, str]:
    """Run tests in a copy of the tree until one fails.

    Returns:
        `PASSED`, `FAILED` or `STOPPED`, and the first test that failed or what else ended the run.

    Raises:
        SystemExit: pytest found no tests.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return FAILED, f"no end within {timeout:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what the tests have left behind
        process.wait()
    if process.returncode < 0:
        return FAILED, f"killed by signal {-process.returncode}"
    if process.returncode not in (PASSED, FAILED, STOPPED):
        _stop(f"pytest ended with status {process.returncode}:\n{output[-3000:]}")
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return process.returncode, first[1] if first else output[-3000:]


def check_sound(folder: Path, mutants: Sequence[Mutant], timeout: float) -> None:
    """Run all tests once on the code as it is.

    Raises:
        SystemExit: one fails, so that every mutant would seem to be killed.
    """
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    print(f"the code as it is: {' '.join(tests)}", flush=True)
    status, first = run_tests(folder, tests, timeout * len(tests))
    if status != PASSED:
        _stop(f"expected the tests to pass without a change, found: {first}")


def try_out(folder: Path, mutant: Mutant, timeout: float) -> bool:
    """Whether the tests kill a mutant; the file is as before afterwards."""
    path = folder / "ekgsearch" / mutant.file
    text, start = path.read_text(), time.monotonic()
    path.write_text(mutant.applied(text))
    try:
        status, first = run_tests(folder, mutant.tests, timeout)
    finally:
        path.write_text(text)
    seconds = f"{time.monotonic() - start:4.0f} s"
    if status == PASSED:
        print(f"SURVIVED {seconds}  {mutant.file}: {mutant.why}", flush=True)
    else:
        print(f"killed   {seconds}  {mutant.file}: {mutant.why}  [{first}]", flush=True)
    return status != PASSED


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="ROOM", help="room or module, as storage or storage/journal")
    parser.add_argument("--tests", nargs="+", default=[], help="run these instead of those in the tables")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one mutant (default 300)")
    parser.add_argument("--list", action="store_true", help="check that the tables fit the code, and run nothing")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests on the code as it is first")
    return parser.parse_args()


def main() -> int:
    """Try out mutants; the exit status."""
    asked = arguments()
    mutants = read_tables(asked.names, asked.tests)
    for mutant in mutants:
        mutant.applied((ROOT / "ekgsearch" / mutant.file).read_text())
        if asked.list:
            print(f"{mutant.file}: {mutant.why}")
    if asked.list:
        return 0
    killed: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as base:
        folder = Path(base) / "tree"
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
        if not asked.unchecked:
            check_sound(folder, mutants, asked.timeout)
        for mutant in mutants:
            killed.setdefault(mutant.room, []).append(try_out(folder, mutant, asked.timeout))
    for room, outcomes in killed.items():
        print(f"{room}: {sum(outcomes)} of {len(outcomes)} killed ({sum(outcomes) / len(outcomes):.0%})")
    return 0 if all(all(outcomes) for outcomes in killed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
