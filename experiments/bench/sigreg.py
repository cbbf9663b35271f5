"""SIGReg against its direct form: is the recurrence faster, smaller and as exact?

    python experiments/bench/sigreg.py

For each (samples N, width D, directions M): time of value and gradient, temporary memory as XLA reports it, the two
projections z A and G A^T alone (no form can be faster), and the largest difference of the gradients over the largest
gradient. Repetitions are interleaved, so that other work on the machine falls on all alike; times are medians.
"""

from __future__ import annotations

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from _timing import timed

from jepa.losses.sigreg import random_directions, sigreg_along

SIZES = ((256, 128, 256), (1024, 256, 1024), (4096, 512, 1024))
HIGHEST = jax.lax.Precision.HIGHEST


def direct(z, directions, num_knots=17, t_max=3.0):
    """The definition, with an array [N, M, knots]: what one writes first."""
    t = jnp.linspace(0.0, t_max, num_knots)
    phi = jnp.exp(-0.5 * t**2)
    weight = phi * jnp.full(num_knots, 2 * t[1]).at[jnp.array([0, -1])].set(t[1])
    angle = jnp.matmul(z, directions, precision=HIGHEST)[..., None] * t
    distance = jnp.square(jnp.mean(jnp.cos(angle), axis=0) - phi) + jnp.square(jnp.mean(jnp.sin(angle), axis=0))
    return jnp.mean(z.shape[0] * jnp.matmul(distance, weight, precision=HIGHEST))


def ours(z, directions):
    return jnp.mean(sigreg_along(z, directions))


def projections(z, directions):
    u = jnp.matmul(z, directions, precision=HIGHEST)
    return jnp.matmul(u, directions.T, precision=HIGHEST)


def compare(num, dim, slices, repetitions):
    z = jax.random.normal(jax.random.key(0), (num, dim)) * 1.2 + 0.1
    directions = random_directions(jax.random.key(1), dim, slices)
    functions = {"ours": jax.value_and_grad(ours), "direct": jax.value_and_grad(direct), "projections": projections}
    compiled = {name: jax.jit(f).lower(z, directions).compile() for name, f in functions.items()}
    seconds = timed({name: functools.partial(f, z, directions) for name, f in compiled.items()}, repetitions)
    milliseconds = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    megabytes = {name: f.memory_analysis().temp_size_in_bytes / 1e6 for name, f in compiled.items()}
    gradient, expected = (np.asarray(compiled[name](z, directions)[1], np.float64) for name in ("ours", "direct"))
    return milliseconds, megabytes, np.abs(gradient - expected).max() / np.abs(expected).max()


def main():
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; value and gradient, float32")
    print(
        "| N, D, M | ours ms | direct ms | projections ms | faster | x floor | ours MB | direct MB | smaller | error |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for num, dim, slices in SIZES:
        ms, mb, error = compare(num, dim, slices, repetitions=max(5, min(50, 2**26 // (num * slices))))
        print(
            f"| {num}, {dim}, {slices} | {ms['ours']:.2f} | {ms['direct']:.2f} | {ms['projections']:.2f} "
            f"| {ms['direct'] / ms['ours']:.1f} | {ms['ours'] / ms['projections']:.2f} "
            f"| {mb['ours']:.2f} | {mb['direct']:.2f} | {mb['direct'] / mb['ours']:.0f} | {error:.1e} |"
        )


if __name__ == "__main__":
    main()
