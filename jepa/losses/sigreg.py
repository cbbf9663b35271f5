"""SIGReg: the distance of a set of embeddings from an isotropic Gaussian; LeJEPA, arXiv:2511.08544.

Along a unit direction a, the embeddings z_n are the numbers u_n = a . z_n. Their empirical characteristic function
is compared with that of N(0, 1), phi(t) = exp(-t^2 / 2), at knots t_j = j dt on [0, t_max] (Epps and Pulley, 1983):

    C_j = mean_n cos(t_j u_n)    S_j = mean_n sin(t_j u_n)    T = N sum_j w_j [(C_j - phi_j)^2 + S_j^2]

w_j is phi_j times the trapezoid weight of the even integrand on [-t_max, t_max]. Nothing is centred or standardised:
mean and scale are what is being tested. T is averaged over random directions.

The knots are equally spaced, so every cos and sin above is a power of one e^{i theta_n}, theta_n = dt u_n, and

    dT/du_n = 2 sum_j w_j t_j [S_j cos(t_j u_n) - (C_j - phi_j) sin(t_j u_n)]

is a polynomial in it: one cosine and one sine per projection, whatever the number of knots, and no array [N, M, knots].
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jepa.precision import matmul
from jepa.types import Array

TILE = 2**18  # projections worked on at a time: a handful of arrays of this size should fit the cache


def sigreg(
    embeddings: Array,
    key: Array,
    *,
    mask: Array | None = None,
    num_slices: int = 1024,
    num_knots: int = 17,
    t_max: float = 3.0,
) -> Array:
    """Sliced Epps-Pulley distance T of embeddings from N(0, I). [..., N, D] -> float32 [], >= 0.

    N is the sample axis, or the number of True in each row of mask [..., N]. Leading axes (views, time) are separate
    tests along one draw of directions and T is their mean; flattening them into N would test something else, and
    multiply T. Draw a new key every step. Embeddings must not be normalised: points on a sphere are never N(0, I).

    T is about 1.05 when the null holds, for every N, and 0.40 N at total collapse, where its gradient is zero. The
    trained term is T / N by convention: T is N times a distance, so its gradient outgrows that of a prediction loss
    averaged over examples as N grows, and a weight on T is only right for one batch size. Report T, train on T / N.

    Source: LeJEPA, arXiv:2511.08544. Raises ValueError as `sigreg_along`.
    """
    directions = random_directions(key, embeddings.shape[-1], num_slices)
    return jnp.mean(sigreg_along(embeddings, directions, mask=mask, num_knots=num_knots, t_max=t_max))


def sigreg_along(
    embeddings: Array, directions: Array, *, mask: Array | None = None, num_knots: int = 17, t_max: float = 3.0
) -> Array:
    """Epps-Pulley statistic T along each given direction. [..., N, D], unit columns of [D, M] -> float32 [..., M].

    Differentiable in both. Computed in float32, whatever the input. mask [..., N] is True where a row is real; other
    rows count for nothing, whatever they hold, and a set without real rows scores 0.

    Raises ValueError when the widths differ, mask has another shape than [..., N], or num_knots < 2.
    """
    if embeddings.shape[-1] != directions.shape[0]:
        raise ValueError(f"directions must have {embeddings.shape[-1]} rows, as embeddings do, got {directions.shape}")
    if mask is not None and mask.shape != embeddings.shape[:-1]:
        raise ValueError(f"mask must have the shape {embeddings.shape[:-1]} of the rows, got {mask.shape}")
    if num_knots < 2:
        raise ValueError(f"num_knots must be at least 2, the two ends of [0, t_max], got {num_knots}")
    *lead, num, _ = embeddings.shape
    z = embeddings.astype(jnp.float32)
    if mask is None:
        num_real = jnp.full(lead, num, jnp.float32)
    else:
        z = jnp.where(mask[..., None], z, 0.0)  # a zero adds e^{i 0} = 1 to the sums: known, so taken out again
        num_real = jnp.sum(mask, axis=-1, dtype=jnp.float32)
    tile = max(1, TILE // max(1, num * math.prod(lead)))  # directions at a time
    statistic = functools.partial(_epps_pulley, num_knots=num_knots, t_max=t_max, tile=tile)
    for _ in lead:
        statistic = jax.vmap(statistic, in_axes=(0, None, 0))
    return statistic(z, directions.astype(jnp.float32), num_real)


def random_directions(key: Array, dim: int, num: int) -> Array:
    """Directions uniform on the unit sphere, as the columns of float32 [dim, num]."""
    gaussian = jax.random.normal(key, (dim, num), jnp.float32)
    return gaussian / jnp.linalg.norm(gaussian, axis=0, keepdims=True)


def knots(num_knots: int, t_max: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The knots t_j after t = 0, where every characteristic function is 1, phi_j and w_j; float32 [num_knots - 1] each.

    t_1 is their distance.
    """
    dt = t_max / (num_knots - 1)
    t = dt * np.arange(1, num_knots)
    phi = np.exp(-0.5 * np.square(t))
    weight = 2.0 * dt * phi
    weight[-1] *= 0.5
    return t.astype(np.float32), phi.astype(np.float32), weight.astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _epps_pulley(z, directions, num_real, num_knots, t_max, tile):
    """T [M] of z [N, D] along directions [D, M]; num_real [] rows of z count, the others are 0."""
    statistic = functools.partial(_statistic, num_real=num_real, num_knots=num_knots, t_max=t_max)
    return _over_tiles(statistic, _project(z, directions), tile)


def _epps_pulley_fwd(z, directions, num_real, num_knots, t_max, tile):
    # The gradient starts from the same e^{i theta} as the value, so it is made at once: the residual is dT/du.
    function = functools.partial(_statistic_and_gradient, num_real=num_real, num_knots=num_knots, t_max=t_max)
    statistic, gradient = _over_tiles(function, _project(z, directions), tile)
    return statistic, (z, directions, gradient)


def _epps_pulley_bwd(num_knots, t_max, tile, residuals, cotangent):
    z, directions, gradient = residuals  # [N, D], [D, M], [M, N]
    dz = matmul(directions * cotangent[None], gradient)  # [D, N]
    ddirections = matmul(gradient, z) * cotangent[:, None]  # [M, D]
    return dz.T, ddirections.T, jnp.float32(0.0)


_epps_pulley.defvjp(_epps_pulley_fwd, _epps_pulley_bwd)


def _project(z, directions):
    """u [M, N], samples last so that sums over them run along contiguous memory."""
    return matmul(directions.T, z.T)


def _statistic(u, *, num_real, num_knots, t_max):
    """T [R] of the rows of u [R, N]."""
    return _compare(u, num_real, num_knots, t_max)[0]


def _statistic_and_gradient(u, *, num_real, num_knots, t_max):
    """T [R] and dT/du [R, N] of the rows of u [R, N]."""
    statistic, rotation, coefficients = _compare(u, num_real, num_knots, t_max)
    total = jnp.zeros_like(rotation)
    for coefficient in reversed(coefficients):  # Horner's rule for sum_j coefficient_j rotation^j, j = 1..knots-1
        total = (total + coefficient[:, None]) * rotation
    return statistic, jnp.real(total)


def _compare(u, num_real, num_knots, t_max):
    """T [R]; rotation = e^{i dt u} [R, N]; complex [knots-1, R] of which dT/du = Re sum_j coefficient_j rotation^j."""
    t, phi, weight = (x[:, None] for x in knots(num_knots, t_max))
    rotation = _unit_complex(t[0, 0] * u)
    power, sums = rotation, [jnp.sum(rotation, axis=-1)]
    for _ in range(num_knots - 2):
        power = power * rotation
        sums.append(jnp.sum(power, axis=-1))
    num_zero, num = u.shape[-1] - num_real, jnp.maximum(num_real, 1.0)
    sums = jnp.stack(sums)  # [knots-1, R]
    c = (jnp.real(sums) - num_zero) / num - phi
    s = jnp.imag(sums) / num
    statistic = num_real * jnp.sum(weight * (jnp.square(c) + jnp.square(s)), axis=0)
    return statistic, rotation, 2.0 * weight * t * jax.lax.complex(s, c)


def _unit_complex(angle):
    """e^{i angle}, to 2e-7 for |angle| < 1e4; its modulus stays near 1 beyond, where float32 loses the phase anyway.

    One reduction to [-pi/4, pi/4] (pi/2 in three parts, Cody and Waite, 1980) serves the minimax polynomials of both
    sine and cosine (Cephes, Moshier, 1992). The compiler's own pair costs more than all the rest of the statistic.
    """
    quarter = jnp.round(angle * np.float32(2.0 / np.pi))
    x = angle - quarter * np.float32(1.5703125)
    x = x - quarter * np.float32(4.837512969970703125e-4)
    x = x - quarter * np.float32(7.549789948768648e-8)
    x = jnp.clip(x, -0.8, 0.8)
    y = x * x
    sin = x + x * y * (-1.6666654611e-1 + y * (8.3321608736e-3 + y * -1.9515295891e-4))
    cos = 1.0 - 0.5 * y + y * y * (4.166664568298827e-2 + y * (-1.388731625493765e-3 + y * 2.443315711809948e-5))
    quarter = quarter.astype(jnp.int32)
    odd = (quarter & 1) == 1
    sin, cos = jnp.where(odd, cos, sin), jnp.where(odd, sin, cos)
    return jax.lax.complex(jnp.where((quarter + 1) & 2 == 2, -cos, cos), jnp.where(quarter & 2 == 2, -sin, sin))


def _over_tiles(function, u, tile):
    """Maps function over tiles of the leading axis of u [M, N], zero-padded to a whole number of tiles."""
    num_rows, num = u.shape
    num_tiles = -(-num_rows // tile)
    tile = -(-num_rows // num_tiles)
    u = jnp.pad(u, ((0, num_tiles * tile - num_rows), (0, 0))).reshape(num_tiles, tile, num)
    out = jax.lax.map(function, u)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], out)
