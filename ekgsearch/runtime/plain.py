"""Text as it may reach a terminal or a log: without credentials, object addresses and control characters."""

import re

from ekgsearch.storage.secrets import redact

_ADDRESS = re.compile(r"(?: object)? at 0x[0-9A-Fa-f]+(?=>)")


def plain_line(text: str) -> str:
    """Make one line of a text that may hold names from outside, such as those of files, layers and data sets.

    Credentials are hidden, addresses of objects left out (``<Image at 0x7f00>`` becomes ``<Image>``), and every
    character that does not print is escaped as Python does it: line feeds and carriage returns, terminal sequences,
    marks that turn the direction of writing, bytes of a file name that are no UTF-8.

    Args:
        text: any text.

    Returns:
        The text in one line of printable characters.
    """
    return "".join(map(_escaped, _ADDRESS.sub("", redact(text))))


def plain_text(text: str) -> str:
    """Do as `plain_line` with a text of several lines, such as a table; line feeds and tabs stay."""
    return "".join(
        character if character in "\n\t" else _escaped(character) for character in _ADDRESS.sub("", redact(text))
    )


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
