"""A policy holds wherever z is read: by type, and in what it does."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import latent_norm
from jepa.latent_norm import POLICIES, Latent

ROOT = Path(__file__).resolve().parents[1]
SCALE_FREE = ("global", "loss_only", "encoder_only")  # policies whose error compares directions
Z = jax.random.normal(jax.random.key(0), (5, 7, 16)) * jnp.logspace(-3, 3, 7)[None, :, None]


@pytest.mark.parametrize("made", ["encoded", "predicted"])
@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_seen_has_length_sqrt_d_under_global_and_is_as_it_is_otherwise(policy, made):
    see = getattr(latent_norm.build(policy), made)
    seen = see(Z)
    assert isinstance(seen, Latent)
    if policy == "global" or (policy, made) == ("encoder_only", "encoded"):
        np.testing.assert_allclose(jnp.linalg.norm(seen.value, axis=-1), 4.0, rtol=1e-5)
        np.testing.assert_allclose(see(seen.value).value, seen.value, rtol=1e-5)
    else:
        np.testing.assert_array_equal(seen.value, Z)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_array_is_not_a_latent(policy):
    norm = latent_norm.build(policy)
    with pytest.raises(AttributeError):
        norm.error(Z, norm.encoded(Z))
    with pytest.raises(AttributeError):
        norm.anchor(Z)


def test_nobody_makes_a_latent_but_the_policy():
    for path in sorted((ROOT / "jepa").rglob("*.py")):
        made = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Latent"
        ]
        assert len(made) == (path.name == "latent_norm.py"), path


@pytest.mark.parametrize("policy", POLICIES)
def test_the_error_is_free_of_scale_where_it_should_be(policy):
    norm = latent_norm.build(policy)
    a, b = jax.random.normal(jax.random.key(1), (2, 9, 16))
    error, scaled = (norm.error(norm.predicted(c * a), norm.encoded(b)) for c in (1.0, 50.0))
    if policy in SCALE_FREE:
        np.testing.assert_allclose(error, scaled, rtol=1e-4)
        cosine = jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
        np.testing.assert_allclose(error, 2 - 2 * cosine, rtol=1e-4)
    else:
        assert float(jnp.min(scaled / error)) > 10


@pytest.mark.parametrize("policy", SCALE_FREE)
def test_an_error_free_of_scale_gives_no_radial_gradient(policy):
    norm = latent_norm.build(policy)
    a, b = jax.random.normal(jax.random.key(1), (2, 9, 16))
    g = jax.grad(lambda a: jnp.sum(norm.error(norm.predicted(a), norm.encoded(b))))(a)
    assert float(jnp.abs(jnp.sum(g * a, -1)).max()) < 1e-5


def test_the_anchor_pulls_along_z_at_every_scale():
    norm = latent_norm.build("anchor", target_norm=4.0)
    direction = jax.random.normal(jax.random.key(2), (16,))
    direction /= jnp.linalg.norm(direction)
    for scale in (1e-3, 1e-1, 1.0, 30.0, 1e3):
        g = jax.jit(jax.grad(lambda z: norm.anchor(norm.encoded(z))))(scale * direction)
        along = float(jnp.dot(g, direction))
        np.testing.assert_allclose(g, along * direction, atol=1e-5 * abs(along))
        assert abs(along) > 0.1 and (along > 0) == (scale > 4)
    assert float(norm.anchor(norm.encoded(4.0 * direction))) < 1e-10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("unit", None), "must be one of none, loss_only, global, anchor, encoder_only"),
        (("global", 3.0), "for the policy 'anchor'"),
    ],
)
def test_a_policy_that_makes_no_sense_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        latent_norm.build(arguments[0], target_norm=arguments[1])
