"""The types every part of the library speaks: pure functions in pairs, and the trees they pass on.

Shape letters, used everywhere: B batch, V views, T time, N tokens (objects), D features, K rows (queue,
codebook), M slices, E edge features, A action. Time is a suffix (`z_t`); `mask` is True where a row is real.
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
    context: Observation | None = None  # [B, T, ...]; a frame without a token is absent, and never the last one
    target: Observation | None = None  # [B, ...]
    views: Observation | None = None  # [B, V, ...], global views first
    negatives: Observation | None = None  # [B, K, ...]: wrong targets that look like the right one
    negative_ids: Array | None = None  # int32 [B, K]: as `ids`; one that equals the row's id is padding
    actions: Array | None = None  # float32 [B, T, A]: what led from each grid of the context to the one after it
    labels: Array | None = None  # int32 [B]: the class of the row


class Source(NamedTuple):
    """Data as a pure function of the step, so that resuming needs no iterator state.

    `tables` lives on the device. `indices(step, level=0)` runs on the host and returns the rows of a step, a tree of
    arrays [B, ...]: numbers of rows of `tables`, or, of a stream, the observations themselves. A source of several
    levels of difficulty, 0 to `num_levels` - 1, draws them from that one.
    `gather(tables, rows, key, train)` runs inside the compiled step. `validation` holds held-out sources by name,
    enumerated in order by `step`: the first is what the best checkpoint is chosen by; `<name>_foreign_demo` has the
    rows of `<name>` with the demonstration of another task, `<name>_level` examples of the level it is asked for.
    `close()` ends what works ahead of the run.
    """

    tables: PyTree
    indices: Callable[..., PyTree]
    gather: Callable[..., Batch]
    validation: Mapping[str, Source]
    num_examples: int  # distinct examples before augmentation; 0 where they are drawn without end
    ids: tuple[str, ...]  # the tasks this source may show, recorded in the run
    digest: str  # sha256 of the content, recorded in the run
    stats: Mapping[str, float]  # facts about the data worth logging once
    num_levels: int = 1
    close: Callable[[], None] = lambda: None


class Encoded(NamedTuple):
    """A representation. Always float32, whatever the encoder computed in."""

    tokens: Array  # [..., N, D]
    mask: Array  # bool [..., N]
    pooled: Array  # [..., D]
    codes: Array | None = None  # int32 [..., N], -1 where masked; None without a quantizer


class Encoder(NamedTuple):
    """An encoder as pure functions over its own parameters: tokens first, then one vector of them.

    init(key, observation) -> params
    embed(params, observation) -> (tokens float32 [..., N, D], mask bool [..., N])
    pool(params, tokens, mask) -> pooled float32 [..., D]
    embed_train(params, observation, key): `embed` as it is in training, for an encoder that draws something there, such
    as the paths it drops; None for one that does not.
    """

    init: Callable[[Array, Observation], PyTree]
    embed: Callable[[PyTree, Observation], tuple[Array, Array]]
    pool: Callable[[PyTree, Array, Array], Array]
    embed_train: Callable[[PyTree, Observation, Array], tuple[Array, Array]] | None = None

    def apply(self, params: PyTree, observation: Observation) -> Encoded:
        """Both in a row, with nothing between them."""
        tokens, mask = self.embed(params, observation)
        return Encoded(tokens, mask, self.pool(params, tokens, mask))


class Quantized(NamedTuple):
    """Tokens replaced by the values of their codes.

    `values` [..., N, D] are exactly what the codes decode to, in the dtype of the tokens, and 0 where masked (without
    codes, the tokens as they came); their gradient reaches the tokens by an estimator. `codes` int32 [..., N] are -1
    where masked; None without a quantizer.
    `loss` [] is the ledger term `quantizer`. `metrics` are float32 scalars.
    """

    values: Array
    codes: Array | None
    loss: Array
    metrics: Mapping[str, Array]


class Quantizer(NamedTuple):
    """Discrete codes as pure functions over parameters and state. Masked tokens touch nothing.

    init(key, tokens, mask) -> (params, state), started from tokens [..., N, D] of the first batches
    apply(params, state, tokens, mask, *, key, train) -> Quantized, which never changes the state
    update(params, state, tokens, mask, codes, *, key) -> state, once per optimizer step, on the online tokens
    decode(params, state, codes) -> values float32 [..., N, D], 0 for the code -1
    levels: how many values each symbol of a code takes, the first symbol counting fastest: (K,) for a codebook of K
    rows, one per scalar for FSQ, () without codes.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., Quantized]
    update: Callable[..., PyTree]
    decode: Callable[..., Array]
    levels: tuple[int, ...]


class LossOutput(NamedTuple):
    """What an objective returns: `terms` are unweighted scalars, named exactly as `Objective.terms`.

    `metrics` are scalars to log; one named `<term>/...` belongs to that term and is left out where the term is off.
    `embeddings` are the sets that diagnostics describe, by role (`context`, `target`, `predicted`, ...): [N, D], or
    [B, V, D] where the rows of an example belong together.
    `examples` are per-example quantities [B] that evaluation averages and bootstraps: the error `prediction`, that of
    `copy`, a prediction that is the last embedding, that between the two, `moved`, and the `alignment` of unit vectors;
    those named `rollout/...` are averaged as they are, and those named `listed/...` over rows that list a negative.
    `codes` int32 [B, T, N] are those of the online encoder, -1 where there is no token; None without a quantizer.
    `detached` are losses [] of heads that watch, parameters under 'monitor', on embeddings through which no gradient
    flows: they are trained, but belong to no total, share or norm. None where there are none.
    """

    terms: Mapping[str, Array]
    metrics: Mapping[str, Array]
    state: PyTree
    embeddings: Mapping[str, Array]
    examples: Mapping[str, Array]
    codes: Array | None = None
    detached: Mapping[str, Array] | None = None


class Objective(NamedTuple):
    """All that the training step knows of a method.

    init(key, batch) -> (params, state), params grouped as {'trunk': ..., 'heads': ...}, and 'monitor' with labels
        to learn; the batch may be a large one
    trunk(params, target_params, state, batch, *, key, step, train) -> (latents, state)
    loss(params, target_params, state, latents, batch, *, key, step, train) -> LossOutput
    encode(params, state, observation) -> Encoded
    project(params, state, pooled) -> pooled [..., D] in the space of the losses [..., P]; without a projector as it is
    predict(params, state, context) -> the predicted target [B, P], in that space, of a context [B, T, ...] of as many
    frames as in training or fewer
    terms: the ledger's names, each "latent" (collapsible), "external" (a fixed target) or "regulariser".
    levels: how many values each symbol of a token's code takes (`Quantizer`); () without codes.
    world: of a world model, what planning and decoded rollouts ask of it (`jepa.dynamics.WorldModel`); else None.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    trunk: Callable[..., tuple[PyTree, PyTree]]
    loss: Callable[..., LossOutput]
    encode: Callable[..., Encoded]
    project: Callable[..., Array]
    predict: Callable[..., Array]
    terms: Mapping[str, str]
    levels: tuple[int, ...] = ()
    world: Any = None
