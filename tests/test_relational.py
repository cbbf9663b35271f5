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


EVERY_CONTEXT, EVERY = np.ones((BATCH, TIME, NUM, NUM), bool), np.ones((BATCH, NUM, NUM), bool)
LOSSES = {"relational": PREDICTED, "quantiles": CONTEXT}
STARTS = dict(
    context=CONTEXT,
    predicted=PREDICTED,
    target=TARGET,
    context_mask=CONTEXT_MASK,
    mask=MASK,
    context_adjacency=EVERY_CONTEXT,
    adjacency=EVERY,
)


@partial(jax.jit, static_argnames="normalize")
def both(context, predicted, target, context_mask, mask, context_adjacency, adjacency, *, normalize):
    """name -> (values, gradients of their weighted sum with respect to context or predicted, and to target).

    One program for most of this file, whose time is compiling: masks and adjacencies are arguments of it.
    """
    weight = 1.0 + jnp.arange(BATCH)  # another for every example

    def one_to_one(predicted, target):
        value = module.relational(predicted, target, mask, adjacency=adjacency, normalize=normalize)
        return jnp.sum(value * weight), value

    def unordered(context, target):
        adjacencies = {"context_adjacency": context_adjacency, "target_adjacency": adjacency}
        terms = module.relational_quantiles(context, context_mask, target, mask, **adjacencies, normalize=normalize)
        return jnp.sum((terms[0] + 0.7 * terms[1]) * weight), jnp.stack(terms)

    def evaluated(function, x):
        (_, value), gradients = jax.value_and_grad(function, argnums=(0, 1), has_aux=True)(x, target)
        return value, gradients

    return {"relational": evaluated(one_to_one, predicted), "quantiles": evaluated(unordered, context)}


def evaluate(normalize, **changed):
    return both(**STARTS | changed, normalize=normalize)


def evaluate_one(name, normalize, x, target):
    return evaluate(normalize, **{"predicted" if name == "relational" else "context": x}, target=target)[name]


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


def reference_relational_quantiles(
    context,
    context_mask,
    target,
    target_mask,
    normalize,
    num_levels=16,
    context_adjacency=EVERY_CONTEXT[0],
    adjacency=None,
):
    frames = [
        reference_quantiles(x, m, a, normalize, num_levels)
        for x, m, a in zip(context, context_mask, context_adjacency, strict=True)
    ]
    frames = np.array([q for q in frames if q is not None])
    if not len(frames):
        return 0.0, 0.0
    mean, q_target = frames.mean(0), reference_quantiles(target, target_mask, adjacency, normalize, num_levels)
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


@pytest.mark.parametrize("x64", [True, False])
def test_the_documented_losses_follow_from_raw_relations(x64):
    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(context, target, cross_weight, self_weight):
        cross, self_term = documented_terms(context, target)
        return cross_weight * cross + self_weight * self_term

    with jax.enable_x64(x64):
        inputs = jnp.asarray(GOLDEN["in__ctx_emb"]), jnp.asarray(GOLDEN["in__tgt_emb"])
        for case, weights in WEIGHTS.items():
            value, (d_context, d_target) = loss(*inputs, *map(jnp.asarray, weights))
            assert_close(value, GOLDEN[f"out__{case}__loss"], 1e-9 if x64 else 2e-6)
            assert_gradient(d_context, GOLDEN[f"out__{case}__grad_ctx"], 1e-9 if x64 else 1e-5)
            assert_gradient(d_target, GOLDEN[f"out__{case}__grad_tgt"], 1e-9 if x64 else 1e-5)


# Definitions.


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("adjacency", [EVERY, adjacencies(5, BATCH)], ids=["all", "adjacent"])
def test_relations_match_the_reference(normalize, adjacency):
    r, pairs = relations(PREDICTED, MASK, adjacency=adjacency, normalize=normalize)
    for b in range(BATCH):
        expected = reference_relations(PREDICTED[b], MASK[b], adjacency[b], normalize)
        full, counts = np.zeros((NUM, NUM)), np.zeros((NUM, NUM), bool)
        for (i, j), value in expected.items():
            full[i, j] = full[j, i] = value
            counts[i, j] = counts[j, i] = True
        assert counts.any() and not counts.all()
        np.testing.assert_array_equal(pairs[b], counts)
        assert_close(r[b], full)


def test_without_an_adjacency_all_pairs_count():
    for found, expected in zip(relations(PREDICTED, MASK), relations(PREDICTED, MASK, adjacency=EVERY), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("adjacency", [EVERY, adjacencies(5, BATCH)], ids=["all", "adjacent"])
def test_relational_matches_the_reference(normalize, adjacency):
    value, _ = evaluate(normalize, adjacency=adjacency)["relational"]
    expected = [reference_relational(PREDICTED[b], TARGET[b], MASK[b], adjacency[b], normalize) for b in range(BATCH)]
    assert_close(value, expected)


def test_distance_quantiles_match_the_reference():
    levels = (1, 7, 16)

    @jax.jit
    def quantiles(x, mask, adjacency):
        return {n: module.distance_quantiles(x, mask, adjacency=adjacency, num_levels=n) for n in levels}

    mask = MASK.copy()
    mask[2] = np.arange(NUM) == 3  # a single token
    for adjacency in (EVERY, adjacencies(5, BATCH)):
        for num_levels, (q, counts) in quantiles(PREDICTED, mask, adjacency).items():
            assert q.shape == (BATCH, num_levels)
            np.testing.assert_array_equal(counts, np.arange(BATCH) != 2)
            assert not np.any(q[2])
            for b in np.flatnonzero(counts):
                assert_close(q[b], reference_quantiles(PREDICTED[b], mask[b], adjacency[b], "mean", num_levels))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_relational_quantiles_match_the_reference_and_leave_out_frames_without_a_pair(normalize):
    context_mask, target_mask = CONTEXT_MASK.copy(), MASK.copy()
    context_mask[0, 1] = False
    context_mask[0, 2] = np.arange(NUM) == 4  # a single token
    context_mask[1] = False
    target_mask[2] = np.arange(NUM) == 2
    terms, _ = evaluate(normalize, context_mask=context_mask, mask=target_mask)["quantiles"]
    rows = zip(CONTEXT, context_mask, TARGET, target_mask, strict=True)
    expected = [reference_relational_quantiles(*row, normalize) for row in rows]
    for term, values in zip(terms, np.transpose(expected), strict=True):
        assert term.shape == (BATCH,)
        np.testing.assert_allclose(term, values, rtol=5e-6, atol=1e-12)
    cross, self_term = terms
    assert self_term[0] < 1e-12 < cross[0]  # one frame is left: nothing to differ from
    assert cross[1] == self_term[1] == 0
    assert cross[2] == 0 < self_term[2]


def test_the_adjacency_of_context_and_target_is_their_own():
    own = dict(context_adjacency=adjacencies(6, BATCH, TIME), adjacency=adjacencies(7, BATCH))
    terms, _ = evaluate("mean", **own)["quantiles"]
    rows = zip(CONTEXT, CONTEXT_MASK, TARGET, MASK, own["context_adjacency"], own["adjacency"], strict=True)
    assert_close(
        terms, np.transpose([reference_relational_quantiles(*row[:4], "mean", 16, *row[4:]) for row in rows]), 5e-6
    )


@pytest.mark.parametrize(
    ("normalize", "x64"),
    [(n, x64) for n in NORMALIZATIONS for x64 in (False, True) if not x64 or n == "mean"]
    + [pytest.param(n, True, marks=pytest.mark.slow) for n in NORMALIZATIONS if n != "mean"],
)
def test_gradients_are_those_of_the_reference_through_the_normaliser_too(normalize, x64):
    def one_to_one(p, t):
        return np.array([reference_relational(p[b], t[b], MASK[b], None, normalize) for b in range(BATCH)])

    def unordered(c, t):
        rows = zip(c, CONTEXT_MASK, t, MASK, strict=True)
        cross, own = np.transpose([reference_relational_quantiles(*row, normalize) for row in rows])
        return cross + 0.7 * own

    rng, step, weight = np.random.default_rng(8), 1e-6, 1.0 + np.arange(BATCH)
    inputs = {key: STARTS[key].astype(np.float64) for key in ("context", "predicted", "target")} if x64 else {}
    with jax.enable_x64(x64):
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), evaluate(normalize, **inputs))
    y = TARGET.astype(np.float64)
    for name, loss in (("relational", one_to_one), ("quantiles", unordered)):
        x = LOSSES[name].astype(np.float64)
        value, (dx, dy) = found[name]
        assert_close(value if name == "relational" else value[0] + 0.7 * value[1], loss(x, y), 1e-12 if x64 else 5e-6)
        vx, vy = rng.normal(size=x.shape), rng.normal(size=y.shape)
        for sx, sy in ((1.0, 0.0), (0.0, 1.0)):
            ahead, behind = (loss(x + e * sx * vx, y + e * sy * vy) @ weight for e in (step, -step))
            parts = np.concatenate([np.ravel(sx * dx * vx), np.ravel(sy * dy * vy)])
            assert abs(parts.sum() - (ahead - behind) / (2 * step)) < (1e-7 if x64 else 1e-5) * np.abs(parts).sum()


# Laws.


@pytest.mark.parametrize("normalize", NORMALIZED)
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=40)
@given(exponents=st.tuples(st.floats(-7, 4), st.floats(-7, 4)))
def test_normalised_forms_ignore_the_scale_of_either_side(name, normalize, exponents):
    a, b = (np.float32(10.0**e) for e in exponents)
    x = LOSSES[name]
    value, (dx, dy) = evaluate_one(name, normalize, x, TARGET)
    scaled, (dx_scaled, dy_scaled) = evaluate_one(name, normalize, a * x, b * TARGET)
    assert_close(scaled, value, 5e-6)
    assert_gradient(a * np.asarray(dx_scaled), dx)
    assert_gradient(b * np.asarray(dy_scaled), dy)


@pytest.mark.parametrize("normalize", NORMALIZED)
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_normalised_forms_has_no_part_along_the_scale(name, normalize):
    x = LOSSES[name]
    _, (dx, dy) = evaluate_one(name, normalize, x, TARGET)
    for gradient, side in ((dx, x), (dy, TARGET)):
        radial = np.sum(np.asarray(gradient, np.float64) * side, axis=(-2, -1))
        assert np.all(np.abs(radial) < 1e-5 * np.sum(np.abs(gradient * side), axis=(-2, -1)))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("c", [2.0**-9, 0.5, 4.0, 2.0**9])
def test_the_raw_form_is_quartic_in_the_scale(name, c):
    x = LOSSES[name]
    value, (dx, _) = evaluate_one(name, "none", x, TARGET)
    scaled, (dx_scaled, _) = evaluate_one(name, "none", c * x, c * TARGET)
    np.testing.assert_array_equal(scaled, value * c**4)  # powers of two: exact
    np.testing.assert_array_equal(dx_scaled, dx * c**3)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_translation_and_rotation_of_either_side_change_nothing(name, normalize):
    x, rng = LOSSES[name], np.random.default_rng(9)
    value, (dx, dy) = evaluate_one(name, normalize, x, TARGET)
    rotation = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    moved = np.asarray(x @ rotation + rng.normal(size=DIM), np.float32)
    moved_value, (dx_moved, dy_moved) = evaluate_one(name, normalize, moved, TARGET)
    assert_close(moved_value, value, 1e-5)
    assert_gradient(dx_moved, dx @ rotation, 2e-5)
    assert_gradient(dy_moved, dy, 2e-5)
    assert np.abs(np.sum(dx, axis=-2)).max() < 1e-5 * np.abs(dx).max()  # no force on the whole


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_what_masked_tokens_hold_changes_nothing(normalize):
    # Nor does their number: the reference, whose values these are, has no masked tokens at all.
    masks = {"context": CONTEXT_MASK, "predicted": MASK, "target": MASK}
    expected = evaluate(normalize)
    for held in (np.nan, np.inf, 1e30):
        filled = {key: np.where(m[..., None], STARTS[key], np.float32(held)) for key, m in masks.items()}
        found = evaluate(normalize, **filled)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        for name, x_mask in (("relational", MASK), ("quantiles", CONTEXT_MASK)):
            for gradient, real in zip(found[name][1], (x_mask, MASK), strict=True):
                assert not np.any(np.asarray(gradient)[~real])
                assert np.all(np.any(np.asarray(gradient)[real], axis=-1))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_the_order_of_tokens_matters_only_where_tokens_correspond(normalize):
    rng = np.random.default_rng(10)
    context_order = np.argsort(rng.random((BATCH, TIME, NUM)), axis=-1)
    order = np.argsort(rng.random((BATCH, NUM)), axis=-1)

    def permute(x, order):
        return np.take_along_axis(
            np.asarray(x), order.reshape(*order.shape, *[1] * (x.ndim - order.ndim)), order.ndim - 1
        )

    value, (dx, dy) = evaluate(normalize)["quantiles"]
    permuted, (dx_permuted, dy_permuted) = evaluate(
        normalize,
        context=permute(CONTEXT, context_order),
        target=permute(TARGET, order),
        context_mask=permute(CONTEXT_MASK, context_order),
        mask=permute(MASK, order),
    )["quantiles"]
    assert_close(permuted, value, 5e-6)
    assert_gradient(dx_permuted, permute(dx, context_order))
    assert_gradient(dy_permuted, permute(dy, order))

    def one_to_one(predicted, target):
        mask = np.ones_like(MASK)
        return np.asarray(evaluate(normalize, predicted=predicted, target=target, mask=mask)["relational"][0])

    one, joint = one_to_one(PREDICTED, TARGET), one_to_one(permute(PREDICTED, order), permute(TARGET, order))
    assert_close(joint, one, 5e-6)
    assert np.all(np.abs(one_to_one(PREDICTED, permute(TARGET, order)) / one - 1) > 1e-3)
    assert np.all(one_to_one(TARGET, permute(TARGET, order)) > 0.01) and np.all(one_to_one(TARGET, TARGET) < 1e-13)


def test_sets_of_different_size_with_the_same_distances_are_equal():
    small, large = np.eye(3, 8, dtype=np.float32), np.eye(8, dtype=np.float32)[::-1]  # all distances are 2
    sides = np.stack([small, small])[None], np.ones((1, 2, 3), bool), large[None], np.ones((1, 8), bool)
    terms = jax.jit(lambda *s: [module.relational_quantiles(*s, normalize=n) for n in ("mean", "none")])(*sides)
    assert not np.any(terms)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_equal_frames_have_no_self_term_and_an_equal_target_no_cross_term(normalize):
    context = np.broadcast_to(TARGET[:, None], (BATCH, TIME, NUM, DIM))
    context_mask = np.broadcast_to(MASK[:, None], (BATCH, TIME, NUM))
    terms, _ = evaluate(normalize, context=context, context_mask=context_mask)["quantiles"]
    np.testing.assert_allclose(terms, 0.0, atol=1e-9)
    assert np.all(evaluate(normalize)["quantiles"][0] > 1e-3)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_relational_is_symmetric(normalize):
    forward, _ = evaluate(normalize)["relational"]
    backward, _ = evaluate(normalize, predicted=TARGET, target=PREDICTED)["relational"]
    assert_close(forward, backward, 2.0**-22)  # two units in the last place
    assert np.all(forward > 0)


# Numbers.


def collapsed(x):
    return np.broadcast_to(x[..., :1, :], x.shape)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_values_and_gradients_are_finite_where_there_is_nothing_to_compare(normalize):
    everything, nothing = np.ones((BATCH, NUM), bool), np.zeros((BATCH, NUM), bool)
    single = np.broadcast_to(np.arange(NUM) == 0, (BATCH, NUM))
    inputs = {key: STARTS[key] for key in ("context", "predicted", "target")}
    equal = jax.tree.map(collapsed, inputs)
    for given_inputs, mask in ((inputs, nothing), (inputs, single), (equal, everything), (equal, nothing)):
        context_mask = np.broadcast_to(mask[:, None], (BATCH, TIME, NUM))
        for leaf in jax.tree.leaves(evaluate(normalize, **given_inputs, mask=mask, context_mask=context_mask)):
            assert not np.any(leaf)  # not NaN either
    # One side collapsed: the other still has relations.
    found = evaluate(normalize, **equal | {"target": TARGET})
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert np.all(found["relational"][0] > 0) and np.all(found["quantiles"][0][0] > 0)


def test_a_grid_of_one_token_has_no_relations():
    alone = {key: x[..., :1, :1] if "adjacency" in key else x[:, :1] for key, x in STARTS.items()}
    alone |= {key: STARTS[key][..., :1, :] for key in ("context", "predicted", "target")}
    alone |= {key: np.ones_like(STARTS[key][..., :1]) for key in ("context_mask", "mask")}
    for leaf in jax.tree.leaves(both(**alone, normalize="mean")):
        assert not np.any(leaf)


def test_close_tokens_far_from_the_origin_keep_their_distance():
    x = np.round(tokens(14, BATCH) * 64) / 64 + np.float32(1000.0)  # exact in float32
    x[:, 1] = x[:, 2] + np.float32(2.0**-9)
    for normalize in NORMALIZATIONS:
        r, _ = relations(x, MASK, adjacency=EVERY, normalize=normalize)
        for b in range(BATCH):
            for (i, j), value in reference_relations(x[b], MASK[b], None, normalize).items():
                assert_close(r[b, i, j], value)
    far = PREDICTED + np.float32(1000.0)
    value, (dx, _) = evaluate_one("relational", "mean", far, TARGET)
    expected, (dx_expected, _) = evaluate_one("relational", "mean", far - np.float32(1000.0), TARGET)
    assert_close(value, expected)
    assert_gradient(dx, dx_expected)


def test_no_array_is_as_wide_as_pairs_times_dimensions():
    shape = (64, 34, 128)

    def loss(predicted, target, mask):
        quantiles = module.distance_quantiles(predicted, mask)[0] - module.distance_quantiles(target, mask)[0]
        return jnp.sum(module.relational(predicted, target, mask)) + jnp.sum(quantiles**2)

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2 + [jax.ShapeDtypeStruct(shape[:-1], jnp.bool_)]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * (4 * 64 * 34 * 34 * 128)


@pytest.mark.slow
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_the_plain_call_agrees_with_the_compiled_one(normalize):
    found = evaluate(normalize)
    plain = module.relational_quantiles(CONTEXT, CONTEXT_MASK, TARGET, MASK, normalize=normalize)
    assert_close(plain, found["quantiles"][0])
    assert_close(module.relational(PREDICTED, TARGET, MASK, normalize=normalize), found["relational"][0])


def test_leading_axes_and_vmap_are_one_grid_after_another():
    value, _ = evaluate("mean")["relational"]
    sides = PREDICTED, TARGET, MASK
    two = [np.stack([x, x[::-1]]) for x in sides]
    axes, mapped = jax.jit(lambda *s: (module.relational(*s), jax.vmap(jax.vmap(module.relational))(*s)))(*two)
    for found in (axes, mapped):
        assert_close(found, np.stack([value, value[::-1]]))


def test_half_precision_tokens_are_taken_at_face_value():
    half = jnp.asarray(PREDICTED, jnp.bfloat16)
    found, _ = relations(half, MASK, adjacency=EVERY)
    assert found.dtype == jnp.float32
    assert_close(found, relations(half.astype(jnp.float32), MASK, adjacency=EVERY)[0])
    sides = {key: jax.ShapeDtypeStruct(STARTS[key].shape, jnp.bfloat16) for key in ("context", "predicted", "target")}
    for value, gradients in jax.eval_shape(partial(both, normalize="mean"), **STARTS | sides).values():
        assert value.dtype == jnp.float32 and all(gradient.dtype == jnp.bfloat16 for gradient in gradients)


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
        jax.eval_shape(partial(module.distance_quantiles, num_levels=0), x, mask)
    for context, target in ((x, x), (x[:, None], x[:1]), (x[:, None], x[:, None])):
        with pytest.raises(ValueError, match=r"context must be \[B, T, N, D\]"):
            module.relational_quantiles(
                context, jnp.ones(context.shape[:-1], bool), target, jnp.ones(target.shape[:-1], bool)
            )
