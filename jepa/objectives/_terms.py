"""The ledger of an objective, a line for each term, and the terms that any objective can put on its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jepa.losses.multivariate import bhep
from jepa.losses.norm_anchor import norm_anchor
from jepa.losses.prediction import unit
from jepa.losses.univariate import STATISTICS, sliced
from jepa.losses.variance import vicreg_covariance, vicreg_variance, visreg, weak_sigreg
from jepa.registry import nearest
from jepa.types import Array, Quantized


class Term(NamedTuple):
    """A term: its kind ("latent", "external" or "regulariser"), and its value from the outputs of the heads and a key.

    The outputs are a NamedTuple of the objective's own. Its field `z` [S, B, P] holds the embeddings of S time steps or
    views, each a sample of its own.
    """

    kind: str
    value: Callable[[Any, Array], Array]


# The quantizer's own loss, of the field `quantizer` [] that every objective's outputs have too.
QUANTIZER = Term("regulariser", lambda heads, key: heads.quantizer)


def kinds(terms: Mapping[str, Term]) -> dict[str, str]:
    return {name: term.kind for name, term in terms.items()}


def values(terms: Mapping[str, Term], heads: Any, key: Array) -> dict[str, Array]:
    """Every term, float32 []. Those whose weight is None are traced, but nothing uses them and none is compiled."""
    return {name: term.value(heads, key) for name, term in terms.items()}


def code_metrics(quantized: Quantized) -> dict[str, Array]:
    """What the quantizer says of itself, as metrics by path."""
    return {f"codes/{name}": value for name, value in quantized.metrics.items()}


def code_agreement(codes: Array, others: Array) -> dict[str, Array]:
    """The share of tokens, real in both, to which two encoders give the same code; [] from [..., N] twice."""
    real = codes >= 0
    return {"codes/agreement": jnp.sum((codes == others) & real) / jnp.maximum(jnp.sum(real), 1)}


def regularisers(*, statistic: str, num_slices: int, num_knots: int, t_max: float, unit_rows: bool) -> dict[str, Term]:
    """What keeps embeddings from collapsing, by name; any of them can take the place of SIGReg, or join it.

    statistic: the univariate test that `sigreg` applies to every slice. unit_rows: it sees embeddings divided by their
    norm, which are never N(0, I): to show what becomes of SIGReg there. Raises ValueError for an unknown statistic.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"objective.statistic is {statistic!r}: {nearest(statistic, STATISTICS)}")

    def of_embeddings(function: Callable, **options: Any) -> Term:
        return Term("regulariser", lambda heads, key: function(heads.z, key, **options))

    def of_slices(heads: Any, key: Array) -> Array:
        z = unit(heads.z) if unit_rows else heads.z
        return sliced(z, key, statistic=statistic, num_slices=num_slices, num_knots=num_knots, t_max=t_max)

    return {
        "sigreg": Term("regulariser", of_slices),
        "weak_sigreg": of_embeddings(weak_sigreg),
        "visreg": of_embeddings(visreg, num_slices=num_slices),
        "vicreg_variance": of_embeddings(vicreg_variance),
        "vicreg_covariance": of_embeddings(vicreg_covariance),
        # Narrower kernels (Henze and Zirkler's among them) see no pair of a hundred dimensions: no gradient.
        "bhep": Term("regulariser", lambda heads, key: bhep(heads.z, key, beta=heads.z.shape[-1] ** -0.5)),
        "norm_anchor": Term("regulariser", lambda heads, key: jnp.mean(norm_anchor(heads.z, relative=True))),
    }
