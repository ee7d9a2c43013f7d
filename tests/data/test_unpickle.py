"""The pickled batches in which CIFAR is published may hold arrays and plain values, and call nothing."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ekgsearch.data.unpickle import read_arrays
from ekgsearch.errors import DataError


class _Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "protocol"),
    [("eval", 0), ("exec", 1), ("open", 2), ("getattr", 3), ("__import__", 4), ("eval", 5)],
)
def test_a_pickle_that_calls_something_is_refused_and_nothing_is_called(
    tmp_path: Path, function: str, protocol: int
) -> None:
    canary = tmp_path / "canary"
    argument = f"open({str(canary)!r}, 'w')" if function in ("eval", "exec") else str(canary)
    arguments = (argument, "w") if function == "open" else (argument,)
    builtin = __builtins__[function] if isinstance(__builtins__, dict) else getattr(__builtins__, function)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": _Calls(builtin, *arguments)}, protocol=protocol))
    with pytest.raises(DataError, match=f"{function}, and only numpy arrays are admitted"):
        read_arrays(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x02}q\x00", b"not a pickle", b"cos\nsystem\n(S'true'\ntR.", b"c_codecs\nencode\n(Va\nVutf8\ntR."],
)
def test_a_damaged_pickle_is_a_data_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "batch"
    path.write_bytes(data)
    with pytest.raises(DataError, match="fetch the data set again"):
        read_arrays(path)
