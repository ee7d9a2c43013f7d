"""Reads of the memory bank against plain memory-mapped NumPy (shuffled rows) and a raw pyarrow scan (in order).

Both sides read the same rows from the same disk. NumPy indexes a memory map of the bank's own file. The pyarrow scan
loads every record batch of an Arrow file with the same bytes into memory, without touching the values. Two formats
that could have held the rows instead give shuffled ones, too: Arrow by `take` from one record batch over the mapped
bytes (from the many batches that a scan wants, `take` copies all of them), and a Parquet file of the same bytes,
uncompressed, of whose small row groups those with a wanted row are read. `packed` are rows as they are stored, which is
what the others give; `float32` adds the conversion on both sides. Warm passes are compared by process time,
interleaved; cold ones, where the disk works, by wall time, the page cache dropped before each. A store that is named
(`uri`) takes a bank of the same rows and gives it back as a file of this machine, once each; then it is empty again.

Rows per second times the bytes of a row are bytes per second.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from ekgsearch.bank.bank import MemoryBank
from ekgsearch.bank.build import write_block
from ekgsearch.bank.commit import commit
from ekgsearch.bank.layout import bank_layout
from ekgsearch.bank.manifest import BankSpec
from ekgsearch.bank.rows import BankDtype, BankRows
from ekgsearch.bench.base import BenchSettings, Measurement, abab, ratio
from ekgsearch.errors import JobError
from ekgsearch.fields import Mark, Positive, Text
from ekgsearch.storage.objects import open_store

_GROUP_ROWS = 16
"""Rows of a row group of the Parquet file: a random row costs the read of its group, smaller ones a longer footer."""


class Settings(BenchSettings):
    """What the bank holds and how often it is read."""

    images: Positive = Field(10_000, description="images in the bank; 100000 make 1 GB of float16")
    classes: Positive = Field(1000, description="logits per image and teacher")
    teachers: Positive = Field(5, description="teachers")
    dtype: BankDtype = Field("float16", description="how logits are stored")
    batch_size: Positive = Field(256, description="rows of one read")
    batches: Positive = Field(20, description="reads of one warm pass; cold passes make a fifth")
    pairs: Positive = Field(7, description="interleaved pairs of passes")
    uri: Annotated[Text | None, Mark.PATH] = Field(
        None, description="empty place in a store that a bank is written to and fetched from"
    )
    folder: Annotated[Text | None, Mark.PATH] = Field(
        None, description="where the files are put for the time being; null: the system's place"
    )

    def in_small(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A bank of a few rows, on the disk alone."""
        few = {"images": 64, "classes": 10, "teachers": 2, "batch_size": 16, "batches": 2, "pairs": 1}
        small: dict[str, Any] = {name: min(getattr(self, name), most) for name, most in few.items()}
        return {**small, "uri": None, "folder": None}, ()


def run(settings: Settings) -> Iterator[Measurement]:
    """Build a bank of random logits and read it in every way."""
    spec = BankSpec(
        dataset_hash="random",
        weights_hash="random",
        teachers=tuple(str(teacher) for teacher in range(settings.teachers)),
        num_images=settings.images,
        num_classes=settings.classes,
        batches_per_block=3,
        dtype=settings.dtype,
    )
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        if settings.uri is not None:
            yield from _staged(spec, settings.uri, folder)
        _build(spec, str(folder / "store"))
        yield Measurement.count("bank", "size", "MB", spec.num_bytes / 1e6)
        yield Measurement.count("bank", "size of a row", "B", spec.row_format.row_bytes)
        yield _memory(spec, folder, settings.batch_size)
        bank = _open(spec, folder)
        _write_others(bank, folder, settings.batch_size)
        yield from _warm(bank, folder, settings)
        del bank
        yield from _cold(spec, folder, settings)


def _staged(spec: BankSpec, uri: str, folder: Path) -> list[Measurement]:
    """Write a bank to a store, and fetch all of it into a file of this machine."""
    store = open_store(uri)
    if names := store.list():
        raise JobError(f"uri = {uri}: expected an empty place, found {names[0]!r}; name another one")
    try:
        begin = time.perf_counter()
        _build(spec, uri)
        built = time.perf_counter()
        MemoryBank.open(store, spec, cache_dir=folder / "staged").wait()
        seconds = {"written": built - begin, "fetched": time.perf_counter() - built}
    finally:
        for name in store.list():
            store.delete(name)
    return [
        Measurement.count(f"store: {verb}", quantity, unit, amount / seconds[verb])
        for verb in seconds
        for quantity, unit, amount in (
            ("wall time", "rows/s", spec.num_images),
            ("wall time, bytes", "MB/s", spec.num_bytes / 1e6),
        )
    ]


def _build(spec: BankSpec, uri: str) -> None:
    store = open_store(uri)
    generator = torch.Generator().manual_seed(1)
    for block, ids in enumerate(bank_layout(spec)):
        logits = torch.randn(len(ids), spec.num_classes, spec.num_teachers, generator=generator) * 3
        write_block(store, spec, block, BankRows(logits))
    commit(store, spec)


def _open(spec: BankSpec, folder: Path) -> MemoryBank:
    bank = MemoryBank.open(open_store(str(folder / "store")), spec, cache_dir=folder / "cache")
    bank.wait()
    return bank


def _rows_file(folder: Path) -> Path:
    return next((folder / "cache").glob("*.rows"))


def _map(spec: BankSpec, folder: Path) -> np.ndarray:
    """Rows of the bank's file as NumPy maps them: (N, K, C), or bytes (N, row_bytes) of int8 rows."""
    if spec.dtype == "int8":
        return np.memmap(
            _rows_file(folder), dtype=np.uint8, mode="r", shape=(spec.num_images, spec.row_format.row_bytes)
        )
    shape = (spec.num_images, spec.num_teachers, spec.num_classes)
    return np.memmap(_rows_file(folder), dtype=np.dtype(spec.dtype), mode="r", shape=shape)


def _write_others(bank: MemoryBank, folder: Path, batch_size: int) -> None:
    """Write the bytes of the bank as record batches of an Arrow file, and as row groups of a Parquet file."""
    schema = pa.schema([("row", pa.binary(bank.spec.row_format.row_bytes))])
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, schema) as arrow,
        pq.ParquetWriter(folder / "rows.parquet", schema, **plain) as parquet,
    ):
        for ids in torch.split(bank.order, batch_size // _GROUP_ROWS * _GROUP_ROWS or _GROUP_ROWS):
            data = pa.py_buffer(bank.read_packed(ids).numpy().tobytes())
            column = pa.FixedSizeBinaryArray.from_buffers(schema.field("row").type, len(ids), [None, data])
            arrow.write_batch(pa.record_batch([column], schema=schema))
            parquet.write_table(pa.table([column], schema=schema), row_group_size=_GROUP_ROWS)


def _arrow_rows(spec: BankSpec, folder: Path) -> Callable[[torch.Tensor], pa.Array]:
    """Random rows of one record batch over the bank's file, whose bytes are those of a column of an Arrow file."""
    data = pa.py_buffer(_map(spec, folder))
    rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(spec.row_format.row_bytes), spec.num_images, [None, data])
    return lambda ids: rows.take(pa.array(ids.numpy()))


def _parquet_rows(folder: Path) -> Callable[[torch.Tensor], pa.Table]:
    """Random rows of the Parquet file, of which only the row groups with a wanted row are read."""
    file = pq.ParquetFile(folder / "rows.parquet", memory_map=True)

    def read(ids: torch.Tensor) -> pa.Table:
        groups, place = np.unique(ids.numpy() // _GROUP_ROWS, return_inverse=True)
        table = file.read_row_groups(groups.tolist(), use_threads=False)
        return table.take(place * _GROUP_ROWS + ids.numpy() % _GROUP_ROWS)

    return read


def _scan_arrow(path: Path) -> None:
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            reader.get_batch(index)


def _scan_bank(bank: MemoryBank, batches: Sequence[torch.Tensor]) -> None:
    for ids in batches:
        bank.read_packed(ids)


def _draw(settings: Settings, batches: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(settings.images, (settings.batch_size,), generator=generator) for _ in range(batches)]


def _warm(bank: MemoryBank, folder: Path, settings: Settings) -> Iterator[Measurement]:
    rows, batches = _map(bank.spec, folder), _draw(settings, settings.batches, 1)
    in_order = torch.split(bank.order, settings.batch_size)
    _scan_bank(bank, in_order)
    rows.reshape(-1)[:: os.sysconf("SC_PAGE_SIZE") // 8].max()  # every page is mapped on this side too
    num_random = settings.batches * settings.batch_size

    def every(read: Callable[[torch.Tensor], object]) -> Callable[[], None]:
        def read_all() -> None:
            for ids in batches:
                read(ids)

        return read_all

    yield from _compare(
        "shuffled, warm, packed",
        "numpy",
        every(bank.read_packed),
        every(lambda ids: rows[ids.numpy()]),
        num_random,
        settings,
    )
    for name, read in (("arrow", _arrow_rows(bank.spec, folder)), ("parquet", _parquet_rows(folder))):
        case = "shuffled, warm, packed"
        yield from _compare(case, name, every(bank.read_packed), every(read), num_random, settings)[1:]
    if settings.dtype != "int8":
        yield from _compare(
            "shuffled, warm, float32",
            "numpy",
            every(bank.read),
            every(lambda ids: rows[ids.numpy()].astype(np.float32)),
            num_random,
            settings,
        )
    yield from _compare(
        "in order, warm, packed",
        "pyarrow",
        lambda: _scan_bank(bank, in_order),
        lambda: _scan_arrow(folder / "rows.arrow"),
        len(bank),
        settings,
    )


def _compare(
    case: str, other: str, ours: Callable[[], None], theirs: Callable[[], None], rows: int, settings: Settings
) -> list[Measurement]:
    seconds, others = abab(ours, theirs, pairs=settings.pairs)
    return _speeds(case, other, seconds, others, rows, "process time")


def _speeds(
    case: str, other: str, seconds: list[float], others: list[float], rows: int, clock: str
) -> list[Measurement]:
    quantity = f"rows per second of {clock}"
    return [
        Measurement.of(f"{case}: bank", quantity, "rows/s", [rows / second for second in seconds]),
        Measurement.of(f"{case}: {other}", quantity, "rows/s", [rows / second for second in others]),
        ratio(f"{case}: bank", f"speed against {other}", others, seconds),
    ]


def _cold(spec: BankSpec, folder: Path, settings: Settings) -> list[Measurement]:
    """Passes on an empty page cache; the maps of both sides are new each time, since mapped pages are not dropped."""
    times: dict[str, list[float]] = {name: [] for name in ("bank", "numpy", "scan", "pyarrow")}
    num_batches = max(1, settings.batches // 5)
    in_order = torch.split(torch.cat(bank_layout(spec)), settings.batch_size)

    def gather(rows: MemoryBank | np.ndarray, batches: list[torch.Tensor]) -> None:
        for ids in batches:
            if isinstance(rows, MemoryBank):
                rows.read_packed(ids)
            else:
                rows[ids.numpy()]

    for pair in range(settings.pairs):
        batches = _draw(settings, num_batches, pair)
        times["bank"].append(_cold_seconds(folder, partial(gather, _open(spec, folder), batches)))
        times["numpy"].append(_cold_seconds(folder, partial(gather, _map(spec, folder), batches)))
        times["scan"].append(_cold_seconds(folder, partial(_scan_bank, _open(spec, folder), in_order)))
        times["pyarrow"].append(_cold_seconds(folder, partial(_scan_arrow, folder / "rows.arrow")))
    num_random = num_batches * settings.batch_size
    return [
        *_speeds("shuffled, cold, packed", "numpy", times["bank"], times["numpy"], num_random, "wall time"),
        *_speeds("in order, cold, packed", "pyarrow", times["scan"], times["pyarrow"], spec.num_images, "wall time"),
    ]


def _cold_seconds(folder: Path, work: Callable[[], object]) -> float:
    for path in (_rows_file(folder), folder / "rows.arrow"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _memory(spec: BankSpec, folder: Path, batch_size: int) -> Measurement:
    """Let another process fill its file and read every row twice, shuffled."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        peak = process.submit(_peak_memory, spec, str(folder), batch_size).result()
    return Measurement.count("filling and reading", "memory above the page cache", "MB", peak / 1e6)


def _peak_memory(spec: BankSpec, folder: str, batch_size: int) -> int:
    """Bytes of anonymous memory that a process takes for the bank, at most."""
    before, samples, is_done = _anonymous_bytes(), [0], threading.Event()

    def sample() -> None:
        while not is_done.wait(0.005):
            samples.append(_anonymous_bytes() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    bank = _open(spec, Path(folder))
    for seed in range(2):
        order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))
        for ids in torch.split(order, batch_size):
            bank.read(ids)
    is_done.set()
    sampler.join()
    return max(samples)


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
