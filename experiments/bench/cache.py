"""How much memory does a cache take to train from, how much disk, and how fast is it read?

python -m experiments.bench.cache

Writes caches of programs of 50 and 500 thousand grids, and lists the shards of the larger one twenty times over in an
index of ten million. Each is then read in a process of its own, as a run reads it: rows of a step on the host, and
a batch of it under symmetries in a compiled program. Memory is the anonymous part of the resident set, sampled from
/proc/self/smaps_rollup: pages of the mapped files count as resident as well, but the system takes them back at will.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jepa import cache, main
from jepa.data import _shards
from jepa.data import cache as cached

CONFIG = "configs/lejepa_programs.py"
PER_SHARD = 51_200  # grids: a hundred steps of 128 examples of four
MIB = 2**20


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    fields = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("Anonymous:"))


def measure(folder: str, steps: int, batch_size: int) -> dict[str, float]:
    """Peak memory of as many steps, grids per CPU-second of reading them, and how long a step waits by a clock."""
    began = time.perf_counter()
    source = cached.build(seed=0, batch_size=batch_size, cache_dir="", folder=folder)
    opened = time.perf_counter() - began
    gather, key = jax.jit(source.gather, static_argnums=3), jax.random.key(0)
    peak, reading, waits = 0, [], []
    for step in range(steps + 1):
        began, cpu = time.perf_counter(), time.thread_time()
        rows = source.indices(step)
        reading.append(time.thread_time() - cpu)
        waits.append(time.perf_counter() - began)
        jax.block_until_ready(gather(source.tables, rows, jax.random.fold_in(key, step), True))
        peak = max(peak, anonymous())
    rate = rows["grids"]["mask"][..., 0].size / np.median(reading)
    return {"peak": peak, "opened": opened, "rate": rate, "typical": np.median(waits), "slowest": max(waits)}


def list_often(folder: Path, times: int, output: Path) -> None:
    """A cache whose training shards are those of `folder`, which are full, `times` over; no file of grids is copied."""
    shards = _shards.read(folder, verify=False)
    index = dict(shards.index)
    grids = shards.columns["train"]["windows"].size
    full = grids // PER_SHARD
    output.mkdir()
    for path in folder.glob("grids-*.npy"):
        (output / path.name).hardlink_to(path)
    for split, columns in shards.columns.items():
        copies = times if split == "train" else 1
        for name, column in columns.items():
            shape = (copies * len(column), *column.shape[1:])
            again = _shards.new_column(output, split, name, shape, column.dtype)
            for i in range(copies):
                shift = (i if split == "train" else times - 1) * grids if name == "windows" else 0
                again[i * len(column) :][: len(column)] = column + column.dtype.type(shift)
            again.flush()
    train = index["splits"]["train"]
    train = train | {"examples": times * train["examples"]}
    listed = index["shards"][:full] * times + index["shards"][full:]
    _shards.write_index(output, index | {"shards": listed, "splits": index["splits"] | {"train": train}})


def in_a_process(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "experiments.bench.cache", "--measure", str(folder)]
    command += ["--steps", str(args.steps), "--batch_size", str(args.batch_size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(args: argparse.Namespace, folder: Path) -> None:
    config = main.load_config(CONFIG)
    folders = {}
    for shards in (1, args.shards):
        folders[shards * PER_SHARD] = folder / str(shards)
        began = time.perf_counter()
        index = cache.write(
            config,
            folder / str(shards),
            source_name="analogies",
            num_grids=shards * PER_SHARD,
            grids_per_shard=PER_SHARD,
        )
        rate = index["grids"] / (time.perf_counter() - began)
        print(
            f"{index['grids']:,} grids with the held-out ones: drawn, tokenised and written at {rate:,.0f} a second, "
            f"{index['bytes_per_grid']:.0f} bytes per grid, {index['bytes'] / MIB:,.0f} MiB"
        )
    large = args.times * args.shards * PER_SHARD
    folders[large] = folder / "large"
    list_often(folder / str(args.shards), args.times, folders[large])
    print(f"{'grids':>12}{'anonymous MiB':>15}{'grids / CPU s':>15}{'ms a step':>11}{'at most':>9}{'to open s':>11}")
    for grids, where in folders.items():
        found = in_a_process(where, args)
        print(
            f"{grids:12,}{found['peak'] / MIB:15,.0f}{found['rate']:15,.0f}{1e3 * found['typical']:11.1f}"
            f"{1e3 * found['slowest']:9.1f}{found['opened']:11.1f}"
        )


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=10, help="of 51,200 grids, for the larger cache")
    parser.add_argument("--times", type=int, default=20, help="how often they are listed for the largest")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--folder", help="where to write the caches and leave them; none if not given")
    parser.add_argument("--measure", help="of this cache, in this process; prints JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.steps, options.batch_size)))
    elif options.folder:
        run(options, Path(options.folder))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            run(options, Path(temporary))
