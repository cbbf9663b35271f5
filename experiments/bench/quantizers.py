"""What a quantizer costs beside the one matmul that every codebook needs: is it worth more than a few of those?

    python experiments/bench/quantizers.py                                      # on the CPU
    python experiments/bench/quantizers.py --platform=gpu --repetitions=100

For each (tokens, dim, codes), for every quantizer at its default options: time of the forward pass and the update,
the same with the gradients of tokens and parameters, temporary memory as XLA reports it, and how many times the plain
tokens @ codebook.T (float32, full precision) that is. The last line is FSQ's rounding alone, as a share of EMA VQ's
forward pass and update. Repetitions are interleaved, so that other work on the machine falls on all alike; times are
medians, and a ratio is the median of the ratios of one round, with its quartiles.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
from _timing import timed

from jepa import backend
from jepa.precision import matmul
from jepa.quantizers import fsq, gumbel, vq_ema, vq_gradient
from jepa.types import Quantizer

SIZES = ((8192, 128, 768), (32768, 256, 1024))
TOKENS_PER_EXAMPLE = 16
ROUNDINGS = 20  # timed together: one is so short that it mostly meets no other work, or waits for a whole slice of it


def compiled(function: Callable, *arguments) -> tuple[Callable[[], object], float]:
    """A call of the compiled function on its arguments, and its temporary memory in MB."""
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: program(*arguments), program.memory_analysis().temp_size_in_bytes / 1e6


def passes(quantizer: Quantizer) -> tuple[Callable, Callable]:
    """One training step of a quantizer on tokens and mask: without its gradients, and with them."""

    def forward(params, state, tokens, mask, key):
        out = quantizer.apply(params, state, tokens, mask, key=key, train=True)
        return out, quantizer.update(params, state, tokens, mask, out.codes, key=key)

    def backward(params, state, tokens, mask, key, direction):
        def loss(params, tokens):
            out, new = forward(params, state, tokens, mask, key)
            return jnp.sum(out.values * direction) + out.loss, (out, new)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, tokens)

    return forward, backward


def measure(num: int, dim: int, num_codes: int, repetitions: int) -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (num // TOKENS_PER_EXAMPLE, TOKENS_PER_EXAMPLE, dim)
    tokens, direction = (jax.random.normal(key, shape) for key in keys[:2])
    mask = jax.random.bernoulli(keys[2], 0.9, shape[:2])
    codebook = jax.random.normal(keys[3], (num_codes, dim))
    quantizers = {
        "EMA VQ": vq_ema.build(num_codes=num_codes),
        "gradient VQ": vq_gradient.build(num_codes=num_codes),
        "Gumbel": gumbel.build(num_codes=num_codes),
        "FSQ": fsq.build(),
    }

    calls, megabytes = {}, {}
    calls["matmul"], _ = compiled(lambda x, e: matmul(x, e.T), tokens.reshape(num, dim), codebook)
    for name, quantizer in quantizers.items():
        params, state = jax.jit(quantizer.init)(keys[4], tokens, mask)
        arguments = (params, state, tokens, mask, keys[4])
        forward, backward = passes(quantizer)
        calls[name], megabytes[name] = compiled(forward, *arguments)
        label = f"{name}, backward"
        calls[label], megabytes[label] = compiled(backward, *arguments, direction)

    def rounding(scalars):
        symbols, values = fsq.round_to_levels(scalars, quantizers["FSQ"].levels)
        return fsq.pack(symbols, quantizers["FSQ"].levels), values

    scalars = jax.random.normal(keys[4], (num, len(quantizers["FSQ"].levels)))
    rounded, _ = compiled(rounding, scalars)
    calls["rounding"] = lambda: [jax.block_until_ready(rounded()) for _ in range(ROUNDINGS)]
    seconds = timed(calls, repetitions)
    seconds["rounding"] = [total / ROUNDINGS for total in seconds["rounding"]]

    def milliseconds(name: str) -> float:
        return 1e3 * statistics.median(seconds[name])

    def ratio(name: str, base: str, form: str) -> str:
        ratios = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
        low, middle, high = (format(q, form) for q in statistics.quantiles(ratios, n=4))
        return f"{middle} ({low} to {high})"

    print(f"\n## {num} tokens, dim {dim}, {num_codes} codes: matmul {milliseconds('matmul'):.1f} ms\n")
    print("| | forward + update ms | x matmul | MB | with backward ms | x matmul | MB |\n|---|---|---|---|---|---|---|")
    for name in quantizers:
        cells = [
            f"{milliseconds(label):.1f} | {ratio(label, 'matmul', '.2f')} | {megabytes[label]:.1f}"
            for label in (name, f"{name}, backward")
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    share = ratio("rounding", "EMA VQ", ".2%")
    print(f"\nFSQ's rounding alone: {milliseconds('rounding'):.2f} ms, {share} of EMA VQ's forward + update")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--repetitions", type=int, default=20)
    options = parser.parse_args()
    backend.select_platform(options.platform)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, float32")
    for size in SIZES:
        measure(*size, options.repetitions)


if __name__ == "__main__":
    main()
