"""The LeJEPA objective, through its configs: what its terms are, and where gradients go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import context, main, train_step
from jepa.losses.sigreg import sigreg
from jepa.parts import build


@functools.cache
def built(variant, **overrides):
    config = main.load_config(f"configs/lejepa.py:{variant}")
    for key, value in overrides.items():
        config.objective[key] = value
    parts = build(config)
    state = parts.init()
    batch = parts.source.gather(parts.source.tables, parts.source.indices(0), jax.random.key(0), True)
    return parts, state, batch


@functools.partial(jax.jit, static_argnums=0)
def forward(loss_parts, params, target_params, objective_state, batch, key):
    trunk, loss = loss_parts
    named = dict(key=jax.random.key(key), step=0, train=True)
    latents, kept = trunk(params, target_params, objective_state, batch, **named)
    out = loss(params, target_params, kept, latents, batch, **named)
    return out._replace(terms={name: out.terms[name] for name in ("prediction", "sigreg")})


def output(parts, state, batch, params=None, key=3):
    """The objective's output with the terms that the config trains: the rest need not be compiled."""
    both = (parts.objective.trunk, parts.objective.loss)
    params = state.params if params is None else params
    return forward(both, params, state.target_params, state.objective_state, batch, key)


def test_the_terms_are_the_prediction_error_and_the_gaussianity_of_every_time_step():
    parts, state, batch = built("tiny")
    out = output(parts, state, batch)
    assert train_step.on_terms(parts.weights) == ["prediction", "sigreg"]
    assert set(parts.weights) == set(parts.objective.terms)
    z_context = jax.jit(parts.objective.encode)(state.params, {}, batch.context).pooled  # [B, 3, D]
    z_target = jax.jit(parts.objective.encode)(state.params, {}, batch.target).pooled  # [B, D]
    z_hat = jax.jit(parts.objective.predict)(state.params, {}, batch.context)
    np.testing.assert_allclose(out.terms["prediction"], jnp.mean((z_hat - z_target) ** 2), rtol=1e-5)
    np.testing.assert_allclose(out.examples["copy"], jnp.mean((z_context[:, 2] - z_target) ** 2, axis=-1), rtol=1e-5)
    steps = jnp.concatenate([jnp.moveaxis(z_context, 1, 0), z_target[None]])  # [4, B, D]
    each = [sigreg(z, jax.random.key(3), num_slices=32) for z in steps]
    np.testing.assert_allclose(out.terms["sigreg"], np.mean(each) / len(z_target), rtol=1e-4)


def test_gradients_pass_through_both_ends():
    parts, state, batch = built("tiny")

    def prediction(params, side):
        named = dict(key=jax.random.key(0), step=0, train=True)
        latents, kept = parts.objective.trunk(params, None, {}, batch, **named)
        online = latents["online"]
        frame = jnp.arange(4)[None, :] == 3
        on_side = frame if side == "target" else ~frame
        only = jax.tree.map(
            lambda x: jnp.where(on_side.reshape(1, 4, *(1,) * (x.ndim - 2)), x, jax.lax.stop_gradient(x)), online
        )
        latents = latents | {"online": only}
        return parts.objective.loss(state.params, None, kept, latents, batch, **named).terms["prediction"]

    for side in ("context", "target"):
        gradient = jax.jit(jax.grad(prediction), static_argnums=1)(state.params, side)["trunk"]
        assert max(jnp.abs(g).max() for g in jax.tree.leaves(gradient)) > 1e-5, side


@pytest.mark.slow
def test_a_teacher_gives_the_target_and_gets_no_gradient():
    parts, state, batch = built("tiny,teacher")
    moved = jax.tree.map(lambda x: 1.1 * x, state.target_params)
    taught = output(parts, state.replace(target_params=moved), batch)
    z_target = jax.jit(parts.objective.encode)(moved, {}, batch.target).pooled
    z_hat = jax.jit(parts.objective.predict)(state.params, {}, batch.context)
    np.testing.assert_allclose(taught.terms["prediction"], jnp.mean((z_hat - z_target) ** 2), rtol=1e-5)
    gradient = jax.grad(lambda t: output(parts, state.replace(target_params=t), batch).terms["prediction"])(moved)
    assert all(jnp.all(g == 0) for g in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_views_are_pulled_to_the_centre_of_the_global_ones():
    parts, state, batch = built("tiny,views")
    out = output(parts, state, batch)
    z = jax.jit(parts.objective.encode)(state.params, {}, batch.views).pooled  # [B, V, D]
    centre = z[:, :2].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(out.terms["prediction"], jnp.mean((z - centre) ** 2), rtol=1e-5)
    each = [sigreg(z[:, v], jax.random.key(3), num_slices=32) for v in range(z.shape[1])]
    np.testing.assert_allclose(out.terms["sigreg"], np.mean(each) / len(z), rtol=1e-4)
    assert "predictor" not in state.params["heads"]


def test_a_projector_carries_both_terms():
    parts, state, batch = built("tiny", projector_dim=6)
    out = output(parts, state, batch)
    z = jax.jit(parts.objective.project)(
        state.params, {}, jax.jit(parts.objective.encode)(state.params, {}, batch.target).pooled
    )
    z_hat = jax.jit(parts.objective.predict)(state.params, {}, batch.context)
    assert z.shape == z_hat.shape == (16, 6) and out.embeddings["projected"].shape == (64, 6)
    np.testing.assert_allclose(out.terms["prediction"], jnp.mean((z_hat - z) ** 2), rtol=1e-5)


def swapped(batch, order):
    return batch._replace(context=jax.tree.map(lambda leaf: leaf[:, np.array(order)], batch.context))


@pytest.mark.parametrize("kind", context.KINDS)
def test_the_pooled_predictor_uses_every_aggregation(kind):
    parts, state, batch = built("tiny,pooled", context=kind)
    out, other = output(parts, state, batch), output(parts, state, swapped(batch, (2, 1, 0)))
    changed = float(jnp.abs(out.embeddings["predicted"] - other.embeddings["predicted"]).max())
    assert (changed < 1e-5) if kind == "mean" else (changed > 1e-3)
    loss, shuffled = (float(each.terms["prediction"]) for each in (out, other))
    assert (shuffled == pytest.approx(loss, rel=1e-6)) if kind == "mean" else (abs(shuffled / loss - 1) > 1e-4)


def test_the_token_predictor_knows_the_role_of_every_frame():
    parts, state, batch = built("tiny")
    predicted = jax.jit(parts.objective.predict)(state.params, {}, batch.context)
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        other = jax.jit(parts.objective.predict)(state.params, {}, swapped(batch, order).context)
        assert jnp.abs(predicted - other).max() > 1e-3


def without_frames(batch, absent):
    """The batch with the context frames of `absent` bool [B, T] as tables of zeros."""

    def zero(leaf):
        where = absent.reshape(absent.shape + (1,) * (leaf.ndim - 2))
        return np.where(where, np.zeros((), leaf.dtype), leaf)

    return batch._replace(context=jax.tree.map(zero, batch.context))


def test_absent_frames_reach_neither_the_prediction_nor_what_sees_all_embeddings():
    parts, state, batch = built("tiny")
    absent = np.zeros((16, 3), bool)
    absent[::2, 0] = absent[3, 1] = True
    out = output(parts, state, without_frames(batch, absent))
    encode, predict = jax.jit(parts.objective.encode), jax.jit(parts.objective.predict)
    z = np.asarray(encode(state.params, {}, batch.context).pooled)
    found = np.asarray(out.embeddings["context"]).reshape(z.shape)
    np.testing.assert_allclose(found[~absent], z[~absent], rtol=1e-4, atol=1e-6)
    for step in range(2):
        there = z[~absent[:, step], step]
        for row in found[absent[:, step], step]:
            assert np.abs(there - row).max(1).min() < 1e-5
    # A context without its first frame, in a model of three frames, is a context of two.
    shorter = predict(state.params, {}, jax.tree.map(lambda leaf: leaf[::2, 1:], batch.context))
    np.testing.assert_allclose(out.embeddings["predicted"][::2], shorter, rtol=1e-4, atol=1e-6)
    z_target = encode(state.params, {}, batch.target).pooled
    np.testing.assert_allclose(out.examples["copy"], jnp.mean((z[:, 2] - z_target) ** 2, axis=-1), rtol=1e-4)
    steps = np.concatenate([found.swapaxes(0, 1), z_target[None]])
    each = [sigreg(rows, jax.random.key(3), num_slices=32) for rows in steps]
    np.testing.assert_allclose(out.terms["sigreg"], np.mean(each) / len(z_target), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "window"),
    [("lejepa.py:tiny,teacher", 1), ("lejepa_codes.py:tiny", 7), ("infonce.py:tiny", 5)],
)
def test_contexts_of_any_length_train(file, window):
    config = main.load_config(f"configs/{file}")
    config.data.update(context_window=window, drop_objects=0.2, drop_frames=0.3, noise=0.1)
    parts = build(config)
    state = parts.init()
    source = parts.source

    @jax.jit
    def step(state, rows):
        batch = source.gather(source.tables, rows, jax.random.fold_in(jax.random.key(1), state.step), True)
        ema = config.target_ema
        return train_step.make_train_step(parts.objective, parts.weights, max_grad_norm=1.0, target_ema=ema)(
            state, batch
        )

    for number in range(2):
        state, metrics = step(state, source.indices(number))
        assert metrics["health/skipped"] == 0 and metrics["grad/norm"] > 0
    roles = [leaf for path, leaf in jax.tree.leaves_with_path(state.params) if "roles" in str(path)]
    assert all(len(leaf) == window for leaf in roles)
    assert np.isfinite(parts.evaluate(state, 16).metrics["val/prediction"])


def test_a_few_steps_reduce_the_total():
    parts, state, batch = built("tiny")
    step = jax.jit(train_step.make_train_step(parts.objective, parts.weights, max_grad_norm=1.0))
    totals = []
    for _ in range(15):
        state, metrics = step(state, batch)
        totals.append(float(metrics["loss/total"]))
    assert np.mean(totals[-3:]) < 0.8 * totals[0]


@pytest.mark.slow
def test_embeddings_wider_than_the_batch_need_a_projector():
    config = main.load_config("configs/lejepa.py:tiny")
    config.batch_size = 15
    with pytest.raises(ValueError, match=r"16 wide .* 15 examples.*projector_dim to at most 15"):
        build(config).init()
    config.objective.projector_dim = 15
    build(config).init()


def test_views_have_no_teacher():
    with pytest.raises(ValueError, match="no teacher"):
        parts, state, batch = built("tiny,views,teacher")
        output(parts, state, batch)
