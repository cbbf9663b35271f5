"""LeJEPA (arXiv:2511.08544): predict in latent space, keep the latents Gaussian, and nothing else.

Two forms, chosen by what the batch carries. A *context* and a *target*: the embeddings of T observations predict
the embedding of the next one. *Views*: every view is pulled to the mean of the global views, the paper's form.
Gradients pass through both ends; there is no teacher unless one is given, and no stop-gradient without it.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jepa.context import KINDS, ContextAggregator
from jepa.losses.prediction import squared_error, view_invariance
from jepa.losses.sigreg import sigreg
from jepa.modules import Block, Mlp, Readouts
from jepa.precision import compute_dtype as resolve_dtype
from jepa.types import Array, Batch, Encoded, Encoder, LossOutput, Objective, PyTree

TERMS = {"prediction": "latent", "sigreg": "regulariser"}


class TokenPredictor(nn.Module):
    """A transformer over all tokens of the context, each marked with the role of its frame, then readouts."""

    dim: int
    depth: int
    num_heads: int
    num_readouts: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, context: Encoded) -> Array:
        *batch, num_frames, num_tokens, _ = context.tokens.shape
        roles = self.param("roles", nn.initializers.normal(1.0), (num_frames, 1, self.dim)).astype(self.dtype)
        x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(context.tokens)  # [B, T, N, D]
        x = x + jnp.broadcast_to(roles, x.shape)
        x = x.reshape(*batch, num_frames * num_tokens, self.dim)
        mask = context.mask.reshape(*batch, num_frames * num_tokens)
        for _ in range(self.depth):
            x = Block(self.num_heads, dtype=self.dtype)(x, mask)
        return Readouts(self.num_readouts, context.pooled.shape[-1] // self.num_readouts, self.dtype)(x, mask)


class PooledPredictor(nn.Module):
    """An MLP on the pooled context embeddings, aggregated over time."""

    dim: int
    depth: int
    num_heads: int
    aggregation: str

    @nn.compact
    def __call__(self, context: Encoded) -> Array:
        z = ContextAggregator(self.aggregation, self.num_heads)(context.pooled)
        return Mlp((self.dim,) * self.depth + (context.pooled.shape[-1],))(z)


def make_predictor(
    kind: str, dim: int, depth: int, num_heads: int, num_readouts: int, aggregation: str, compute_dtype: str
) -> nn.Module:
    """The module of `objective.predictor`. Raises ValueError for another kind."""
    if dim % num_heads:
        raise ValueError(f"objective.predictor_dim {dim} must be a multiple of objective.num_heads {num_heads}")
    if aggregation not in KINDS:
        raise ValueError(f"objective.context is {aggregation!r}; it must be one of {list(KINDS)}")
    if kind == "tokens":
        return TokenPredictor(dim, depth, num_heads, num_readouts, resolve_dtype(compute_dtype))
    if kind == "pooled":
        return PooledPredictor(dim, depth, num_heads, aggregation)
    raise ValueError(f"objective.predictor is {kind!r}; it must be 'tokens' or 'pooled'")


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
    encoder: Encoder,
    *,
    predictor: str = "tokens",
    predictor_dim: int = 64,
    predictor_depth: int = 2,
    num_heads: int = 4,
    num_readouts: int = 8,
    context: str = "attention",
    projector_dim: int | None = None,
    num_global_views: int = 2,
    num_slices: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
    compute_dtype: str = "float32",
) -> Objective:
    """The objective over `encoder`.

    predictor: "tokens" reads every token of every frame; "pooled" reads pooled embeddings aggregated by `context`.
    projector_dim: width of a projector before both terms, for embeddings wider than the batch; None has none.
    num_global_views: how many leading views define the centre, in the multi-view form.
    """
    predictor_module = make_predictor(
        predictor, predictor_dim, predictor_depth, num_heads, num_readouts, context, compute_dtype
    )
    projector_module = None if projector_dim is None else Mlp((2 * projector_dim, projector_dim))

    def encode(params: PyTree, state: PyTree, observation: PyTree) -> Encoded:
        return encoder.apply(params["trunk"]["encoder"], observation)

    def project(params: PyTree, pooled: Array) -> Array:
        if projector_module is None:
            return pooled
        return projector_module.apply({"params": params["heads"]["projector"]}, pooled)

    def forward(params: PyTree, encoded_context: Encoded) -> Array:
        z_hat = predictor_module.apply({"params": params["heads"]["predictor"]}, encoded_context)
        return project(params, z_hat)

    def predict(params: PyTree, state: PyTree, observation: PyTree) -> Array:
        return forward(params, encode(params, state, observation))

    def init(key: Array, batch: Batch) -> tuple[PyTree, PyTree]:
        key_encoder, key_predictor, key_projector = jax.random.split(key, 3)
        frames = batch.context if batch.views is None else batch.views
        trunk_params = {"encoder": encoder.init(key_encoder, frames)}
        encoded = encoder.apply(trunk_params["encoder"], frames)
        if encoded.pooled.shape[-1] % num_readouts:
            raise ValueError(
                f"objective.num_readouts {num_readouts} must divide the embedding's width {encoded.pooled.shape[-1]}"
            )
        check_width(encoded.pooled.shape[-1] if projector_dim is None else projector_dim, len(batch.ids))
        heads = {}
        if batch.views is None:
            heads["predictor"] = predictor_module.init(key_predictor, encoded)["params"]
        if projector_module is not None:
            heads["projector"] = projector_module.init(key_projector, encoded.pooled)["params"]
        return {"trunk": trunk_params, "heads": heads}, {}

    def trunk(params, target_params, state, batch, *, key, step, train):
        if batch.views is not None:
            if target_params is not None:
                raise ValueError("the multi-view form has no teacher: leave config.target_ema at None")
            return {"online": encode(params, state, batch.views), "teacher": None}, state
        # Context and target pass through the encoder as one batch of T + 1 frames.
        frames = jax.tree.map(lambda c, t: jnp.concatenate([c, t[:, None]], axis=1), batch.context, batch.target)
        online = encode(params, state, frames)
        if target_params is None:
            return {"online": online, "teacher": None}, state
        teacher = project(target_params, encode(target_params, state, batch.target).pooled)
        return {"online": online, "teacher": jax.lax.stop_gradient(teacher)}, state

    def next_embedding(params, latents, z):
        """Per-example errors [B] of predicting and of copying the last frame; embeddings by role for diagnostics."""
        context = jax.tree.map(lambda leaf: leaf[:, :-1], latents["online"])
        z_hat = forward(params, context)
        z_target = z[:, -1] if latents["teacher"] is None else latents["teacher"]
        examples = {"prediction": squared_error(z_hat, z_target), "copy": squared_error(z[:, -2], z_target)}
        pooled = latents["online"].pooled
        flat = pooled[:, :-1].reshape(-1, pooled.shape[-1])
        return examples, {"context": flat, "target": pooled[:, -1], "predicted": z_hat}

    def loss(params, target_params, state, latents, batch, *, key, step, train):
        z = project(params, latents["online"].pooled)  # [B, T + 1, P], or [B, V, P] for views
        # Each time step or view is a test of its own: flattening them would multiply the target (see sigreg).
        statistic = sigreg(jnp.swapaxes(z, 0, 1), key, num_slices=num_slices, num_knots=num_knots, t_max=t_max)
        metrics = {"sigreg/T": statistic} | readout_scale(latents["online"].pooled, num_readouts)
        if batch.views is not None:
            examples = {"prediction": view_invariance(z, num_global_views)}  # [B]
            embeddings = {"views": latents["online"].pooled.reshape(-1, latents["online"].pooled.shape[-1])}
        else:
            examples, embeddings = next_embedding(params, latents, z)
            metrics["prediction/copy_ratio"] = jnp.mean(examples["prediction"]) / jnp.mean(examples["copy"])
        if projector_module is not None:
            embeddings["projected"] = z.reshape(-1, z.shape[-1])
        terms = {"prediction": jnp.mean(examples["prediction"]), "sigreg": statistic / z.shape[0]}
        return LossOutput(terms, metrics, state, embeddings, examples)

    return Objective(init, trunk, loss, encode, project, predict, TERMS)
