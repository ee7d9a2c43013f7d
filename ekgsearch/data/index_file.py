"""The indexes of verified pictures as a file: what is known of them, whatever becomes of their folders later."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from ekgsearch.data.index import BadFile, ImageIndex, IndexedImage
from ekgsearch.errors import StorageError
from ekgsearch.rows.pictures import PictureRow
from ekgsearch.storage.tables import read_arrow, schema, write_table


def save_indexes(path: Path, indexes: Iterable[ImageIndex]) -> None:
    """Write the indexes of split folders to a parquet file in two phases, replacing what was there.

    Args:
        path: file to write; its folder must exist.
        indexes: of different folders.

    Raises:
        StorageError: the disk refuses.
    """
    rows: list[PictureRow] = []
    for index in indexes:
        folder = str(index.folder)
        rows += [
            PictureRow(folder, image.path, image.sha256, image.height, image.width, image.plain, "")
            for image in index.images
        ]
        rows += [PictureRow(folder, file.path, "", 0, 0, False, file.reason) for file in index.bad]
    write_table(path, rows, PictureRow)


def load_indexes(path: Path) -> tuple[ImageIndex, ...]:
    """Read what `save_indexes` wrote, in its order; the folders are not looked at.

    Raises:
        StorageError: the file is missing, damaged or of another kind.
    """
    table = read_arrow(path)
    if not table.schema.equals(schema(PictureRow)):
        raise StorageError(f"{path} has columns {table.schema.names}, expected those of an index of pictures")
    rows = [PictureRow(*values) for values in zip(*(column.to_pylist() for column in table.columns), strict=True)]
    return tuple(_index(Path(folder), list(files)) for folder, files in groupby(rows, lambda row: row.folder))


def _index(folder: Path, rows: list[PictureRow]) -> ImageIndex:
    class_names = tuple(sorted({_class_name(row) for row in rows}))
    labels = {name: label for label, name in enumerate(class_names)}
    images = tuple(
        IndexedImage(row.path, labels[_class_name(row)], row.sha256, row.height, row.width, row.plain)
        for row in rows
        if not row.reason
    )
    return ImageIndex(folder, class_names, images, tuple(BadFile(row.path, row.reason) for row in rows if row.reason))


def _class_name(row: PictureRow) -> str:
    return row.path.partition("/")[0]
