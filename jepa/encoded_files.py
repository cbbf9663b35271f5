"""Embeddings and codes on disk: blocks of arrays, one after the other, into an .npz or a .parquet file.

The arrays of a block are those of the table in `jepa.encode`, for some grids.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

Block = dict[str, np.ndarray]


def write(output: Path, blocks: Iterable[Block], meta: str) -> None:
    """Writes all blocks in the format that the name of `output` ends in; it has that name only once it is complete."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        {".npz": _write_npz, ".parquet": _write_parquet}[output.suffix](partial, blocks, meta)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


class _Column:
    """An array that grows on disk, in a file without a name, since members of an archive cannot grow side by side."""

    def __init__(self, file: IO[bytes]):
        self.file, self.parts, self.rows = file, 0, 0

    def append(self, array: np.ndarray) -> None:
        np.save(self.file, array)
        none = array[:0]
        self.empty = np.concatenate([self.empty, none]) if self.parts else none  # strings grow to the longest
        self.parts, self.rows = self.parts + 1, self.rows + len(array)

    def copy_to(self, member: IO[bytes]) -> None:
        shape, descr = (self.rows, *self.empty.shape[1:]), np.lib.format.dtype_to_descr(self.empty.dtype)
        np.lib.format.write_array_header_1_0(member, {"descr": descr, "fortran_order": False, "shape": shape})
        self.file.seek(0)
        for _ in range(self.parts):
            member.write(np.load(self.file).astype(self.empty.dtype).tobytes())


def _write_npz(path: Path, blocks: Iterable[Block], meta: str) -> None:
    with contextlib.ExitStack() as stack, zipfile.ZipFile(path, "w") as archive:
        columns: dict[str, _Column] = {}
        for block in _numbered_on(blocks):
            for name, array in block.items():
                if name not in columns:
                    columns[name] = _Column(stack.enter_context(tempfile.TemporaryFile(dir=path.parent)))
                columns[name].append(array)
        with _member(archive, "meta") as member:
            np.lib.format.write_array(member, np.array(meta))
        for name, column in columns.items():
            with _member(archive, name) as member:
                column.copy_to(member)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Dated 1980, as in every archive, so that the bytes do not tell when it was written."""
    return archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)


def _numbered_on(blocks: Iterable[Block]) -> Iterator[Block]:
    """Blocks whose starts and edges count on from one to the next; only the first keeps its leading 0."""
    objects = edges = 0
    for number, block in enumerate(blocks):
        yield block | {
            "object_start": block["object_start"][min(number, 1) :] + objects,
            "edge_start": block["edge_start"][min(number, 1) :] + edges,
            "edges": block["edges"] + objects,
        }
        objects += int(block["object_start"][-1])
        edges += int(block["edge_start"][-1])


PER_OBJECT = ("kind", "code", "symbols", "box", "colour", "histogram", "area")
GROUP = 16  # blocks in a row group: columns long enough to compress, and a footer that stays small


def _write_parquet(path: Path, blocks: Iterable[Block], meta: str) -> None:
    import pyarrow as pa  # an extra, which nothing else needs
    from pyarrow import parquet

    parts = map(_arrow_table, blocks)
    with contextlib.ExitStack() as stack:
        writer = None
        while some := list(itertools.islice(parts, GROUP)):
            group = pa.concat_tables(some).replace_schema_metadata({"jepa": meta})
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(path, group.schema))
            writer.write_table(group)


def _arrow_table(block: Block) -> Any:
    """A block as a pyarrow.Table with a row for each grid; its edges count the objects of their own row."""
    import pyarrow as pa

    def column(array: np.ndarray) -> Any:
        if array.ndim == 1:
            return pa.array(array)
        return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])

    def lists(start: np.ndarray, array: np.ndarray) -> Any:
        return pa.ListArray.from_arrays(pa.array(start, pa.int32()), column(array))

    first_object = np.repeat(block["object_start"][:-1], np.diff(block["edge_start"]))
    local = (block["edges"] - first_object[:, None]).astype(np.int32)
    columns = {
        name: lists(block["object_start"], array) if name in PER_OBJECT else column(array)
        for name, array in block.items()
        if name not in ("object_start", "edge_start", "edges")
    }
    return pa.table(columns | {"edges": lists(block["edge_start"], local)})
