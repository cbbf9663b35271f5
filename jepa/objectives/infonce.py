"""Contrastive prediction: tell the next embedding from those of other grids (InfoNCE, van den Oord et al., 1807.03748).

The embeddings of T observations, aggregated and projected, are the anchor; the projection of the next observation by
an EMA teacher is the positive; the other targets of the batch and a queue of past ones are the negatives (MoCo, He et
al., 1911.05722). The teacher is the whole EMA tree, encoder and projector, without dropout, and gets no gradient.

Everything else that trains is a term of its own on the online context: relations between objects compared with those
of the target, agreement under symmetries, Gaussian or anchored embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa import predictors, tables
from jepa.context import fill_absent
from jepa.losses.infonce import infonce, infonce_candidates, queue_init, queue_push, temperature
from jepa.losses.invariance import STOP_GRADIENT, invariance, moved
from jepa.losses.prediction import normalized_error, unit
from jepa.losses.relational import NORMALIZATIONS, relational_quantiles
from jepa.modules import Mlp
from jepa.objectives._terms import QUANTIZER, Term, code_agreement, code_metrics, kinds, regularisers, values
from jepa.representation import Representation, teacher_trunk
from jepa.types import Array, Batch, Encoded, LossOutput, Objective, PyTree, Quantized

PAIRS = ("all", "contact")
GROUP = ("d4", "palette", "translation")


class Latents(NamedTuple):
    """What the encoders gave: the online one of the context, the teacher of everything else."""

    context: Encoded  # [B, T, ...]
    quantized: Quantized  # of the context
    moved: Encoded  # [B, ...]: the last observation of the context, under a random symmetry of its own
    target: Encoded  # [B, ...], of the teacher
    positives: Array  # [B, P] unit rows, of the teacher
    negatives: Array | None  # [B, K, P] unit rows, of the teacher, where the batch brings any


class HeadOutputs(NamedTuple):
    """What the terms are functions of."""

    z: Array  # [T, B, D]: context embeddings by time step
    moved: Array  # [B, D]: the last of them under a symmetry
    error: Array  # [B]: squared distance of anchor and positive on the unit sphere
    contrast: Array  # [B]: InfoNCE
    relations: tuple[Array, Array]  # [B] twice: of the context to the target, of the context's frames to each other
    quantizer: Array  # []: the quantizer's loss


def relations(latents: Latents, batch: Batch, pairs: str, normalize: str) -> tuple[Array, Array]:
    """Relations of the context's tokens against the target's, and of its frames against each other; [B] twice."""
    tokens = (latents.context.tokens, latents.context.mask, latents.target.tokens, latents.target.mask)
    if pairs == "all":
        return relational_quantiles(*tokens, normalize=normalize)
    context, target = tables.contacts(batch.context), tables.contacts(batch.target)
    return relational_quantiles(*tokens, context_adjacency=context, target_adjacency=target, normalize=normalize)


def make_terms(invariance_stop_gradient: str, **sigreg: Any) -> dict[str, Term]:
    """The ledger; `sigreg` are the options of `regularisers`."""

    def agreement(heads: HeadOutputs, key: Array) -> Array:
        return jnp.mean(invariance(heads.z[-1], heads.moved, stop_gradient=invariance_stop_gradient))

    return {
        "infonce": Term("latent", lambda heads, key: jnp.mean(heads.contrast)),
        "prediction": Term("latent", lambda heads, key: jnp.mean(heads.error)),
        "relational": Term("latent", lambda heads, key: jnp.mean(heads.relations[0])),
        "relational_context": Term("latent", lambda heads, key: jnp.mean(heads.relations[1])),
        "invariance": Term("latent", agreement),
        "quantizer": QUANTIZER,
        **regularisers(**sigreg),
    }


def check_options(queue_size: int, tau: Sequence[float], group: Sequence[str], choices: Mapping[str, tuple]) -> None:
    """Raises ValueError naming the option that is out of its range."""
    low, first, high = tau
    if not 0 < low <= first <= high:
        raise ValueError(
            f"objective.tau {first} must lie between tau_min {low} and tau_max {high}, and all of them above 0"
        )
    if queue_size < 1:
        raise ValueError(f"objective.queue_size is {queue_size}; it must be at least 1")
    if not set(group) <= set(GROUP):
        raise ValueError(f"objective.invariance_group is {group}; its members must be among {list(GROUP)}")
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"objective.{name} is {value!r}; it must be one of {list(known)}")


def build(
    representation: Representation,
    *,
    predictor: str = "none",
    predictor_dim: int = 64,
    predictor_depth: int = 2,
    num_heads: int = 4,
    num_readouts: int = 8,
    context: str = "attention",
    projector_dim: int = 64,
    queue_size: int = 8192,
    tau: float = 0.07,
    tau_min: float = 0.05,
    tau_max: float = 0.20,
    symmetric: bool = False,
    relation_pairs: str = "all",
    relation_normalize: str = "mean",
    invariance_group: tuple[str, ...] = GROUP,
    invariance_stop_gradient: str = "original",
    statistic: str = "epps_pulley",
    num_slices: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
    unit_sigreg: bool = False,
    compute_dtype: str = "float32",
) -> Objective:
    """The objective over `representation`; its state is that of the quantizer and the queue of past targets.

    predictor: what stands between the context and the projector; "none" only aggregates it by `context`, "pooled" and
    "tokens" as in `lejepa`. tau, tau_min, tau_max: the first temperature, which is learned, and its bounds.
    symmetric: also tell the anchor of a target from the batch's other anchors.
    relation_pairs: relations of "all" pairs of tokens, or of objects in "contact". relation_normalize: as in
    `jepa.losses.relational`. invariance_group, invariance_stop_gradient: what the last context grid is moved by for
    the term `invariance`, and the side that is held constant, as in `jepa.losses.invariance`. unit_sigreg: as in
    `lejepa`.
    Raises ValueError naming the option that does not fit.
    """
    choices = {
        "relation_pairs": (relation_pairs, PAIRS),
        "relation_normalize": (relation_normalize, NORMALIZATIONS),
        "invariance_stop_gradient": (invariance_stop_gradient, STOP_GRADIENT),
    }
    check_options(queue_size, (tau_min, tau, tau_max), invariance_group, choices)
    sigreg = dict(statistic=statistic, num_slices=num_slices, num_knots=num_knots, t_max=t_max, unit_rows=unit_sigreg)
    terms = make_terms(invariance_stop_gradient, **sigreg)
    predictor_module = predictors.build(
        predictor,
        dim=predictor_dim,
        depth=predictor_depth,
        num_heads=num_heads,
        num_readouts=num_readouts,
        aggregation=context,
        compute_dtype=compute_dtype,
    )
    projector_module = Mlp((2 * projector_dim, projector_dim))

    def encode(params: PyTree, state: PyTree, observation: PyTree) -> Encoded:
        return representation.encode(params["trunk"], state, observation, key=None, train=False).encoded

    def project(params: PyTree, pooled: Array) -> Array:
        return unit(projector_module.apply({"params": params["heads"]["projector"]}, pooled))

    def forward(params: PyTree, encoded_context: Encoded) -> Array:
        return predictor_module.apply({"params": params["heads"]["predictor"]}, encoded_context)

    def predict(params: PyTree, state: PyTree, observation: PyTree) -> Array:
        return project(params, forward(params, encode(params, state, observation)))

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        if batch.context is None:
            raise ValueError("objective 'infonce' needs a context and a target: set config.data.stream to 'analogy'")
        key_encoder, key_predictor, key_projector = jax.random.split(key, 3)
        trunk_params, state = representation.init(key_encoder, batch.context)
        encoded = encode({"trunk": trunk_params}, state, batch.context)
        variables = predictor_module.init(key_predictor, encoded)
        heads = {
            "predictor": variables["params"] if "params" in variables else {},  # a mean over time has none
            "projector": projector_module.init(key_projector, encoded.pooled)["params"],
            "log_tau": jnp.log(jnp.float32(tau)),
        }
        return {"trunk": trunk_params, "heads": heads}, state | {"queue": queue_init(queue_size, projector_dim)}

    def trunk(params, target_params, state, batch, *, key, step, train):
        if target_params is None:
            raise ValueError("objective 'infonce' needs a teacher: set config.target_ema to a decay such as 0.99")
        last = jax.tree.map(lambda leaf: leaf[:, -1], batch.context)
        taught = {"trunk": teacher_trunk(target_params, params)}
        target = encode(taught, state, batch.target)
        negatives = None
        if batch.negatives is not None:
            negatives = project(target_params, encode(taught, state, batch.negatives).pooled)
        teacher = (target, project(target_params, target.pooled), negatives)
        elsewhere = moved(last, key, **{name: name in invariance_group for name in GROUP})
        key_codes, key_update = jax.random.split(jax.random.fold_in(key, 1))
        online = representation.encode(params["trunk"], state, batch.context, key=key_codes, train=train)
        latents = Latents(
            online.encoded, online.quantized, encode(params, state, elsewhere), *jax.lax.stop_gradient(teacher)
        )
        if train:
            state = representation.update(params["trunk"], state, online, key=key_update)
        return latents, state

    def loss(params, target_params, state, latents, batch, *, key, step, train):
        z_hat = forward(params, latents.context)  # [B, D]
        anchors = project(params, z_hat)  # [B, P]
        free_tau = jnp.exp(params["heads"]["log_tau"])
        tau = temperature(params["heads"]["log_tau"], low=tau_min, high=tau_max)
        contrast, contrast_metrics = infonce(
            anchors, latents.positives, batch.ids, state["queue"], tau=tau, symmetric=symmetric
        )
        metrics = {f"infonce/{name}": value for name, value in contrast_metrics.items()}
        metrics["infonce/tau_clamped"] = jnp.float32((free_tau < tau_min) | (free_tau > tau_max))

        error = normalized_error(anchors, latents.positives)  # of unit vectors: it is their alignment
        last = project(params, latents.context.pooled[:, -1])
        copied = {"copy": normalized_error(last, latents.positives), "moved": normalized_error(anchors, last)}
        examples = {"prediction": error, "alignment": error, **copied}
        if latents.negatives is not None:
            real = batch.negative_ids != batch.ids[:, None]
            listed = infonce_candidates(anchors, latents.positives, latents.negatives, real, tau=tau)
            examples |= dict(zip(("listed/infonce", "listed/chance", "listed/accuracy"), listed, strict=True))

        # [B, T, D]; the predictor and the relations ignore absent frames, whatever looks at a whole step sees others.
        pooled = fill_absent(latents.context.pooled, predictors.frames(latents.context))
        heads = HeadOutputs(
            z=jnp.swapaxes(pooled, 0, 1),
            moved=latents.moved.pooled,
            error=examples["prediction"],
            contrast=contrast,
            relations=relations(latents, batch, relation_pairs, relation_normalize),
            quantizer=latents.quantized.loss,
        )
        metrics |= code_metrics(latents.quantized)
        if representation.levels and not train:  # the online encoder sees no target in training
            metrics |= code_agreement(encode(params, state, batch.target).codes, latents.target.codes)
        embeddings = {
            "context": pooled.reshape(-1, pooled.shape[-1]),
            "target": latents.target.pooled,
            "predicted": z_hat,
            "projected": anchors,
        }
        state = state | {"queue": queue_push(state["queue"], latents.positives, batch.ids)}
        ledger = values(terms, heads, key)
        return LossOutput(ledger, metrics, state, embeddings, examples, latents.quantized.codes)

    return Objective(init, trunk, loss, encode, project, predict, kinds(terms), representation.levels)
