"""A latent world model: the state of the world as one vector z, and what an action makes of it, predicted as such.

An encoder gives z of every frame; a transition (`jepa.dynamics`) predicts z_{t+1} from what came before and the action,
teacher-forced and in rollouts that are fed their own predictions. The policy of `jepa.latent_norm` holds everywhere.
What keeps z from collapsing is a term of the ledger (SIGReg per time step, or VICReg's), as are inverse dynamics and
similarity over time, the public benchmark's other terms (Sobal et al., PLDM, arXiv:2502.14819).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa import decoders
from jepa import dynamics as transitions
from jepa import latent_norm as policies
from jepa.context import with_target
from jepa.diagnostics import participation
from jepa.latent_norm import Latent, at
from jepa.losses.prediction import squared_error
from jepa.losses.univariate import EXTENSIVE, sliced
from jepa.modules import Mlp
from jepa.objectives._terms import QUANTIZER, Term, code_metrics, kinds, regularisers, values
from jepa.pair_diagnostics import alignment
from jepa.representation import Representation, teacher_trunk
from jepa.types import Array, Batch, Encoded, LossOutput, Objective, PyTree


class HeadOutputs(NamedTuple):
    """What the terms are functions of."""

    z: Array  # [T + 1, B, D]: embeddings by time step, as everybody sees them
    predicted: Array  # [H, B, D]: those of a rollout
    error: Array  # [B]: teacher-forced, over all steps
    rolled: Array  # [B]: of a rollout, over its steps by their weights
    inverse: Array  # []: of the actions that two latents in a row give away
    similarity: Array  # []: squared distance per dimension of two latents in a row
    anchored: Array  # []: of the length from the policy's target
    quantizer: Array  # []


def build(
    representation: Representation,
    *,
    latent_norm: str = "none",
    target_norm: float | None = None,
    dynamics: str = "gru",
    hidden: int = 128,
    depth: int = 1,
    num_heads: int = 4,
    window: int = 8,
    horizon: int = 8,
    discount: float = 1.0,
    inverse_hidden: int = 64,
    decoder: str = "none",
    decoder_hidden: int = 256,
    decoder_frames: int = 0,
    statistic: str = "epps_pulley",
    num_slices: int = 256,
    num_knots: int = 17,
    t_max: float = 3.0,
    unit_sigreg: bool = False,
    compute_dtype: str = "float32",
) -> Objective:
    """The objective over `representation`, whose pooled embedding is z.

    latent_norm, target_norm: the policy of z, as in `jepa.latent_norm`. dynamics, hidden, depth, num_heads, window: the
    transition, as in `jepa.dynamics`. horizon: steps of a rollout, at most those of the data; step k weighs
    discount^(k-1), the weights summing to 1. inverse_hidden: width of the MLP that guesses actions. decoder,
    decoder_hidden: what shows a latent, as in `jepa.decoders`, in the parameters `monitor`; decoder_frames: how many
    time steps it learns from at each update, drawn anew, 0 for all. What it shows is measured in validation alone.
    """
    norm = policies.build(latent_norm, target_norm=target_norm)
    transition = transitions.build(dynamics, hidden=hidden, depth=depth, num_heads=num_heads, window=window)
    if horizon < 1:
        raise ValueError(f"objective.horizon is {horizon}; a rollout has at least 1 step")
    if not 0 < discount <= 1:
        raise ValueError(f"objective.discount is {discount}; it must lie above 0 and at most at 1")
    if decoder_frames < 0:
        raise ValueError(f"objective.decoder_frames is {decoder_frames}; it must be a number of frames, or 0 for all")
    shown = decoders.build(decoder, hidden=decoder_hidden)
    regular = regularisers(
        statistic=statistic, num_slices=num_slices, num_knots=num_knots, t_max=t_max, unit_rows=unit_sigreg
    )

    def of_predicted(heads: HeadOutputs, key: Array) -> Array:
        key = jax.random.fold_in(key, 1)
        return sliced(
            heads.predicted, key, statistic=statistic, num_slices=num_slices, num_knots=num_knots, t_max=t_max
        )

    terms = {
        "prediction": Term("latent", lambda heads, key: jnp.mean(heads.error)),
        "rollout": Term("latent", lambda heads, key: jnp.mean(heads.rolled)),
        "similarity": Term("latent", lambda heads, key: heads.similarity),
        "inverse": Term("external", lambda heads, key: heads.inverse),
        "quantizer": QUANTIZER,
        **regular,
        "sigreg_predicted": Term("regulariser", of_predicted),
        "norm_anchor": Term("regulariser", lambda heads, key: heads.anchored),
    }

    def encode(params: PyTree, state: PyTree, observation: PyTree) -> Encoded:
        raw = representation.encode(params["trunk"], state, observation, key=None, train=False).encoded
        return raw._replace(pooled=norm.encoded(raw.pooled).value)

    def project(params: PyTree, state: PyTree, pooled: Array) -> Array:
        return pooled

    def predict(params: PyTree, state: PyTree, context: PyTree) -> Array:
        """`context` has a leaf `actions` [B, T, A] beside the frames: z after the last of them, teacher-forced."""
        frames = {name: leaf for name, leaf in context.items() if name != "actions"}
        z = norm.encoded(encode(params, state, frames).pooled)
        model = (transition, norm, params["heads"]["dynamics"])
        return at(transitions.teacher_forced(*model, z, context["actions"]), -1).value

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        if batch.actions is None:
            raise ValueError("objective 'world_model' needs actions: set config.data.name to 'episodes'")
        if batch.actions.shape[1] < horizon:
            raise ValueError(f"objective.horizon is {horizon}, but the data has {batch.actions.shape[1]} steps")
        key_encoder, key_step, key_inverse = jax.random.split(key, 3)
        trunk, state = representation.init(key_encoder, batch.context)
        z = encode({"trunk": trunk}, state, batch.target).pooled
        action = batch.actions[:, 0]
        guess = Mlp((inverse_hidden, action.shape[-1])).init(key_inverse, jnp.concatenate([z, z], axis=-1))["params"]
        heads = {"dynamics": transition.init(key_step, z, action), "inverse": guess}
        params = {"trunk": trunk, "heads": heads}
        if shown is not None:
            params["monitor"] = {"decoder": shown.init(jax.random.fold_in(key, 3), z, batch.target)}
        return params, state

    def trunk(params, target_params, state, batch, *, key, step, train):
        key_codes, key_update = jax.random.split(key)
        frames = with_target(batch)
        online = representation.encode(params["trunk"], state, frames, key=key_codes, train=train)
        z = norm.encoded(online.encoded.pooled)  # [B, T + 1, D]
        target = z
        if target_params is not None:
            taught = encode({"trunk": teacher_trunk(target_params, params)}, state, frames)
            target = jax.lax.stop_gradient(norm.encoded(taught.pooled))
        if train:
            state = representation.update(params["trunk"], state, online, key=key_update)
        raw = jax.lax.stop_gradient(jnp.mean(jnp.linalg.norm(online.encoded.pooled, axis=-1)))
        return {"z": z, "target": target, "quantized": online.quantized, "raw_norm": raw}, state

    def loss(params, target_params, state, latents, batch, *, key, step, train):
        z, target, quantized = latents["z"], latents["target"], latents["quantized"]
        model = (transition, norm, params["heads"]["dynamics"])
        true = at(target, slice(1, None))
        forced = transitions.teacher_forced(*model, at(z, slice(None, -1)), batch.actions)
        rolled = transitions.rollout(*model, at(z, 0), batch.actions[:, :horizon])
        error = norm.error(forced, true)  # [B, T]
        error_rolled = norm.error(rolled, at(true, slice(None, horizon)))  # [B, H]
        weights = discount ** jnp.arange(horizon)
        weights = weights / jnp.sum(weights)
        pairs = jnp.concatenate([z.value[:, :-1], z.value[:, 1:]], axis=-1)
        width = batch.actions.shape[-1]
        guessed = Mlp((inverse_hidden, width)).apply({"params": params["heads"]["inverse"]}, pairs)
        by_time = jnp.swapaxes(z.value, 0, 1)
        copy = norm.error(at(z, slice(None, -1)), true)
        heads = HeadOutputs(
            z=by_time,
            predicted=jnp.swapaxes(rolled.value, 0, 1),
            error=jnp.mean(error, axis=1),
            rolled=error_rolled @ weights,
            inverse=jnp.mean(squared_error(guessed, batch.actions.astype(jnp.float32))),
            similarity=jnp.mean(squared_error(z.value[:, 1:], z.value[:, :-1])),
            anchored=jnp.mean(norm.anchor(z)),
            quantizer=quantized.loss,
        )
        ledger = values(terms, heads, key)
        metrics = rollout_health(norm, rolled, at(true, slice(None, horizon)), at(z, 0)) | code_metrics(quantized)
        metrics["latent/raw_norm"] = latents["raw_norm"]  # of what the encoder makes, before the policy
        if statistic in EXTENSIVE:
            metrics["sigreg/T"] = ledger["sigreg"] * z.value.shape[0]
        detached, decoded = None, {}
        if shown is not None:
            frames = with_target(batch)
            painter, num = params["monitor"]["decoder"], z.value.shape[1]
            learned = jnp.arange(num)
            if train and 0 < decoder_frames < num:
                learned = jax.random.choice(jax.random.fold_in(key, 4), num, (decoder_frames,), replace=False)
            some = jax.tree.map(lambda leaf: leaf[:, learned], frames)
            detached = {"decoder": jnp.mean(shown.loss(painter, at(z, learned), some))}
            if not train:
                metrics |= decoded_health(shown, painter, z, rolled, frames)
            if not train and "cells" in frames:
                decoded = exact_rollouts(shown, painter, z, rolled, frames)
        last = at(forced, -1)
        examples = decoded | {
            "prediction": heads.error,
            "copy": jnp.mean(copy, axis=1),
            "moved": jnp.mean(norm.error(forced, at(z, slice(None, -1))), axis=1),
            "alignment": alignment(jnp.stack([last.value, true.value[:, -1]], axis=1)),
        }
        flat = z.value[:, :-1].reshape(-1, z.value.shape[-1])
        embeddings = {"context": flat, "target": z.value[:, -1], "predicted": at(rolled, -1).value}
        return LossOutput(ledger, metrics, state, embeddings, examples, quantized.codes, detached)

    def see(params: PyTree, state: PyTree, frames: PyTree) -> Latent:
        return norm.encoded(encode(params, state, frames).pooled)

    def imagine(params: PyTree, z: Latent, actions: Array) -> Latent:
        return transitions.rollout(transition, norm, params["heads"]["dynamics"], z, actions)

    def show(params: PyTree, z: Latent, frame: PyTree) -> Array:
        return shown.decode(params["monitor"]["decoder"], z, frame)

    world = transitions.WorldModel(see, imagine, None if shown is None else show)
    return Objective(init, trunk, loss, encode, project, predict, kinds(terms), representation.levels, world)


def decoded_health(shown: decoders.Decoder, params: PyTree, z: Latent, rolled: Latent, frames: PyTree) -> dict:
    """Errors of what is decoded, [] each: of true latents, `decoder/error`, of the steps k of a rollout,
    `decoder/error_k`, and of taking the first frame for each, `decoder/copy_k`."""

    def of(latent: Latent, observation: PyTree) -> Array:
        return jnp.mean(shown.error(shown.decode(params, latent, observation), observation))

    first = jax.tree.map(lambda leaf: leaf[:, 0], frames)
    found = {"decoder/error": of(z, frames)}
    for k in horizons(rolled):
        frame = jax.tree.map(lambda leaf, k=k: leaf[:, k + 1], frames)
        found[f"decoder/error_{k + 1}"] = of(at(rolled, k), frame)
        found[f"decoder/copy_{k + 1}"] = jnp.mean(shown.error(next(iter(first.values())), frame))
    return found


def exact_rollouts(
    shown: decoders.Decoder, params: PyTree, z: Latent, rolled: Latent, frames: PyTree
) -> dict[str, Array]:
    """How well cells are foretold, [B] each: whether what is decoded of step k of a rollout is the true grid in every
    cell, `rollout/exact_k`, and its share of right cells, `rollout/cells_k`.

    `..._copy_k` is the same of the first grid, unchanged, and `..._seen_k` of the decoded true latent: what the decoder
    would make of a rollout without a mistake.
    """
    found = {}
    for k in horizons(rolled):
        frame = jax.tree.map(lambda leaf, k=k: leaf[:, k + 1], frames)
        guesses = {
            "": shown.decode(params, at(rolled, k), frame),
            "copy_": frames["cells"][:, 0],
            "seen_": shown.decode(params, at(z, k + 1), frame),
        }
        for name, guess in guesses.items():
            wrong = shown.error(guess, frame)
            found[f"rollout/exact_{name}{k + 1}"] = (wrong == 0).astype(jnp.float32)
            found[f"rollout/cells_{name}{k + 1}"] = 1 - wrong
    return found


def horizons(rolled: Latent) -> list[int]:
    """The steps of a rollout that figures are given of, from 0: the 1st, 2nd, 4th, ..., and the last."""
    num = rolled.value.shape[1]
    return sorted({k for k in (0, 1, 3, 7, 15, 31) if k < num} | {num - 1})


def rollout_health(norm: policies.LatentNorm, rolled: Latent, true: Latent, start: Latent) -> dict[str, Array]:
    """Of every step k of a rollout, [] each: `error_k`; over it those of `copy_k`, the first latent, and of `mean_k`,
    the batch's mean, as ratios; the length of predicted over that of true latents, `norm_ratio_k`; their `cosine_k`;
    the number of directions that predicted ones fill over that of true ones, `rank_ratio_k`, by participation."""
    found = {}
    for k in horizons(rolled):
        z_hat, z = at(rolled, k), at(true, k)
        mean = norm.encoded(jnp.broadcast_to(jnp.mean(z.value, axis=0, keepdims=True), z.value.shape))
        error, copy, typical = (jnp.mean(norm.error(guess, z)) for guess in (z_hat, start, mean))
        lengths = [jnp.sqrt(jnp.sum(jnp.square(x.value), axis=-1) + 1e-12) for x in (z_hat, z)]
        dot = jnp.sum(z_hat.value * z.value, axis=-1)
        found |= {
            f"rollout/error_{k + 1}": error,
            f"rollout/copy_ratio_{k + 1}": error / copy,
            f"rollout/mean_ratio_{k + 1}": error / typical,
            f"rollout/norm_ratio_{k + 1}": jnp.mean(lengths[0]) / jnp.mean(lengths[1]),
            f"rollout/cosine_{k + 1}": jnp.mean(dot / (lengths[0] * lengths[1])),
            f"rollout/rank_ratio_{k + 1}": participation(z_hat.value) / jnp.maximum(participation(z.value), 1e-6),
        }
    return found
