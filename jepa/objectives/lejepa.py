"""LeJEPA (arXiv:2511.08544): predict in latent space, keep the latents Gaussian, and nothing else.

Two forms, chosen by what the batch carries. A *context* and a *target*: the embeddings of T observations predict
the embedding of the next one. *Views*: every view is pulled to the mean of the global views, the paper's form.
Gradients pass through both ends; there is no teacher unless one is given, and no stop-gradient without it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jepa import predictors
from jepa.context import fill_absent, with_target
from jepa.losses.prediction import ERRORS, view_invariance
from jepa.losses.univariate import EXTENSIVE
from jepa.modules import Projector
from jepa.objectives import _monitor
from jepa.objectives._terms import QUANTIZER, Term, code_agreement, code_metrics, kinds, regularisers, values
from jepa.pair_diagnostics import alignment
from jepa.registry import nearest
from jepa.representation import Representation, teacher_trunk
from jepa.types import Array, Batch, Encoded, LossOutput, Objective, PyTree


class HeadOutputs(NamedTuple):
    """What the terms are functions of."""

    z: Array  # [S, B, P]: embeddings by time step, context and target, or by view
    error: Array  # [B]: prediction error
    quantizer: Array  # []: the quantizer's loss


def check_width(width: int, batch_size: int) -> None:
    """Raises ValueError where the embeddings that SIGReg sees are wider than the sample it tests them on."""
    if width > batch_size:
        raise ValueError(
            f"the embedding is {width} wide but the batch holds {batch_size} examples, too few to test it on: set "
            f"objective.projector_dim to at most {batch_size}, or a batch_size of at least {width}"
        )


def readout_scale(pooled: Array, num_readouts: int) -> dict[str, Array]:
    """Smallest and largest standard deviation of a readout over the batch, its dimensions pooled; 1 under N(0, I)."""
    z = pooled.reshape(-1, num_readouts, pooled.shape[-1] // num_readouts)
    std = jnp.sqrt(jnp.mean(jnp.var(z, axis=0), axis=-1))  # [R]
    return {"readout/std_min": jnp.min(std), "readout/std_max": jnp.max(std)}


def build(
    representation: Representation,
    *,
    predictor: str = "tokens",
    predictor_dim: int = 64,
    predictor_depth: int = 2,
    num_heads: int = 4,
    num_readouts: int = 8,
    context: str = "attention",
    projector_dim: int | None = None,
    projector_depth: int = 2,
    projector_hidden: int | None = None,
    projector_norm: str = "none",
    error: str = "squared",
    num_global_views: int = 2,
    statistic: str = "epps_pulley",
    num_slices: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
    unit_sigreg: bool = False,
    num_classes: int | None = None,
    compute_dtype: str = "float32",
) -> Objective:
    """The objective over `representation`.

    predictor: "tokens" reads every token of every frame; "pooled" reads pooled embeddings aggregated by `context`.
    projector_dim: width of a projector before both terms, for embeddings wider than the batch; None has none.
    projector_depth, projector_hidden: its layers, and the width between them; None is twice projector_dim.
    projector_norm: "batch" normalises there over the batch, as LeJEPA's own runs do; "none" does not.
    error: how far a prediction is from its target, a name of `jepa.losses.prediction.ERRORS`.
    num_global_views: how many leading views define the centre, in the multi-view form.
    statistic: the univariate test of the term `sigreg`, a name of `jepa.losses.univariate.STATISTICS`.
    unit_sigreg: that term sees unit rows, as a control that shows how it fails on them.
    num_classes: of the labels that an online probe learns (`objectives._monitor`), in the parameters `monitor`; the
    figure `online_accuracy` of held-out examples is taken on the images as they are. None has no such probe.
    """
    if error not in ERRORS:
        raise ValueError(f"objective.error is {error!r}: {nearest(error, ERRORS)}")
    if projector_norm not in ("none", "batch"):
        raise ValueError(f"objective.projector_norm is {projector_norm!r}; it must be 'none' or 'batch'")
    predictor_module = predictors.build(
        predictor,
        dim=predictor_dim,
        depth=predictor_depth,
        num_heads=num_heads,
        num_readouts=num_readouts,
        aggregation=context,
        compute_dtype=compute_dtype,
    )
    terms = {
        "prediction": Term("latent", lambda heads, key: jnp.mean(heads.error)),
        "quantizer": QUANTIZER,
        **regularisers(
            statistic=statistic, num_slices=num_slices, num_knots=num_knots, t_max=t_max, unit_rows=unit_sigreg
        ),
    }
    projector_module = None
    if projector_dim is not None:
        hidden = 2 * projector_dim if projector_hidden is None else projector_hidden
        widths = (hidden,) * (projector_depth - 1) + (projector_dim,)
        projector_module = Projector(widths, batch_norm=projector_norm == "batch")

    def encode(params: PyTree, state: PyTree, observation: PyTree) -> Encoded:
        return representation.encode(params["trunk"], state, observation, key=None, train=False).encoded

    def project(params: PyTree, state: PyTree, pooled: Array, train: bool = False) -> Array:
        return projected(params, state, pooled, train)[0]

    def projected(params: PyTree, state: PyTree, pooled: Array, train: bool) -> tuple[Array, PyTree]:
        """What the losses see, and the state with the statistics of a projector that normalises over the batch."""
        if projector_module is None:
            return pooled, state
        variables = {"params": params["heads"]["projector"]}
        if projector_norm == "batch":
            variables["batch_stats"] = state["projector"]
        z, changed = projector_module.apply(variables, pooled, train, mutable=["batch_stats"] if train else [])
        return z, state | ({"projector": changed["batch_stats"]} if "batch_stats" in changed else {})

    def forward(params: PyTree, state: PyTree, encoded_context: Encoded, train: bool = False) -> Array:
        z_hat = predictor_module.apply({"params": params["heads"]["predictor"]}, encoded_context)
        return project(params, state, z_hat, train)

    def predict(params: PyTree, state: PyTree, observation: PyTree) -> Array:
        return forward(params, state, encode(params, state, observation))

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        key_encoder, key_predictor, key_projector = jax.random.split(key, 3)
        frames = batch.context if batch.views is None else batch.views
        trunk_params, state = representation.init(key_encoder, frames)
        encoded = encode({"trunk": trunk_params}, state, frames)
        if encoded.pooled.shape[-1] % num_readouts:
            raise ValueError(
                f"objective.num_readouts {num_readouts} must divide the embedding's width {encoded.pooled.shape[-1]}"
            )
        heads = {}
        if batch.views is None:
            heads["predictor"] = predictor_module.init(key_predictor, encoded)["params"]
        if projector_module is not None:
            variables = projector_module.init(key_projector, encoded.pooled, False)
            heads["projector"] = variables["params"]
            state |= {"projector": variables["batch_stats"]} if "batch_stats" in variables else {}
        params = {"trunk": trunk_params, "heads": heads}
        if num_classes is not None:
            if batch.labels is None:
                raise ValueError("objective.num_classes asks for an online probe, but the data has no labels")
            params["monitor"] = _monitor.init(jax.random.fold_in(key, 3), encoded.pooled, num_classes)
        return params, state

    def trunk(params, target_params, state, batch, *, key, step, train):
        if batch.views is not None and target_params is not None:
            raise ValueError("the multi-view form has no teacher: leave config.target_ema at None")
        key_codes, key_update = jax.random.split(key)
        frames = batch.views
        if frames is None:  # context and target pass through the encoder as one batch of T + 1 frames
            frames = with_target(batch)
        online = representation.encode(params["trunk"], state, frames, key=key_codes, train=train)
        check_width(online.encoded.pooled.shape[-1] if projector_dim is None else projector_dim, len(batch.ids))
        latents = {"online": online.encoded, "quantized": online.quantized, "teacher": None, "teacher_codes": None}
        if target_params is not None:
            taught = encode({"trunk": teacher_trunk(target_params, params)}, state, batch.target)
            teacher = jax.lax.stop_gradient(project(target_params, state, taught.pooled))
            latents |= {"teacher": teacher, "teacher_codes": taught.codes}
        if train:
            state = representation.update(params["trunk"], state, online, key=key_update)
        return latents, state

    def next_embedding(params, state, latents, pooled, z, train):
        """Per-example errors [B] of prediction and copy of the last frame, and between them; embeddings by role."""
        context = jax.tree.map(lambda leaf: leaf[:, :-1], latents["online"])
        z_hat = forward(params, state, context, train)
        z_target = z[:, -1] if latents["teacher"] is None else latents["teacher"]
        z_last = z[:, -2]
        examples = {
            "prediction": ERRORS[error](z_hat, z_target),
            "copy": ERRORS[error](z_last, z_target),
            "moved": ERRORS[error](z_hat, z_last),
            "alignment": alignment(jnp.stack([z_hat, z_target], axis=1)),
        }
        flat = pooled[:, :-1].reshape(-1, pooled.shape[-1])
        return examples, {"context": flat, "target": pooled[:, -1], "predicted": z_hat}

    def watched(params, state, latents, batch, train):
        """Embeddings [B, V, D] that the online probe sees: in training the views, on held-out data what they are of."""
        if batch.views is None:
            return latents["online"].pooled[:, -1:]
        return latents["online"].pooled if train else encode(params, state, batch.target).pooled[:, None]

    def loss(params, target_params, state, latents, batch, *, key, step, train):
        # The predictor ignores absent frames itself; whatever looks at all embeddings of a step sees others instead.
        pooled = fill_absent(latents["online"].pooled, predictors.frames(latents["online"]))
        z, state = projected(params, state, pooled, train)  # [B, T + 1, P], or [B, V, P] for views
        quantized = latents["quantized"]
        metrics = readout_scale(pooled, num_readouts) | code_metrics(quantized)
        if latents["teacher_codes"] is not None:
            metrics |= code_agreement(quantized.codes[:, -1], latents["teacher_codes"])
        if batch.views is not None:
            examples = {"prediction": view_invariance(z, num_global_views), "alignment": alignment(z)}  # [B]
            embeddings = {"views": pooled}  # [B, V, D]
        else:
            examples, embeddings = next_embedding(params, state, latents, pooled, z, train)
            metrics["prediction/copy_ratio"] = jnp.mean(examples["prediction"]) / jnp.mean(examples["copy"])
        if projector_module is not None:
            embeddings["projected"] = z.reshape(-1, z.shape[-1])
        # Each time step or view is a sample of its own: flattening them would multiply the target (see sigreg).
        heads = HeadOutputs(jnp.swapaxes(z, 0, 1), examples["prediction"], quantized.loss)
        ledger = values(terms, heads, key)
        if statistic in EXTENSIVE:
            metrics["sigreg/T"] = ledger["sigreg"] * z.shape[0]
        detached = None
        if num_classes is not None:
            seen = watched(params, state, latents, batch, train)
            entropy, examples["online_accuracy"] = _monitor.watch(params, seen, batch.labels)
            detached = {"online": entropy}
        return LossOutput(ledger, metrics, state, embeddings, examples, quantized.codes, detached)

    return Objective(init, trunk, loss, encode, project, predict, kinds(terms), representation.levels)
