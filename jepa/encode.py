"""Embeddings and codes of any number of grids, from a finished, or running, run.

    python -m jepa.encode runs/x --input=grids/ --output=codes.npz        (or --output=codes.parquet)

In Python, `jepa.load("runs/x").encode(grids)` for as many as fit in memory, and for any number of them

    for block in encode.stream(model, encode.open_input("grids/").grids()):
        block["embedding"], block["code"], ...

The input is a folder, one of its files, or a collection of `jepa.data._collections` such as arc1-eval. Files are read
in the order of their names: *.json holds an ARC task, one grid or a list of grids, *.npy one grid [height, width]. One
file at a time is in memory, so a great many grids belong in many files.

What the objects of a grid are depends on its background. The grids of a task share one, the commonest colour of the
demonstrations and test inputs: a task reads the same with and without its answers. Any other grid has its own.
(In training the three grids of a context decide, so a grid may have been seen there under another one.)

Two runs give the same bytes, on one device with the same versions. Positions and lengths are in cells. An .npz holds,
for G grids with O objects in all, E pairs of which touch:

| array          | dtype, shape      | meaning                                                                         |
|----------------|-------------------|---------------------------------------------------------------------------------|
| `file`         | str [G]           | name of the file, or id of the task of a collection                             |
| `role`         | str [G]           | `train` or `test`, empty where the grid is of no task                           |
| `pair`         | int32 [G]         | which pair of its role, or which grid of its list, from 0                       |
| `side`         | str [G]           | `input` or `output`, empty where the grid is of no task                         |
| `size`         | int16 [G, 2]      | height, width                                                                   |
| `background`   | int8 [G]          | the colour that is no object; -1 for none                                       |
| `embedding`    | float32 [G, D]    | as `Model.encode`                                                               |
| `object_start` | int64 [G + 1]     | the objects of grid g are the rows object_start[g] to object_start[g + 1] - 1   |
| `edge_start`   | int64 [G + 1]     | and its edges the rows edge_start[g] to edge_start[g + 1] - 1                   |
| `kind`         | int8 [O]          | 0 the whole grid, the first row of each; 1 an object; 2 all that did not fit    |
| `code`         | int32 [O]         | the code; absent, as are the symbols, where the run has no quantizer            |
| `symbols`      | int32 [O, S]      | the code as S symbols, one for each of the levels, the first counting fastest   |
| `box`          | int16 [O, 4]      | top, left, height, width; 0 for kind 2                                          |
| `colour`       | int8 [O]          | the commonest, of equals the smallest                                           |
| `histogram`    | int16 [O, 10]     | cells of each colour                                                            |
| `area`         | int16 [O]         | cells                                                                           |
| `edges`        | int64 [E, 2]      | rows i < j of two objects that touch, by a side or a corner                     |
| `meta`         | str []            | JSON: `format`, `run` (folder), `step` of the weights, `levels`, `background`   |

A .parquet file has the same columns and a row for each grid: what is per object is a list, and so are `edges`, which
count the row's own objects from 0. There are no starts, and `meta` is the schema's metadata under `jepa`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rich.console
import rich.progress
from ml_collections import ConfigDict

from jepa import backend, checkpoint, run_folder, tables
from jepa.data import _objects
from jepa.data._grid_files import Grid, open_input
from jepa.encoded_files import Block, write
from jepa.parts import build_objective
from jepa.quantizers import fsq
from jepa.scorers import CHUNK
from jepa.types import PyTree

FORMAT = 1  # raise it whenever a reader of the old format would misread a file


class Described(NamedTuple):
    """What a model says of n grids. `table` is their object table (`jepa.tables`), whose rows the codes belong to."""

    embeddings: np.ndarray  # float32 [n, D]
    codes: np.ndarray | None  # int32 [n, N], -1 where there is no token; None without a quantizer
    table: dict[str, np.ndarray]


class Model(NamedTuple):
    """A trained encoder. `levels` are those of its quantizer, () without codes; `step` is that of the weights.

    encode(grids, background=None) -> embeddings float32 [n, D]
    describe(grids, background=None) -> Described
    """

    encode: Callable[..., np.ndarray]
    describe: Callable[..., Described]
    levels: tuple[int, ...]
    config: ConfigDict
    params: PyTree
    step: int


def load(workdir: Path | str, checkpoint_step: int | str = "latest") -> Model:
    """The encoder of the run in `workdir`, from its `latest` (default) or `best` checkpoint or a given step.

    The latest is what `probes.json` measured. Its functions take a list of 2-D integer arrays with colours 0..9 and
    sides up to 30, or up to `config.data.canvas` where the run reads cells. Each grid is embedded alone; its background
    is its own commonest colour, unless one colour (or -1, none) is given for all, or one for each; cells have none.
    Raises ValueError where there is no run, for one that does not read grids, and for a grid or a background that is
    not one.
    """
    workdir = Path(workdir).expanduser()
    config = ConfigDict(run_folder.read_config(workdir))
    observe = _observer(config, workdir)
    objective = build_objective(config)
    saved = checkpoint.read(workdir, checkpoint_step)
    # An objective without state has no arrays, and so no entry.
    objective_state = saved.state["objective_state"] if "objective_state" in saved.state else {}
    params = saved.state["params"]

    @jax.jit
    def embed(params: PyTree, objective_state: PyTree, seen: PyTree) -> tuple[jax.Array, jax.Array | None]:
        encoded = objective.encode(params, objective_state, seen)
        return encoded.pooled, encoded.codes

    def describe(grids: Sequence[np.ndarray], background: int | Sequence[int] | None = None) -> Described:
        if not len(grids):
            raise ValueError("there is no grid to encode")
        checked = [_objects.check_grid(grid, f"grid {i}") for i, grid in enumerate(grids)]
        table = _objects.tokenise(checked, _backgrounds(checked, background))
        seen, parts = observe(checked, table), []
        for start in range(0, len(checked), CHUNK):  # the last chunk is filled up, so that one program serves all
            rows = np.minimum(np.arange(start, start + CHUNK), len(checked) - 1)
            parts.append(embed(params, objective_state, {key: leaf[rows] for key, leaf in seen.items()}))
        embeddings, codes = jax.tree.map(lambda *chunks: np.concatenate(chunks)[: len(checked)], *parts)
        return Described(embeddings, codes, table)

    def encode(grids: Sequence[np.ndarray], background: int | Sequence[int] | None = None) -> np.ndarray:
        return describe(grids, background).embeddings

    return Model(encode, describe, objective.levels, config, params, saved.step)


def _observer(config: ConfigDict, workdir: Path) -> Callable[[list[np.ndarray], PyTree], PyTree]:
    """From grids and their object table to what the encoder of a run reads."""
    if config.encoder.name == "objects":
        return lambda grids, table: table
    if config.encoder.name != "grid":
        raise ValueError(
            f"{workdir} has the encoder {config.encoder.name!r}, which reads no grids: there is nothing to encode"
        )
    canvas = config.data.canvas

    def cells(grids: list[np.ndarray], table: PyTree) -> PyTree:
        frames = np.full((len(grids), canvas, canvas), tables.OUTSIDE, np.int32)
        for number, grid in enumerate(grids):
            if max(grid.shape) > canvas:
                raise ValueError(
                    f"grid {number} is {grid.shape[0]} x {grid.shape[1]}; {workdir} reads cells, and was trained on "
                    f"frames of {canvas} x {canvas} (config.data.canvas)"
                )
            frames[number, : grid.shape[0], : grid.shape[1]] = grid
        return {"cells": frames}

    return cells


def _backgrounds(grids: Sequence[np.ndarray], background: int | Sequence[int] | None) -> list[int]:
    """One for each grid. Raises ValueError for what is no colour, and for another number of them."""
    if background is None:
        return [_objects.background([grid]) for grid in grids]
    given = [background] * len(grids) if np.ndim(background) == 0 else list(background)
    if len(given) != len(grids):
        raise ValueError(
            f"there are {len(given)} backgrounds for {len(grids)} grids; give one for all, or one for each"
        )
    wrong = [colour for colour in given if not -1 <= colour <= 9]
    if wrong:
        raise ValueError(f"background is {wrong[0]}; it must be a colour 0..9, or -1 for none")
    return given


# From grids to blocks.


def stream(model: Model, grids: Iterable[Grid], *, chunk: int = CHUNK) -> Iterator[Block]:
    """Blocks of `chunk` grids, the last one smaller; their starts and edges count from 0. Reads at most `chunk` ahead.

    The numbers of a grid do not depend on the chunk. For grids without a source: stream(model, map(Grid, arrays)).
    Raises ValueError for what is no grid, with its number in the stream.
    """
    numbered = enumerate(grids)
    while some := list(itertools.islice(numbered, chunk)):
        yield _block(model, [_checked(grid, number) for number, grid in some])


def _checked(grid: Grid, number: int) -> Grid:
    cells = _objects.check_grid(grid.cells, f"grid {number}")
    return grid._replace(
        cells=cells, background=_objects.background([cells]) if grid.background is None else grid.background
    )


def _block(model: Model, grids: list[Grid]) -> Block:
    if model.levels and model.config.encoder.name != "objects":
        raise ValueError("the codes of this run are of squares of cells, and a file holds those of objects")
    described = model.describe([grid.cells for grid in grids], [grid.background for grid in grids])
    if not np.isfinite(described.embeddings).all():
        raise ValueError(
            f"the weights of step {model.step} give embeddings that are not finite: take another checkpoint"
        )
    table, mask = described.table, described.table["mask"]
    _, token = np.nonzero(mask)
    row = (np.cumsum(mask) - 1).reshape(mask.shape)  # of a token among the objects of the block
    touching = np.triu(tables.contacts(table), 1)
    grid, first, second = np.nonzero(touching)
    codes = {}
    if described.codes is not None:
        symbols = np.asarray(fsq.unpack(described.codes, model.levels))  # of a codebook, the code itself
        codes = {"code": described.codes[mask], "symbols": symbols[mask]}
    return {
        "file": np.array([grid.file for grid in grids]),
        "role": np.array([grid.role for grid in grids]),
        "pair": np.array([grid.pair for grid in grids], np.int32),
        "side": np.array([grid.side for grid in grids]),
        "size": table["size"].astype(np.int16),
        "background": np.array([grid.background for grid in grids], np.int8),
        "embedding": described.embeddings,
        "object_start": _starts(mask.sum(1)),
        "edge_start": _starts(touching.sum((1, 2))),
        "kind": np.where(token == tables.OVERFLOW, 2, np.minimum(token, 1)).astype(np.int8),
        **codes,
        "box": table["box"][mask].astype(np.int16),
        "colour": table["histogram"][mask].argmax(-1).astype(np.int8),
        "histogram": table["histogram"][mask].astype(np.int16),
        "area": table["shape"][mask][:, 0].astype(np.int16),
        "edges": np.stack([row[grid, first], row[grid, second]], axis=-1).astype(np.int64),
    }


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


# The command.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ValueError(f"{message}; as in python -m jepa.encode runs/x --input=grids/ --output=codes.npz")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m jepa.encode", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("workdir", help="the run folder")
    parser.add_argument("--input", required=True, help="a folder of .json and .npy files, one file, or a collection")
    parser.add_argument("--output", required=True, help="the file to write, .npz or .parquet")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step (default: %(default)s)")
    parser.add_argument(
        "--background",
        default="task",
        help="task: one for the grids of a task, their own for others; own; or one for all, 0 to 9 or -1 for none",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    return parser


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix not in (".npz", ".parquet"):
        raise ValueError(f"--output is {output}; its name must end in .npz or .parquet")
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} for --output {output}; make it first")
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; it must be the name of a file")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists already; --overwrite replaces it")
    if output.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("a .parquet file needs pyarrow: pip install 'jepa[parquet]', or end --output in .npz")


def _forced_background(choice: str) -> dict[str, int | None]:
    """What --background replaces in every grid."""
    if choice == "task":
        return {}
    if choice == "own":
        return {"background": None}
    if choice not in map(str, range(-1, tables.NUM_COLOURS)):
        raise ValueError(f"--background is {choice!r}; it must be task, own, a colour 0 to 9, or -1 for none")
    return {"background": int(choice)}


@contextlib.contextmanager
def _progress(names: list[str]) -> Iterator[Iterable[str]]:
    """The names, with a bar on a terminal that says how many of them are done."""
    columns = (
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("files"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("so far,"),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("left"),
    )
    terminal = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=terminal, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield bar.track(names)


def main(argv: Sequence[str]) -> None:
    """Reads, encodes and writes, a block at a time. Raises ValueError for a mistake of the user."""
    options = _parser().parse_args(argv)
    output = Path(options.output).expanduser()
    _check_output(output, options.overwrite)
    forced = _forced_background(options.background)
    source = open_input(options.input)
    workdir = Path(options.workdir).expanduser()
    model = load(workdir, checkpoint.step_of(options.checkpoint))
    backend.use_compile_cache(model.config.cache_dir)
    if not model.levels:
        print(f"{workdir} has no quantizer: there will be embeddings and objects, but no codes")
    run = {"run": workdir.resolve().name, "step": model.step, "levels": list(model.levels)}
    meta = json.dumps({"format": FORMAT, **run, "background": options.background})
    counts = np.zeros(2, np.int64)  # grids, objects

    def counted(blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            counts[:] += len(block["pair"]), len(block["kind"])
            yield block

    with _progress(source.names) as names:
        grids = (grid._replace(**forced) for name in names for grid in source.load(name))
        write(output, counted(stream(model, grids)), meta)
    print(f"{output}: {counts[0]} grids, {counts[1]} objects, by the weights of step {model.step}")


def run() -> None:
    """The entry point: a mistake of the user is one sentence and exit code 2, never a traceback."""
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("jepa: interrupted; nothing was written", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError) as error:
        print(f"jepa: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    # An exception, so that a partial file is removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    run()
