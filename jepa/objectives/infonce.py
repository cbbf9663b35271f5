"""Contrastive prediction: tell the next embedding from those of other grids (InfoNCE, van den Oord et al., 1807.03748).

The embeddings of T observations, aggregated and projected, are the anchor; the projection of the next observation by
an EMA teacher is the positive; the other targets of the batch and a queue of past ones are the negatives (MoCo, He et
al., 1911.05722). The teacher is the whole EMA tree, encoder and projector, without dropout, and gets no gradient.

Everything else that trains is a term of its own on the online context: relations between objects compared with those
of the target, agreement under symmetries, Gaussian or anchored embeddings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jepa import predictors, tables
from jepa.losses.infonce import QueueState, infonce, infonce_candidates, queue_init, queue_push, temperature
from jepa.losses.invariance import invariance, moved
from jepa.losses.prediction import normalized_error, unit
from jepa.losses.relational import relational_quantiles
from jepa.modules import Mlp
from jepa.objectives._terms import Term, kinds, regularisers, values
from jepa.types import Array, Batch, Encoded, Encoder, LossOutput, Objective, PyTree

PAIRS = ("all", "contact")


class Latents(NamedTuple):
    """What the encoders gave: the online one of the context, the teacher of everything else."""

    context: Encoded  # [B, T, ...]
    moved: Encoded  # [B, ...]: the last observation of the context, under a random symmetry of its own
    target: Encoded  # [B, ...], of the teacher
    positives: Array  # [B, P] unit rows, of the teacher
    negatives: Array | None  # [B, K, P] unit rows, of the teacher, where the batch brings any


class Seen(NamedTuple):
    """What the terms are functions of."""

    z: Array  # [T, B, D]: context embeddings by time step
    moved: Array  # [B, D]: the last of them under a symmetry
    error: Array  # [B]: squared distance of anchor and positive on the unit sphere
    contrast: Array  # [B]: InfoNCE
    relations: tuple[Array, Array]  # [B] twice: of the context to the target, of the context's frames to each other


class State(NamedTuple):
    """What the objective remembers between steps."""

    queue: QueueState


def contacts(observation: PyTree) -> Array:
    """Which objects of an object table touch, bool [..., N, N]."""
    return tables.edge_features(observation)[..., tables.EDGE_NAMES.index("contact")] > 0


def build(
    encoder: Encoder,
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
    invariance_stop_gradient: str = "original",
    statistic: str = "epps_pulley",
    num_slices: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
    compute_dtype: str = "float32",
) -> Objective:
    """The objective over `encoder`.

    predictor: what stands between the context and the projector; "none" only aggregates it by `context`, "pooled" and
    "tokens" as in `lejepa`. tau, tau_min, tau_max: the first temperature, which is learned, and its bounds.
    symmetric: also tell the anchor of a target from the batch's other anchors.
    relation_pairs: relations of "all" pairs of tokens, or of objects in "contact". relation_normalize: as in
    `jepa.losses.relational`. invariance_stop_gradient: as in `jepa.losses.invariance`.
    """
    if not 0 < tau_min <= tau <= tau_max:
        raise ValueError(
            f"objective.tau {tau} must lie between tau_min {tau_min} and tau_max {tau_max}, and all above 0"
        )
    if relation_pairs not in PAIRS:
        raise ValueError(f"objective.relation_pairs is {relation_pairs!r}; it must be one of {list(PAIRS)}")
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
    terms = {
        "infonce": Term("latent", lambda seen, key: jnp.mean(seen.contrast)),
        "prediction": Term("latent", lambda seen, key: jnp.mean(seen.error)),
        "relational": Term("latent", lambda seen, key: jnp.mean(seen.relations[0])),
        "relational_context": Term("latent", lambda seen, key: jnp.mean(seen.relations[1])),
        "invariance": Term("latent", lambda seen, key: jnp.mean(
            invariance(seen.z[-1], seen.moved, stop_gradient=invariance_stop_gradient)
        )),
        **regularisers(statistic=statistic, num_slices=num_slices, num_knots=num_knots, t_max=t_max),
    }  # fmt: skip

    def encode(params: PyTree, state: PyTree, observation: PyTree) -> Encoded:
        return encoder.apply(params["trunk"]["encoder"], observation)

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
        trunk_params = {"encoder": encoder.init(key_encoder, batch.context)}
        encoded = encoder.apply(trunk_params["encoder"], batch.context)
        variables = predictor_module.init(key_predictor, encoded)
        heads = {
            "predictor": variables["params"] if "params" in variables else {},  # a mean over time has none
            "projector": projector_module.init(key_projector, encoded.pooled)["params"],
            "log_tau": jnp.log(jnp.float32(tau)),
        }
        return {"trunk": trunk_params, "heads": heads}, State(queue_init(queue_size, projector_dim))

    def trunk(params, target_params, state, batch, *, key, step, train):
        if target_params is None:
            raise ValueError("objective 'infonce' needs a teacher: set config.target_ema to a decay such as 0.99")
        last = jax.tree.map(lambda leaf: leaf[:, -1], batch.context)
        target = encode(target_params, state, batch.target)
        negatives = None
        if batch.negatives is not None:
            negatives = project(target_params, encode(target_params, state, batch.negatives).pooled)
        teacher = (target, project(target_params, target.pooled), negatives)
        online = (encode(params, state, batch.context), encode(params, state, moved(last, key)))
        return Latents(*online, *jax.lax.stop_gradient(teacher)), state

    def relations(latents: Latents, batch: Batch) -> tuple[Array, Array]:
        adjacency: dict[str, Any] = {}
        if relation_pairs == "contact":
            adjacency = dict(context_adjacency=contacts(batch.context), target_adjacency=contacts(batch.target))
        tokens = (latents.context.tokens, latents.context.mask, latents.target.tokens, latents.target.mask)
        return relational_quantiles(*tokens, normalize=relation_normalize, **adjacency)

    def loss(params, target_params, state, latents, batch, *, key, step, train):
        z_hat = forward(params, latents.context)  # [B, D]
        anchors = project(params, z_hat)  # [B, P]
        log_tau = params["heads"]["log_tau"]
        tau = temperature(log_tau, low=tau_min, high=tau_max)
        contrast, contrast_metrics = infonce(
            anchors, latents.positives, batch.ids, state.queue, tau=tau, symmetric=symmetric
        )
        metrics = {f"infonce/{name}": value for name, value in contrast_metrics.items()}
        metrics["infonce/tau_clamped"] = jnp.float32(jnp.exp(log_tau) != tau)

        copied = normalized_error(project(params, latents.context.pooled[:, -1]), latents.positives)
        examples = {"prediction": normalized_error(anchors, latents.positives), "copy": copied}
        if latents.negatives is not None:
            real = batch.negative_ids != batch.ids[:, None]
            listed = infonce_candidates(anchors, latents.positives, latents.negatives, real, tau=tau)
            examples |= dict(zip(("listed/infonce", "listed/chance", "listed/accuracy"), listed, strict=True))

        pooled = latents.context.pooled  # [B, T, D]
        seen = Seen(
            jnp.swapaxes(pooled, 0, 1),
            latents.moved.pooled,
            examples["prediction"],
            contrast,
            relations(latents, batch),
        )
        embeddings = {
            "context": pooled.reshape(-1, pooled.shape[-1]),
            "target": latents.target.pooled,
            "predicted": z_hat,
            "projected": anchors,
        }
        state = State(queue_push(state.queue, latents.positives, batch.ids))
        return LossOutput(values(terms, seen, key), metrics, state, embeddings, examples)

    return Objective(init, trunk, loss, encode, project, predict, kinds(terms))
