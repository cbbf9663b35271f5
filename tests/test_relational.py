"""Laws of the relational losses, and agreement with the documented system (golden/relational.npz) and with NumPy."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.losses import relational as module
from jepa.losses.relational import NORMALIZATIONS

# An implementation of the documented system, float64 PyTorch on CPU: raw relations, compared over all B N N entries.
GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "relational.npz"))
NORMALIZED = ("mean", "variance")

relations = jax.jit(module.relations, static_argnames="normalize")
relational = jax.jit(module.relational, static_argnames="normalize")
relation_quantiles = jax.jit(module.relation_quantiles, static_argnames=("normalize", "num_levels"))
relational_quantiles = jax.jit(module.relational_quantiles, static_argnames=("normalize", "num_levels"))

WEIGHTS = {"cross": (1.0, 0.0), "self": (0.0, 1.0), "gentle": (0.025, 0.01)}

BATCH, TIME, NUM, DIM = 4, 3, 9, 5


def tokens(seed, *lead, num=NUM, dim=DIM):
    """Asymmetric tokens away from the origin, with another scale in every dimension."""
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(*lead, num, dim)) + 0.3 * rng.normal(size=(*lead, num, dim)) ** 2
    return np.asarray(spread * np.linspace(0.5, 2.0, dim) + rng.normal(size=dim), np.float32)


def masks(seed, *lead, num=NUM):
    """At least three real tokens, in no particular places."""
    mask = np.random.default_rng(seed).random((*lead, num)) < 0.6
    mask[..., 1:4] = True
    return mask


def adjacencies(seed, *lead, num=NUM):
    """Neither symmetric nor zero on the diagonal."""
    adjacency = np.random.default_rng(seed).random((*lead, num, num)) < 0.4
    adjacency[..., 1, 2] = True
    return adjacency


PREDICTED, TARGET, MASK = tokens(0, BATCH), tokens(1, BATCH), masks(2, BATCH)
CONTEXT, CONTEXT_MASK = tokens(3, BATCH, TIME), masks(4, BATCH, TIME)


def one_to_one(predicted, target, **options):
    """A scalar from `relational` on the masks of this file, with another weight for every example."""
    value = relational(predicted, target, jnp.asarray(MASK), **options)
    return jnp.sum(value * (1.0 + jnp.arange(BATCH)))


def unordered(context, target, **options):
    """A scalar from both terms of `relational_quantiles` on the masks of this file."""
    cross, self_term = relational_quantiles(context, jnp.asarray(CONTEXT_MASK), target, jnp.asarray(MASK), **options)
    return jnp.sum((cross + 0.7 * self_term) * (1.0 + jnp.arange(BATCH)))


LOSSES = {"relational": (one_to_one, PREDICTED), "quantiles": (unordered, CONTEXT)}
evaluate = {
    (name, normalize): jax.jit(jax.value_and_grad(partial(loss, normalize=normalize), argnums=(0, 1)))
    for name, (loss, _) in LOSSES.items()
    for normalize in NORMALIZATIONS
}


def assert_close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(np.asarray(actual, np.float64), np.asarray(expected, np.float64), rtol=tolerance)


def assert_gradient(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


# An independent reference: one grid at a time, one pair at a time, float64.


def reference_relations(x, mask, adjacency=None, normalize="mean"):
    """{(i, j): R_ij} over the pairs i < j that count."""
    x = np.asarray(x, np.float64)
    real = np.flatnonzero(mask)
    pairs = {
        (i, j): ((x[i] - x[j]) ** 2).sum()
        for i in real
        for j in real
        if i < j and (adjacency is None or adjacency[i, j] or adjacency[j, i])
    }
    if normalize == "mean" and pairs:
        scale = np.mean(list(pairs.values()))
    elif normalize == "variance" and pairs:
        scale = 2 * x[real].var(axis=0).sum()
    else:
        scale = 1.0
    return {pair: value / scale for pair, value in pairs.items()}


def reference_relational(predicted, target, mask, adjacency, normalize):
    p = reference_relations(predicted, mask, adjacency, normalize)
    t = reference_relations(target, mask, adjacency, normalize)
    return np.mean([(p[pair] - t[pair]) ** 2 for pair in p]) if p else 0.0


def reference_quantiles(x, mask, adjacency, normalize, num_levels):
    values = list(reference_relations(x, mask, adjacency, normalize).values())
    levels = (np.arange(num_levels) + 0.5) / num_levels
    return np.quantile(values, levels, method="hazen") if values else None


def reference_relational_quantiles(context, context_mask, target, target_mask, normalize, num_levels):
    frames = [
        reference_quantiles(x, m, None, normalize, num_levels) for x, m in zip(context, context_mask, strict=True)
    ]
    frames = np.array([q for q in frames if q is not None])
    if not len(frames):
        return 0.0, 0.0
    mean, q_target = frames.mean(0), reference_quantiles(target, target_mask, None, normalize, num_levels)
    return 0.0 if q_target is None else ((mean - q_target) ** 2).mean(), ((frames - mean) ** 2).mean()


# The documented system.


def documented_terms(context, target):
    """Its cross and self losses, from raw relations: context [B T, N, H], target [B, N, H]."""
    kwargs = {"normalize": "none"}
    r_context, _ = relations(context, GOLDEN["in__ctx_mask"] > 0, adjacency=GOLDEN["in__ctx_adj"] > 0, **kwargs)
    r_target, _ = relations(target, GOLDEN["in__tgt_mask"] > 0, adjacency=GOLDEN["in__tgt_adj"] > 0, **kwargs)
    r_context = r_context.reshape(3, 3, 5, 5)  # [B, T, N, N]
    mean = jnp.mean(r_context, axis=1)
    return jnp.mean(jnp.square(mean - r_target)), jnp.mean(jnp.square(r_context - mean[:, None]))


@pytest.mark.parametrize("x64", [True, False])
def test_raw_relations_are_those_of_the_documented_system(x64):
    with jax.enable_x64(x64):
        for side in ("ctx", "tgt"):
            mask, adjacency = GOLDEN[f"in__{side}_mask"] > 0, GOLDEN[f"in__{side}_adj"] > 0
            emb = jnp.asarray(GOLDEN[f"in__{side}_emb"])
            r, pairs = relations(emb, jnp.asarray(mask), adjacency=jnp.asarray(adjacency), normalize="none")
            assert r.dtype == (jnp.float64 if x64 else jnp.float32)
            assert_close(r, GOLDEN[f"out__{side}_relations"], 1e-9 if x64 else 2e-6)
            np.testing.assert_array_equal(pairs, GOLDEN[f"out__{side}_relations"] > 0)


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("x64", [True, False])
def test_the_documented_losses_follow_from_raw_relations(case, x64):
    cross_weight, self_weight = WEIGHTS[case]

    def loss(context, target):
        cross, self_term = documented_terms(context, target)
        return cross_weight * cross + self_weight * self_term

    with jax.enable_x64(x64):
        inputs = jnp.asarray(GOLDEN["in__ctx_emb"]), jnp.asarray(GOLDEN["in__tgt_emb"])
        value, (d_context, d_target) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*inputs)
        assert_close(value, GOLDEN[f"out__{case}__loss"], 1e-9 if x64 else 2e-6)
        assert_gradient(d_context, GOLDEN[f"out__{case}__grad_ctx"], 1e-9 if x64 else 1e-5)
        assert_gradient(d_target, GOLDEN[f"out__{case}__grad_tgt"], 1e-9 if x64 else 1e-5)


# Definitions.


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("adjacency", [None, adjacencies(5, BATCH)], ids=["all", "adjacent"])
def test_relations_match_the_reference(normalize, adjacency):
    r, pairs = relations(PREDICTED, jnp.asarray(MASK), adjacency=adjacency, normalize=normalize)
    for b in range(BATCH):
        expected = reference_relations(PREDICTED[b], MASK[b], None if adjacency is None else adjacency[b], normalize)
        full, counts = np.zeros((NUM, NUM)), np.zeros((NUM, NUM), bool)
        for (i, j), value in expected.items():
            full[i, j] = full[j, i] = value
            counts[i, j] = counts[j, i] = True
        assert counts.any() and not counts.all()
        np.testing.assert_array_equal(pairs[b], counts)
        assert_close(r[b], full)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("adjacency", [None, adjacencies(5, BATCH)], ids=["all", "adjacent"])
def test_relational_and_quantiles_match_the_reference(normalize, adjacency):
    rows = [None] * BATCH if adjacency is None else adjacency
    mask, options = jnp.asarray(MASK), {"adjacency": adjacency, "normalize": normalize}
    value = relational(PREDICTED, TARGET, mask, **options)
    expected = [reference_relational(PREDICTED[b], TARGET[b], MASK[b], rows[b], normalize) for b in range(BATCH)]
    assert_close(value, expected)
    for num_levels in (1, 7, 16):
        q = relation_quantiles(PREDICTED, mask, num_levels=num_levels, **options)
        assert q.shape == (BATCH, num_levels)
        for b in range(BATCH):
            assert_close(q[b], reference_quantiles(PREDICTED[b], MASK[b], rows[b], normalize, num_levels))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_relational_quantiles_match_the_reference_and_leave_out_frames_without_a_pair(normalize):
    context_mask, target_mask = CONTEXT_MASK.copy(), MASK.copy()
    context_mask[0, 1] = False
    context_mask[0, 2] = np.arange(NUM) == 4  # a single token
    context_mask[1] = False
    target_mask[2] = np.arange(NUM) == 2
    terms = relational_quantiles(CONTEXT, context_mask, TARGET, target_mask, normalize=normalize, num_levels=12)
    rows = zip(CONTEXT, context_mask, TARGET, target_mask, strict=True)
    expected = [reference_relational_quantiles(*row, normalize, 12) for row in rows]
    for term, values in zip(terms, np.transpose(expected), strict=True):
        assert term.shape == (BATCH,)
        np.testing.assert_allclose(term, values, rtol=5e-6, atol=1e-12)
    cross, self_term = terms
    assert self_term[0] < 1e-12 < cross[0]  # one frame is left: nothing to differ from
    assert cross[1] == self_term[1] == 0
    assert cross[2] == 0 < self_term[2]


def test_the_adjacency_of_context_and_target_is_their_own():
    context_adjacency, target_adjacency = adjacencies(6, BATCH, TIME), adjacencies(7, BATCH)
    cross, self_term = relational_quantiles(
        CONTEXT,
        jnp.asarray(CONTEXT_MASK),
        TARGET,
        jnp.asarray(MASK),
        context_adjacency=context_adjacency,
        target_adjacency=target_adjacency,
    )
    q_context = relation_quantiles(CONTEXT, jnp.asarray(CONTEXT_MASK), adjacency=context_adjacency)
    q_target = relation_quantiles(TARGET, jnp.asarray(MASK), adjacency=target_adjacency)
    assert_close(cross, np.mean((np.mean(q_context, 1) - q_target) ** 2, -1))
    assert_close(self_term, np.mean(np.var(q_context, 1), -1))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_gradients_are_those_of_the_reference_through_the_normaliser_too(normalize):
    def one_to_one_reference(p, t):
        rows = (reference_relational(p[b], t[b], MASK[b], None, normalize) * (1 + b) for b in range(BATCH))
        return sum(rows)

    def unordered_reference(c, t):
        terms = (
            reference_relational_quantiles(c[b], CONTEXT_MASK[b], t[b], MASK[b], normalize, 16) for b in range(BATCH)
        )
        return sum((cross + 0.7 * own) * (1 + b) for b, (cross, own) in enumerate(terms))

    rng, step = np.random.default_rng(8), 1e-6
    cases = (("relational", one_to_one_reference), ("quantiles", unordered_reference))
    with jax.enable_x64(True):
        for name, loss in cases:
            x, y = np.asarray(LOSSES[name][1], np.float64), np.asarray(TARGET, np.float64)
            value, (dx, dy) = evaluate[name, normalize](x, y)
            assert_close(value, loss(x, y), 1e-12)
            vx, vy = rng.normal(size=x.shape), rng.normal(size=y.shape)
            for sx, sy in ((1.0, 0.0), (0.0, 1.0)):
                ahead, behind = ((x + e * sx * vx, y + e * sy * vy) for e in (step, -step))
                slope = (loss(*ahead) - loss(*behind)) / (2 * step)
                parts = np.concatenate([np.ravel(sx * dx * vx), np.ravel(sy * dy * vy)])
                assert abs(parts.sum() - slope) < 1e-7 * np.abs(parts).sum()


# Laws.


@pytest.mark.parametrize("normalize", NORMALIZED)
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=40)
@given(exponents=st.tuples(st.floats(-7, 4), st.floats(-7, 4)))
def test_normalised_forms_ignore_the_scale_of_either_side(name, normalize, exponents):
    a, b = (np.float32(10.0**e) for e in exponents)
    x = LOSSES[name][1]
    value, (dx, dy) = evaluate[name, normalize](x, TARGET)
    scaled, (dx_scaled, dy_scaled) = evaluate[name, normalize](a * x, b * TARGET)
    assert_close(scaled, value, 5e-6)
    assert_gradient(a * np.asarray(dx_scaled), dx)
    assert_gradient(b * np.asarray(dy_scaled), dy)


@pytest.mark.parametrize("normalize", NORMALIZED)
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_normalised_forms_has_no_part_along_the_scale(name, normalize):
    x = LOSSES[name][1]
    _, (dx, dy) = evaluate[name, normalize](x, TARGET)
    for gradient, side in ((dx, x), (dy, TARGET)):
        radial = np.sum(np.asarray(gradient, np.float64) * side, axis=(-2, -1))
        assert np.all(np.abs(radial) < 1e-5 * np.sum(np.abs(gradient * side), axis=(-2, -1)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("c", [2.0**-9, 0.5, 4.0, 2.0**9])
def test_the_raw_form_is_quartic_in_the_scale(name, c):
    x = LOSSES[name][1]
    value, (dx, _) = evaluate[name, "none"](x, TARGET)
    scaled, (dx_scaled, _) = evaluate[name, "none"](c * x, c * TARGET)
    assert scaled == value * c**4  # powers of two: exact
    np.testing.assert_array_equal(dx_scaled, dx * c**3)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_translation_and_rotation_of_either_side_change_nothing(name, normalize):
    x, rng = LOSSES[name][1], np.random.default_rng(9)
    value, (dx, dy) = evaluate[name, normalize](x, TARGET)
    rotation = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    moved = np.asarray(x @ rotation + rng.normal(size=DIM), np.float32)
    moved_value, (dx_moved, dy_moved) = evaluate[name, normalize](moved, TARGET)
    assert_close(moved_value, value, 1e-5)
    assert_gradient(dx_moved, dx @ rotation, 2e-5)
    assert_gradient(dy_moved, dy, 2e-5)
    assert np.abs(np.sum(dx, axis=-2)).max() < 1e-5 * np.abs(dx).max()  # no force on the whole


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_what_masked_tokens_hold_and_how_many_there_are_changes_nothing(normalize):
    def pad(x, mask):
        """Three more masked tokens in front, and NaN in every masked one."""
        x = np.concatenate([np.zeros((*x.shape[:-2], 3, DIM), np.float32), x], axis=-2)
        mask = np.concatenate([np.zeros((*mask.shape[:-1], 3), bool), mask], axis=-1)
        return np.where(mask[..., None], x, np.nan), mask

    def both(context, context_mask, predicted, target, mask):
        def loss(context, predicted, target):
            cross, own = relational_quantiles(context, context_mask, target, mask, normalize=normalize)
            return jnp.sum(cross + own) + jnp.sum(relational(predicted, target, mask, normalize=normalize))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(context, predicted, target)

    value, gradients = both(CONTEXT, CONTEXT_MASK, PREDICTED, TARGET, MASK)
    (context, context_mask), (target, mask) = pad(CONTEXT, CONTEXT_MASK), pad(TARGET, MASK)
    padded, padded_gradients = both(context, context_mask, pad(PREDICTED, MASK)[0], target, mask)
    assert_close(padded, value)
    for gradient, expected, m in zip(padded_gradients, gradients, (context_mask, mask, mask), strict=True):
        assert not np.any(np.asarray(gradient)[~m]) and np.all(np.any(np.asarray(gradient)[m], axis=-1))
        assert_gradient(gradient[..., 3:, :], expected)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_the_order_of_tokens_matters_only_where_tokens_correspond(normalize):
    rng = np.random.default_rng(10)
    context_order = np.argsort(rng.random((BATCH, TIME, NUM)), axis=-1)
    order = np.argsort(rng.random((BATCH, NUM)), axis=-1)

    def permute(x, order):
        return np.take_along_axis(
            np.asarray(x), order.reshape(*order.shape, *[1] * (x.ndim - order.ndim)), order.ndim - 1
        )

    function = jax.jit(
        jax.value_and_grad(
            lambda context, target, context_mask, mask: sum(
                jnp.sum(term) for term in relational_quantiles(context, context_mask, target, mask, normalize=normalize)
            ),
            argnums=(0, 1),
        )
    )
    value, (dx, dy) = function(CONTEXT, TARGET, CONTEXT_MASK, MASK)
    permuted, (dx_permuted, dy_permuted) = function(
        permute(CONTEXT, context_order),
        permute(TARGET, order),
        permute(CONTEXT_MASK, context_order),
        permute(MASK, order),
    )
    assert_close(permuted, value, 5e-6)
    assert_gradient(dx_permuted, permute(dx, context_order))
    assert_gradient(dy_permuted, permute(dy, order))

    everything = jnp.ones_like(MASK)
    one = relational(PREDICTED, TARGET, everything, normalize=normalize)
    joint = relational(permute(PREDICTED, order), permute(TARGET, order), everything, normalize=normalize)
    alone = relational(PREDICTED, permute(TARGET, order), everything, normalize=normalize)
    assert_close(joint, one, 5e-6)
    assert np.all(np.abs(alone / one - 1) > 1e-3)
    itself = relational(TARGET, permute(TARGET, order), everything, normalize=normalize)
    assert np.all(itself > 0.01) and np.all(module.relational(TARGET, TARGET, everything, normalize=normalize) == 0)


@pytest.mark.parametrize("normalize", ["mean", "none"])
def test_sets_of_different_size_with_the_same_distances_are_equal(normalize):
    small, large = np.eye(3, 8, dtype=np.float32), np.eye(8, dtype=np.float32)[::-1]  # all distances are 2
    context = np.stack([small, small])[None]
    cross, own = relational_quantiles(
        context, jnp.ones((1, 2, 3), bool), large[None], jnp.ones((1, 8), bool), normalize=normalize
    )
    assert cross[0] == own[0] == 0


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_equal_frames_have_no_self_term_and_an_equal_target_no_cross_term(normalize):
    context = np.broadcast_to(TARGET[:, None], (BATCH, TIME, NUM, DIM))
    context_mask = np.broadcast_to(MASK[:, None], (BATCH, TIME, NUM))
    cross, own = relational_quantiles(context, context_mask, TARGET, MASK, normalize=normalize)
    np.testing.assert_allclose(cross, 0.0, atol=1e-9)
    np.testing.assert_allclose(own, 0.0, atol=1e-9)
    assert all(np.all(term > 1e-3) for term in relational_quantiles(CONTEXT, CONTEXT_MASK, TARGET, MASK))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_relational_is_symmetric(normalize):
    mask = jnp.asarray(MASK)
    forward = module.relational(PREDICTED, TARGET, mask, normalize=normalize)
    np.testing.assert_array_equal(forward, module.relational(TARGET, PREDICTED, mask, normalize=normalize))
    assert np.all(forward > 0)


# Numbers.


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("num", [1, NUM])
def test_values_and_gradients_are_finite_where_there_is_nothing_to_compare(normalize, num):
    def scalar(context, predicted, target, mask):
        context_mask = jnp.broadcast_to(mask[:, None], context.shape[:-1])
        terms = (*relational_quantiles(context, context_mask, target, mask, normalize=normalize),)
        return sum(map(jnp.sum, terms)) + jnp.sum(relational(predicted, target, mask, normalize=normalize))

    function = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1, 2)))
    context, predicted, target = (x[..., :num, :] for x in (CONTEXT, PREDICTED, TARGET))
    everything, nothing = np.ones((BATCH, num), bool), np.zeros((BATCH, num), bool)
    single = np.arange(num) == np.zeros((BATCH, 1), int)
    inputs = (context, predicted, target)
    equal = tuple(np.broadcast_to(x[..., :1, :], x.shape) for x in inputs)
    for given_inputs, mask in ((inputs, nothing), (inputs, single), (equal, everything), (equal, nothing)):
        value, gradients = function(*given_inputs, mask)
        assert value == 0
        for gradient in gradients:
            assert not np.any(gradient)  # not NaN either
    # One side collapsed: the other still has relations.
    value, gradients = function(equal[0], equal[1], target, everything)
    assert np.isfinite(value) and (value > 0 or num == 1)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_close_tokens_far_from_the_origin_keep_their_distance():
    x = np.round(tokens(14, 2) * 64) / 64 + np.float32(1000.0)  # exact in float32
    x[:, 1] = x[:, 2] + np.float32(2.0**-9)
    for normalize in NORMALIZATIONS:
        q = relation_quantiles(x, jnp.ones(x.shape[:-1], bool), normalize=normalize, num_levels=36)
        for b in range(2):
            assert_close(q[b], reference_quantiles(x[b], np.ones(NUM), None, normalize, 36))
    value, (dx, _) = evaluate["relational", "mean"](PREDICTED + np.float32(1000.0), TARGET)
    expected, (dx_expected, _) = evaluate["relational", "mean"](
        (PREDICTED + np.float32(1000.0)) - np.float32(1000.0), TARGET
    )
    assert_close(value, expected)
    assert_gradient(dx, dx_expected)


def test_no_array_is_as_wide_as_pairs_times_dimensions():
    shape = (64, 34, 128)

    def loss(predicted, target, mask):
        quantiles = relation_quantiles(predicted, mask) - relation_quantiles(target, mask)
        return jnp.sum(relational(predicted, target, mask)) + jnp.sum(quantiles**2)

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2 + [jax.ShapeDtypeStruct(shape[:-1], jnp.bool_)]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * (4 * 64 * 34 * 34 * 128)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_jit_and_vmap_agree_with_the_plain_call(normalize):
    arguments = CONTEXT, jnp.asarray(CONTEXT_MASK), TARGET, jnp.asarray(MASK)
    plain = module.relational_quantiles(*arguments, normalize=normalize)
    for expected, compiled in zip(plain, relational_quantiles(*arguments, normalize=normalize), strict=True):
        assert_close(compiled, expected)
    function = partial(relational, normalize=normalize)
    arguments = PREDICTED, TARGET, jnp.asarray(MASK)
    plain = module.relational(*arguments, normalize=normalize)
    assert_close(function(*arguments), plain)
    assert_close(jax.vmap(function)(*arguments), plain)
    assert_close(function(*(jnp.stack([x, x[::-1]]) for x in arguments)), jnp.stack([plain, plain[::-1]]))


def test_bfloat16_tokens_are_taken_at_face_value():
    x, y = jnp.asarray(CONTEXT, jnp.bfloat16), jnp.asarray(TARGET, jnp.bfloat16)
    value, (dx, dy) = evaluate["quantiles", "mean"](x, y)
    expected, (dx_expected, dy_expected) = evaluate["quantiles", "mean"](*(v.astype(jnp.float32) for v in (x, y)))
    assert value.dtype == jnp.float32 and dx.dtype == dy.dtype == jnp.bfloat16
    assert_close(value, expected)
    assert_gradient(dx, dx_expected, 2.0**-8)
    assert_gradient(dy, dy_expected, 2.0**-8)
    assert relations(x, jnp.asarray(CONTEXT_MASK))[0].dtype == jnp.float32


def test_errors_name_what_is_wrong():
    x, mask = jnp.zeros((2, 4, 3)), jnp.ones((2, 4), bool)
    with pytest.raises(ValueError, match="normalize must be one of mean, variance, none, got 'max'"):
        module.relations(x, mask, normalize="max")
    with pytest.raises(ValueError, match="mask must have the shape"):
        module.relations(x, mask[0])
    with pytest.raises(ValueError, match="adjacency must have the shape"):
        module.relations(x, mask, adjacency=jnp.ones((4, 4), bool))
    with pytest.raises(ValueError, match="one shape"):
        module.relational(x, x[:1], mask)
    with pytest.raises(ValueError, match="num_levels"):
        module.relation_quantiles(x, mask, num_levels=0)
    for context, target in ((x, x), (x[:, None], x[:1]), (x[:, None], x[:, None])):
        with pytest.raises(ValueError, match=r"context must be \[B, T, N, D\]"):
            module.relational_quantiles(
                context, jnp.ones(context.shape[:-1], bool), target, jnp.ones(target.shape[:-1], bool)
            )
