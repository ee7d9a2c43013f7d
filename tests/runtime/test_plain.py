"""Names from outside reach a terminal or a log in printable characters, and forge no line of it."""

import io
import logging
import sys
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

from ekgsearch.runtime.plain import plain_line, plain_text
from ekgsearch.runtime.progress import Progress, configure_logging

HOSTILE = "a\x1b[31mred\rerror: forged\nline\u202egpj.exe\u2028\x9b2J\x07\udcff\u200b.png"
ESCAPED = r"a\x1b[31mred\rerror: forged\nline\u202egpj.exe\u2028\x9b2J\x07\udcff\u200b.png"


def test_what_does_not_print_is_escaped() -> None:
    assert plain_line(HOSTILE) == ESCAPED
    assert plain_text(HOSTILE) == ESCAPED.replace(r"\n", "\n")
    assert plain_line("naïve – 45 % × 日本語 👍") == "naïve – 45 % × 日本語 👍"
    assert plain_text("a\tb\n") == "a\tb\n"


def test_addresses_of_objects_are_left_out() -> None:
    with pytest.raises(UnidentifiedImageError) as failed:
        Image.open(io.BytesIO(b"no image"))
    assert " at 0x" in str(failed.value)
    assert plain_line(str(failed.value)) == "cannot identify image file <_io.BytesIO>"
    method = plain_line(repr(io.BytesIO().read) + repr(plain_line) + repr(logging.getLogger("x").info))
    assert "0x" not in method
    assert plain_line("looks at 0x10 bytes") == "looks at 0x10 bytes"


@pytest.mark.usefixtures("_logging_as_before")
def test_log_and_progress_escape_names_and_indent_tracebacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(tmp_path)
    log = logging.getLogger("ekgsearch.x")
    log.warning("cannot read %s: %s", HOSTILE, object())
    try:
        raise ValueError(f"{HOSTILE}\n2026-01-01 ERROR forged")
    except ValueError:
        log.exception("failed")
    with Progress("search", 1, "steps", log) as progress:
        progress.advance(group=HOSTILE)
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert f"cannot read {ESCAPED}: <object>\n" in text
        assert f"group {ESCAPED}\n" in text
        assert "\n  2026-01-01 ERROR forged" in text
        assert "\n  Traceback" in text
        assert not {"\x1b", "\r", "\u202e", "\x9b"} & set(text)


@pytest.mark.usefixtures("_logging_as_before")
def test_the_bar_of_a_terminal_escapes_names(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging(None)
    with Progress("search", 2, "steps", logging.getLogger("ekgsearch.x")) as progress:
        progress._last_draw = -1.0
        progress.advance(group=HOSTILE)
        assert "█" in terminal.getvalue()
        assert ESCAPED in terminal.getvalue()
        assert HOSTILE not in terminal.getvalue()
