"""One full diagnosis against a training step of the default config: does it cost at most two?

    python experiments/bench/diagnostics.py

A diagnosis is `jepa.diagnostics.describe` of N rows of width D and `jepa.pair_diagnostics.lidar` of the same as pairs.
The step is that of `configs/lejepa.py`: one dispatch of `steps_per_call` steps, divided by their number. Both, and the
parts of a diagnosis, are called in turn, so that other work on the machine falls on all alike; times are medians and
the least of all rounds, and the ratio is the median over rounds, with its quartiles.
"""

from __future__ import annotations

import argparse
import statistics

import jax
import jax.numpy as jnp
from _timing import timed

from jepa import backend, curriculum, diagnostics, evaluation, moments, pair_diagnostics, train
from jepa import main as cli
from jepa.parts import build


def diagnose(embeddings, key):
    pairs = embeddings.reshape(-1, 2, embeddings.shape[-1])
    return diagnostics.describe(embeddings, key) | {"lidar": pair_diagnostics.lidar(pairs)}


def add_all(embeddings, key):
    return moments.add(moments.start(key, embeddings.shape[-1]), embeddings)


def training(config):
    """A call that runs one dispatch and keeps its state for the next, as the loop does."""
    parts = build(config)
    call, held = train.make_train_call(config, parts), {"state": parts.init()}
    rows = curriculum.rows(parts.source, 0, config.steps_per_call)

    def dispatch():
        held["state"], metrics = call(held["state"], parts.source.tables, rows)
        return metrics

    return dispatch


def in_a_run(config):
    """What a default run diagnoses: gradients of single terms, and the embeddings of an evaluation, all roles."""
    parts = build(config)
    run, rows = parts.init(), parts.source.indices(0)
    dim, num = config.encoder.num_readouts * config.encoder.readout_dim, config.batch_size
    shapes = {"context": (3 * num, dim), "target": (num, dim), "predicted": (num, dim)}
    embeddings = {role: jax.random.normal(jax.random.key(1), shape) for role, shape in shapes.items()}
    add, finish = jax.jit(evaluation.add_to_diagnosis), jax.jit(evaluation.finish_diagnosis)

    def embeddings_diagnosed():
        diagnosis = evaluation.start_diagnosis(embeddings, jax.random.key(0))
        for _ in range(-(-config.eval_examples // num)):
            diagnosis = add(diagnosis, embeddings)
        return finish(diagnosis, run)

    return {"gradients of single terms": lambda: parts.diagnose(run, rows), "an evaluation's": embeddings_diagnosed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--num", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=8)
    options = parser.parse_args()
    backend.select_platform(options.platform)

    config = cli.load_config("configs/lejepa.py")
    key = jax.random.key(0)
    z = 1.2 * jax.random.normal(key, (options.num, options.dim)) + 0.1
    seen = jax.jit(add_all)(z, key)
    full, add, finish = (jax.jit(f) for f in (diagnose, add_all, diagnostics.finish))
    eigenvalues = jax.jit(jnp.linalg.eigvalsh)
    calls = {
        "training": training(config),
        "diagnosis": lambda: full(z, key),
        "all rows added": lambda: add(z, key),
        "finished": lambda: finish(seen),
        "one eigvalsh": lambda: eigenvalues(seen.scatter.matrix),
        **in_a_run(config),
    }
    seconds = timed(calls, options.repetitions)
    steps = [dispatch / config.steps_per_call for dispatch in seconds.pop("training")]
    low, ratio, high = statistics.quantiles([a / b for a, b in zip(seconds["diagnosis"], steps, strict=True)], n=4)

    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, N = {options.num}, D = {options.dim}\n")
    print("| | ms | least |\n|---|---|---|")
    for name, times in {f"training step, batch {config.batch_size}": steps, **seconds}.items():
        print(f"| {name} | {1e3 * statistics.median(times):.0f} | {1e3 * min(times):.0f} |")
    every = {"gradients of single terms": config.diagnose_every, "an evaluation's": config.eval_every}
    shares = [sum(seconds[name][i] / cadence for name, cadence in every.items()) / step for i, step in enumerate(steps)]
    print(
        f"\nall diagnostics of a default run, at its cadence, add {100 * statistics.median(shares):.2f} % to its steps"
    )
    print(f"one diagnosis is {ratio:.2f} training steps ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
