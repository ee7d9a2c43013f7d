import os
from pathlib import Path

from ekgsearch.data.cache import source_key


def test_what_is_remembered_of_files_goes_by_their_place_size_and_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    keys = [source_key("some", [first])]
    for path, text, time in ((first, "1", 5), (first, "2", 6), (first, "33", 6), (second, "33", 6)):
        path.write_text(text)
        os.utime(path, ns=(0, time))
        keys.append(source_key("some", [path]))
    assert len(set(keys)) == 5
    assert source_key("some", [second]) == keys[-1] != source_key("other", [second])
