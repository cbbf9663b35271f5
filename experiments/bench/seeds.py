"""What do S seeds as one program cost beside one seed?

    python experiments/bench/seeds.py --seeds 5
    python experiments/bench/seeds.py --config=configs/lejepa.py:base --seeds 8 --platform gpu

A dispatch of one run, and of S runs under `vmap` (`jepa.seeds`) or one after another in one program (`jax.lax.map`), in
turn, so that other work on the machine falls on all alike. Printed are milliseconds per step, the ratio to one run,
and the seconds that compiling took.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from _timing import timed

from jepa import backend, curriculum, seeds, train
from jepa import main as cli
from jepa.parts import of_seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/lejepa.py:small")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    backend.select_platform(options.platform)

    configs = [cli.load_config(options.config) for _ in range(options.seeds)]
    for seed, config in enumerate(configs):
        config.seed, config.platform = seed, options.platform
    parts = of_seeds(configs)
    dispatch, tables = train.make_dispatch(configs[0], parts[0]), parts[0].source.tables
    rows = [curriculum.rows(each.source, 0, configs[0].steps_per_call) for each in parts]
    one, all_rows = parts[0].init(), jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    together = seeds.stack([each.init() for each in parts])
    alone = jax.jit(dispatch)
    vmapped = jax.jit(jax.vmap(dispatch, (0, None, 0)))
    mapped = jax.jit(lambda runs, tables, rows: jax.lax.map(lambda x: dispatch(x[0], tables, x[1]), (runs, rows)))
    calls = {
        "one": lambda: alone(one, tables, rows[0]),
        "vmap": lambda: vmapped(together, tables, all_rows),
        "map": lambda: mapped(together, tables, all_rows),
    }
    compiling = {}
    for name, call in calls.items():
        began = time.perf_counter()
        jax.block_until_ready(call())
        compiling[name] = time.perf_counter() - began
    seconds = timed(calls, options.repetitions)
    for name, each in seconds.items():
        ratio = np.median(np.array(each) / np.array(seconds["one"]))
        step = 1e3 * np.median(each) / configs[0].steps_per_call
        print(f"{name:5} {step:8.1f} ms per step, {ratio:5.2f} times one, {compiling[name]:5.1f} s to the first result")


if __name__ == "__main__":
    main()
