"""The contrastive objective, through its config: its teacher, its queue, its terms and what evaluation says of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jepa import evaluation, main, train_step
from jepa import tables as object_tables
from jepa.losses.infonce import infonce, infonce_candidates, queue_init, temperature
from jepa.losses.prediction import unit
from jepa.losses.relational import relational_quantiles
from jepa.parts import build


def tiny(**overrides):
    config = main.load_config("configs/infonce.py:tiny")
    config.data.num_negatives = 0  # where a test does not need them
    config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def built(**overrides):
    parts = build(tiny(**overrides))
    return parts, parts.init()


def batch_at(parts, step):
    source = parts.source
    return source.gather(source.tables, source.indices(step), jax.random.key(step), True)


CHEAP = ("infonce", "prediction", "relational", "relational_context")  # to compile


@functools.partial(jax.jit, static_argnums=(0, 1))
def forward(loss_parts, names, params, target_params, objective_state, batch):
    trunk, loss = loss_parts
    named = dict(key=jax.random.key(3), step=0, train=True)
    latents, kept = trunk(params, target_params, objective_state, batch, **named)
    out = loss(params, target_params, kept, latents, batch, **named)
    return out._replace(terms={name: out.terms[name] for name in names})


def output(parts, state, batch, params=None, names=CHEAP):
    params = state.params if params is None else params
    both = (parts.objective.trunk, parts.objective.loss)
    return forward(both, names, params, state.target_params, state.objective_state, batch)


def moved_teacher(state):
    """The state with a teacher that differs from the online encoder, as it does after a step."""
    keys = iter(jax.random.split(jax.random.key(9), 1000))
    nudged = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), state.target_params)
    return state.replace(target_params=nudged)


@pytest.mark.slow
def test_the_loss_tells_projected_context_from_the_projections_of_the_teacher():
    parts, state = built()
    state, batch = moved_teacher(state), batch_at(parts, 0)
    out = output(parts, state, batch)
    anchors = jax.jit(parts.objective.predict)(state.params, state.objective_state, batch.context)
    target = jax.jit(parts.objective.encode)(state.target_params, state.objective_state, batch.target)
    positives = jax.jit(parts.objective.project)(state.target_params, {}, target.pooled)
    np.testing.assert_allclose(jnp.linalg.norm(anchors, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(positives, axis=-1), 1.0, rtol=1e-5)
    tau = temperature(state.params["heads"]["log_tau"], low=0.05, high=0.2)
    assert tau == pytest.approx(0.07)
    expected, _ = infonce(anchors, positives, batch.ids, queue_init(24, 8), tau=tau)
    np.testing.assert_allclose(out.terms["infonce"], jnp.mean(expected), rtol=1e-5)
    context = jax.jit(parts.objective.encode)(state.params, state.objective_state, batch.context)
    cross, within = relational_quantiles(context.tokens, context.mask, target.tokens, target.mask, normalize="mean")
    np.testing.assert_allclose(out.terms["relational"], jnp.mean(cross), rtol=1e-5)
    np.testing.assert_allclose(out.terms["relational_context"], jnp.mean(within), rtol=1e-5)
    last = context.pooled[:, -1]
    copied = unit(jax.jit(parts.objective.project)(state.params, {}, last))
    np.testing.assert_allclose(out.examples["copy"], jnp.sum((copied - positives) ** 2, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(out.examples["prediction"], jnp.sum((anchors - positives) ** 2, axis=-1), rtol=1e-4)


@pytest.mark.slow
def test_every_term_has_a_gradient_on_the_online_encoder_and_none_on_the_teacher():
    parts, state = built()
    state, batch = moved_teacher(state), batch_at(parts, 0)

    @jax.jit
    def terms(params, target_params):
        taught = state.replace(target_params=target_params)
        return dict(output(parts, taught, batch, params, tuple(parts.objective.terms)).terms)

    gradients = jax.jacrev(terms, argnums=(0, 1))(state.params, state.target_params)
    assert set(gradients) == set(parts.objective.terms)
    for name, (gradient, of_teacher) in gradients.items():
        assert all(jnp.all(g == 0) for g in jax.tree.leaves(of_teacher)), name
        largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient["trunk"]))
        assert (largest > 1e-7) == (name != "quantizer"), name  # there is none here, and no loss of it
        # A temperature belongs to the contrast alone.
        assert (float(gradient["heads"]["log_tau"]) != 0) == (name == "infonce"), name


@pytest.mark.slow
def test_a_step_pushes_what_the_teacher_said_before_it_and_evaluation_pushes_nothing():
    parts, state = built()
    state = moved_teacher(state)
    step = jax.jit(train_step.make_train_step(parts.objective, parts.weights, max_grad_norm=1.0, target_ema=0.9))
    said, shown = [], []
    for i in range(3):  # 48 rows through a queue of 24
        batch = batch_at(parts, i)
        target = jax.jit(parts.objective.encode)(state.target_params, state.objective_state, batch.target)
        said += list(np.asarray(jax.jit(parts.objective.project)(state.target_params, {}, target.pooled)))
        shown += list(np.asarray(batch.ids))
        state, metrics = step(state, batch)
    queue = state.objective_state["queue"]
    assert int(queue.size) == 24 and metrics["metric/infonce/queue_filled"] == 24
    order = (int(queue.cursor) + np.arange(24)) % 24
    assert list(np.asarray(queue.ids)[order]) == shown[-24:]
    np.testing.assert_allclose(np.asarray(queue.embeddings)[order], said[-24:], rtol=1e-4, atol=1e-5)
    before = jax.tree.map(np.array, state.objective_state)
    parts.evaluate(state, 16)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, jax.tree.map(np.array, state.objective_state)))


def test_without_a_teacher_or_a_context_there_is_a_sentence():
    parts, state = built()
    with pytest.raises(ValueError, match=r"needs a teacher: set config.target_ema to a decay such as 0.99"):
        output(parts, state.replace(target_params=None), batch_at(parts, 0))
    with pytest.raises(ValueError, match=r"set config.data.stream to 'analogy'"):
        build(tiny(**{"data.stream": "views"})).init()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("objective.tau", 0.5, "objective.tau 0.5 must lie between tau_min 0.05 and tau_max 0.2"),
        ("objective.relation_pairs", "some", "objective.relation_pairs is 'some'"),
        ("objective.relation_normalize", "max", "objective.relation_normalize is 'max'; it must be one of ['mean'"),
        ("objective.invariance_stop_gradient", "all", "objective.invariance_stop_gradient is 'all'"),
        ("objective.invariance_group", ("d4", "colour"), "objective.invariance_group"),
        ("best_metric", "val/infonce/in_batch_gain", "better the higher it is"),
        ("best_metric", "val/infoncex", "config.best_metric is 'val/infoncex'"),
        ("objective.statistic", "epps_puley", "did you mean 'epps_pulley'"),
        ("objective.predictor", "mlp", "objective.predictor is 'mlp'"),
        ("objective.queue_size", 0, "objective.queue_size is 0; it must be at least 1"),
        ("best_metric", "val/infnce", "config.best_metric is 'val/infnce'"),
        ("weights.infonce", None, "config.best_metric is 'val/infonce/in_batch'"),
        ("target_ema_final", 0.5, "config.target_ema_final is 0.5; it must lie between target_ema 0.99 and 1"),
    ],
)
def test_a_mistake_is_named(key, value, message):
    with pytest.raises(ValueError) as error:
        config = tiny(**{key: value} if value is not None else {})
        if value is None:
            with config.ignore_type():
                config.weights[key.removeprefix("weights.")] = None
        parts = build(config)
        state = parts.init()
        output(parts, state, batch_at(parts, 0))
    assert message in str(error.value)


def flops(weights):
    parts, state = built()
    step = train_step.make_train_step(parts.objective, parts.weights | weights, max_grad_norm=1.0, target_ema=0.9)
    return jax.jit(step).lower(state, batch_at(parts, 0)).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_a_term_without_a_weight_is_not_compiled_and_one_of_weight_zero_is():
    parts, _ = built()
    terms = sorted(
        set(parts.objective.terms) - {"prediction", "quantizer"}
    )  # without a quantizer its term is a constant
    alone = flops({"prediction": 1.0} | dict.fromkeys(terms))
    for term in terms:
        assert alone < flops({"prediction": 1.0} | dict.fromkeys(terms) | {term: 0.0}), term


@pytest.mark.slow
def test_the_tokens_of_the_context_may_predict_too_and_relations_may_be_those_of_objects_in_contact():
    parts, state = built(**{"objective.predictor": "tokens", "objective.relation_pairs": "contact"})
    state, batch = moved_teacher(state), batch_at(parts, 0)
    out = output(parts, state, batch)
    assert out.embeddings["predicted"].shape == out.embeddings["target"].shape
    context = jax.jit(parts.objective.encode)(state.params, state.objective_state, batch.context)
    target = jax.jit(parts.objective.encode)(state.target_params, state.objective_state, batch.target)
    tokens = (context.tokens, context.mask, target.tokens, target.mask)
    touching = [object_tables.contacts(observation) for observation in (batch.context, batch.target)]
    assert 0 < np.mean(touching[1]) < 0.5
    cross, _ = relational_quantiles(*tokens, context_adjacency=touching[0], target_adjacency=touching[1])
    np.testing.assert_allclose(out.terms["relational"], jnp.mean(cross), rtol=1e-4)
    assert abs(float(jnp.mean(relational_quantiles(*tokens)[0])) / float(out.terms["relational"]) - 1) > 1e-2


@pytest.mark.slow
def test_the_contrast_may_be_symmetric_and_the_predictor_without_parameters():
    options = {"objective.symmetric": True, "objective.context": "mean", "objective.relation_normalize": "none"}
    parts, state = built(**options)
    state, batch = moved_teacher(state), batch_at(parts, 0)
    assert state.params["heads"]["predictor"] == {}
    out = output(parts, state, batch)
    context = jax.jit(parts.objective.encode)(state.params, state.objective_state, batch.context)
    target = jax.jit(parts.objective.encode)(state.target_params, state.objective_state, batch.target)
    anchors = jax.jit(parts.objective.project)(state.params, {}, jnp.mean(context.pooled, axis=1))
    positives = jax.jit(parts.objective.project)(state.target_params, {}, target.pooled)
    expected, _ = infonce(anchors, positives, batch.ids, None, tau=jnp.float32(0.07), symmetric=True)
    np.testing.assert_allclose(out.terms["infonce"], jnp.mean(expected), rtol=1e-4)  # the queue is empty yet
    raw, _ = relational_quantiles(context.tokens, context.mask, target.tokens, target.mask, normalize="none")
    np.testing.assert_allclose(out.terms["relational"], jnp.mean(raw), rtol=1e-4)
    step = jax.jit(train_step.make_train_step(parts.objective, parts.weights, max_grad_norm=1.0, target_ema=0.9))
    after, _ = step(*step(state, batch)[:1], batch)
    assert after.params["heads"]["predictor"] == after.target_params["heads"]["predictor"] == {}


@pytest.mark.slow
def test_a_step_that_is_not_finite_leaves_queue_and_teacher_alone():
    parts, state = built()
    state, batch = moved_teacher(state), batch_at(parts, 0)

    def poisoned(*arguments, **named):
        out = parts.objective.loss(*arguments, **named)
        return out._replace(terms=dict(out.terms) | {"infonce": out.terms["infonce"] * jnp.nan})

    objective = parts.objective._replace(loss=poisoned)
    step = jax.jit(train_step.make_train_step(objective, parts.weights, max_grad_norm=1.0, target_ema=0.9))
    after, _ = step(state, batch)
    kept = [(run.objective_state, run.target_params, run.params) for run in (state, after)]
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), *kept))
    assert int(after.health.skipped) == 1


@pytest.mark.slow
def test_evaluation_tells_the_target_from_negatives_of_its_task_and_of_its_palette():
    parts, state = built(**{"data.num_negatives": 2})
    metrics = parts.evaluate(state, 32).metrics
    for kind in ("same_task", "palette_matched"):
        figures = {name: metrics[f"val/{kind}/{name}"] for name in ("infonce", "chance", "accuracy", "share")}
        assert 0 < figures["chance"] <= np.log(3) + 1e-6
        assert 0 <= figures["accuracy"] <= 1 and 0 < figures["share"] <= 1 and figures["infonce"] > 0
    assert metrics["val/infonce/in_batch_chance"] <= np.log(16) + 1e-6
    off = [name for name, weight in parts.weights.items() if weight is None and name != "prediction"]
    assert off and not [name for name in metrics if name.removeprefix("val/").split("/")[0] in off]


@pytest.mark.slow
def test_listed_negatives_are_seen_by_the_teacher_and_one_that_shows_the_target_counts_for_nothing():
    parts, state = built(**{"data.num_negatives": 2})
    state, source = moved_teacher(state), parts.source.validation["arc_same_task"]
    batch = source.gather(source.tables, source.indices(0), jax.random.key(0), True)
    real = batch.negative_ids != batch.ids[:, None]
    assert np.mean(real) > 0
    out = output(parts, state, batch)
    anchors = jax.jit(parts.objective.predict)(state.params, state.objective_state, batch.context)

    def taught(observation):
        encoded = jax.jit(parts.objective.encode)(state.target_params, state.objective_state, observation)
        return jax.jit(parts.objective.project)(state.target_params, {}, encoded.pooled)

    listed = infonce_candidates(anchors, taught(batch.target), taught(batch.negatives), real, tau=jnp.float32(0.07))
    for name, expected in zip(("infonce", "chance", "accuracy"), listed, strict=True):
        np.testing.assert_allclose(out.examples[f"listed/{name}"], expected, rtol=1e-4, atol=1e-4)

    padded = batch._replace(negative_ids=jnp.broadcast_to(batch.ids[:, None], batch.negative_ids.shape))
    out = output(parts, state, padded)
    for name, value in (("infonce", 0.0), ("chance", 0.0), ("accuracy", 1.0)):
        np.testing.assert_array_equal(out.examples[f"listed/{name}"], value)


def test_rows_that_list_no_negative_do_not_count():
    examples = {"infonce": [0.0, 2.0, 1.0], "chance": [0.0, 1.0, 2.0], "accuracy": [1.0, 0.0, 1.0]}
    collected = {"examples": {f"listed/{name}": np.array(values) for name, values in examples.items()}}
    figures = evaluation.listed(collected)
    assert figures == {"infonce": 1.5, "chance": 1.5, "accuracy": 0.5, "share": pytest.approx(2 / 3)}
    none = {"examples": {name: values[:1] for name, values in collected["examples"].items()}}
    assert evaluation.listed(none) == {"share": 0.0}


@pytest.mark.slow
def test_an_objective_that_does_not_look_at_negatives_is_not_given_any():
    config = main.load_config("configs/lejepa.py:tiny")
    config.data.num_negatives = 2
    parts = build(config)
    with pytest.raises(ValueError, match=r"leave config\.data\.num_negatives at 0"):
        parts.evaluate(parts.init(), 16)
