"""Entry point of the command line, also as ``python -m ekgsearch``: how errors reach the person who waits."""

import sys

import click

from ekgsearch.cli import cli
from ekgsearch.errors import OUT_OF_MEMORY, EkgError, is_out_of_memory
from ekgsearch.storage.secrets import redact

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run a command; errors become one message and an exit status, never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as exit_request:
        sys.exit(exit_request.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; what was finished is kept, the same command continues", EXIT_INTERRUPTED)
    except EkgError as error:
        _fail(f"error: {error}", EXIT_ERROR)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail(f"error: {OUT_OF_MEMORY} ({str(error).strip().splitlines()[0][:200]})", EXIT_ERROR)


def _fail(message: str, status: int) -> None:
    click.echo(redact(message), err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
