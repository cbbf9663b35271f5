"""Linen blocks shared by encoders and predictors: masked attention with a relational bias, MLP, readouts.

Modules compute in `dtype` with float32 parameters; softmax and normalisation statistics are float32.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.types import Array

NEGATIVE = -1e9  # a masked logit: finite, so that a row with no real key gives a uniform softmax and not NaN


class LayerNorm(nn.Module):
    """Features of zero mean and unit variance, times a scale plus a bias (Ba et al., arXiv:1607.06450).

    Divided by a root, not multiplied by `rsqrt`: the gradient of that is compiled wrongly for a single CPU device under
    `vmap` by JAX 0.10.2, by up to a third.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        initial = {"scale": nn.initializers.ones, "bias": nn.initializers.zeros}
        scale, bias = (
            jnp.expand_dims(self.param(name, init, x.shape[-1:]), range(x.ndim - 1)) for name, init in initial.items()
        )
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-6)
        return (centred / deviation * scale + bias).astype(self.dtype)


class Mlp(nn.Module):
    """Dense layers of `widths` with GELU between them and nothing after the last one."""

    widths: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths[:-1]:
            x = nn.gelu(nn.Dense(width, dtype=self.dtype)(x))
        return nn.Dense(self.widths[-1], dtype=self.dtype)(x)


class Projector(nn.Module):
    """An MLP from embeddings to what the losses see, with GELU between its layers; with `batch_norm`, batch
    normalisation (arXiv:1502.03167) and ReLU. Statistics are of all leading axes together, in training of the batch,
    else the averages `batch_stats`.
    """

    widths: tuple[int, ...]
    batch_norm: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for width in self.widths[:-1]:
            x = nn.Dense(width)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x)) if self.batch_norm else nn.gelu(x)
        return nn.Dense(self.widths[-1])(x)


class Attention(nn.Module):
    """Multi-head self-attention over tokens with an additive bias per head (Shaw et al., arXiv:1803.02155).

    x [..., N, D], mask bool [..., N], bias [..., H, N, N] or None. Masked tokens are never attended to.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, bias: Array | None = None) -> Array:
        dim = x.shape[-1]
        head_dim = dim // self.num_heads
        qkv = nn.DenseGeneral((3, self.num_heads, head_dim), dtype=self.dtype, name="qkv")(x)
        q, k, v = (qkv[..., i, :, :] for i in range(3))  # [..., N, H, d]
        logits = jnp.einsum("...nhd,...mhd->...hnm", q, k).astype(jnp.float32) * head_dim**-0.5
        if bias is not None:
            logits = logits + bias.astype(jnp.float32)
        logits = jnp.where(mask[..., None, None, :], logits, NEGATIVE)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("...hnm,...mhd->...nhd", weights, v)
        return nn.DenseGeneral(dim, axis=(-2, -1), dtype=self.dtype, name="out")(mixed)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP of `mlp_ratio` times the width.

    kept [2, ..., 1, 1], if given, are factors of the two residual branches (`drop_path`).
    """

    num_heads: int
    mlp_ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, bias: Array | None = None, kept: Array | None = None) -> Array:
        dim = x.shape[-1]
        mixed = Attention(self.num_heads, self.dtype)(LayerNorm(dtype=self.dtype)(x), mask, bias)
        x = x + (mixed if kept is None else kept[0] * mixed)
        changed = Mlp((self.mlp_ratio * dim, dim), self.dtype)(LayerNorm(dtype=self.dtype)(x))
        return x + (changed if kept is None else kept[1] * changed)


def drop_path(key: Array, shape: tuple[int, ...], rate: float, dtype: jnp.dtype = jnp.float32) -> Array:
    """Factors of residual branches: 0 with probability `rate`, else 1 / (1 - rate); stochastic depth, 1603.09382."""
    return jax.random.bernoulli(key, 1.0 - rate, shape).astype(dtype) / (1.0 - rate)


class Readouts(nn.Module):
    """Concatenated attention readouts of a set of tokens: one learned query and one linear value map each.

    tokens [..., N, D], mask bool [..., N] -> float32 [..., num * dim]. The last operation is linear: a
    normalisation or a ReLU here would make a Gaussianity test on the result inert.
    """

    num: int
    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array) -> Array:
        tokens = LayerNorm(dtype=self.dtype)(tokens)
        queries = self.param("queries", nn.initializers.normal(1.0), (self.num, tokens.shape[-1]))
        keys = nn.Dense(tokens.shape[-1], dtype=self.dtype, name="keys")(tokens)
        logits = jnp.einsum("rd,...nd->...rn", queries.astype(self.dtype), keys).astype(jnp.float32)
        logits = jnp.where(mask[..., None, :], logits * tokens.shape[-1] ** -0.5, NEGATIVE)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)  # [..., R, N]
        values = nn.DenseGeneral((self.num, self.dim), dtype=self.dtype, name="values")(tokens)
        pooled = jnp.einsum("...rn,...nrd->...rd", weights, values).astype(jnp.float32)
        return pooled.reshape(*pooled.shape[:-2], self.num * self.dim)


def masked_mean(tokens: Array, mask: Array) -> Array:
    """Mean over the real tokens, [..., N, D] -> [..., D]; zero where no token is real."""
    weight = mask[..., None].astype(tokens.dtype)
    return jnp.sum(tokens * weight, axis=-2) / jnp.maximum(jnp.sum(weight, axis=-2), 1.0)
