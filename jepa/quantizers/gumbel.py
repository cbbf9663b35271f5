"""Gumbel-softmax codes (Jang et al., arXiv:1611.01144; Maddison et al., 1611.00712): a code is drawn, and its gradient
is that of the soft assignment."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jepa.precision import matmul
from jepa.quantizers._codebook import flat, lookup, masked_mean, normalised
from jepa.types import Array, PyTree, Quantized, Quantizer


def soft_assignment(logits: Array, noise: Array, tau: Array | float) -> Array:
    """softmax((logits + noise) / tau), [M, K]; with Gumbel noise a sample of the concrete distribution."""
    return jax.nn.softmax((logits + noise) / tau, axis=-1)


def hard_values(codebook: Array, codes: Array, soft: Array) -> Array:
    """codebook[codes] [M, D], to the last bit; its gradient on `soft` is that of soft @ codebook."""
    mixed = matmul(soft, jax.lax.stop_gradient(codebook))
    return codebook[codes] + (mixed - jax.lax.stop_gradient(mixed))


def squared_distances(rows: Array, codebook: Array) -> Array:
    """[M, K]."""
    norms = jnp.sum(jnp.square(rows), axis=-1)[:, None] + jnp.sum(jnp.square(codebook), axis=-1)[None]
    return norms - 2.0 * matmul(rows, codebook.T)


def build(
    *,
    num_codes: int = 768,
    logits: str = "linear",
    tau: float = 2.0,
    tau_final: float = 0.5,
    tau_steps: int = 1000,
    diversity: float = 1.0,
) -> Quantizer:
    """Gumbel-softmax over `num_codes` codes of unit scale, of tokens normalised over their dimensions.

    logits: "linear" in the token, or "distance": -||x - e||^2 / sqrt(D). The temperature falls geometrically from `tau`
    to `tau_final` over `tau_steps` updates. In training a code is drawn; elsewhere it is the most probable one, which
    needs no noise. The loss is diversity x (1 - entropy of the mean assignment / ln K), 0 for even use.
    Metrics: `temperature`; `soft_hard_gap`, the mean squared distance of the soft and the hard value over the variance
    of the codes; `error` of a code to its token, over the variance of the tokens, where logits are distances.
    """
    if logits not in ("linear", "distance"):
        raise ValueError(f"quantizer.logits is {logits!r}; it must be 'linear' or 'distance'")
    if not 0 < tau_final <= tau or tau_steps < 1:
        raise ValueError(
            f"quantizer.tau {tau} falls to tau_final {tau_final} over tau_steps {tau_steps}: "
            "temperatures must be above 0 and fall, over at least one step"
        )
    if num_codes < 2:
        raise ValueError(f"quantizer.num_codes is {num_codes}; it must be at least 2")

    def init(key: Array, tokens: Array, mask: Array) -> tuple[PyTree, PyTree]:
        dim = tokens.shape[-1]
        key_codes, key_logits = jax.random.split(key)
        params = {"codebook": jax.random.normal(key_codes, (num_codes, dim))}
        if logits == "linear":
            kernel = jax.random.normal(key_logits, (dim, num_codes)) * dim**-0.5
            params["logits"] = {"kernel": kernel, "bias": jnp.zeros(num_codes)}
        return params, {"calls": jnp.int32(0)}

    def temperature(state: PyTree) -> Array:
        done = jnp.minimum(state["calls"] / tau_steps, 1.0)
        return jnp.float32(tau) * jnp.float32(tau_final / tau) ** done

    def scores(params: PyTree, x: Array) -> Array:
        if logits == "linear":
            return matmul(x, params["logits"]["kernel"]) + params["logits"]["bias"][None]
        return -squared_distances(x, params["codebook"]) * x.shape[-1] ** -0.5

    def apply(params: PyTree, state: PyTree, tokens: Array, mask: Array, *, key: Array, train: bool) -> Quantized:
        rows, real = flat(tokens, mask)
        x = normalised(rows)
        score = scores(params, x)  # [M, K]
        noise = jax.random.gumbel(key, score.shape, jnp.float32) if train else jnp.zeros_like(score)
        drawn = jnp.argmax(score + noise, axis=-1).astype(jnp.int32)
        soft = soft_assignment(score, noise, temperature(state))
        values = jnp.where(real[:, None], hard_values(params["codebook"], drawn, soft), 0.0)
        mean = masked_mean(jax.nn.softmax(score, axis=-1), real)
        entropy = -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-20)))
        loss = diversity * jnp.any(real) * (1.0 - entropy / math.log(num_codes))
        codes = jnp.where(real, drawn, -1)
        metrics = {"temperature": temperature(state)} | gaps(params, x, soft, codes, real)
        out = values.astype(tokens.dtype).reshape(tokens.shape)
        return Quantized(out, codes.reshape(mask.shape), loss, metrics)

    def gaps(params: PyTree, x: Array, soft: Array, codes: Array, real: Array) -> dict[str, Array]:
        codebook, x, soft = jax.lax.stop_gradient((params["codebook"], x, soft))
        hard = lookup(codebook, codes)
        gap = jnp.mean(masked_mean(jnp.square(matmul(soft, codebook) - hard), real))
        found = {"soft_hard_gap": gap / jnp.mean(jnp.var(codebook, axis=0))}
        if logits == "distance":
            found["error"] = jnp.mean(masked_mean(jnp.square(hard - x), real))  # x has variance 1 by construction
        return found

    def update(params: PyTree, state: PyTree, tokens: Array, mask: Array, codes: Array, *, key: Array) -> PyTree:
        return {"calls": state["calls"] + jnp.int32(jnp.any(mask))}

    def decode(params: PyTree, state: PyTree, codes: Array) -> Array:
        return lookup(params["codebook"], codes)

    return Quantizer(init, apply, update, decode, (num_codes,))
