"""Row of the index of an image folder."""

from dataclasses import dataclass

from ekgsearch.rows.column import column


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One file of an image folder as it was when its folder was verified."""

    folder: str = column("folder of the training or the test split")
    path: str = column("path inside this folder: class folder and file")
    sha256: str = column("checksum of the file; empty where it is no usable picture")
    height: int = column("height of the upright picture, pixels; 0 where it is no usable picture")
    width: int = column("width of the upright picture, pixels; 0 where it is no usable picture")
    plain: bool = column("true where every decoder makes the same of it")
    reason: str = column("why the file is no usable picture and is left out; empty for a sound one")
