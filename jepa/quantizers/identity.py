"""No quantizer: tokens pass as they are, and there are no codes."""

from __future__ import annotations

import jax.numpy as jnp

from jepa.types import Quantized, Quantizer


def build() -> Quantizer:
    """The quantizer of a run without codes. It has no options."""

    def decode(params, state, codes):
        raise ValueError("quantizer 'identity' has no codes to decode: set config.quantizer.name to 'fsq', for one")

    return Quantizer(
        init=lambda key, tokens, mask: ({}, {}),
        apply=lambda params, state, tokens, mask, *, key, train: Quantized(tokens, None, jnp.float32(0.0), {}),
        update=lambda params, state, tokens, mask, codes, *, key: state,
        decode=decode,
        levels=(),
    )
