"""A linear probe that is trained beside an objective: what embeddings say of labels, without a say in them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jepa.modules import LayerNorm
from jepa.types import Array, PyTree


class LinearProbe(nn.Module):
    """Embeddings [..., D] -> logits [..., num_classes]; LayerNorm, then a linear map, as LeJEPA's own runs have it."""

    num_classes: int

    @nn.compact
    def __call__(self, pooled: Array) -> Array:
        return nn.Dense(self.num_classes)(LayerNorm()(pooled))


def init(key: Array, pooled: Array, num_classes: int) -> PyTree:
    """The parameters of the group `monitor`."""
    return {"online": LinearProbe(num_classes).init(key, pooled)["params"]}


def logits(params: PyTree, pooled: Array) -> Array:
    """[..., D] -> [..., classes], with no gradient to the embeddings."""
    head = params["monitor"]["online"]
    return LinearProbe(len(head["Dense_0"]["bias"])).apply({"params": head}, jax.lax.stop_gradient(pooled))


def watch(params: PyTree, pooled: Array, labels: Array) -> tuple[Array, Array]:
    """Cross entropy [] and share of right answers [B] of V embeddings [B, V, D] each of an image with its label [B]."""
    scores = logits(params, pooled)  # [B, V, classes]
    labels = jnp.broadcast_to(labels[:, None], scores.shape[:-1])
    entropy = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
    return jnp.mean(entropy), jnp.mean(jnp.argmax(scores, axis=-1) == labels, axis=-1)
