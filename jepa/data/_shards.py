"""Folders of packed object tables that are read by memory map: what is in them, how they are written and opened.

| file                        | contents                                                                             |
|-----------------------------|--------------------------------------------------------------------------------------|
| `grids-00000.npy`, ..       | uint8: records of `jepa.data._packing`, of as many grids a shard as the index says   |
| `grids-00000.starts.npy`, ..| uint32: where each begins, and where the last one ends                               |
| `<split>.<column>.npy`      | a row an example: `windows` numbers its grids, the rest is as in `_sequences`        |
| `index.json`                | what there is, and the length and CRC-32 of every file; it is written last           |
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jepa import run_folder
from jepa.data import _objects, _packing, _progress
from jepa.types import Observation

INDEX = "index.json"
GRIDS_PER_SHARD = 65536
_BLOCK = 1 << 20  # bytes read at once for a checksum


class Shards(NamedTuple):
    """An open folder. `records[s]` and `starts[s]` are those of shard s; `columns` go by split and name."""

    index: Mapping[str, Any]
    records: list[np.ndarray]
    starts: list[np.ndarray]
    columns: Mapping[str, Mapping[str, np.ndarray]]


# Writing.


def write_grids(folder: Path, blocks: Iterable[Observation], grids_per_shard: int) -> tuple[int, list[str]]:
    """Packs blocks of tables [G, ...], one after the other; the number of grids, and the files of each shard."""
    records, lengths, num_grids, names = [], [], 0, []

    def flush(num: int) -> None:
        together, counts = np.concatenate(records), np.concatenate(lengths)
        starts = np.concatenate([[0], np.cumsum(counts[:num])])
        names.append(f"grids-{len(names):05d}")
        np.save(folder / f"{names[-1]}.npy", together[: starts[-1]])
        np.save(folder / f"{names[-1]}.starts.npy", starts.astype(np.uint32))
        records[:], lengths[:] = [together[starts[-1] :]], [counts[num:]]

    for tables in blocks:
        packed, sizes = _packing.pack(tables)
        records.append(packed)
        lengths.append(sizes)
        num_grids += len(sizes)
        while num_grids - len(names) * grids_per_shard >= grids_per_shard:
            flush(grids_per_shard)
    if num_grids > len(names) * grids_per_shard:
        flush(grids_per_shard)
    return num_grids, names


def new_column(folder: Path, split: str, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A column on disk, to be filled."""
    return np.lib.format.open_memmap(folder / f"{split}.{name}.npy", mode="w+", dtype=dtype, shape=shape)


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Makes the folder complete: `index`, and of every array in it the length and the checksum."""
    files = {
        path.name: {"bytes": path.stat().st_size, "crc32": _checksum(path)} for path in sorted(folder.glob("*.npy"))
    }
    formats = {"format": _packing.FORMAT, "tables": _objects.SCHEMA_VERSION}
    run_folder.atomic_write_json(folder / INDEX, formats | dict(index) | {"files": files})


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


# Reading.


def read(folder: str | Path, *, verify: bool) -> Shards:
    """Opens a folder; with `verify`, every byte is read once, a gigabyte a second, and compared with its checksum.

    Raises ValueError, naming the file, for a folder without an index, of another format, or with a damaged file.
    """
    folder = Path(folder).expanduser()
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} has no {INDEX}: it is no cache, or what wrote it was stopped; python -m jepa.cache writes one"
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / INDEX} is not JSON: {error}; write the cache again") from error
    if not isinstance(index, dict) or "format" not in index or "tables" not in index:
        raise ValueError(f"{folder / INDEX} is not the index of a cache; python -m jepa.cache writes one")
    formats = (_packing.FORMAT, _objects.SCHEMA_VERSION)
    if (index["format"], index["tables"]) != formats:
        raise ValueError(
            f"{folder} is a cache of format {index['format']} of tables {index['tables']}; this version reads "
            f"{formats[0]} and {formats[1]}: write it again"
        )
    _check_files(folder, index["files"], verify)
    columns = {
        split: {name: _open(folder / f"{split}.{name}.npy") for name in facts["columns"]}
        for split, facts in index["splits"].items()
    }
    records = [_open(folder / f"{name}.npy") for name in index["shards"]]
    starts = [_open(folder / f"{name}.starts.npy") for name in index["shards"]]
    return Shards(index, records, starts, columns)


def _check_files(folder: Path, files: Mapping[str, Mapping[str, int]], verify: bool) -> None:
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        if size != expected["bytes"]:
            raise ValueError(f"{path} has {size} bytes and not {expected['bytes']}: it was cut; write the cache again")
    if not verify:
        return
    with _progress.bar(f"checking {folder}") as bar:
        for name, expected in bar.track(files.items()):
            if _checksum(folder / name) != expected["crc32"]:
                raise ValueError(
                    f"{folder / name} is damaged: its checksum is not the one of {INDEX}; write the cache again"
                )


def _open(path: Path) -> np.ndarray:
    # The plain array over the mapped file: slices of a memmap cost ten times as much.
    return np.asarray(np.load(path, mmap_mode="r")).view(np.ndarray)


def grids(shards: Shards, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """The object tables [..., *] of grids by their numbers, int [...]."""
    shard, place = np.divmod(numbers.reshape(-1).astype(np.int64), shards.index["grids_per_shard"])
    begin, end = np.empty_like(place), np.empty_like(place)
    for number in np.unique(shard):
        here = shard == number
        begin[here], end[here] = shards.starts[number][place[here]], shards.starts[number][place[here] + 1]
    each = zip(shard.tolist(), begin.tolist(), end.tolist(), strict=True)
    records = np.concatenate([shards.records[number][first:last] for number, first, last in each])
    tables = _packing.unpack(records, np.cumsum(end - begin) - (end - begin))
    return {key: leaf.reshape(*numbers.shape, *leaf.shape[1:]) for key, leaf in tables.items()}


def rows(shards: Shards, split: str, examples: np.ndarray) -> dict[str, Any]:
    """The rows of a step, as `jepa.data._sequences` describes them, of examples of a split, int [B]."""
    columns = {name: column[examples] for name, column in shards.columns[split].items()}
    found = {name: column for name, column in columns.items() if name != "windows" and not name.startswith("negative_")}
    found["grids"] = grids(shards, columns["windows"])
    if "negative_rows" in columns:
        found["negatives"] = {
            "table": grids(shards, columns["negative_rows"]),
            "ids": columns["negative_ids"],
            "palettes": columns["negative_palettes"],
        }
    return found
