"""A sealed file comes back as it was, or not at all."""

from pathlib import Path

import pytest

from ekgsearch.errors import StorageError
from ekgsearch.storage.sealed import read_sealed, sealed

VALUE = {"full_batch1_ms": 12.25, "blocks": [1, 2], "none": None}


def test_a_value_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(sealed(VALUE))
    assert read_sealed(tmp_path / "a.json") == VALUE


def test_every_truncation_and_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.json", sealed(VALUE)
    mutations = [whole[:size] for size in range(len(whole))]
    mutations += [
        whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
        for place in range(len(whole))
        for bit in range(8)
    ]
    for mutation in mutations:
        path.write_bytes(mutation)
        with pytest.raises(StorageError, match=r"a\.json is damaged"):
            read_sealed(path)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"3", b"null", b'{"full_batch1_ms": 12.25}'])
def test_another_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"a\.json is damaged: expected a JSON value with its checksum"):
        read_sealed(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.json does not exist"):
        read_sealed(tmp_path / "a.json")
