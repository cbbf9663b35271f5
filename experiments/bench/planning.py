"""How many sequences of actions does a planner try in a second of one core?

    python experiments/bench/planning.py
    python experiments/bench/planning.py --config=configs/world_model.py:two_rooms_tiny --problems 100

Untrained weights, since time does not depend on them. Printed are candidate rollouts of `--horizon` steps per
CPU-second and per second, of the rollouts alone and of whole plans (drawing, rollouts, cost, elites) by both methods,
for so many problems together: batching is what makes a small model fast.
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import numpy as np

from jepa import backend, planning
from jepa import main as cli
from jepa.parts import build
from jepa.planning import Planner


def rate(call, num: int, repetitions: int) -> tuple[float, float]:
    """`num` over the median CPU-seconds and seconds of a call, after one that compiles."""
    jax.block_until_ready(call())
    cpu, wall = [], []
    for _ in range(repetitions):
        began = time.process_time(), time.perf_counter()
        jax.block_until_ready(call())
        cpu.append(time.process_time() - began[0])
        wall.append(time.perf_counter() - began[1])
    return num / np.median(cpu), num / np.median(wall)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/world_model.py:two_rooms")
    parser.add_argument("--problems", type=int, nargs="+", default=(1, 16, 100))
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    options = parser.parse_args()
    backend.select_platform(options.platform)
    config = cli.load_config(options.config)
    config.batch_size = 2
    parts = build(config)
    run, world, source = parts.init(), parts.objective.world, parts.source
    batch = jax.jit(lambda rows: source.gather(source.tables, rows, jax.random.key(0), False))(source.indices(0))
    width = batch.actions.shape[-1]
    z = jax.jit(world.see)(run.params, run.objective_state, batch.target)
    source.close()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; {options.config}, z {z.value.shape[-1]} wide")
    print(f"candidate rollouts of {options.horizon} steps, {options.samples} samples, {options.iterations} iterations")
    print("| problems | what | per CPU-second | per second |\n|---|---|---|---|")
    for problems in options.problems:
        start = jax.tree.map(lambda leaf, num=problems: leaf[np.arange(num) % 2], z)
        many = jax.tree.map(lambda leaf: np.repeat(leaf, options.samples, axis=0), start)
        actions = jax.random.normal(jax.random.key(1), (problems * options.samples, options.horizon, width))
        imagine = jax.jit(lambda params, many, actions: world.imagine(params, many, actions).value[:, -1])
        calls = {"rollouts": (functools.partial(imagine, run.params, many, actions), len(actions))}
        for method in planning.METHODS:
            planner = Planner(method, options.horizon, options.samples, options.samples // 10, options.iterations)

            @functools.partial(jax.jit, static_argnums=0)
            def plan(planner, params, start, key):
                cost = planning.distance_to_goal(functools.partial(world.imagine, params), start, start)
                return planning.plan(planner, cost, planning.begin(planner, len(start.value), width), key)[0]

            call = functools.partial(plan, planner, run.params, start, jax.random.key(2))
            calls[method] = call, problems * options.samples * options.iterations
        for name, (call, num) in calls.items():
            per_cpu, per_second = rate(call, num, options.repetitions)
            print(f"| {problems} | {name} | {per_cpu:,.0f} | {per_second:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
