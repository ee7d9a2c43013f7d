"""Reading the pickled batches in which CIFAR is published, without letting them call anything."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ekgsearch.errors import DataError


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which Python 3 writes bytes into old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not admitted")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that knows numpy arrays and plain Python values, and refuses every other name."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Look up a name that a pickle asks for."""
        try:
            return _ADMITTED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, and only numpy arrays are admitted"
            ) from None


def read_arrays(path: Path) -> Any:
    """Read a pickle of numpy arrays and plain Python values; byte strings of Python 2 become text.

    Raises:
        DataError: the file is missing, damaged, or asks for anything else.
    """
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; fetch the data set again") from None
    # A damaged pickle can make the unpickler raise nearly anything; all of it means the same here.
    except Exception as error:
        raise DataError(f"{path} cannot be read as a batch of images: {error}; fetch the data set again") from error
