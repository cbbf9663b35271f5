"""How fast are grids of programs drawn? Family by family, and averaged; one thread.

python -m experiments.bench.data

A pair is a scene and what its primitive makes of it, after everything rejected has been drawn again; both are grids.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from jepa.data import _compositions, _primitives, _program_blocks, _programs, _shapes


def seconds(families: np.ndarray, seed: int, repetitions: int) -> tuple[float, _programs.Tally]:
    """Median CPU seconds of drawing programs, and what was rejected in all repetitions."""
    times, tallies = [], []
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        start = time.process_time()
        _, tally = _programs.draw(rng, families)
        times.append(time.process_time() - start)
        tallies.append(tally)
    return float(np.median(times)), _programs.Tally(*np.sum(tallies, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=512, help="pairs of a family drawn at once")
    parser.add_argument("--block", type=int, default=4096, help="programs of a block")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    _shapes.bank()
    families, rates, total = _primitives.FAMILIES, [], 0.0
    print(f"{'family':18}{'grids / CPU s':>14}{'undefined':>11}{'unchanged':>11}")
    for number, name in enumerate(families):
        time_taken, tally = seconds(np.full((args.pairs, 1), number), number, args.repetitions)
        total += time_taken
        rates.append(2 * args.pairs / time_taken)
        applied, undefined, unchanged = (count[number] for count in tally)
        print(f"{name:18}{rates[-1]:14,.0f}{undefined / applied:11.1%}{unchanged / applied:11.1%}")
    print(f"{len(families)} families: {np.mean(rates):,.0f} grids per CPU-second averaged over families, ", end="")
    print(f"{2 * args.pairs * len(families) / total:,.0f} with equal numbers of each, least {min(rates):,.0f}")

    split = _compositions.split((), 0.0)
    for what, options in (
        ("pairs of all families", {"length": 1, "num_scenes": 1, "orbit": False}),
        ("two scenes under one primitive", {"length": 1, "num_scenes": 2, "orbit": False}),
        ("orbits of four grids", {"length": 3, "num_scenes": 1, "orbit": True}),
        ("two scenes under two primitives", {"length": 2, "num_scenes": 2, "orbit": False}),
        ("two scenes under three primitives", {"length": 3, "num_scenes": 2, "orbit": False}),
    ):
        recipe = _program_blocks.recipes(split, **options)["train"]
        print(f"{what}, blocks of {args.block}: {block_rates(recipe, args.block, args.repetitions)}")


def block_rates(recipe: _program_blocks.Recipe, size: int, repetitions: int) -> str:
    """Grids per CPU-second of drawing a block, and of drawing and tokenising it."""
    rates = []
    for number in range(repetitions):
        start = time.process_time()
        trace, _ = _program_blocks.block(recipe, 0, size, number)
        drawn = time.process_time()
        _program_blocks.tables(trace.cells, trace.size)
        end = time.process_time()
        count = trace.size[..., 0].size
        rates.append([count / (drawn - start), count / (end - start)])
    plain, tokenised = np.median(rates, axis=0)
    return f"{plain:,.0f} grids per CPU-second, {tokenised:,.0f} tokenised"


if __name__ == "__main__":
    main()
