"""Where bfloat16 begins and ends: parameters are float32, encoders compute in `compute`, losses are float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jepa.types import Array

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype in which linen modules multiply. Raises ValueError for a name that is not a supported policy."""
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"compute_dtype is {name!r}; it must be one of {sorted(COMPUTE_DTYPES)}")
    return COMPUTE_DTYPES[name]


def wide(x: Array) -> Array:
    """x in float32 at least, since sums of bfloat16 lose their small terms; float64 stays where it is enabled."""
    return jnp.asarray(x, jnp.result_type(x, jnp.float32))


def matmul(a: Array, b: Array) -> Array:
    """a @ b in full precision: accelerators would round float32 factors to 8 or 10 bits, and a loss would show it."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def einsum(subscripts: str, *operands: Array) -> Array:
    """jnp.einsum in full precision, for the reason `matmul` gives."""
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)
