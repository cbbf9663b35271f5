"""Codes inside a run, through the configs: what is predicted from them, who shares them, what a step does to them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import checkpoint, diagnostics, main, metrics, registry, representation, state, train, train_step
from jepa.objectives._terms import code_agreement
from jepa.parts import build, keywords
from jepa.start import start_from

# Every law for the default; the others, each with its compilation, among the slow tests.
QUANTIZERS = [
    pytest.param(name, marks=() if name == "fsq" else pytest.mark.slow)
    for name in registry.available("quantizers")
    if name != "identity"
]


@functools.cache
def built(variant="tiny", file="lejepa_codes", **overrides):
    config = main.load_config(f"configs/{file}.py:{variant}")
    config.update_from_flattened_dict(overrides)
    parts = build(config)
    return parts, parts.init(), batch_at(parts, 0)


def batch_at(parts, step):
    return parts.source.gather(parts.source.tables, parts.source.indices(step), jax.random.key(step), True)


def moved(tree, scale=1.1):
    return jax.tree.map(lambda x: scale * x, tree)


@functools.partial(jax.jit, static_argnums=(0, 4))
def forward(parts_of, run, params, batch, train_it):
    trunk, loss = parts_of
    named = dict(key=jax.random.key(3), step=0, train=train_it)
    latents, kept = trunk(params, run.target_params, run.objective_state, batch, **named)
    return loss(params, run.target_params, kept, latents, batch, **named), kept


def output(parts, run, batch, params=None, train_it=True):
    params = run.params if params is None else params
    return forward((parts.objective.trunk, parts.objective.loss), run, params, batch, train_it)


def step_of(parts, weights=None, target_ema=None):
    weights = parts.weights if weights is None else weights
    return jax.jit(train_step.make_train_step(parts.objective, weights, max_grad_norm=1.0, target_ema=target_ema))


def equal(one, other):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), one, other))


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_embedding_and_prediction_see_nothing_but_codes(name):
    parts, run, batch = built(f"tiny,{name}")
    encoded = jax.jit(parts.objective.encode)(run.params, run.objective_state, batch.target)
    assert encoded.codes.dtype == jnp.int32 and np.array_equal(encoded.codes >= 0, encoded.mask)
    assert encoded.codes.max() < np.prod(parts.objective.levels)
    # Tokens of one code are one vector, whatever object and grid they were: all that later parts know of it.
    real = np.asarray(encoded.mask)
    codes, tokens = np.asarray(encoded.codes)[real], np.asarray(encoded.tokens)[real]
    shared = [code for code in np.unique(codes) if (codes == code).sum() > 1]
    assert shared
    for code in shared:
        assert np.ptp(tokens[codes == code], axis=0).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_quantizer_is_a_term_whose_weight_changes_the_gradient(name):
    parts, run, batch = built(f"tiny,{name}")

    def gradient(weight):
        def total(params):
            out, _ = output(parts, run, batch, params)
            return train_step.ledger(out.terms, parts.weights | {"quantizer": weight})[0]

        return jax.grad(total)(run.params)["trunk"]

    one, other = gradient(0.0), gradient(1.0)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)) > 1e-6
    assert "quantizer" in train_step.on_terms(parts.weights)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_step_updates_the_state_once_and_evaluation_never(name):
    parts, run, batch = built(f"tiny,{name}")
    _, kept = output(parts, run, batch, train_it=False)
    assert equal(kept, run.objective_state)
    before = jax.tree.map(np.array, run.objective_state)
    parts.evaluate(run, 16)
    assert equal(before, run.objective_state)
    after, _ = step_of(parts)(run, batch)
    if name == "vq_gradient":  # its codebook is parameters
        assert equal(before, after.objective_state)
        return
    first, second = before["quantizer"], after.objective_state["quantizer"]
    if name == "fsq":
        _, expected = output(parts, run, batch)
        for found, once in zip(*map(jax.tree.leaves, (second, expected["quantizer"])), strict=True):
            np.testing.assert_allclose(found, once, rtol=1e-5, atol=1e-6)
        assert not equal(first, second)
        return
    assert int(first["calls"]) == 0 and int(second["calls"]) == 1
    if name == "vq_ema":
        # Not code by code: a token on a border may go either way in another program. It is counted once; of a starved
        # code that moved, the tenth of the mean count that it had at most is forgotten.
        real = int(batch.context["mask"].sum() + batch.target["mask"].sum())
        total = 0.99 * float(first["counts"].sum()) + 0.01 * real
        assert (1 - 0.1 / 32 - 1e-5) * total <= float(second["counts"].sum()) <= (1 + 1e-5) * total


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZERS)
def test_one_quantizer_serves_the_teacher_as_well(name):
    parts, run, batch = built(f"tiny,teacher,{name}")
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(run.target_params)}
    assert paths and not any("quantizer" in path for path in paths)
    # A step moves the codes of the online encoder; the same vectors still get the same codes on both ways.
    run, _ = step_of(parts, target_ema=0.5)(run, batch)
    same = run.replace(target_params=representation.teacher_params(run.params))
    out, _ = output(parts, same, batch, train_it=False)
    assert float(out.metrics["codes/agreement"]) == 1.0
    apart = run.replace(target_params=moved(run.target_params, -1.0))
    out, _ = output(parts, apart, batch, train_it=False)
    assert float(out.metrics["codes/agreement"]) < 1.0


@pytest.mark.slow
def test_the_contrastive_objective_takes_codes_as_well():
    config = main.load_config("configs/infonce.py:tiny")
    codes = main.load_config("configs/lejepa_codes.py:tiny")
    config.quantizer, config.weights.quantizer = codes.quantizer, 1.0
    parts = build(config)
    run, batch = parts.init(), batch_at(parts, 0)
    after, measured = step_of(parts, target_ema=0.9)(run, batch)
    assert not equal(after.objective_state["quantizer"], run.objective_state["quantizer"])
    assert int(after.objective_state["queue"].size) == 16 and measured["loss/quantizer"] > 0
    evaluated = parts.evaluate(run, 16)
    assert evaluated.metrics["val/codes/agreement"] == 1.0  # the teacher starts as the online encoder
    assert 0 < evaluated.metrics["codes/usage"] <= 1


def test_agreement_counts_the_tokens_that_have_the_same_code():
    codes, others = jnp.array([[3, 1, -1], [2, -1, -1]]), jnp.array([[3, 0, -1], [2, -1, -1]])
    assert float(code_agreement(codes, others)["codes/agreement"]) == pytest.approx(2 / 3)
    assert float(code_agreement(codes * 0 - 1, others)["codes/agreement"]) == 0.0


@pytest.mark.slow
def test_a_step_that_is_not_finite_leaves_the_codebook_alone():
    parts, run, batch = built("tiny,vq_ema")

    def poisoned(*arguments, **named):
        out = parts.objective.loss(*arguments, **named)
        return out._replace(terms=dict(out.terms) | {"prediction": out.terms["prediction"] * jnp.nan})

    step = train_step.make_train_step(parts.objective._replace(loss=poisoned), parts.weights, max_grad_norm=1.0)
    after, _ = jax.jit(step)(run, batch)
    assert int(after.health.skipped) == 1 and equal(after.objective_state, run.objective_state)


def test_without_a_quantizer_there_is_neither_a_state_nor_a_figure_of_codes():
    parts, run, _ = built("tiny", "lejepa")
    assert parts.objective.levels == () and run.objective_state == {} and set(run.params["trunk"]) == {"encoder"}
    evaluated = parts.evaluate(run, 16)
    assert evaluated.codes is None and not any("codes" in name for name in evaluated.metrics)


@pytest.mark.slow
def test_codebooks_start_from_the_first_batches():
    parts, run, _ = built("tiny,vq_ema", init_batches=3)
    tokens = [
        jax.jit(parts.objective.encode)(run.params, run.objective_state, batch_at(parts, i).context) for i in range(3)
    ]
    assert float(run.objective_state["quantizer"]["counts"].sum()) == pytest.approx(
        sum(int(encoded.mask.sum()) for encoded in tokens)
    )


def test_what_cannot_work_on_a_batch_is_said_before_there_is_a_run(tmp_path):
    config = main.load_config("configs/infonce.py:tiny")
    config.target_ema = None
    with pytest.raises(ValueError, match="needs a teacher"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_quantisation_does_not_depend_on_the_precision_of_the_encoder():
    config = main.load_config("configs/lejepa_codes.py:tiny,vq_ema")
    config.compute_dtype = "bfloat16"
    parts = build(config)
    run = parts.init()
    after, measured = step_of(parts)(run, batch_at(parts, 0))
    assert all(np.isfinite(value) for value in measured.values())
    for leaf in jax.tree.leaves(after.objective_state):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def small_run(tmp_path, name):
    config = main.load_config("configs/lejepa_codes.py:tiny")
    train.run(config, tmp_path / name)
    return metrics.read_record(tmp_path / name / "metrics.jsonl")


@pytest.mark.slow
def test_a_run_records_jump_and_churn_and_a_resumed_one_the_same(tmp_path, monkeypatch):
    rows = small_run(tmp_path, "whole")
    jumps = [row["codes/jump"] for row in rows if "codes/jump" in row]
    assert len(jumps) == 4 and all(0 < jump < 2 for jump in jumps)
    evaluated = [row for row in rows if "codes/usage" in row]
    assert [row["step"] for row in evaluated] == [10, 20]
    assert "codes/churn" not in evaluated[0] and 0 < evaluated[1]["codes/churn"] < 1

    def stopped(run, config, parts):
        if int(run.step) == 15:
            raise InterruptedError

    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(train, "check_health", stopped)
        small_run(tmp_path, "stopped")
    # The codes of the last evaluation, at step 10, came along with the checkpoint.
    assert small_run(tmp_path, "stopped") == rows
    saved = [checkpoint.read(tmp_path / name).host["codes"] for name in ("whole", "stopped")]
    assert saved[0] == saved[1] and len(saved[0]) == evaluated[1]["codes/window"]


def started_from(tmp_path, name, source, *parts):
    config = main.load_config(f"configs/lejepa_codes.py:tiny,{name}")
    config.seed, config.init_from, config.init_parts = 7, str(tmp_path / source), parts
    built_parts = build(config)
    return built_parts, start_from(config, built_parts)[0]


@pytest.mark.slow
def test_weights_of_another_run_bring_their_codes_or_new_codes_start_from_them(tmp_path):
    config = main.load_config("configs/lejepa_codes.py:tiny,vq_ema")
    config.num_steps = config.eval_every = config.checkpoint_every = 5
    config.optimizer.warmup_steps = 2
    train.run(config, tmp_path / "other")
    saved = checkpoint.read(tmp_path / "other").state
    _, run = started_from(tmp_path, "vq_ema", "other", "trunk")
    assert equal(run.objective_state["quantizer"], saved["objective_state"]["quantizer"])
    assert equal(run.params["trunk"], saved["params"]["trunk"])

    parts, run = started_from(tmp_path, "fsq", "other", "trunk/encoder")
    assert equal(run.params["trunk"]["encoder"], saved["params"]["trunk"]["encoder"])
    # Standardised where it was measured: on what the encoder of the other run makes of the first two batches.
    config = main.load_config("configs/lejepa_codes.py:tiny")
    encoder, quantizer = (
        registry.build(folder, part.name, **keywords(part))
        for folder, part in (("encoders", config.encoder), ("quantizers", config.quantizer))
    )
    keys, source = jax.random.split(jax.random.key(7), 2), parts.source
    first = [source.gather(source.tables, source.indices(i), keys[i], True).context for i in range(2)]
    tokens, mask = encoder.embed(run.params["trunk"]["encoder"], jax.tree.map(lambda *x: jnp.concatenate(x), *first))
    of_run = (run.params["trunk"]["quantizer"], run.objective_state["quantizer"])
    measured = quantizer.apply(*of_run, tokens, mask, key=None, train=False).metrics
    assert float(measured["scale_min"]) == pytest.approx(1.0, abs=1e-3)
    assert float(measured["scale_max"]) == pytest.approx(1.0, abs=1e-3)


def test_no_change_is_zero_and_strangers_change_by_two():
    rng = np.random.default_rng(0)
    values, mask = jnp.asarray(rng.normal(size=(200, 40, 8)), jnp.float32), jnp.asarray(rng.random((200, 40)) < 0.6)
    garbage = jnp.where(mask[..., None], values, 1e3)
    assert float(diagnostics.change(values, values, mask)) == 0.0
    assert float(diagnostics.change(values, garbage, mask)) == 0.0
    other = jnp.asarray(rng.normal(size=values.shape), jnp.float32)
    assert float(diagnostics.change(3 * values, 3 * other, mask)) == pytest.approx(2.0, rel=0.03)


def test_usage_of_a_window_of_codes():
    codes = jnp.array([0, 0, 0, 0, 2, 2, 5, 5])
    found = {name: float(value) for name, value in diagnostics.code_usage(codes, 8).items()}
    share = np.array([4, 2, 2]) / 8
    assert found["usage"] == 3 / 8 and found["dead"] == 5 and found["window"] == 8 and found["alive"] == 3 / 8
    assert found["perplexity"] == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-6)
    even = diagnostics.code_usage(jnp.arange(64) % 8, 8)
    assert float(even["perplexity"]) == pytest.approx(8.0, rel=1e-6) and float(even["usage"]) == 1.0


@pytest.mark.slow
def test_the_codebook_does_not_decay():
    parts, run, _ = built("tiny,vq_gradient")
    zero = jax.tree.map(jnp.zeros_like, run.params)
    _, warm = parts.tx.update(zero, parts.tx.init(run.params), run.params)  # the first step has a learning rate of 0
    updates, _ = parts.tx.update(zero, warm, run.params)
    assert not np.any(updates["trunk"]["quantizer"]["codebook"])
    assert np.any(updates["trunk"]["encoder"]["embed"]["kernel"])


@pytest.mark.slow
def test_the_teacher_is_copied_without_the_quantizer():
    parts, run, batch = built("tiny,vq_gradient")
    fresh = state.create(parts.objective, parts.tx, batch, 0, teacher=True)
    assert set(fresh.target_params["trunk"]) == {"encoder"} and set(run.params["trunk"]) == {"encoder", "quantizer"}
