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

from jepa.data import _primitives, _programs, _shapes


def seconds(families: np.ndarray, seed: int, repetitions: int, **options) -> tuple[float, _programs.Tally]:
    """Median CPU seconds of drawing programs, and what was rejected in all repetitions."""
    times, tallies = [], []
    for repetition in range(repetitions):
        rng = np.random.default_rng([seed, repetition])
        start = time.process_time()
        _, tally = _programs.draw(rng, families, **options)
        times.append(time.process_time() - start)
        tallies.append(tally)
    return float(np.median(times)), _programs.Tally(*np.sum(tallies, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=512, help="pairs of a family drawn at once")
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

    mixed = np.random.default_rng(0).permutation(np.resize(np.arange(len(families)), args.pairs * 8))[:, None]
    repeating = np.resize(_primitives.numbers(_primitives.repeating(3)), args.pairs * 2)[:, None].repeat(3, axis=1)
    windows = np.resize(np.arange(len(families)), args.pairs * 2)[:, None]
    for what, programs, options in (
        ("pairs of all families in one batch", mixed, {}),
        ("orbits of four grids", repeating, {"orbit": True}),
        ("two scenes under one program", windows, {"num_scenes": 2}),
    ):
        time_taken, _ = seconds(programs, 1, args.repetitions, **options)
        grids = (programs.shape[1] + 1) * len(programs) * (options["num_scenes"] if "num_scenes" in options else 1)
        print(f"{what}: {grids / time_taken:,.0f} grids per CPU-second")


if __name__ == "__main__":
    main()
