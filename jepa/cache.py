"""Tokenises what a run would be shown, once, into memory-mapped shards that training reads without loading them.

    python -m jepa.cache --config=configs/lejepa_manifest.py --config.data.paths='orbits/*.jsonl.gz' --output=cached
    python -m jepa.main --config=configs/lejepa_manifest.py:cache --config.data.folder=cached

A source that lies in memory (arc, manifest) is stored whole; of one that is drawn without end (programs) as many grids
as --num_grids says, by default those that the run of the config would see, and config.final_examples of each held-out
source. What is stored is what the source shows before augmentation, so that the same symmetries act on it. The files
are described in `jepa/data/_shards.py` and `jepa/data/_packing.py`; index.json is written last.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from jepa import backend, config_checks, main, registry
from jepa.data import _progress, _shards
from jepa.evaluation import LEVEL
from jepa.parts import keywords
from jepa.types import Observation, Source

OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")
NUM_GRIDS = flags.DEFINE_integer("num_grids", None, "Grids to draw from a source without end.")
SOURCE = flags.DEFINE_string("source", None, "Of a mixture, the source to store, by its name in config.data.sources.")
LEVEL_OF_DATA = flags.DEFINE_integer("level", None, "The level of difficulty to draw them from; the last if not given.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the cache that is there, or what is left of one.")

BLOCK = 4096  # grids packed at once
MIB = 2**20
_IN_MEMORY = {"rows", "windows", "ids", "groups", "extent"}  # `jepa.data._sequences.look_up`
_DRAWN = {"grids", "ids", "groups", "extent"}


def write(
    config: ConfigDict,
    output: Path,
    *,
    source_name: str | None = None,
    num_grids: int | None = None,
    level: int | None = None,
    grids_per_shard: int = _shards.GRIDS_PER_SHARD,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the source of a config to the folder `output`; what its index says, but for the checksums.

    Raises ValueError for a source that shows no sequences of object tables, an option that does not fit it, and for a
    folder that holds anything.
    """
    config_checks.check(config)
    data = _one_of(config.data, source_name)
    _check_output(output, overwrite)
    options = dict(seed=config.seed, batch_size=config.batch_size, cache_dir=config.cache_dir)
    source = registry.build("data", data.name, **options, **keywords(data))
    try:
        splits = {"train": source} | dict(source.validation)
        if source.num_levels > 1:  # a cache has one
            splits = {name: split for name, split in splits.items() if not name.endswith(LEVEL)}
        drawn = _drawn(config, source, splits, num_grids)
        level = source.num_levels - 1 if level is None else level
        if not 0 <= level < source.num_levels:
            raise ValueError(f"--level is {level}; the source has the levels 0 to {source.num_levels - 1}")
        _make_room(output)
        facts: dict[str, Any] = {}
        blocks = _blocks(output, splits, drawn, level, facts)
        total = sum(drawn.values()) or -(-len(source.tables["rows"]["mask"]) // BLOCK)
        num, shards = _shards.write_grids(output, _with_bar(blocks, output, total), grids_per_shard)
    finally:
        source.close()
    written = sum(path.stat().st_size for path in output.glob("*.npy"))
    content = (source.digest, level, config.batch_size, sorted(drawn.items()))
    index = {
        "digest": hashlib.sha256(repr(content).encode()).hexdigest(),
        "data": config_checks.as_json(data),
        "grids": num,
        "bytes": written,
        "bytes_per_grid": written / num,
        "grids_per_shard": grids_per_shard,
        "shards": shards,
        "splits": facts,
    }
    _shards.write_index(output, index)
    return index


def _one_of(data: ConfigDict, source_name: str | None) -> ConfigDict:
    """The data of a config or, of a mixture, one of its sources: a cache is of one, and a mixture may be of caches."""
    if data.name != "mixture":
        if source_name is not None:
            raise ValueError(f"--source is for a mixture, but config.data.name is {data.name!r}")
        return data
    if source_name is None:
        raise ValueError(f"config.data is a mixture: say with --source which of {sorted(data.sources)} to store")
    if source_name not in data.sources:
        raise ValueError(f"--source is {source_name!r}: {registry.nearest(source_name, data.sources)}")
    return data.sources[source_name]


def _check_output(output: Path, overwrite: bool) -> None:
    """Raises ValueError where the folder holds something else, or another cache without `overwrite`."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"--output {output} is a file; it must be the name of a folder")
    there = sorted(output.iterdir())
    strange = [path for path in there if path.suffix != ".npy" and path.name != _shards.INDEX]
    if strange:
        raise ValueError(f"--output {output} holds other files, such as {strange[0].name}; a cache has its own folder")
    if there and not overwrite:
        what = "a cache" if output / _shards.INDEX in there else "what is left of a cache that was not finished"
        raise ValueError(f"--output {output} holds {what}; --overwrite replaces it")


def _make_room(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(output.iterdir(), key=lambda path: path.name != _shards.INDEX):  # without it, it is no cache
        path.unlink()


def _drawn(config: ConfigDict, source: Source, splits: Mapping[str, Source], num_grids: int | None) -> dict[str, int]:
    """How many steps are stored of each split that gives its grids with the rows of a step; others are stored whole.

    Raises ValueError for a split that does neither, and for a number of grids that is no use.
    """
    if num_grids is not None and num_grids < 1:
        raise ValueError(f"--num_grids is {num_grids}; it must be at least 1")
    steps = {}
    for name, split in splits.items():
        if isinstance(split.tables, Mapping) and set(split.tables) >= _IN_MEMORY:
            continue
        rows = split.indices(0)
        if not isinstance(rows, Mapping) or not set(rows) >= _DRAWN:
            raise ValueError(
                "this source shows no sequences of object tables, which is what a cache holds; arc, manifest and "
                "programs do"
            )
        steps[name] = -(-config.final_examples // config.batch_size)
        if name == "train":
            of_a_step = rows["grids"]["mask"][..., 0].size
            steps[name] = config.num_steps if num_grids is None else -(-num_grids // of_a_step)
    if num_grids is not None and "train" not in steps:
        raise ValueError("--num_grids is for data that is drawn without end; this source is stored whole")
    return steps


def _with_bar(blocks: Iterable[Observation], output: Path, total: int) -> Iterator[Observation]:
    with _progress.bar(f"writing {output}") as bar:
        yield from bar.track(blocks, total=total)


# The grids of all splits in a row, while their columns are written.


def _blocks(
    folder: Path, splits: Mapping[str, Source], drawn: Mapping[str, int], level: int, facts: dict[str, Any]
) -> Iterator[Observation]:
    """Tables [G, ...]; adds to `facts` what the index says of each split. Tables that splits share come once."""
    first, placed = 0, {}
    for name, source in splits.items():
        if name in drawn:
            columns: dict[str, np.ndarray] = {}
            for tables in _drawn_blocks(folder, name, source, drawn[name], level, first, columns):
                yield tables
                first += len(tables["mask"])
        else:
            table = source.tables["rows"]
            if id(table) not in placed:
                placed[id(table)] = first
                for start in range(0, len(table["mask"]), BLOCK):
                    yield {key: np.asarray(leaf[start : start + BLOCK]) for key, leaf in table.items()}
                first += len(table["mask"])
            columns = _columns_in_memory(folder, name, source, placed[id(table)])
        facts[name] = {
            "columns": sorted(columns),
            "examples": len(columns["ids"]),
            "drawn": name in drawn,
            "ids": list(source.ids),
            "stats": dict(source.stats) | {"examples": float(len(columns["ids"]))},
        }
        for column in columns.values():
            column.flush()


def _drawn_blocks(
    folder: Path, name: str, source: Source, steps: int, level: int, first: int, columns: dict[str, np.ndarray]
) -> Iterator[Observation]:
    """The grids of the first steps, the first of them number `first`; makes `columns` and fills them."""
    for step in range(steps):
        rows = source.indices(step, level)
        batch, frames = rows["grids"]["mask"].shape[:2]
        numbers = first + (step * batch + np.arange(batch)[:, None]) * frames + np.arange(frames)[None]
        found = {key: np.asarray(leaf) for key, leaf in rows.items() if key != "grids"}
        found |= {"windows": numbers.astype(np.uint32), "extent": found["extent"].astype(np.uint8)}
        for key, leaf in found.items():
            if step == 0:
                columns[key] = _shards.new_column(folder, name, key, (steps * batch, *leaf.shape[1:]), leaf.dtype)
            columns[key][step * batch : (step + 1) * batch] = leaf
        yield {key: leaf.reshape(-1, *leaf.shape[2:]) for key, leaf in rows["grids"].items()}


def _columns_in_memory(folder: Path, name: str, source: Source, first: int) -> dict[str, np.ndarray]:
    tables = source.tables
    found = {key: np.asarray(tables[key]) for key in ("ids", "groups")}
    found["extent"] = np.asarray(tables["extent"], np.uint8)
    found["windows"] = np.asarray(tables["windows"]).astype(np.uint32) + np.uint32(first)
    if "negatives" in tables:
        negatives = tables["negatives"]
        found["negative_rows"] = np.asarray(negatives.rows).astype(np.uint32) + np.uint32(first)
        found |= {"negative_ids": np.asarray(negatives.ids), "negative_palettes": np.asarray(negatives.palettes)}
    columns = {key: _shards.new_column(folder, name, key, leaf.shape, leaf.dtype) for key, leaf in found.items()}
    for key, leaf in found.items():
        columns[key][:] = leaf
    return columns


# The command.


def command(argv: list[str]) -> None:
    config = main.chosen_config(argv[1:])
    if OUTPUT.value is None:
        raise ValueError("there is no --output; it is the folder to write, as in --output=cached")
    backend.select_platform("cpu")
    backend.use_compile_cache(config.cache_dir)
    output = Path(OUTPUT.value).expanduser()
    index = write(
        config,
        output,
        source_name=SOURCE.value,
        num_grids=NUM_GRIDS.value,
        level=LEVEL_OF_DATA.value,
        overwrite=OVERWRITE.value,
    )
    examples = index["splits"]["train"]["examples"]
    print(
        f"{output}: {index['grids']} grids, {examples} examples to train on, {index['bytes'] / MIB:,.1f} MiB, "
        f"{index['bytes_per_grid']:.0f} bytes per grid"
    )


def run() -> None:
    """The entry point: a mistake of the user is one sentence and exit code 2, never a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app.run(command, argv=[sys.argv[0], "--verbosity=-1", *sys.argv[1:]], flags_parser=main.parse_flags)
    except KeyboardInterrupt:
        sentence = f"interrupted; {OUTPUT.value} has no {_shards.INDEX} and is no cache: --overwrite replaces it"
        print(f"jepa: {sentence}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
