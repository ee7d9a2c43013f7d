"""Run a writing scenario again and again, killed (SIGKILL) before, within and after every system call it makes.

Run as a program: ``python kill_points.py SCENARIO FOLDER``. Point n leaves its state in ``FOLDER/n``; the last folder
is that of the run that came to its end. Prints the number of folders.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "close", "replace", "link", "unlink", "ftruncate", "pwrite", "mkdir")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: int) -> None:
    """Make the calls of `os` count, and kill this process at the given count."""
    count = -1

    def reached() -> bool:
        nonlocal count
        count += 1
        return count == point

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if reached():
                _die()
            if name == "write" and reached():
                original(args[0], bytes(args[1])[: len(args[1]) // 2])
                _die()
            result = original(*args, **kwargs)
            if reached():
                _die()
            return result

        return call

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def file_scenario() -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Replace a file."""
    from ekgsearch.storage.files import write_atomically

    return lambda folder: write_atomically(folder / "a", b"old" * 5000), lambda folder: write_atomically(
        folder / "a", b"new" * 5000
    )


def journal_scenario() -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Continue a journal that has one line and a torn second one by two lines."""
    from ekgsearch.storage.journal import Journal

    def append(folder: Path) -> None:
        with Journal.open(folder / "journal.jsonl") as journal:
            for number in range(len(journal.lines), 3):
                journal.append("iteration", number=number, kept=list(range(100)))

    def start(folder: Path) -> None:
        with Journal.open(folder / "journal.jsonl") as journal:
            journal.append("iteration", number=0, kept=list(range(100)))
        with open(folder / "journal.jsonl", "ab") as file:
            file.write(b'{"hash":')

    return start, append


def table_scenario() -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Extend a table by a row."""
    from ekgsearch.rows.search import SubnetworkRow
    from ekgsearch.storage.tables import append_rows

    def add(folder: Path) -> None:
        append_rows(folder / "a.parquet", [SubnetworkRow("r", 1, -1, "g", 2, 1, "[0]")], SubnetworkRow)

    return add, add


def checkpoint_scenario() -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Replace the state of a training."""
    import torch

    from ekgsearch.runtime.checkpoint import save_state

    torch.set_num_threads(1)

    def save(folder: Path, epoch: int) -> None:
        save_state(folder / "checkpoint", {"epoch": epoch, "weights": torch.full((100,), float(epoch))})

    return lambda folder: save(folder, 1), lambda folder: save(folder, 2)


def ledger_scenario() -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Charge a second attempt to a phase."""
    from ekgsearch.records import PhaseKind
    from ekgsearch.runtime.ledger import Ledger

    def attempt(folder: Path) -> None:
        with Ledger(folder / "ledger", "r").attempt(PhaseKind.SEARCH, "cpu", 2) as clock:
            clock.busy(0.0)

    return attempt, attempt


def store_scenario() -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Replace an object and add one in a folder that is not there yet."""
    from ekgsearch.storage.objects import open_store

    def start(folder: Path) -> None:
        open_store(str(folder / "store")).put("a", b"old")

    def put(folder: Path) -> None:
        store = open_store(str(folder / "store"))
        store.put("a", b"new")
        store.put("deep/b", b"new")

    return start, put


SCENARIOS = {
    "file": file_scenario,
    "journal": journal_scenario,
    "table": table_scenario,
    "checkpoint": checkpoint_scenario,
    "ledger": ledger_scenario,
    "store": store_scenario,
}


def main(scenario: str, base: Path) -> None:
    """Run the scenario once for every kill point."""
    prepare, act = SCENARIOS[scenario]()
    point = 0
    while True:
        folder = base / str(point)
        folder.mkdir(parents=True)
        prepare(folder)
        child = os.fork()
        if child == 0:
            arm(point)
            try:
                act(folder)
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        point += 1
        if os.WIFEXITED(status):
            sys.stdout.write(f"{point}\n")
            sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
