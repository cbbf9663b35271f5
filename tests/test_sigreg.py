"""Laws of SIGReg and of the prediction losses, and agreement with the reference implementations (golden/lejepa.npz)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa.losses import sigreg as module
from jepa.losses.prediction import squared_error, view_invariance
from jepa.losses.sigreg import random_directions, sigreg, sigreg_along

# LeJEPA's SlicingUnivariateTest(EppsPulley) and minimal example, and the multi-view losses of lightly,
# stable-pretraining and eb_jepa, float64 PyTorch on CPU.
GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "lejepa.npz"))
CASES = sorted(key.removesuffix("_slices") for key in GOLDEN if key.endswith("_slices") and "_sig_t" in key)
VIEWS = ("mv_V4g2n32d16", "mv_V2g2n7d5")


@partial(jax.jit, static_argnames=("num_knots", "t_max"))
def evaluate(z, directions, cotangent=1.0, *, mask=None, num_knots=17, t_max=3.0):
    """T, and the gradients of sum(cotangent * T) with respect to z and to the directions."""
    function = partial(sigreg_along, mask=mask, num_knots=num_knots, t_max=t_max)
    value, pullback = jax.vjp(function, z, directions)
    return value, *pullback(jnp.broadcast_to(jnp.asarray(cotangent, jnp.float32), value.shape))


def rng():
    return np.random.default_rng(3)


def reference(z, directions, num_knots=17, t_max=3.0):
    """The definition in float64: T [M], and the gradient of sum(T) with respect to z and to the directions."""
    z, directions = np.asarray(z, np.float64), np.asarray(directions, np.float64)
    u = z @ directions
    t = np.linspace(0.0, t_max, num_knots)
    weight = np.exp(-0.5 * t**2) * (t[1] - t[0]) * np.where((t == 0) | (t == t[-1]), 1.0, 2.0)
    value, du = np.zeros(u.shape[1]), np.zeros_like(u)
    for t_j, w_j in zip(t, weight, strict=True):
        cos, sin = np.cos(t_j * u), np.sin(t_j * u)
        c, s = cos.mean(0) - np.exp(-0.5 * t_j**2), sin.mean(0)
        value += len(z) * w_j * (c**2 + s**2)
        du += 2 * w_j * t_j * (s[None] * cos - c[None] * sin)
    return value, du @ directions.T, z.T @ du


def assert_gradient(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def unit_columns(dim, num):
    return np.asarray(random_directions(jax.random.key(7), dim, num))


def skewed(num, dim, scale=1.0):
    """Asymmetric samples with a different mean and scale in every dimension."""
    z = rng().gamma(2.0, 1.0, (num, dim)) * np.linspace(0.3, 1.5, dim) - np.linspace(0.0, 2.0, dim)
    return (scale * z).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_match_lejepa(case):
    shape, distribution, _, setting = case.split("_")
    t_max, num_knots = (float(x) for x in setting[1:].split("k"))
    z, directions = GOLDEN[f"{shape}_{distribution}_x"], jnp.asarray(GOLDEN[f"{shape}_A"])
    setting = dict(num_knots=int(num_knots), t_max=t_max)
    statistic, gradient, _ = evaluate(z, directions, 1 / directions.shape[1], **setting)
    np.testing.assert_allclose(statistic, GOLDEN[f"{case}_slices"], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(jnp.mean(statistic), GOLDEN[f"{case}_mean"], rtol=2e-6)
    if f"{case}_grad" in GOLDEN:
        assert_gradient(gradient, GOLDEN[f"{case}_grad"])


@pytest.mark.parametrize("case", VIEWS)
def test_each_view_is_a_test_of_its_own(case):
    z, directions = jnp.asarray(GOLDEN[f"{case}_z"]), jnp.asarray(GOLDEN[f"{case}_A"])
    statistic, gradient, _ = evaluate(z, directions, 1 / (z.shape[0] * directions.shape[1]))
    np.testing.assert_allclose(statistic, GOLDEN[f"{case}_lib_slices"], rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(statistic), GOLDEN[f"{case}_minimal_sig"], rtol=2e-6)
    assert_gradient(gradient, GOLDEN[f"{case}_minimal_sig_grad"])


SHAPES = ((1, 3), (2, 3), (33, 5), (700, 24))
KNOTS = ((17, 3.0), (10, 2.5), (2, 1.0), (64, 6.0))
CROSS = [(shape, *KNOTS[0]) for shape in SHAPES] + [(SHAPES[2], *knots) for knots in KNOTS[1:]]
OTHERS = [(shape, *knots) for shape in SHAPES for knots in KNOTS if (shape, *knots) not in CROSS]


@pytest.mark.parametrize(
    ("shape", "num_knots", "t_max"), CROSS + [pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS]
)
def test_recurrence_equals_the_definition(shape, num_knots, t_max):
    z, directions = skewed(*shape), unit_columns(shape[1], 11)
    value, dz, ddirections = reference(z, directions, num_knots, t_max)
    found = evaluate(z, directions, num_knots=num_knots, t_max=t_max)
    np.testing.assert_allclose(found[0], value, rtol=1e-5)
    assert_gradient(found[1], dz)
    assert_gradient(found[2], ddirections)
    alone = jax.jit(sigreg_along, static_argnames=("num_knots", "t_max"))(
        z, directions, num_knots=num_knots, t_max=t_max
    )
    np.testing.assert_allclose(alone, found[0], rtol=1e-6)


def test_a_different_cotangent_for_every_direction():
    z, directions = skewed(40, 6), unit_columns(6, 9)
    cotangent = rng().normal(size=9)
    expected = sum(cotangent[m] * reference(z, directions[:, m : m + 1])[1] for m in range(9))
    assert_gradient(evaluate(z, directions, cotangent)[1], expected)


@pytest.mark.parametrize("tile", [1, 7 * 50, 50 * 64, 2**20])
def test_tiling_changes_nothing(tile, monkeypatch):
    z, directions = skewed(50, 8), unit_columns(8, 64)
    expected, dz, _ = reference(z, directions)
    monkeypatch.setattr(module, "TILE", tile)
    evaluate.clear_cache()
    value, gradient, _ = evaluate(z, directions)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_gradient(gradient, dz)
    evaluate.clear_cache()


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e3])
def test_accurate_far_from_unit_scale(scale):
    # Multiples of 1/64 along the axes, so that the projections carry no rounding and only the statistic's is measured.
    z, directions = np.round(skewed(300, 4, scale) * 64) / 64, np.eye(4, dtype=np.float32)
    z = z.astype(np.float32)
    value, dz, _ = reference(z, directions)
    found, gradient, _ = evaluate(z, directions)
    np.testing.assert_allclose(found, value, rtol=2e-5 if scale < 100 else 2e-4)
    # At |t u| = 1e4 float32 resolves the angle to 1e-3: no float32 form can do better than that.
    assert_gradient(gradient, dz, 1e-5 if scale < 100 else 2e-3)


def test_unit_complex():
    angle = np.concatenate([rng().uniform(-m, m, 20000) for m in (1, 10, 1e3, 1e4)] + [np.arange(-40, 40) * np.pi / 4])
    angle = angle.astype(np.float32)
    for function in (module._unit_complex, jax.jit(module._unit_complex)):
        np.testing.assert_allclose(function(angle), np.exp(1j * angle.astype(np.float64)), rtol=0, atol=2e-7)
        np.testing.assert_allclose(np.abs(function(np.float32([1e7, -1e12, 1e30]))), 1.0, atol=0.03)
        assert np.isnan(np.asarray(function(np.float32([np.nan, np.inf])))).all()


def test_expectation_under_the_null():
    # mean_j w_j E|phi_hat - phi|^2 N = sum_j w_j (1 - phi_j^2), for every N: 1.0525 with 17 knots on [0, 3].
    t = np.linspace(0, 3, 17)
    weight = np.exp(-0.5 * t**2) * 2 * t[1] * np.where((t == 0) | (t == 3), 0.5, 1.0)
    expected = np.sum(weight * (1 - np.exp(-(t**2))))
    assert expected == pytest.approx(1.0525, abs=1e-4)
    for num in (32, 300):
        z = jax.random.normal(jax.random.key(num), (64, num, 256))
        statistic = jax.jit(sigreg_along)(z, random_directions(jax.random.key(0), 256, 256))  # [64, 256]
        assert float(jnp.mean(statistic)) == pytest.approx(expected, abs=0.02)
        assert float(jnp.std(statistic)) == pytest.approx(0.95, abs=0.05)


def test_total_collapse_is_a_saddle():
    value, gradient = jax.jit(jax.value_and_grad(partial(sigreg, num_slices=32)))(
        jnp.zeros((256, 8)), jax.random.key(0)
    )
    assert float(value) == pytest.approx(0.40205 * 256, rel=1e-4)
    assert not np.any(gradient)
    for shape in ("n64d8", "n7d5"):
        num, dim = (int(x) for x in shape[1:].split("d"))
        value = jax.jit(partial(sigreg, num_slices=16))(jnp.zeros((num, dim)), jax.random.key(1))
        np.testing.assert_allclose(value, GOLDEN[f"{shape}_zero_sig_mean"], rtol=1e-6)


def test_order_of_samples_does_not_matter_and_sign_of_directions_neither():
    z, directions = skewed(60, 5), unit_columns(5, 12)
    permuted = z[rng().permutation(60)]
    np.testing.assert_allclose(sigreg_along(permuted, directions), sigreg_along(z, directions), rtol=2e-6)
    np.testing.assert_allclose(sigreg_along(z, -directions), sigreg_along(z, directions), rtol=2e-6)


def test_masking_equals_subsetting():
    z, directions = skewed(90, 6).reshape(3, 30, 6), unit_columns(6, 10)
    mask = rng().random((3, 30)) < np.array([0.3, 0.7, 1.0])[:, None]
    mask[:, 0] = True
    filled = np.where(mask[..., None], z, np.nan)  # whatever a masked row holds
    cotangent = rng().normal(size=(3, 10))
    statistic, dz, ddirections = evaluate(filled, directions, cotangent, mask=mask)
    expected = np.zeros((6, 10))
    for v in range(3):
        rows = z[v][mask[v]]
        value, d_rows, d_directions = evaluate(rows, directions, cotangent[v])
        np.testing.assert_allclose(value, reference(rows, directions)[0], rtol=1e-5)
        np.testing.assert_allclose(statistic[v], value, rtol=1e-5)
        assert_gradient(np.asarray(dz[v])[mask[v]], d_rows)
        assert not np.any(np.asarray(dz[v])[~mask[v]])
        expected += d_directions
    assert_gradient(ddirections, expected)


def test_a_set_without_real_rows_scores_zero():
    z = jnp.asarray(skewed(10, 4)).reshape(2, 5, 4)
    mask = jnp.array([[False] * 5, [True] * 5])
    function = partial(sigreg, num_slices=8)
    value, gradient = jax.jit(jax.value_and_grad(function))(z, jax.random.key(0), mask=mask)
    alone = jax.jit(function)(z[1], jax.random.key(0))
    np.testing.assert_allclose(value, 0.5 * alone, rtol=1e-5)
    assert not np.any(gradient[0]) and np.all(np.isfinite(gradient))


def test_leading_axes_are_independent_and_share_directions():
    z = jnp.asarray(skewed(120, 5)).reshape(2, 3, 20, 5)
    directions = unit_columns(5, 7)
    statistic = jax.jit(sigreg_along)(z, directions)
    assert statistic.shape == (2, 3, 7)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(statistic[i, j], evaluate(z[i, j], directions)[0], rtol=2e-6)
    mean = jax.jit(partial(sigreg, key=jax.random.key(5), num_slices=16))
    each = [mean(z[i, j]) for i, j in np.ndindex(2, 3)]
    np.testing.assert_allclose(mean(z), np.mean(each), rtol=2e-6)
    flat = mean(z.reshape(120, 5))
    assert abs(float(flat) / float(np.mean(each)) - 1) > 0.5


def test_jit_and_vmap_agree_with_the_plain_call():
    z, key = jnp.asarray(skewed(100, 5)).reshape(4, 25, 5), jax.random.key(2)
    keys = jax.random.split(key, 4)
    one = jax.value_and_grad(partial(sigreg, num_slices=24))
    plain = [one(z[i], keys[i]) for i in range(4)]
    values, gradients = jax.jit(jax.vmap(one))(z, keys)
    np.testing.assert_allclose(values, [value for value, _ in plain], rtol=2e-6)
    assert_gradient(gradients, np.stack([gradient for _, gradient in plain]), 2e-6)


def test_bfloat16_embeddings_are_taken_at_face_value():
    z, directions = jnp.asarray(skewed(80, 6), jnp.bfloat16), unit_columns(6, 16)
    value, gradient, _ = evaluate(z, directions)
    expected, dz, _ = reference(np.asarray(z, np.float64), directions)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_gradient(gradient, dz, 2.0**-8)


def test_memory_does_not_grow_with_the_knots():
    def temporary(num_knots):
        function = jax.value_and_grad(lambda z, a: jnp.mean(sigreg_along(z, a, num_knots=num_knots)))
        shapes = jax.ShapeDtypeStruct((4096, 64), jnp.float32), jax.ShapeDtypeStruct((64, 512), jnp.float32)
        return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    projections = 4 * 4096 * 512
    assert temporary(17) < 4 * projections  # the direct form stores more than 17 of them
    assert temporary(33) < 1.2 * temporary(17)


def test_directions_are_uniform_on_the_sphere():
    directions = np.asarray(random_directions(jax.random.key(0), 8, 20000))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(directions @ directions.T / 20000, np.eye(8) / 8, atol=0.005)
    np.testing.assert_allclose(directions.mean(1), 0.0, atol=0.01)


def test_errors_name_what_is_wrong():
    z, directions = jnp.zeros((4, 3)), jnp.ones((3, 2))
    with pytest.raises(ValueError, match="must have 3 rows"):
        sigreg_along(z, directions.T)
    with pytest.raises(ValueError, match="mask must have the shape"):
        sigreg_along(z, directions, mask=jnp.ones((3,), bool))
    with pytest.raises(ValueError, match="num_knots"):
        sigreg_along(z, directions, num_knots=1)


@pytest.mark.parametrize("case", VIEWS)
def test_view_invariance_matches_the_references(case):
    z = jnp.swapaxes(jnp.asarray(GOLDEN[f"{case}_z"]), 0, 1)  # [B, V, D]
    for name, num_global in (("inv_global", int(case[case.index("g") + 1])), ("minimal_inv", z.shape[1])):
        loss = view_invariance(z, num_global)
        assert loss.shape == z.shape[:1]
        np.testing.assert_allclose(jnp.mean(loss), GOLDEN[f"{case}_{name}"], rtol=2e-6)
        gradient = jax.grad(lambda z, g=num_global: jnp.mean(view_invariance(z, g)))(z)
        assert_gradient(jnp.swapaxes(gradient, 0, 1), GOLDEN[f"{case}_{name}_grad"])


def minimal(z, directions, num_global, lamb):
    """LeJEPA's minimal example: the centre is that of all views."""
    del num_global
    return lamb * jnp.mean(sigreg_along(z, directions)) + (1 - lamb) * centre_distance(z, z.shape[0])


def lightly(z, directions, num_global, lamb):
    """LeJEPA's Algorithm 2: the centre is that of the global views."""
    return lamb * jnp.mean(sigreg_along(z, directions)) + (1 - lamb) * centre_distance(z, num_global)


def stable_pretraining(z, directions, num_global, lamb):
    """All views are one sample for SIGReg, of V N rows: another test, with a larger statistic."""
    flat = z.reshape(-1, z.shape[-1])
    return lamb * jnp.mean(sigreg_along(flat, directions)) + centre_distance(z, num_global)


def eb_jepa(z, directions, num_global, lamb):
    """Two views, and T / N by the trapezoid rule on 10 knots from -3 to 3, none of which is 0.

    Two knots on [0, t] compare at t alone, with the weight t exp(-t^2 / 2).
    """
    del num_global, lamb
    pair = z[:2]
    statistic = 0.0
    for t in (1 / 3, 1.0, 5 / 3, 7 / 3, 3.0):
        width = 2 / 3 if t == 3.0 else 4 / 3
        statistic += width / t * jnp.mean(sigreg_along(pair, directions, num_knots=2, t_max=t)) / z.shape[1]
    return 4.0 * centre_distance(pair, 2) + 10.0 * statistic  # |z_1 - z_2|^2 is 4 |mu - z_v|^2


def centre_distance(z, num_global):
    return jnp.mean(view_invariance(jnp.swapaxes(z, 0, 1), num_global))


MULTI_VIEW = {"minimal": minimal, "lightly": lightly, "spt": stable_pretraining, "ebjepa": eb_jepa}
VALUES = {"spt": "spt_loss_inv_sig", "ebjepa": "ebjepa_loss_bcs_inv"}  # the loss is the first of three


@pytest.mark.parametrize("case", VIEWS)
@pytest.mark.parametrize("name", MULTI_VIEW)
def test_public_multi_view_losses_are_composed_of_the_two(name, case):
    key, gradient_key = (
        f"{case}_{n}" for n in (VALUES[name] if name in VALUES else f"{name}_loss", f"{name}_loss_grad")
    )
    assert (gradient_key in GOLDEN) == (name != "lightly" or case == VIEWS[0])
    if gradient_key not in GOLDEN:
        return  # with global views only it is the minimal example
    num_global = int(case[case.index("g") + 1])
    loss = partial(MULTI_VIEW[name], num_global=num_global, lamb=float(GOLDEN[f"{case}_lamb"]))
    value, gradient = jax.jit(jax.value_and_grad(loss))(GOLDEN[f"{case}_z"], GOLDEN[f"{case}_A"])
    np.testing.assert_allclose(value, np.ravel(GOLDEN[key])[0], rtol=2e-6)
    assert_gradient(gradient, GOLDEN[gradient_key])


def test_view_invariance_is_zero_for_equal_views_and_refuses_a_wrong_count():
    z = jnp.broadcast_to(jnp.asarray(skewed(5, 3))[:, None], (5, 4, 3))
    np.testing.assert_allclose(view_invariance(z, 2), 0.0, atol=1e-12)
    for num_global in (0, 5):
        with pytest.raises(ValueError, match="num_global"):
            view_invariance(z, num_global)


def test_squared_error_is_a_mean_over_dimensions_per_example():
    x, y = skewed(6, 5), skewed(6, 5, 0.7)[::-1].copy()
    np.testing.assert_allclose(squared_error(x, y), ((x - y) ** 2).mean(1), rtol=1e-6)
    assert squared_error(jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(ValueError, match="one shape"):
        squared_error(x, y[:1])
