"""One of several processes that open the same pictures at once; run as a script by test_folder.py.

It notes every picture that it verifies, and goes on with the first one only when another process says that it waits.
"""

import logging
import sys
import time
from pathlib import Path

from ekgsearch.data import index


def main(folder: Path, notes: Path) -> None:
    check = index._check_file

    def noted(path: Path) -> index.Check:
        with (notes / "verified").open("a", encoding="utf-8") as file:
            file.write(f"{path.name}\n")
        deadline = time.monotonic() + 60
        while not (notes / "waiting").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return check(path)

    def note_waiting(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("waiting"):
            (notes / "waiting").write_text(record.getMessage())
        return True

    logging.basicConfig(level=logging.INFO)
    logging.getLogger("ekgsearch.data.cache").addFilter(note_waiting)
    index._check_file = noted
    print(len(index.index_images(folder, num_threads=1).images))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
