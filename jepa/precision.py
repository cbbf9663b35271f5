"""Where bfloat16 begins and ends: parameters are float32, encoders compute in `compute`, losses are float32."""

from __future__ import annotations

import jax.numpy as jnp

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype in which linen modules multiply. Raises ValueError for a name that is not a supported policy."""
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"compute_dtype is {name!r}; it must be one of {sorted(COMPUTE_DTYPES)}")
    return COMPUTE_DTYPES[name]
