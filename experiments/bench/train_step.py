"""Where the time of a training step goes: samples per second, memory, each loss term, and what is not encoder.

    python experiments/bench/train_step.py                                  # batch 64, on the CPU
    python experiments/bench/train_step.py --platform=gpu --batch_size=512

`lejepa` and `infonce` on real data at the sizes of `configs/infonce.py:production`: width 384, 3 layers, 8 heads,
projection 256 (LeJEPA's at most the batch), queue 8192, 16 objects, context 3. A term costs what a step saves
that leaves it out; the loss side costs what a step saves that leaves out all of them but the prediction error. The
encoder matmuls are those of the encoders' forward and backward pass, each timed alone and multiplied by how often it
occurs. Steps are timed in turn, so that other work on the machine falls on all alike; times are medians, and what a
term costs is the median difference of one round, with its quartiles.
"""

from __future__ import annotations

import argparse
import collections
import statistics

import jax
import jax.numpy as jnp
from _timing import timed
from jax.extend import core

from jepa import backend, state, tables, train_step
from jepa import main as cli
from jepa.parts import build

NUM_OBJECTS = 16
LOSS_SIDE = {"lejepa": ("sigreg",), "infonce": ("infonce", "sigreg", "relational", "relational_context")}


def sized(name: str, batch_size: int, compute_dtype: str):
    config = cli.load_config(f"configs/{name}.py")
    config.batch_size = batch_size
    config.compute_dtype = compute_dtype
    config.encoder.update(dim=384, depth=3, num_heads=8, readout_dim=48)
    # LeJEPA tests the projections of the batch, so they may not be wider than the batch is large.
    projector_dim = min(256, batch_size) if name == "lejepa" else 256
    config.objective.update(num_heads=8, predictor_dim=384, projector_dim=projector_dim, num_slices=1024)
    config.weights.prediction = 1.0
    for term in LOSS_SIDE[name]:
        config.weights[term] = 1.0
    return config


def cropped(observation):
    """An object table with the grid, the first 16 objects and the overflow token."""
    kept = jnp.array([0, *range(1, NUM_OBJECTS + 1), tables.OVERFLOW])
    axis = observation["mask"].ndim - 1
    by_token = {k: jnp.take(v, kept, axis) for k, v in observation.items() if k not in ("size", "offset")}
    return observation | by_token | {"edges": jnp.take(by_token["edges"], kept, axis + 1)}


def matmuls(jaxpr) -> collections.Counter:
    """How often each dot_general occurs in a program, by the shapes and types of its operands and what it contracts."""
    found: collections.Counter = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            operands = tuple((v.aval.shape, v.aval.dtype) for v in equation.invars)
            found[(*operands, equation.params["dimension_numbers"], equation.params["precision"])] += 1
        for inner in core.jaxprs_in_params(equation.params):
            found += matmuls(inner)
    return found


def matmul_seconds(found: collections.Counter, repetitions: int) -> float:
    def call(left, right, dimensions, precision):
        x, y = (jax.random.normal(jax.random.key(0), *spec) for spec in (left, right))
        product = jax.jit(lambda x, y: jax.lax.dot_general(x, y, dimensions, precision=precision))
        return lambda: product(x, y)

    calls = {key: call(*key) for key in found}
    seconds = timed(calls, repetitions)
    return sum(count * statistics.median(seconds[key]) for key, count in found.items())


def measure(name: str, options: argparse.Namespace) -> None:
    config = sized(name, options.batch_size, options.compute_dtype)
    parts = build(config)
    batch = parts.source.gather(parts.source.tables, parts.source.indices(0), jax.random.key(0), True)
    batch = batch._replace(context=cropped(batch.context), target=cropped(batch.target))
    teacher = config.target_ema is not None
    run = jax.jit(lambda: state.create(parts.objective, parts.tx, batch, 0, teacher=teacher))()

    def compiled_step(off: tuple[str, ...]):
        weights = parts.weights | dict.fromkeys(off)
        step = train_step.make_train_step(
            parts.objective, weights, max_grad_norm=config.max_grad_norm, target_ema=config.target_ema
        )
        return jax.jit(step).lower(run, batch).compile()

    def encoders(params, target_params):  # online over the context, and the target by the teacher or as one frame more
        if teacher:
            encoded = [parts.objective.encode(params, run.objective_state, batch.context)]
            encoded.append(parts.objective.encode(target_params, run.objective_state, batch.target))
        else:
            leaves = (batch.context, batch.target)
            frames = jax.tree.map(lambda c, t: jnp.concatenate([c, t[:, None]], axis=1), *leaves)
            encoded = [parts.objective.encode(params, run.objective_state, frames)]
        return sum(jnp.sum(part.tokens) + jnp.sum(part.pooled) for part in encoded)

    on = [term for term, weight in parts.weights.items() if weight is not None]
    without = {f"without {term}": (term,) for term in on if term in LOSS_SIDE[name]}
    steps = {"whole": (), **without, "without the loss side": LOSS_SIDE[name]}
    compiled = {label: compiled_step(off) for label, off in steps.items()}
    calls = {label: (lambda program=program: program(run, batch)) for label, program in compiled.items()}
    encoder = jax.jit(jax.value_and_grad(encoders)).lower(run.params, run.target_params).compile()
    rounds = timed(calls | {"encoders": lambda: encoder(run.params, run.target_params)}, options.repetitions)

    program = jax.make_jaxpr(jax.value_and_grad(encoders))(run.params, run.target_params)
    in_matmuls = matmul_seconds(matmuls(program.jaxpr), options.repetitions)

    whole, encoding = (statistics.median(rounds[label]) for label in ("whole", "encoders"))
    memory = compiled["whole"].memory_analysis().temp_size_in_bytes / 2**20
    rate = options.batch_size / whole
    print(f"\n## {name}: {rate:.1f} samples/s, {1e3 * whole:.0f} ms, {memory:.0f} MiB of temporaries\n")
    print("| | ms | share of the step |\n|---|---|---|")
    for label in (*without, "without the loss side"):
        saved = [a - b for a, b in zip(rounds["whole"], rounds[label], strict=True)]
        low, cost, high = statistics.quantiles(saved, n=4)
        interval = f"{cost / whole:.1%} ({low / whole:.1%} to {high / whole:.1%})"
        print(f"| {label.removeprefix('without ')} | {1e3 * cost:.1f} | {interval} |")
    print(f"| encoders, forward and backward | {1e3 * encoding:.1f} | {encoding / whole:.1%} |")
    print(f"| their matmuls alone | {1e3 * in_matmuls:.1f} | {in_matmuls / whole:.1%} |")
    print(f"| outside the encoder matmuls | {1e3 * (whole - in_matmuls):.1f} | {1 - in_matmuls / whole:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--compute_dtype", default="float32")
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    backend.select_platform(options.platform)
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__} on {device}, batch {options.batch_size}, {options.compute_dtype}")
    for name in LOSS_SIDE:
        measure(name, options)


if __name__ == "__main__":
    main()
