"""Vector quantization with a codebook learned by gradient (van den Oord et al., arXiv:1711.00937, eq. 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.precision import matmul
from jepa.quantizers._codebook import (
    choose_rows,
    flat,
    kmeans,
    lookup,
    masked_mean,
    nearest,
    relative_error,
    straight_through,
)
from jepa.types import Array, PyTree, Quantized, Quantizer


def build(
    *, num_codes: int = 768, commitment: float = 0.25, codebook_weight: float = 1.0, simvq: bool = False
) -> Quantizer:
    """VQ whose codes are parameters, without weight decay, started from the first batches and a step of k-means.

    The loss is codebook_weight x mean (sg(x) - e)^2 + commitment x mean (x - sg(e))^2 over real tokens and dimensions.
    simvq: codes are fixed rows times a learned matrix, so that every token moves all of them (SimVQ, Zhu et al.,
    arXiv:2411.02038). Metrics: `error` over the variance of the tokens.
    """
    if num_codes < 2:
        raise ValueError(f"quantizer.num_codes is {num_codes}; it must be at least 2")

    def codebook(params: PyTree, state: PyTree) -> Array:
        return matmul(state["fixed"], params["codebook_map"]) if simvq else params["codebook"]

    def init(key: Array, tokens: Array, mask: Array) -> tuple[PyTree, PyTree]:
        rows, real = flat(tokens, mask)
        codes, _ = kmeans(rows, real, rows[choose_rows(key, real, num_codes)], num_steps=1)
        return ({"codebook_map": jnp.eye(rows.shape[-1])}, {"fixed": codes}) if simvq else ({"codebook": codes}, {})

    def apply(params: PyTree, state: PyTree, tokens: Array, mask: Array, *, key: Array, train: bool) -> Quantized:
        rows, real = flat(tokens, mask)
        table = codebook(params, state)
        codes = jnp.where(real, nearest(*jax.lax.stop_gradient((rows, table))), -1)
        chosen = lookup(table, codes)
        fixed_rows, fixed_codes = jax.lax.stop_gradient((rows, chosen))
        pull = jnp.mean(masked_mean(jnp.square(chosen - fixed_rows), real))
        commit = jnp.mean(masked_mean(jnp.square(rows - fixed_codes), real))
        values = straight_through(fixed_codes.astype(tokens.dtype), rows.astype(tokens.dtype))
        metrics = {"error": relative_error(rows, fixed_codes, real)}
        loss = codebook_weight * pull + commitment * commit
        return Quantized(values.reshape(tokens.shape), codes.reshape(mask.shape), loss, metrics)

    def update(params: PyTree, state: PyTree, tokens: Array, mask: Array, codes: Array, *, key: Array) -> PyTree:
        return state

    def decode(params: PyTree, state: PyTree, codes: Array) -> Array:
        return lookup(codebook(params, state), codes)

    return Quantizer(init, apply, update, decode, (num_codes,))
