"""What each term does to the gradient, against gradients taken one at a time."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa import gradients, main
from jepa.optimizer import stop_frozen
from jepa.parts import build
from jepa.state import step_keys


@functools.cache
def parts(spec="configs/lejepa.py:tiny"):
    return build(main.load_config(spec))


def batch_of(parts, run):
    source = parts.source
    return source.gather(source.tables, source.indices(0), step_keys(run).data, True)


def term_gradient(parts, run, batch, name, freeze=()):
    """The gradient of one weighted term, straight from the objective."""

    def term(params):
        params, keys = stop_frozen(params, freeze), step_keys(run)
        fixed = (run.target_params, run.objective_state)
        latents, state = parts.objective.trunk(params, *fixed, batch, key=keys.trunk, step=run.step, train=True)
        out = parts.objective.loss(params, fixed[0], state, latents, batch, key=keys.loss, step=run.step, train=True)
        return parts.weights[name] * out.terms[name]

    return jax.jit(jax.grad(term))(run.params)


@pytest.fixture(scope="module")
def measured():
    run = parts().init()
    each = {name: term_gradient(parts(), run, batch_of(parts(), run), name) for name in ("prediction", "sigreg")}
    return run, each, jax.device_get(parts().diagnose(run, parts().source.indices(0)))


@pytest.mark.slow
def test_norms_on_the_trunk_and_on_modules_are_those_of_single_gradients(measured):
    _, each, figures = measured
    for name, gradient in each.items():
        trunk = optax.tree.norm(gradient["trunk"])
        np.testing.assert_allclose(figures[f"grad/{name}"], trunk, rtol=1e-5)
        np.testing.assert_allclose(figures[f"grad/{name}/trunk/encoder"], trunk, rtol=1e-5)
        heads = optax.tree.norm(gradient["heads"]["predictor"])
        np.testing.assert_allclose(figures[f"grad/{name}/heads/predictor"], heads, rtol=1e-5, atol=1e-12)


@pytest.mark.slow
def test_shares_and_cosine_are_those_of_single_gradients(measured):
    _, each, figures = measured
    flat = {name: np.concatenate([np.ravel(x) for x in jax.tree.leaves(g["trunk"])]) for name, g in each.items()}
    norms = {name: np.linalg.norm(x) for name, x in flat.items()}
    for name in flat:
        np.testing.assert_allclose(figures[f"grad_share/{name}"], norms[name] / sum(norms.values()), rtol=1e-5)
    cosine = flat["prediction"] @ flat["sigreg"] / norms["prediction"] / norms["sigreg"]
    np.testing.assert_allclose(figures["grad_cosine/prediction/sigreg"], cosine, atol=1e-5)
    assert 0.01 < abs(cosine) < 0.99  # neither law would tell much at the ends


@pytest.mark.slow
def test_the_update_ratio_is_that_of_the_clipped_total(measured):
    run, each, figures = measured
    total = jax.tree.map(jnp.add, *each.values())
    limit = main.load_config("configs/lejepa.py:tiny").max_grad_norm
    clipped, _ = optax.clip_by_global_norm(limit).update(total, optax.EmptyState())
    updates, _ = run.tx.update(clipped, run.opt_state, run.params)
    expected = optax.tree.norm(updates) / optax.tree.norm(run.params)
    np.testing.assert_allclose(figures["update_ratio"], expected, rtol=1e-5, atol=1e-9)
    later = run.replace(opt_state=run.tx.update(clipped, run.opt_state, run.params)[1])  # the first rate is zero
    figures = parts().diagnose(later, parts().source.indices(0))
    updates, _ = run.tx.update(clipped, later.opt_state, run.params)
    for module in ("trunk/encoder", "heads/predictor"):
        group, name = module.split("/")
        ratio = optax.tree.norm(updates[group][name]) / optax.tree.norm(run.params[group][name])
        assert ratio > 1e-5
        np.testing.assert_allclose(figures[f"update_ratio/{module}"], ratio, rtol=1e-3)


def test_shares_of_gradients_that_are_zero_are_finite():
    zero = gradients.shares(["a", "b"], jnp.array([[4.0, 0.0], [0.0, 0.0]]))
    chex.assert_tree_all_finite(zero)
    assert (zero["grad_share/a"], zero["grad_share/b"], zero["grad_cosine/a/b"]) == (1.0, 0.0, 0.0)
    chex.assert_tree_all_finite(gradients.shares(["a"], jnp.zeros((1, 1))))


@pytest.mark.slow
def test_a_frozen_part_has_no_gradient_and_no_update():
    config = main.load_config("configs/lejepa.py:tiny")
    config.freeze = ("trunk/encoder",)
    frozen = build(config)
    figures = frozen.diagnose(frozen.init(), frozen.source.indices(0))
    assert figures["grad/prediction/trunk/encoder"] == figures["update_ratio/trunk/encoder"] == 0
    assert figures["grad/prediction/heads/predictor"] > 0
