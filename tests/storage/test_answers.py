"""What is repeated and what is not, by the answers of stores."""

import errno

import pytest

from ekgsearch.storage.answers import is_lasting


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("HTTP status 400"), True),
        (OSError("HTTP status 404"), True),
        (OSError("HTTP status 405"), True),
        (OSError("HTTP status 412"), True),
        (OSError("HTTP status 408"), False),
        (OSError("HTTP status 429"), False),
        (OSError("HTTP status 500"), False),
        (OSError("HTTP status 503"), False),
        (OSError("AWS Error SLOW_DOWN"), False),
        (OSError(errno.ENOSPC, "no space"), True),
        (OSError(errno.EIO, "input/output error"), False),
        (PermissionError(), True),
        (TimeoutError(), False),
    ],
)
def test_only_what_would_fail_the_same_way_again_is_lasting(error: Exception, expected: bool) -> None:
    assert is_lasting(error) == expected
