"""An encoder, a quantizer of its tokens, and the pooling of what comes out, as one pair that objectives encode with.

The parameters are {'encoder': ..., 'quantizer': ...} and the state is {'quantizer': ...}; the objective may keep more
beside them. A quantizer without arrays has no entry. There is one quantizer, shared by the online encoder and a
teacher: two codebooks would give one vector two codes, so the teacher's tree leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from jepa.types import Array, Encoded, Encoder, Observation, PyTree, Quantized, Quantizer

SHARED = "quantizer"


class Represented(NamedTuple):
    """An encoded observation, its tokens before the quantizer, and what the quantizer made of them."""

    encoded: Encoded
    tokens: Array
    quantized: Quantized


class Representation(NamedTuple):
    """init(key, observation) -> (params, state)
    encode(params, state, observation, *, key, train) -> Represented; the key is read in training alone
    update(params, state, represented, *, key) -> state, after a training step, of what the online encoder represented
    levels: of `Quantizer`; () without codes.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    encode: Callable[..., Represented]
    update: Callable[..., PyTree]
    levels: tuple[int, ...]


def teacher_params(params: PyTree) -> PyTree:
    """What of an objective's parameters a teacher averages: everything but the quantizer and the heads that watch."""
    trunk = {name: part for name, part in params["trunk"].items() if name != SHARED}
    return {name: part for name, part in params.items() if name != "monitor"} | {"trunk": trunk}


def teacher_trunk(target_params: PyTree, params: PyTree) -> PyTree:
    """The teacher's encoder with the one quantizer there is."""
    return target_params["trunk"] | {name: part for name, part in params["trunk"].items() if name == SHARED}


def _part(tree: Mapping[str, PyTree]) -> PyTree:
    return tree[SHARED] if SHARED in tree else {}


def _entry(part: PyTree) -> dict[str, PyTree]:
    return {SHARED: part} if jax.tree.leaves(part) else {}


def build(encoder: Encoder, quantizer: Quantizer) -> Representation:
    """The representation of observations by `encoder`, its tokens replaced by those of their codes."""

    def init(key: Array, observation: Observation) -> tuple[PyTree, PyTree]:
        encoder_params = encoder.init(key, observation)
        tokens, mask = encoder.embed(encoder_params, observation)
        params, state = quantizer.init(jax.random.fold_in(key, 1), tokens, mask)
        return {"encoder": encoder_params} | _entry(params), _entry(state)

    def encode(
        params: PyTree, state: PyTree, observation: Observation, *, key: Array | None, train: bool
    ) -> Represented:
        if train and encoder.embed_train is not None:
            tokens, mask = encoder.embed_train(params["encoder"], observation, jax.random.fold_in(key, 1))
        else:
            tokens, mask = encoder.embed(params["encoder"], observation)
        quantized = quantizer.apply(_part(params), _part(state), tokens, mask, key=key, train=train)
        pooled = encoder.pool(params["encoder"], quantized.values, mask)
        return Represented(Encoded(quantized.values, mask, pooled, quantized.codes), tokens, quantized)

    def update(params: PyTree, state: PyTree, represented: Represented, *, key: Array) -> PyTree:
        codes, mask = represented.quantized.codes, represented.encoded.mask
        return state | _entry(quantizer.update(_part(params), _part(state), represented.tokens, mask, codes, key=key))

    return Representation(init, encode, update, quantizer.levels)
