"""Diagnostics of embeddings that belong together, views of one example or two encoders of one input."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jepa.losses.prediction import unit
from jepa.moments import Scatter, merge_scatter, scatter_of, start_scatter
from jepa.types import Array, PyTree


def alignment(views: Array) -> Array:
    """Mean of |u_v - u_w|^2 over the pairs of unit rows u of one example, in [0, 4]. [..., V, D] -> [...].

    Of a prediction and its target, V = 2, it is 2 - 2 cos. Wang and Isola, arXiv:2005.10242, alpha = 2, before the mean
    over examples. To be read beside uniformity: a collapse aligns everything.
    """
    u = unit(views)
    num_views = u.shape[-2]
    centred = u - jnp.mean(u, axis=-2, keepdims=True)  # the pairs' squared distances are V times those from the mean
    return 2 / (num_views - 1) * jnp.sum(jnp.square(centred), axis=(-2, -1))


class Groups(NamedTuple):
    """What is kept of groups of rows, the views of an example, that come batch by batch."""

    means: Scatter  # of the means of the groups
    deviations: Scatter  # of the rows from the mean of their group


def start_groups(dim: int) -> Groups:
    """No groups yet, of rows of width `dim`."""
    return Groups(start_scatter(dim), start_scatter(dim))


def add_groups(groups: Groups, embeddings: Array) -> Groups:
    """The groups seen before and those of embeddings [n, q, D]."""
    z = embeddings.astype(jnp.float32)
    means = jnp.mean(z, axis=1)  # [n, D]
    deviations = scatter_of((z - means[:, None]).reshape(-1, z.shape[-1]))
    return Groups(
        merge_scatter(groups.means, scatter_of(means)),
        merge_scatter(groups.deviations, deviations),
    )


def lidar(embeddings: Array) -> Array:
    """`finish_lidar` of one set of groups [n, q, D]."""
    return finish_lidar(add_groups(start_groups(embeddings.shape[-1]), embeddings))


def finish_lidar(groups: Groups, *, delta: float = 1e-4, eps: float = 1e-8) -> Array:
    """LiDAR (Thilak et al., arXiv:2312.04000): the effective rank of what tells examples apart from their views. [].

    exp of the entropy of l / sum l + eps, l the eigenvalues of S_w^-1/2 S_b S_w^-1/2; S_b is the covariance of the n
    means, S_w that of the rows about them plus delta I. At most D, and min(D, n - 1) up to eps. Invariant to any linear
    map of the embeddings, up to delta, which is in squared units of the embedding. 1e-5 accurate in float32 where
    delta bounds the condition of S_w by 1e4.
    """
    num, num_rows = groups.means.num, groups.deviations.num
    between = groups.means.matrix / jnp.maximum(num - 1, 1)
    within = groups.deviations.matrix / jnp.maximum(num_rows - num, 1)
    # L of S_w = L L^T whitens as well as the symmetric root does: they differ by a rotation.
    factor = jnp.linalg.cholesky(within + delta * jnp.eye(len(within)))
    half = solve_triangular(factor, between, lower=True)
    eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(solve_triangular(factor, half.T, lower=True)), 0.0)
    total = jnp.sum(eigenvalues)
    p = eigenvalues / jnp.where(total > 0, total, 1.0) + eps
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


def target_drift(params: PyTree, target_params: PyTree) -> Array:
    """Distance of the online parameters from those of the teacher, over the norm of the online ones. []; 0 at first."""
    difference = jax.tree.map(jnp.subtract, params, target_params)
    return _norm(difference) / _norm(params)


def _norm(tree):
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))
