"""The step function and its ledger, on the objective and the data of the tiny config."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import main, train, train_step
from jepa.parts import build
from jepa.state import Health, step_keys
from jepa.types import LossOutput


def tiny(variant="tiny", **overrides):
    config = main.load_config(f"configs/lejepa.py:{variant}")
    for key, value in overrides.items():
        config[key] = value
    return config


@functools.cache
def parts(variant="tiny"):
    return build(tiny(variant))


def make_step(variant="tiny", objective=None, weights=None, **options):
    built = parts(variant)
    options = {"max_grad_norm": 1.0, "target_ema": tiny(variant).target_ema} | options
    return train_step.make_train_step(objective or built.objective, built.weights | (weights or {}), **options)


def batch_at(step, variant="tiny"):
    source = parts(variant).source
    return source.gather(source.tables, source.indices(step), jax.random.key(step), True)


def leaves(state):
    """Every leaf by path as NumPy, keys as their data."""
    named = jax.tree.leaves_with_path(state)
    is_key = {path: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for path, x in named}
    return {jax.tree_util.keystr(p): np.asarray(jax.random.key_data(x) if is_key[p] else x) for p, x in named}


def assert_same(a, b, *, but=()):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    differ = [path for path in a if a[path].tobytes() != b[path].tobytes() and not any(name in path for name in but)]
    assert not differ, differ


def poisoned(objective, term, poison_ids):
    """The objective with `term` NaN on batches whose first target is one of `poison_ids`."""

    def loss(params, target_params, state, latents, batch, **named):
        out = objective.loss(params, target_params, state, latents, batch, **named)
        bad = jnp.isin(batch.ids[0], poison_ids)
        terms = dict(out.terms) | {term: jnp.where(bad, jnp.nan, out.terms[term])}
        return out._replace(terms=terms)

    return objective._replace(loss=loss)


@pytest.mark.parametrize("variant", ["tiny", pytest.param("tiny,teacher", marks=pytest.mark.slow)])
def test_a_run_with_a_nan_ends_with_the_bits_of_a_run_that_skipped_the_batch(variant):
    batches = [batch_at(i, variant) for i in range(5)]
    bad = 2
    assert all(batches[i].ids[0] != batches[bad].ids[0] for i in range(5) if i != bad)
    step = make_step(variant, poisoned(parts(variant).objective, "sigreg", batches[bad].ids[:1]))
    step = jax.jit(step)
    with_nan = skipped = parts(variant).init()
    for i, batch in enumerate(batches):
        with_nan, metrics = step(with_nan, batch)
        assert bool(jnp.isfinite(metrics["loss/total"])) == (i != bad)
        if i == bad:  # the batch is not seen, but its step passes
            skipped = skipped.replace(step=skipped.step + 1)
        else:
            skipped, _ = step(skipped, batch)
    assert_same(with_nan, skipped, but=["health"])
    assert int(with_nan.health.skipped) == 1 and int(with_nan.health.consecutive) == 0
    assert train_step.bad_terms(parts(variant).weights)[with_nan.health.bad_term] == "sigreg"


def test_non_finite_steps_in_a_row_are_counted_and_their_term_named():
    batch = batch_at(0)
    step = jax.jit(make_step(objective=poisoned(parts().objective, "prediction", batch.ids[:1])))
    state = parts().init()
    start = state
    for _ in range(3):
        state, _ = step(state, batch)
    assert_same(state, start, but=["health", ".step"])
    assert int(state.step) == 3 and state.health.consecutive == 3
    config = tiny(max_bad_steps=3)
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .* 'prediction'"):
        train.check_health(state, config, parts())
    train.check_health(state, tiny(max_bad_steps=4), parts())


def test_a_bad_gradient_under_finite_terms_is_called_the_gradient():
    terms = {"prediction": jnp.float32(1.0), "sigreg": jnp.float32(1.0)}
    out = LossOutput(terms, metrics={}, state={}, embeddings={}, examples={})
    healthy = Health(jnp.int32(0), jnp.int32(0), jnp.int32(-1))
    health = train_step.update_health(healthy, jnp.array(False), out, parts().weights)
    assert train_step.bad_terms(parts().weights)[health.bad_term] == "gradient"


def test_the_total_is_the_weighted_sum_and_shares_add_up_to_one():
    terms = {"a": jnp.float32(2.0), "b": jnp.float32(-3.0), "c": jnp.float32(5.0)}
    total, metrics = train_step.ledger(terms, {"a": 0.5, "b": 2.0, "c": 0.0})
    assert total == -5.0 and metrics["weighted/b"] == -6.0 and metrics["loss/c"] == 5.0
    assert metrics["share/a"] == pytest.approx(1 / 7) and metrics["share/c"] == 0.0
    assert metrics["share/a"] + metrics["share/b"] == pytest.approx(1.0)
    total, metrics = train_step.ledger(terms, {"a": 1.0, "b": None, "c": None})
    assert total == 2.0 and "loss/b" not in metrics


@pytest.mark.slow
def test_a_weight_of_zero_trains_like_none_but_is_reported():
    state, batch = parts().init(), batch_at(0)
    _, metrics_off = jax.jit(make_step(weights={"prediction": 1.0, "sigreg": None}))(state, batch)
    _, metrics_zero = jax.jit(make_step(weights={"prediction": 1.0, "sigreg": 0.0}))(state, batch)
    np.testing.assert_allclose(metrics_off["loss/total"], metrics_zero["loss/total"], rtol=1e-6)
    np.testing.assert_allclose(metrics_off["grad/norm"], metrics_zero["grad/norm"], rtol=1e-5)
    assert "loss/sigreg" in metrics_zero and "loss/sigreg" not in metrics_off


@pytest.mark.slow
def test_a_term_that_is_off_is_not_compiled():
    config = tiny()
    config.objective.num_slices = 37  # a number that appears nowhere else in the program
    built = build(config)
    state, batch = built.init(), batch_at(0)

    def slices_in_program(weights):
        step = make_step(objective=built.objective, weights=weights)
        return re.search(r"[\[,]37[,\]]", jax.jit(step).lower(state, batch).compile().as_text())

    assert slices_in_program({"prediction": 1.0, "sigreg": 0.0})
    assert not slices_in_program({"prediction": 1.0, "sigreg": None})


def test_weights_must_name_the_terms():
    for wrong in ({"prediction": 1.0}, parts().weights | {"relational": 1.0}):
        with pytest.raises(ValueError, match="the terms of the objective are") as error:
            train_step.check_weights(wrong, parts().objective)
        assert "relational" in str(error.value) or "relational" not in wrong
    with pytest.raises(ValueError, match="turns off every term"):
        train_step.check_weights(dict.fromkeys(parts().weights), parts().objective)


def test_gradients_are_clipped_by_their_global_norm():
    state, batch = parts().init(), batch_at(0)
    _, metrics_free = jax.jit(make_step(max_grad_norm=1e9))(state, batch)
    norm = float(metrics_free["grad/norm"])
    assert metrics_free["grad/norm_clipped"] == metrics_free["grad/norm"]
    _, metrics = jax.jit(make_step(max_grad_norm=norm / 2))(state, batch)
    assert metrics["grad/norm_clipped"] == pytest.approx(norm / 2, rel=1e-6)
    assert metrics["grad/norm"] == pytest.approx(norm, rel=1e-6)


@pytest.mark.slow
def test_the_teacher_is_the_exponential_moving_average_of_the_online_parameters():
    decay = 0.9
    step = jax.jit(make_step("tiny,teacher", target_ema=decay))
    state = parts("tiny,teacher").init()
    expected = jax.device_get(state.params)
    for i in range(3):
        state, _ = step(state, batch_at(i))
        expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, expected, jax.device_get(state.params))
    for target, mean in zip(jax.tree.leaves(state.target_params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(target, mean, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_decay_of_the_teacher_may_depend_on_the_step():
    step = jax.jit(make_step("tiny,teacher", target_ema=lambda count: jnp.where(count == 0, 1.0, 0.0)))
    start = parts("tiny,teacher").init()
    first, metrics = step(start, batch_at(0))
    assert metrics["target_ema"] == 1.0
    assert_same(first.target_params, start.target_params)
    second, metrics = step(first, batch_at(1))
    assert metrics["target_ema"] == 0.0
    assert_same(second.target_params, second.params)


def test_scanned_steps_equal_single_ones_bit_for_bit():
    one, many = tiny(steps_per_call=1), tiny(steps_per_call=5)
    built = parts()
    rows = np.stack([built.source.indices(i) for i in range(5)])
    scanned, _ = train.make_train_call(many, built)(built.init(), built.source.tables, rows)
    call, looped = train.make_train_call(one, built), built.init()
    for i in range(5):
        looped, _ = call(looped, built.source.tables, rows[i : i + 1])
    assert_same(scanned, looped)


@pytest.mark.slow
def test_frozen_parts_stay_and_do_not_count_in_the_gradient_norm():
    built = build(tiny(freeze=("trunk/encoder",)))
    options = dict(max_grad_norm=1e9, freeze=("trunk/encoder",))
    step = jax.jit(train_step.make_train_step(built.objective, built.weights, **options))
    state, batch = built.init(), batch_at(0)
    after, metrics = step(state, batch)
    after, _ = step(after, batch)  # the first one has the rate 0, where the warm-up starts
    assert_same(after.params["trunk"], state.params["trunk"])
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params["heads"], state.params["heads"])
    assert max(jax.tree.leaves(moved)) > 0
    _, free = jax.jit(make_step(max_grad_norm=1e9))(parts().init(), batch)  # the same parameters, none frozen
    assert 0 < metrics["grad/norm"] < 0.9 * free["grad/norm"]


def test_a_frozen_path_that_matches_nothing_is_named():
    with pytest.raises(ValueError, match="trunk/encodr"):
        build(tiny(freeze=("trunk/encodr",))).init()


@pytest.mark.slow
def test_bfloat16_computes_the_same_losses_and_hands_over_float32():
    low = build(tiny(compute_dtype="bfloat16"))
    state, batch = parts().init(), batch_at(0)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(low.init().params))
    encoded = low.objective.encode(state.params, {}, batch.target)
    assert encoded.pooled.dtype == encoded.tokens.dtype == jnp.float32
    _, in_bf16 = jax.jit(make_step(objective=low.objective))(state, batch)
    _, in_f32 = jax.jit(make_step())(state, batch)
    for name in ("loss/prediction", "loss/sigreg"):
        assert in_bf16[name] != in_f32[name], "bfloat16 changed nothing: is it used?"
        np.testing.assert_allclose(in_bf16[name], in_f32[name], rtol=3e-2)


def test_every_stream_of_a_run_has_a_key_of_its_own():
    state = parts().init()
    keys = [state.key, jax.random.key(0), *(k for s in range(3) for k in step_keys(state.replace(step=jnp.int32(s))))]
    assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys) == 11


def test_a_nan_in_a_term_of_weight_zero_is_reported_and_not_trained_on():
    terms = {"a": jnp.float32(2.0), "b": jnp.float32(jnp.nan)}
    total, metrics = train_step.ledger(terms, {"a": 1.0, "b": 0.0})
    assert total == 2.0 and jnp.isnan(metrics["loss/b"])


@pytest.mark.parametrize("variant", ["", "small", "base"])
def test_the_sizes_that_users_run_are_traced_with_a_state_that_keeps_its_shapes(variant):
    config = tiny(variant)
    built = build(config)
    state = jax.eval_shape(built.init)
    rows = np.stack([built.source.indices(i) for i in range(config.steps_per_call)])
    after, metrics = jax.eval_shape(train.make_train_call(config, built), state, built.source.tables, rows)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {"loss/total", "share/sigreg", "grad/norm"} <= metrics.keys()
