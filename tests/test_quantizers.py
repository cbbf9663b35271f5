"""Laws that every quantizer keeps, and those of each: moving averages and refresh, finite scalars, Gumbel-softmax."""

from __future__ import annotations

import math
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.quantizers import fsq, gumbel, vq_ema
from jepa.quantizers._codebook import rotate
from jepa.registry import available, build

NUM_CODES, DIM = 7, 6
KEY = jax.random.key(3)

# What tokens meet on their way through `apply`.
VARIANTS = {
    "identity": ("identity", {}),
    "fsq": ("fsq", dict(hidden_dim=16)),
    "fsq of other levels": ("fsq", dict(levels=(2, 7, 3), hidden_dim=16)),
    "vq_ema": ("vq_ema", dict(num_codes=NUM_CODES)),
    "vq_ema cosine": ("vq_ema", dict(num_codes=NUM_CODES, distance="cosine")),
    "vq_ema rotation": ("vq_ema", dict(num_codes=NUM_CODES, rotation=True)),
    "vq_ema cosine rotation": ("vq_ema", dict(num_codes=NUM_CODES, distance="cosine", rotation=True)),
    "vq_gradient": ("vq_gradient", dict(num_codes=NUM_CODES)),
    "vq_gradient simvq": ("vq_gradient", dict(num_codes=NUM_CODES, simvq=True)),
    "gumbel linear": ("gumbel", dict(num_codes=NUM_CODES)),
    "gumbel distance": ("gumbel", dict(num_codes=NUM_CODES, logits="distance")),
}
# What makes another codebook, of its first tokens and by its updates.
CODEBOOKS = {
    f"vq_ema, {key} {value}": ("vq_ema", dict(num_codes=NUM_CODES) | {key: value})
    for key, values in (("initialise", vq_ema.INITIALISE), ("refresh", vq_ema.REFRESH))
    for value in values
    if value not in ("data", "split")  # the defaults
}
EVERY = VARIANTS | CODEBOOKS
WITH_CODES = [name for name in VARIANTS if name != "identity"]
FROM_DATA = ["vq_ema", "vq_ema cosine", "vq_ema, initialise kmeans", "vq_gradient", "vq_gradient simvq"]

over_variants = pytest.mark.parametrize("variant", VARIANTS)
over_codes = pytest.mark.parametrize("variant", WITH_CODES)
compiled = pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])


def tokens_of(seed, *lead, dim=DIM):
    """Asymmetric tokens in a few clusters of unequal size, with another scale in every dimension."""
    rng = np.random.default_rng(seed)
    centres = 2.0 * rng.normal(size=(5, dim))
    cluster = np.minimum(rng.geometric(0.4, lead) - 1, 4)
    tokens = centres[cluster] + 0.5 * rng.gamma(2.0, 1.0, (*lead, dim)) * np.linspace(0.3, 1.5, dim)
    return tokens.astype(np.float32)


TOKENS = tokens_of(0, 4, 6)
COTANGENT = np.random.default_rng(1).normal(size=TOKENS.shape).astype(np.float32)
MASK = np.random.default_rng(2).random(TOKENS.shape[:2]) < 0.7
MASK[1] = True
MASK[2, :3] = [True, False, True]


@cache
def programs(variant, jit):
    """The quantizer, its `init` and `update`, and `step`, which does all that a training step does with it."""
    name, options = EVERY[variant]
    quantizer = build("quantizers", name, **options)

    def step(params, state, tokens, mask, cotangent, weight, key, train=True):
        def total(params, tokens):
            out = quantizer.apply(params, state, tokens, mask, key=key, train=train)
            return jnp.sum(out.values.astype(jnp.float32) * cotangent) + weight * out.loss, out

        (d_params, d_tokens), out = jax.grad(total, (0, 1), has_aux=True)(params, tokens)
        return dict(
            out=out,
            d_params=d_params,
            d_tokens=d_tokens,
            state=quantizer.update(params, state, tokens, mask, out.codes, key=key),
            decoded=None if out.codes is None else quantizer.decode(params, state, out.codes),
        )

    init, update = (jax.jit(f) if jit else f for f in (quantizer.init, quantizer.update))
    step = jax.jit(step, static_argnames="train") if jit else step
    return SimpleNamespace(quantizer=quantizer, init=init, update=update, step=step)


@cache
def started(variant):
    return programs(variant, True).init(KEY, TOKENS, MASK)


def stepped(variant, jit, *, tokens=TOKENS, mask=MASK, cotangent=COTANGENT, weight=1.0, key=KEY, train=True, at=None):
    params, state = at or started(variant)
    arrays = (jnp.asarray(x) for x in (tokens, mask, cotangent, jnp.float32(weight)))
    return SimpleNamespace(**programs(variant, jit).step(params, state, *arrays, key, train=train))


def assert_same(actual, expected):
    """Equal to the last bit, in every leaf of two trees."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_finite(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert np.isfinite(np.asarray(leaf, np.float64)).all(), jax.tree_util.keystr(path)


def assert_gradient(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def test_every_quantizer_is_held_to_these_laws():
    assert {name for name, _ in VARIANTS.values()} == set(available("quantizers"))


# ---------------------------------------------------------------- masks


def garbled(kind):
    noise = 1e3 * np.random.default_rng(5).normal(size=TOKENS.shape)
    other = {"noise": noise, "extremes": np.sign(noise) * 3e38, "zeros": 0.0 * noise}[kind]
    return np.where(MASK[..., None], TOKENS, other).astype(np.float32)


@pytest.mark.parametrize("garbage", ["noise", "extremes", "zeros"])
@over_variants
def test_masked_tokens_touch_nothing(variant, garbage):
    found, expected = stepped(variant, True, tokens=garbled(garbage)), stepped(variant, True)
    if variant == "identity":
        assert_same(found.out.values[MASK], expected.out.values[MASK])
        return
    assert_same(vars(found), vars(expected))
    np.testing.assert_array_equal(found.out.codes[~MASK], -1)
    np.testing.assert_array_equal(found.out.values[~MASK], 0.0)
    np.testing.assert_array_equal(found.decoded[~MASK], 0.0)
    np.testing.assert_array_equal(found.d_tokens[~MASK], 0.0)


@pytest.mark.parametrize("garbage", ["noise", "extremes", "zeros"])
@pytest.mark.parametrize("variant", EVERY)
def test_masked_tokens_touch_no_codebook(variant, garbage):
    made = programs(variant, True)
    assert_same(made.init(KEY, garbled(garbage), MASK), started(variant))
    if variant in CODEBOOKS:
        update, codes = made.update, np.where(MASK, np.arange(6)[None] % 4, -1).astype(np.int32)
        before = started(variant)[1]
        after = update({}, before, TOKENS, MASK, codes, key=KEY)
        assert_same(update({}, before, garbled(garbage), MASK, codes, key=KEY), after)
        assert np.abs(after["codebook"] - before["codebook"]).max() > 1e-3
        assert_same(update({}, before, TOKENS, np.zeros_like(MASK), np.full_like(codes, -1), key=KEY), before)


@over_variants
def test_a_batch_without_a_real_token_changes_nothing(variant):
    found = stepped(variant, True, mask=np.zeros_like(MASK))
    assert_finite(vars(found))
    assert_same(found.state, started(variant)[1])
    assert found.out.loss == 0.0
    if variant != "identity":
        np.testing.assert_array_equal(found.out.codes, -1)
        np.testing.assert_array_equal(found.out.values, 0.0)
        for gradient in jax.tree.leaves((found.d_params, found.d_tokens)):
            np.testing.assert_array_equal(gradient, 0.0)


@over_variants
def test_losses_and_metrics_are_means_over_the_real_tokens(variant):
    """Twelve tokens among as many masked ones, or every one of them twice."""
    few = np.where(np.arange(4)[:, None, None] < 2, TOKENS, 0.0), np.broadcast_to(np.arange(4)[:, None] < 2, MASK.shape)
    twice = np.concatenate([TOKENS[:2], TOKENS[:2]]), np.ones_like(MASK)
    train = not variant.startswith("gumbel")
    once, again = (
        stepped(variant, True, tokens=tokens, mask=mask, cotangent=np.zeros_like(TOKENS), train=train)
        for tokens, mask in (few, twice)
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, (again.out.loss, again.out.metrics), (once.out.loss, once.out.metrics))
    jax.tree.map(close, again.d_params, once.d_params)
    close(again.d_tokens[:2] + again.d_tokens[2:], once.d_tokens[:2])
    if variant.startswith("fsq"):
        jax.tree.map(close, again.state, once.state)


@over_variants
def test_compiling_changes_nothing(variant):
    """Nor does garbage at masked tokens, or exactness depend on it."""

    def close(actual, expected):
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected).max()))

    tokens = TOKENS if variant == "identity" else garbled("extremes")
    jax.tree.map(close, programs(variant, False).init(KEY, tokens, MASK), started(variant))
    found, expected = stepped(variant, False, tokens=tokens), stepped(variant, True)
    assert_same(found.out.codes, expected.out.codes)
    jax.tree.map(close, vars(found), vars(expected))
    if variant != "identity":
        np.testing.assert_array_equal(found.out.values, found.decoded)


# ---------------------------------------------------------------- codes and values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@over_codes
def test_values_are_exactly_what_the_codes_decode_to(variant, dtype):
    found = stepped(variant, True, tokens=jnp.asarray(TOKENS, dtype))
    assert found.out.values.dtype == jnp.dtype(dtype) and found.decoded.dtype == jnp.float32
    np.testing.assert_array_equal(found.out.values, found.decoded.astype(dtype))
    assert found.out.codes.dtype == jnp.int32
    codes = np.asarray(found.out.codes)[MASK]
    assert codes.min() >= 0 and codes.max() < math.prod(programs(variant, True).quantizer.levels)
    assert len(np.unique(codes)) > 2


@pytest.mark.parametrize("variant", EVERY)
def test_bfloat16_tokens_leave_parameters_state_loss_and_metrics_in_float32(variant):
    made = programs(variant, False)
    tokens, mask = jnp.asarray(TOKENS, jnp.bfloat16), jnp.asarray(MASK)
    params, state = jax.eval_shape(made.init, KEY, tokens, mask)
    found = SimpleNamespace(**jax.eval_shape(made.step, params, state, tokens, mask, COTANGENT, 1.0, KEY))
    for tree in (params, found.d_params, found.out.loss, found.out.metrics):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} <= {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    for name, leaf in state.items():
        assert (found.state[name].shape, found.state[name].dtype) == (leaf.shape, leaf.dtype)
    assert found.out.values.dtype == jnp.bfloat16
    assert all(scalar.shape == () for scalar in (found.out.loss, *found.out.metrics.values()))


@over_codes
def test_only_a_drawn_code_depends_on_training_and_on_the_key(variant):
    params, state = started(variant)
    quantizer = programs(variant, False).quantizer

    def codes(train, key):
        return quantizer.apply(params, state, TOKENS, MASK, key=key, train=train).codes

    evaluated = codes(False, None)
    assert_same(codes(False, KEY), evaluated)
    drawn = [codes(True, jax.random.key(seed)) for seed in (0, 1)]
    if variant.startswith("gumbel"):
        assert (drawn[0] != evaluated).any() and (drawn[0] != drawn[1]).any()
    else:
        assert_same(drawn, [evaluated] * 2)


@over_codes
def test_permuting_the_tokens_permutes_the_codes(variant):
    order = np.random.default_rng(6).permutation(MASK.size)
    permuted = TOKENS.reshape(-1, DIM)[order].reshape(TOKENS.shape), MASK.reshape(-1)[order].reshape(MASK.shape)
    train = not variant.startswith("gumbel")
    found = stepped(variant, True, tokens=permuted[0], mask=permuted[1], train=train)
    expected = stepped(variant, True, train=train)
    np.testing.assert_array_equal(found.out.codes.reshape(-1), expected.out.codes.reshape(-1)[order])
    np.testing.assert_allclose(found.out.loss, expected.out.loss, rtol=1e-5)


@over_codes
def test_equal_vectors_get_equal_codes_whatever_batch_they_are_in(variant):
    """One codebook serves two encoders: batches of one token, and of so many that distances are taken in tiles."""
    params, state = started(variant)
    quantizer = programs(variant, True).quantizer

    @jax.jit
    def codes(tokens):
        return quantizer.apply(
            params, state, tokens, jnp.ones(tokens.shape[:2], bool), key=None, train=False
        ).codes.reshape(-1)

    rows = TOKENS.reshape(-1, DIM)
    alone = np.concatenate([codes(row[None, None]) for row in rows[:5]])
    among = codes(np.concatenate([tokens_of(7, 1500), rows])[None])
    np.testing.assert_array_equal(alone, codes(TOKENS)[:5])
    np.testing.assert_array_equal(among[1500:], codes(TOKENS))


def test_without_a_quantizer_tokens_pass_and_nothing_can_be_decoded():
    quantizer = build("quantizers", "identity")
    out = quantizer.apply({}, {}, TOKENS, MASK, key=None, train=True)
    assert out.values is TOKENS and out.codes is None and quantizer.levels == () and out.metrics == {}
    with pytest.raises(ValueError, match=r"set config\.quantizer\.name to 'fsq'"):
        quantizer.decode({}, {}, jnp.zeros((2, 3), jnp.int32))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("zeros", ["some", "all"])
@over_variants
def test_rows_of_zeros_have_finite_gradients(variant, zeros):
    tokens = TOKENS * (np.arange(6) % 2)[None, :, None] if zeros == "some" else 0.0 * TOKENS
    for at in (started(variant), programs(variant, True).init(KEY, tokens, MASK)):
        assert_finite(vars(stepped(variant, True, tokens=tokens, at=at)))


@over_variants
def test_the_weight_of_the_loss_changes_the_gradient(variant):
    without, once, twice = (stepped(variant, True, weight=weight) for weight in (0.0, 1.0, 2.0))
    gradients = [jax.tree.map(np.asarray, (x.d_params, x.d_tokens)) for x in (without, once, twice)]
    if variant == "identity":
        assert_same(gradients[2], gradients[0])
        return
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), gradients[1], gradients[0])
    assert max(jax.tree.leaves(change)) > 1e-4
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c - a, 2 * (b - a), rtol=1e-3, atol=1e-6 + 2e-6 * np.abs(c).max()),
        *gradients,
    )


@pytest.mark.parametrize(
    ("variant", "option", "weight"),
    [
        ("vq_ema", "commitment", 0.25),
        ("vq_ema cosine", "commitment", 0.25),
        ("vq_gradient", "commitment", 0.25),
        ("vq_gradient", "codebook_weight", 1.0),
        ("vq_gradient simvq", "codebook_weight", 1.0),
        ("gumbel linear", "diversity", 1.0),
        ("gumbel distance", "diversity", 1.0),
    ],
)
def test_the_loss_is_linear_in_its_weights(variant, option, weight):
    name, options = VARIANTS[variant]
    params, state = started(variant)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)  # off the means

    @jax.jit
    def value_and_gradients(weight):
        def loss(params, tokens):
            quantizer = build("quantizers", name, **options | {option: weight})
            return quantizer.apply(params, state, tokens, MASK, key=None, train=False).loss

        return jax.value_and_grad(loss, (0, 1))(params, TOKENS)

    none, once, thrice = (value_and_gradients(factor * weight) for factor in (0.0, 1.0, 3.0))
    assert once[0] > none[0]
    moves = jax.tree.map(lambda a, b: np.abs(b - a).max(), none[1], once[1])
    assert max(jax.tree.leaves(moves)) > 1e-4
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c - a, 3 * (b - a), rtol=1e-4, atol=1e-6), none, once, thrice
    )
    # The pull on the codes is no pull on the tokens, nor the other way.
    if option == "codebook_weight":
        assert moves[1] == 0.0
    elif option == "commitment":
        assert not any(jax.tree.leaves(moves[0]))


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["vq_ema", "vq_gradient", "vq_gradient simvq"])
def test_the_gradient_of_values_passes_straight_through_real_tokens(variant, dtype, jit):
    found = stepped(variant, jit, tokens=jnp.asarray(TOKENS, dtype), weight=0.0)
    expected = np.where(MASK[..., None], jnp.asarray(COTANGENT, dtype), 0.0)
    np.testing.assert_array_equal(found.d_tokens.astype(jnp.float32), expected.astype(np.float32))
    assert all(not gradient.any() for gradient in jax.tree.leaves(found.d_params))  # none to the codes


@compiled
def test_the_gradient_of_cosine_codes_is_that_of_the_unit_token(jit):
    found = stepped("vq_ema cosine", jit, weight=0.0)
    norm = np.linalg.norm(TOKENS.astype(np.float64), axis=-1, keepdims=True)
    unit = TOKENS / norm
    tangent = COTANGENT - np.sum(COTANGENT * unit, axis=-1, keepdims=True) * unit
    assert_gradient(found.d_tokens, np.where(MASK[..., None], tangent / norm, 0.0))


@compiled
def test_rotation_turns_the_gradient_with_the_token(jit):
    values = np.where(MASK[..., None], stepped("vq_ema rotation", jit).out.values, 1.0).astype(np.float64)
    norm, token_norm = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (values, TOKENS))
    beside = np.linalg.svd(np.stack([TOKENS, values], axis=-2))[2][..., -1, :]  # orthogonal to token and value

    def pulled(cotangent):
        d_tokens = stepped("vq_ema rotation", jit, cotangent=cotangent.astype(np.float32), weight=0.0).d_tokens
        return (np.asarray(d_tokens) / (norm / token_norm))[MASK]  # the stretch apart

    lengths = np.linalg.norm(COTANGENT, axis=-1)[MASK]
    np.testing.assert_allclose(np.linalg.norm(pulled(COTANGENT), axis=-1), lengths, rtol=1e-5)
    np.testing.assert_allclose(pulled(values / norm), (TOKENS / token_norm)[MASK], atol=1e-5)
    np.testing.assert_allclose(pulled(beside), beside[MASK], atol=1e-5)


def test_rotation_reaches_a_value_opposite_to_the_token():
    tokens = np.array([[1.0, 2.0, -0.5], [0.0, 3.0, 0.0]], np.float32)
    np.testing.assert_allclose(rotate(jnp.asarray(tokens), jnp.asarray(-2.0 * tokens)), -2.0 * tokens, rtol=1e-6)


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("variant", ["vq_ema", "vq_ema cosine", "vq_gradient", "vq_gradient simvq"])
def test_the_error_is_relative_to_the_variance_of_the_real_tokens(variant):
    rows = TOKENS[MASK].astype(np.float64)
    if "cosine" in variant:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    out = stepped(variant, True).out
    error = np.mean((rows - np.asarray(out.values)[MASK]) ** 2)
    np.testing.assert_allclose(out.metrics["error"], error / rows.var(axis=0).mean(), rtol=1e-4)
    if variant.startswith("vq_ema"):
        np.testing.assert_allclose(out.loss, 0.25 * error, rtol=1e-5)
        params, state = started(variant)
        counts = jnp.asarray([10.0, 0.1, 5.0, 0.2, 0.9, 7.0, 5.0])  # of a mean of 4
        found = stepped(variant, True, at=(params, state | {"counts": counts}))
        assert found.out.metrics["starved"] == 2
    else:
        np.testing.assert_allclose(out.loss, (1.0 + 0.25) * error, rtol=1e-5)


@pytest.mark.parametrize("variant", ["gumbel linear", "gumbel distance"])
def test_the_gap_of_soft_and_hard_values_is_relative_to_the_variance_of_the_codes(variant):
    params, _ = started(variant)
    codebook = np.asarray(params["codebook"], np.float64)
    out = stepped(variant, True, train=False).out
    score = gumbel_score(params, TOKENS[MASK])
    soft = np.exp(score / 2.0)  # of the temperature before the first step
    soft /= soft.sum(axis=1, keepdims=True)
    hard = np.asarray(out.values)[MASK]
    gap = np.mean((soft @ codebook - hard) ** 2) / codebook.var(axis=0).mean()
    np.testing.assert_allclose(out.metrics["soft_hard_gap"], gap, rtol=1e-4)
    if variant == "gumbel distance":
        np.testing.assert_allclose(out.metrics["error"], np.mean((standardised(TOKENS[MASK]) - hard) ** 2), rtol=1e-4)


def standardised(rows):
    return (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)


def gumbel_score(params, rows):
    """The logits of rows [M, D], float64 NumPy."""
    x = standardised(rows.astype(np.float64))
    if "logits" in params:
        return x @ np.asarray(params["logits"]["kernel"]) + np.asarray(params["logits"]["bias"])
    return -np.sum((x[:, None] - np.asarray(params["codebook"])) ** 2, axis=-1) / np.sqrt(DIM)


# ---------------------------------------------------------------- starting from data


def codebook_of(variant, params, state):
    """The codes as rows [K, D]."""
    quantizer = programs(variant, True).quantizer
    return np.asarray(quantizer.decode(params, state, jnp.arange(NUM_CODES)[None])[0], np.float64)


@compiled
@pytest.mark.parametrize("variant", FROM_DATA)
def test_every_code_starts_as_a_mean_of_real_tokens(variant, jit):
    """A part of every token is a basis vector of its own, so a mean shows what it is a mean of."""
    num_tokens, shared = 14, 3
    rng = np.random.default_rng(8)
    mask = np.arange(num_tokens) % 5 != 1
    tokens = np.concatenate([2.0 * rng.gamma(1.0, 1.0, (num_tokens, shared)), np.eye(num_tokens)], axis=1)
    params, state = programs(variant, jit).init(KEY, jnp.asarray(tokens[None], jnp.float32), jnp.asarray(mask[None]))
    codebook = codebook_of(variant, params, state)
    member = codebook[:, shared:] > 1e-6
    np.testing.assert_array_equal(member.sum(axis=0), mask)  # each real token in one code, masked ones in none
    assert (member.sum(axis=1) >= 1).all()
    cosine = "cosine" in variant
    rows = tokens / np.linalg.norm(tokens, axis=1, keepdims=True) if cosine else tokens
    means = np.stack([rows[m].mean(axis=0) for m in member])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True) if cosine else means
    np.testing.assert_allclose(codebook, expected, rtol=1e-5, atol=1e-6)
    if variant in ("vq_ema", "vq_ema cosine"):
        np.testing.assert_array_equal(state["counts"], member.sum(axis=1))
        np.testing.assert_allclose(state["sums"], expected * member.sum(axis=1)[:, None], rtol=1e-5, atol=1e-6)


@compiled
@pytest.mark.parametrize("variant", FROM_DATA)
def test_a_codebook_starts_from_fewer_tokens_than_codes(variant, jit):
    mask = np.zeros_like(MASK)
    mask[[0, 1, 3], [2, 0, 5]] = True
    params, state = programs(variant, jit).init(KEY, TOKENS, mask)
    rows = TOKENS[mask]
    if "cosine" in variant:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    codebook = codebook_of(variant, params, state)
    distance = np.linalg.norm(codebook[:, None] - rows[None], axis=-1)  # [K, 3]
    assert (distance.min(axis=1) < 1e-5).all() and (distance.min(axis=0) < 1e-5).all()
    found = stepped(variant, jit, mask=mask, at=(params, state))
    assert len(np.unique(np.asarray(found.out.codes)[mask])) == 3
    np.testing.assert_allclose(found.out.values[mask], rows, rtol=1e-5, atol=1e-6)
    if variant.startswith("vq_ema"):
        assert np.sum(state["counts"]) == 3


# ---------------------------------------------------------------- moving averages


@cache
def updates(jit, **options):
    quantizer = vq_ema.build(**options)
    update = jax.jit(quantizer.update) if jit else quantizer.update
    return lambda state, tokens, mask, codes, key=KEY: update({}, state, tokens, mask, codes, key=key)


def state_of(codebook, counts):
    codebook, counts = jnp.asarray(codebook, jnp.float32), jnp.asarray(counts, jnp.float32)
    return {"codebook": codebook, "counts": counts, "sums": codebook * counts[:, None], "calls": jnp.int32(0)}


@compiled
@pytest.mark.parametrize("smoothing", [0.0, 1e-5])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_update_follows_the_codes_it_is_given(distance, smoothing, jit):
    """The codes are random ones, not the nearest; float64 NumPy, one token at a time."""
    rng = np.random.default_rng(9)
    decay = 0.8
    update = updates(jit, num_codes=NUM_CODES, decay=decay, distance=distance, refresh="none", smoothing=smoothing)
    codebook, counts = rng.normal(size=(NUM_CODES, DIM)), rng.gamma(1.0, 1.0, NUM_CODES)
    state, sums = state_of(codebook, counts), codebook * counts[:, None]
    for step in range(3):
        tokens, mask = tokens_of(10 + step, 3, 5), rng.random((3, 5)) < 0.8
        codes = np.where(mask, rng.integers(0, NUM_CODES - 2, (3, 5)), -1).astype(np.int32)  # two codes go without
        state = update(state, tokens, mask, codes)
        batch_counts, batch_sums = np.zeros(NUM_CODES), np.zeros((NUM_CODES, DIM))
        for token, code in zip(tokens[mask].astype(np.float64), codes[mask], strict=True):
            batch_counts[code] += 1
            batch_sums[code] += token / np.linalg.norm(token) if distance == "cosine" else token
        counts = decay * counts + (1 - decay) * batch_counts
        sums = decay * sums + (1 - decay) * batch_sums
        smoothed = (counts + smoothing) / (counts.sum() + NUM_CODES * smoothing) * counts.sum()
        codebook = sums / smoothed[:, None]
        if distance == "cosine":
            codebook /= np.linalg.norm(codebook, axis=1, keepdims=True)
        for name, expected in (("counts", counts), ("sums", sums), ("codebook", codebook)):
            np.testing.assert_allclose(state[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)
        assert state["calls"] == step + 1


def test_an_unused_code_stays_where_it_is():
    update = updates(True, num_codes=NUM_CODES, decay=0.9, refresh="none")
    start = state_of(tokens_of(11, NUM_CODES), np.ones(NUM_CODES))
    codes = np.where(MASK, np.arange(MASK.size).reshape(MASK.shape) % 4, -1).astype(np.int32)

    @jax.jit
    def run(state, steps):
        return jax.lax.fori_loop(0, steps, lambda _, state: update(state, TOKENS, MASK, codes), state)

    for steps in (1, 100, 2000):  # after the last, its count is 0 in float32
        end = run(start, steps)
        np.testing.assert_allclose(end["codebook"][4:], start["codebook"][4:], rtol=3e-5)
    assert end["counts"][5] < 1e-20
    for code in range(4):
        np.testing.assert_allclose(end["codebook"][code], TOKENS[codes == code].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_the_documented_start_with_smoothing_explodes():
    """Its counts start at 0, while its sums do not: an unused code is divided by next to nothing."""
    quantizer = vq_ema.build(num_codes=64, initialise="documented", refresh="none", smoothing=1e-5)
    _, state = quantizer.init(KEY, TOKENS, MASK)
    out = quantizer.apply({}, state, TOKENS, MASK, key=None, train=True)
    after = quantizer.update({}, state, TOKENS, MASK, out.codes, key=KEY)
    unused = np.setdiff1d(np.arange(64), out.codes)
    norms = (np.linalg.norm(x["codebook"], axis=1)[unused] for x in (after, state))
    assert len(unused) > 20 and (np.divide(*norms) > 50).all()
    assert np.abs(state["codebook"]).max() <= 1 / 64 and not state["counts"].any()


# ---------------------------------------------------------------- refresh

MANY = 300  # codes, of which at most three may be moved at once


def profile(name, num=MANY):
    """How many tokens every code has, by expectation."""
    rng = np.random.default_rng(12)
    counts = {
        "zipf": 300.0 / (1 + np.arange(num)) ** 1.5,
        "collapsed": np.where(np.arange(num) == 0, 300.0, 0.0),
        "two starved": np.where(np.arange(num) < 2, 0.05, 2.0),
        "uneven": rng.uniform(0.2, 1.8, num),
        "uniform": np.ones(num),
    }[name]
    return counts if name == "uniform" else rng.permutation(counts)


def refresh_problem(name, refresh, jit, num=MANY):
    """(state after the update without a refresh, the same with it, the real tokens) of a codebook with a profile."""
    rng = np.random.default_rng(13)
    counts = profile(name, num)
    state = state_of(rng.normal(size=(num, 4)) + 1.0, counts)
    codes = np.arange(num) if name == "uniform" else rng.choice(num, num, p=counts / counts.sum())
    tokens = np.asarray(state["codebook"])[codes] + 0.1 * rng.gamma(1.0, 1.0, (num, 4)).astype(np.float32)
    tokens = np.concatenate([tokens, np.full((num // 15, 4), 1e4, np.float32)]).reshape(1, -1, 4)
    codes = np.concatenate([codes, np.full(num // 15, -1)]).reshape(1, -1).astype(np.int32)
    after = [
        jax.tree.map(np.asarray, updates(jit, num_codes=num, refresh=way)(state, tokens, codes >= 0, codes))
        for way in ("none", refresh)
    ]
    return *after, tokens[codes >= 0]


def moved_codes(before, after):
    moved = np.abs(after["codebook"] - before["codebook"]).max(axis=1) > 1e-4
    for name in ("codebook", "counts", "sums"):
        stays = ~moved if name == "codebook" else ~moved & (after["counts"] > 0.9 * before["counts"])
        np.testing.assert_allclose(after[name][stays], before[name][stays], rtol=1e-5, atol=1e-6)
    return np.flatnonzero(moved)


@compiled
@pytest.mark.parametrize(
    ("name", "num_moved"), [("zipf", 3), ("collapsed", 1), ("two starved", 2), ("uneven", 0), ("uniform", 0)]
)
def test_split_moves_a_few_starved_codes_beside_the_fullest(name, num_moved, jit):
    before, after, _ = refresh_problem(name, "split", jit)
    moved = moved_codes(before, after)
    assert len(moved) == num_moved
    counts = before["counts"]
    assert (counts[moved] < 0.1 * counts.mean()).all()
    # The emptiest code goes to the fullest, the next to the next.
    emptiest, fullest = (np.argsort(x, kind="stable")[:num_moved] for x in (counts, -counts))
    assert set(emptiest) == set(moved)
    for code, donor in zip(emptiest, fullest, strict=True):
        distance = np.linalg.norm(after["codebook"][code] - before["codebook"][donor])
        np.testing.assert_allclose(distance, 0.01 * np.linalg.norm(before["codebook"][donor]), rtol=1e-3)
        for shared in (code, donor):
            np.testing.assert_allclose(after["counts"][shared], 0.5 * counts[donor], rtol=1e-6)
        np.testing.assert_allclose(after["sums"][donor], 0.5 * before["sums"][donor], rtol=1e-6)
        np.testing.assert_allclose(after["sums"][code], after["codebook"][code] * after["counts"][code], rtol=1e-5)
    # Counts and sums are shared, not made; what the moved codes had left themselves is forgotten.
    np.testing.assert_allclose(after["counts"].sum(), counts.sum() - counts[moved].sum(), rtol=1e-6)
    expected = before["sums"].sum(axis=0) - before["sums"][moved].sum(axis=0)
    slack = sum(0.5 * counts[i] * 0.01 * np.linalg.norm(before["codebook"][i]) for i in fullest)
    assert np.linalg.norm(after["sums"].sum(axis=0) - expected) <= slack + 1e-3


@compiled
@pytest.mark.parametrize(("name", "num_moved"), [("zipf", 3), ("collapsed", 3), ("two starved", 2), ("uniform", 0)])
def test_reseed_moves_a_few_starved_codes_to_real_tokens(name, num_moved, jit):
    before, after, rows = refresh_problem(name, "reseed", jit)
    moved = moved_codes(before, after)
    assert len(moved) == num_moved
    assert (before["counts"][moved] < 0.1 * before["counts"].mean()).all()
    assert_moved_to_tokens(after, moved, rows, before["counts"].mean())


def assert_moved_to_tokens(after, moved, rows, count):
    distance = np.abs(after["codebook"][moved][:, None] - rows[None]).max(axis=-1)
    assert (distance.min(axis=1) == 0.0).all()
    assert len(np.unique(distance.argmin(axis=1))) == min(len(moved), len(rows))
    np.testing.assert_allclose(after["counts"][moved], count, rtol=1e-6)
    np.testing.assert_allclose(after["sums"][moved], after["codebook"][moved] * count, rtol=1e-6)


@compiled
def test_the_absolute_rule_moves_every_code_below_one_token(jit):
    before, after, rows = refresh_problem("uneven", "absolute", jit)
    moved = moved_codes(before, after)
    np.testing.assert_array_equal(moved, np.flatnonzero(before["counts"] < 1.0))
    assert len(moved) > 50
    assert_moved_to_tokens(after, moved, rows, 1.0)


@pytest.mark.parametrize(("refresh", "num_moved"), [("documented", 768), ("split", 0), ("reseed", 0)])
def test_the_documented_rule_overwrites_a_codebook_that_is_used_evenly(refresh, num_moved):
    """A share of 1/768 is below its threshold of 1 %. The relative rules leave the same codebook as it is."""
    before, after, rows = refresh_problem("uniform", refresh, True, num=768)
    moved = moved_codes(before, after)
    assert len(moved) == num_moved
    assert_moved_to_tokens(after, moved, rows, 1.0)


def test_the_documented_rule_spares_a_small_codebook_that_is_used_evenly():
    before, after, _ = refresh_problem("uniform", "documented", True, num=90)
    assert len(moved_codes(before, after)) == 0


@pytest.mark.parametrize("refresh", [refresh for refresh in vq_ema.REFRESH if refresh != "none"])
def test_a_refresh_is_due_every_few_updates(refresh):
    num = 50
    rng = np.random.default_rng(14)
    start = state_of(rng.normal(size=(num, 4)), np.where(np.arange(num) < 40, 3.0, 0.0))
    tokens, mask = tokens_of(15, 2, 20, dim=4), np.ones((2, 20), bool)
    codes = (np.arange(40) % 40).reshape(2, 20).astype(np.int32)
    due, update = [], partial(updates, True, num_codes=num, refresh_every=3)
    states = {way: start for way in ("none", refresh)}
    for step in range(6):
        for way in states:
            states[way] = update(refresh=way)(states[way], tokens, mask, codes, jax.random.key(step))
        due.append(np.abs(states[refresh]["codebook"] - states["none"]["codebook"]).max() > 1e-4)
        states["none"] = states[refresh]
    assert due == [False, False, True, False, False, True]


# ---------------------------------------------------------------- finite scalars


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (7,)])
def test_every_code_unpacks_to_other_symbols_and_packs_again(levels):
    codes = jnp.arange(math.prod(levels))
    symbols = np.asarray(fsq.unpack(codes, levels))
    assert len(np.unique(symbols, axis=0)) == len(codes)
    assert (symbols >= 0).all() and (symbols < np.array(levels)).all()
    np.testing.assert_array_equal(symbols[1], np.eye(len(levels))[0])  # the first counts fastest
    packed = fsq.pack(jnp.asarray(symbols), levels)
    assert packed.dtype == jnp.int32
    np.testing.assert_array_equal(packed, codes)


@settings(max_examples=30)
@given(st.data())
def test_packing_is_exact_up_to_the_largest_int32(data):
    levels = data.draw(st.sampled_from([(1000, 1000, 1000), (997, 3, 719, 991), (2,) * 30, (128, 128, 128, 1000)]))
    last = math.prod(levels) - 1
    codes = [*data.draw(st.lists(st.integers(0, last), min_size=4, max_size=4)), last]
    basis = np.cumprod([1, *levels[:-1]], dtype=np.int64)
    symbols = np.array(codes)[:, None] // basis % np.array(levels)
    np.testing.assert_array_equal(fsq.unpack(jnp.asarray(codes, jnp.int32), levels), symbols)
    np.testing.assert_array_equal(fsq.pack(jnp.asarray(symbols, jnp.int32), levels), codes)


@pytest.mark.parametrize("level", [2, 3, 4, 5, 8, 255, 256, 999, 1000])
def test_a_scalar_takes_each_of_its_levels_and_no_other(level):
    z = np.concatenate([np.linspace(-20, 20, 20001), [-1e30, 1e30]]).astype(np.float32)[:, None]
    symbols, values = fsq.round_to_levels(jnp.asarray(z), (level,))
    np.testing.assert_array_equal(np.unique(symbols), np.arange(level))
    np.testing.assert_allclose(values, (np.asarray(symbols) - level // 2) / (level // 2), rtol=1e-6)
    assert (np.diff(symbols[:-2, 0]) >= 0).all()
    assert values[10000] == 0.0  # 0 is a level, also where their number is even


def fsq_scalars(params, rows):
    """Layer norm and projection, float64 NumPy."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = np.asarray(rows, np.float64)
    normed = (rows - rows.mean(axis=1, keepdims=True)) / np.sqrt(rows.var(axis=1, keepdims=True) + 1e-6)
    normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
    return normed @ params["project"]["kernel"] + params["project"]["bias"]


def test_the_scalars_of_the_first_tokens_are_standardised():
    params, state = started("fsq")
    u = fsq_scalars(params, TOKENS[MASK])
    np.testing.assert_allclose(state["mean"], u.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["covariance"], np.cov(u.T, ddof=0), rtol=1e-4, atol=1e-6)
    metrics = stepped("fsq", True).out.metrics
    np.testing.assert_allclose([metrics["scale_min"], metrics["scale_max"]], 1.0, rtol=1e-4)
    correlation = np.abs(np.corrcoef(u.T) - np.eye(u.shape[1])).max()
    np.testing.assert_allclose(metrics["correlation"], correlation, rtol=1e-4)
    z = (u - u.mean(axis=0)) / u.std(axis=0)
    expected = fsq.pack(fsq.round_to_levels(jnp.asarray(z, jnp.float32), (8, 5, 5, 5))[0], (8, 5, 5, 5))
    np.testing.assert_array_equal(stepped("fsq", True).out.codes[MASK], expected)
    bounded = np.asarray(fsq.bound(jnp.asarray(z, jnp.float32), (8, 5, 5, 5)), np.float64)
    error = np.mean((bounded - np.round(bounded)) ** 2) / bounded.var(axis=0).mean()
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-4)


@compiled
def test_the_running_statistics_follow_the_tokens(jit):
    params, state = started("fsq")
    tokens = tokens_of(16, 4, 6)
    found = stepped("fsq", jit, tokens=tokens).state
    u = fsq_scalars(params, tokens[MASK])
    expected = {"mean": u.mean(axis=0), "covariance": np.cov(u.T, ddof=0)}
    for name, of_batch in expected.items():
        before = np.asarray(state[name], np.float64)
        np.testing.assert_allclose(found[name], 0.99 * before + 0.01 * of_batch, rtol=1e-5, atol=1e-6)


@compiled
def test_the_gradient_of_finite_scalars_skips_the_rounding_alone(jit):
    """The expansion at the rounded scalars, then the squashing at the scalars themselves."""
    levels = (8, 5, 5, 5)
    params, state = started("fsq")

    def scalars(params, rows):
        centred = rows - jnp.mean(rows, axis=1, keepdims=True)
        normed = centred / jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True) + 1e-6)
        u = (normed * params["norm"]["scale"][None] + params["norm"]["bias"][None]) @ params["project"]["kernel"]
        u = u + params["project"]["bias"][None]
        z = (u - state["mean"][None]) / jnp.sqrt(jnp.diag(state["covariance"]) + 1e-6)[None]
        return fsq.bound(z, levels) / jnp.asarray(fsq.halves(levels), jnp.float32)[None]

    def expanded(params, values):
        hidden = jax.nn.gelu(values @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        return hidden @ params["expand"]["kernel"] + params["expand"]["bias"][None]

    @jax.jit
    def expected(params, rows, cotangent):
        bounded, back = jax.vjp(scalars, params, rows)
        half = jnp.asarray(fsq.halves(levels), jnp.float32)[None]
        values = jnp.round(bounded * half) / half
        d_expand, d_values = jax.vjp(expanded, params, values)[1](cotangent)
        d_project, d_rows = back(d_values)
        return jax.tree.map(jnp.add, d_expand, d_project), d_rows

    d_params, d_rows = expected(params, jnp.asarray(TOKENS[MASK]), jnp.asarray(COTANGENT[MASK]))
    found = stepped("fsq", jit, weight=0.0)
    assert_gradient(np.asarray(found.d_tokens)[MASK], d_rows, 1e-4)
    jax.tree.map(lambda a, b: assert_gradient(a, b, 1e-4), found.d_params, d_params)


@pytest.mark.parametrize(("scale", "percent"), [(0.1, 2.7), (0.3, 21.2), (1.0, 100.0), (3.0, 88.5), (10.0, 45.1)])
def test_the_share_of_codes_in_use_is_a_matter_of_scale(scale, percent):
    """Against the expected number of different codes, from the probabilities of the levels under a normal law."""
    num, shares = 20_000, []
    for level in (8, 5, 5, 5):
        half, offset = (level - 1) * 1.001 / 2, 0.5 if level % 2 == 0 else 0.0
        edges = np.arange(level - 1) - level // 2 + 0.5
        below = scipy.stats.norm.cdf((np.arctanh((edges + offset) / half) - np.arctanh(offset / half)) / scale)
        shares.append(np.diff(below, prepend=0.0, append=1.0))
    probability = np.einsum("i,j,k,l->lkji", *shares).reshape(-1)
    expected = np.mean(1 - (1 - probability) ** num)
    np.testing.assert_allclose(100 * expected, percent, atol=0.1)
    codes = used_codes(scale * np.random.default_rng(17).normal(size=(num, 4)))
    assert abs(100 * len(np.unique(codes)) / 1000 - percent) < 2.0
    spread = np.sqrt(num * probability * (1 - probability)) + 1.0
    assert (np.abs(np.bincount(codes, minlength=1000) - num * probability) < 5 * spread).all()


def used_codes(z, levels=(8, 5, 5, 5)):
    return np.asarray(fsq.pack(fsq.round_to_levels(jnp.asarray(z, jnp.float32), levels)[0], levels))


def test_correlated_scalars_use_few_codes():
    def perplexity(correlation):
        covariance = (1 - correlation) * np.eye(4) + correlation
        z = np.random.default_rng(18).multivariate_normal(np.zeros(4), covariance, 20_000)
        share = np.bincount(used_codes(z)) / len(z)
        return np.exp(-np.sum(share * np.log(share, where=share > 0, out=np.zeros_like(share))))

    assert perplexity(0.95) < 100 < 4 * 100 < perplexity(0.0)


def test_its_loss_is_zero_for_white_scalars_alone():
    """Tokens made so that layer norm and projection give exactly the wanted scalars."""
    levels, radius, num = (5, 5, 5), 8.0, 60
    quantizer = fsq.build(levels=levels, hidden_dim=4)
    params, state = quantizer.init(KEY, tokens_of(19, 1, 4, dim=8), np.ones((1, 4), bool))
    kernel = np.zeros((8, 3), np.float32)
    kernel[:3] = np.eye(3) * np.sqrt(2 * radius**2 / 8 + 1e-6)
    params["project"]["kernel"] = jnp.asarray(kernel)
    state = {"mean": jnp.zeros(3), "covariance": jnp.eye(3)}

    @jax.jit
    def loss(tokens, mask):
        return quantizer.apply(params, state, tokens, mask, key=None, train=True).loss

    x = np.random.default_rng(20).gamma(1.0, 1.0, (num, 3))
    white = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[0] * np.sqrt(num)
    for scalars in (
        white,
        0.3 * white,
        1.5 * white,
        white + 0.5,
        white @ np.array([[1, 0.6, 0], [0, 0.8, 0], [0, 0, 1]]),
    ):
        rest = np.sqrt(radius**2 - np.sum(scalars**2, axis=1, keepdims=True))
        tokens = np.concatenate([scalars, -scalars, rest, -rest], axis=1)[None].astype(np.float32)
        padded = np.concatenate([tokens, np.full((1, 7, 8), 50.0, np.float32)], axis=1)
        expected = np.mean((scalars.T @ scalars / num - np.eye(3)) ** 2)
        found = loss(padded, np.arange(num + 7)[None] < num)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
        assert (expected < 1e-20) == (scalars is white)


# ---------------------------------------------------------------- Gumbel-softmax


def gumbel_problem(kernel, bias, tokens, **options):
    """A quantizer with linear logits that are given, and what it makes of the tokens."""
    quantizer = gumbel.build(num_codes=len(bias), **options)
    params, state = quantizer.init(KEY, tokens, np.ones(tokens.shape[:2], bool))
    params["logits"] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return quantizer, params, state


def test_the_temperature_falls_geometrically_and_then_stays():
    quantizer = gumbel.build(num_codes=4, tau=3.0, tau_final=0.75, tau_steps=10)
    params, state = quantizer.init(KEY, TOKENS, MASK)

    def temperature(calls):
        state = {"calls": jnp.int32(calls)}
        return quantizer.apply(params, state, TOKENS, MASK, key=None, train=False).metrics["temperature"]

    assert state["calls"] == 0
    found = [temperature(calls) for calls in (0, 5, 10, 11, 10**6)]
    np.testing.assert_allclose(found, [3.0, 1.5, 0.75, 0.75, 0.75], rtol=1e-6)
    assert quantizer.update(params, state, TOKENS, MASK, None, key=KEY)["calls"] == 1


def test_the_diversity_loss_is_zero_for_even_use_and_one_for_a_single_code():
    num = 5
    basis = np.eye(num, dtype=np.float32)[None]  # as many tokens as codes, and each wants another one
    centred = basis[0] - basis[0].mean(axis=1, keepdims=True)

    def loss(kernel, bias, tokens=basis, **options):
        quantizer, params, state = gumbel_problem(kernel, bias, tokens, **options)
        mask = np.ones(tokens.shape[:2], bool)
        return quantizer.apply(params, state, tokens, mask, key=None, train=False).loss

    none = np.zeros((num, num))
    np.testing.assert_allclose(loss(none, np.zeros(num)), 0.0, atol=1e-6)
    np.testing.assert_allclose(loss(50 * centred, np.zeros(num)), 0.0, atol=1e-6)
    np.testing.assert_allclose(loss(none, 500 * basis[0, 2]), 1.0, atol=1e-6)
    np.testing.assert_allclose(loss(none, 500 * basis[0, 2], diversity=0.25), 0.25, atol=1e-6)
    two = np.where(np.arange(num) < 2, 0.0, -500.0)
    np.testing.assert_allclose(loss(none, two), 1 - np.log(2) / np.log(num), rtol=1e-5)


@pytest.mark.parametrize("variant", ["gumbel linear", "gumbel distance"])
def test_codes_are_drawn_as_often_as_the_softmax_says(variant):
    num = 50_000
    params, state = started(variant)
    quantizer = programs(variant, True).quantizer
    row = TOKENS[1, 2]
    apply = jax.jit(quantizer.apply, static_argnames="train")
    tokens, mask = np.broadcast_to(row, (1, num, DIM)), np.ones((1, num), bool)
    codes = apply(params, state, tokens, mask, key=KEY, train=True).codes
    observed = np.bincount(codes[0], minlength=NUM_CODES)

    score = gumbel_score(params, row[None])[0]
    expected = num * np.exp(score - score.max()) / np.exp(score - score.max()).sum()
    assert np.sum((observed - expected) ** 2 / expected) < 27.9  # of 6 degrees of freedom: p = 1e-4
    evaluated = apply(params, state, tokens[:, :3], mask[:, :3], key=KEY, train=False).codes
    np.testing.assert_array_equal(evaluated, np.argmax(score))


@compiled
@pytest.mark.parametrize("variant", ["gumbel linear", "gumbel distance"])
def test_the_gradient_of_a_drawn_code_is_that_of_the_soft_assignment(variant, jit):
    params, _ = started(variant)
    found = stepped(variant, jit, weight=0.0, train=False)
    tau = found.out.metrics["temperature"]

    def soft(params, rows):
        x = (rows - jnp.mean(rows, axis=1, keepdims=True)) / jnp.std(rows, axis=1, keepdims=True)
        if variant == "gumbel linear":
            score = x @ params["logits"]["kernel"] + params["logits"]["bias"][None]
        else:
            score = -jnp.sum((x[:, None] - params["codebook"][None]) ** 2, axis=-1) / math.sqrt(DIM)
        mixed = jax.nn.softmax(score / tau, axis=-1) @ jax.lax.stop_gradient(params["codebook"])
        return jnp.sum((mixed + params["codebook"][found.out.codes[MASK]]) * COTANGENT[MASK])

    d_params, d_rows = jax.jit(jax.grad(soft, (0, 1)))(params, jnp.asarray(TOKENS[MASK]))
    assert_gradient(np.asarray(found.d_tokens)[MASK], d_rows, 1e-4)
    jax.tree.map(lambda a, b: assert_gradient(a, b, 1e-4), found.d_params, d_params)


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "key", "options"),
    [
        ("fsq", "levels", dict(levels=())),
        ("fsq", "levels", dict(levels=(8, 1, 5))),
        ("fsq", "levels", dict(levels=(8, 1001))),
        ("fsq", "levels", dict(levels=(1000, 1000, 1000, 1000))),
        ("fsq", "hidden_dim", dict(hidden_dim=0)),
        ("fsq", "statistics_ema", dict(statistics_ema=1.0)),
        ("fsq", "statistics_ema", dict(statistics_ema=-0.1)),
        ("vq_ema", "num_codes", dict(num_codes=1)),
        ("vq_ema", "decay", dict(decay=1.0)),
        ("vq_ema", "decay", dict(decay=-0.1)),
        ("vq_ema", "distance", dict(distance="manhattan")),
        ("vq_ema", "initialise", dict(initialise="kmean")),
        ("vq_ema", "refresh", dict(refresh="always")),
        ("vq_ema", "refresh_every", dict(refresh_every=0)),
        ("vq_ema", "smoothing", dict(smoothing=-1e-5)),
        ("vq_gradient", "num_codes", dict(num_codes=0)),
        ("gumbel", "num_codes", dict(num_codes=1)),
        ("gumbel", "logits", dict(logits="cosine")),
        ("gumbel", "tau", dict(tau=0.1, tau_final=0.5)),
        ("gumbel", "tau", dict(tau_final=0.0)),
        ("gumbel", "tau", dict(tau_steps=0)),
    ],
)
def test_a_bad_option_is_refused_in_one_sentence(name, key, options):
    with pytest.raises(ValueError, match=rf"quantizer\.{key}\b") as error:
        build("quantizers", name, **options)
    message = str(error.value)
    assert "\n" not in message and ". " not in message
    assert all(str(value) in message for value in options.values())
