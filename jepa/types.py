"""The types every part of the library speaks: pure functions in pairs, and the trees they pass on.

Shape letters, used everywhere: B batch, V views, T time, N tokens (objects), D features, K rows (queue,
codebook), M slices, E edge features. Time is a suffix (`z_t`); `mask` is True where a row is real.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Observation = Mapping[str, Array]  # an object table (`jepa.tables`); every leaf has the same leading axes


class Batch(NamedTuple):
    """One batch by role. A role that a data source does not produce is None, which jit treats as static."""

    ids: Array  # int32 [B]: content id of the target observation before augmentation
    groups: Array  # int32 [B]: the task each row was drawn from; intervals are bootstrapped over it
    context: Observation | None = None  # [B, T, ...]
    target: Observation | None = None  # [B, ...]
    views: Observation | None = None  # [B, V, ...], global views first
    negatives: Observation | None = None  # [B, K, ...]: wrong targets that look like the right one
    negative_ids: Array | None = None  # int32 [B, K]: as `ids`; one that equals the row's id is padding


class Source(NamedTuple):
    """Data as a pure function of the step, so that resuming needs no iterator state.

    `tables` lives on the device. `indices(step)` runs on the host and returns int32 [B, ...] rows into it;
    `gather(tables, indices, key, train)` runs inside the compiled step. `validation` holds held-out sources
    by name, enumerated in order by `step`: the first is what the best checkpoint is chosen by, and
    `<its name>_foreign_demo`, where there is one, has the same rows with the demonstration of another task.
    """

    tables: PyTree
    indices: Callable[[int], Any]
    gather: Callable[..., Batch]
    validation: Mapping[str, Source]
    num_examples: int  # distinct examples before augmentation
    ids: tuple[str, ...]  # the tasks this source may show, recorded in the run
    digest: str  # sha256 of the content, recorded in the run
    stats: Mapping[str, float]  # facts about the data worth logging once


class Encoded(NamedTuple):
    """A representation. Always float32, whatever the encoder computed in."""

    tokens: Array  # [..., N, D]
    mask: Array  # bool [..., N]
    pooled: Array  # [..., D]


class Encoder(NamedTuple):
    """An encoder as a pair of pure functions over its own parameters."""

    init: Callable[[Array, Observation], PyTree]
    apply: Callable[[PyTree, Observation], Encoded]


class LossOutput(NamedTuple):
    """What an objective returns: `terms` are unweighted scalars, named exactly as `Objective.terms`.

    `metrics` are scalars to log; one named `<term>/...` belongs to that term and is left out where the term is off.
    `embeddings` are the [N, D] sets that diagnostics describe, by role (`context`, `target`, `predicted`, ...).
    `examples` are per-example quantities [B] that evaluation averages and bootstraps.
    """

    terms: Mapping[str, Array]
    metrics: Mapping[str, Array]
    state: PyTree
    embeddings: Mapping[str, Array]
    examples: Mapping[str, Array]


class Objective(NamedTuple):
    """All that the training step knows of a method.

    init(key, batch) -> (params, state), params grouped as {'trunk': ..., 'heads': ...}
    trunk(params, target_params, state, batch, *, key, step, train) -> (latents, state)
    loss(params, target_params, state, latents, batch, *, key, step, train) -> LossOutput
    encode(params, state, observation) -> Encoded
    project(params, pooled) -> pooled [..., D] in the space of the losses [..., P]; the identity without a projector
    predict(params, state, context) -> the predicted target [B, P], in that space, of a context [B, T, ...]
    terms: the ledger's names, each "latent" (collapsible), "external" (a fixed target) or "regulariser".
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    trunk: Callable[..., tuple[PyTree, PyTree]]
    loss: Callable[..., LossOutput]
    encode: Callable[..., Encoded]
    project: Callable[..., Array]
    predict: Callable[..., Array]
    terms: Mapping[str, str]
