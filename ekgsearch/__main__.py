"""Entry point of the command line, also as ``python -m ekgsearch``: how errors reach the person who waits."""

import io
import sys
import traceback
from typing import Any

import click

from ekgsearch.cli import cli
from ekgsearch.errors import OUT_OF_MEMORY, EkgError, Stopped, is_out_of_memory
from ekgsearch.runtime.ledger import INTERRUPTED_EXIT_CODE
from ekgsearch.runtime.plain import plain_line, plain_text

EXIT_DEFECT = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run a command; errors become one message and an exit status, a traceback only where the program is at fault."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding lacks some signs
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)  # click repeats arguments as they were given
        click.echo(plain_text(shown.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; what was finished is kept, the same command continues", status=EXIT_INTERRUPTED)
    except Stopped as error:
        _fail(str(error), status=INTERRUPTED_EXIT_CODE)
    except EkgError as error:
        first, *others = error.args or (type(error).__name__,)
        _fail(f"error: {first}", *others, status=EXIT_ERROR)
    except Exception as error:
        if not is_out_of_memory(error):
            click.echo(plain_text(traceback.format_exc().rstrip()), err=True)
            sys.exit(EXIT_DEFECT)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]  # a MemoryError often has no text
        _fail(f"error: {OUT_OF_MEMORY} ({reason[:200]})", status=EXIT_ERROR)


def _fail(*lines: Any, status: int) -> None:
    """Print each of these as one line, and end."""
    for line in lines:
        click.echo(plain_line(str(line).rstrip()), err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
