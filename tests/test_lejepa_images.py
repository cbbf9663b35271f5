"""LeJEPA on images: the paper's lambda at the door, views, and a probe that watches without a say."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jepa import config_checks, main, optimizer, report, train, train_step
from jepa.objectives import _monitor
from jepa.parts import build
from jepa.state import step_keys


def tiny(**overrides):
    config = main.load_config("configs/lejepa_images.py:tiny")
    config.update_from_flattened_dict(overrides)
    return config


@functools.cache
def built(**overrides):
    return build(tiny(**overrides))


def batch_at(parts, step):
    gather = jax.jit(parts.source.gather, static_argnums=3)
    return gather(parts.source.tables, parts.source.indices(step), jax.random.key(step), True)


@functools.cache
def trained(num_steps=3, max_grad_norm=1.0, **overrides):
    """The state after some steps of the tiny run, and the metrics of the last."""
    parts = built(**overrides)
    step = jax.jit(train_step.make_train_step(parts.objective, parts.weights, max_grad_norm=max_grad_norm))
    state, measured = parts.init(), {}
    for number in range(num_steps):
        state, measured = step(state, batch_at(parts, number))
    return state, jax.device_get(measured)


# --- lambda ---------------------------------------------------------------------------------------------------------


def test_the_weights_are_the_papers_lambda_for_this_batch_and_are_printed():
    config = main.load_config("configs/lejepa_images.py")
    assert config.weights.prediction == 0.98 and config.weights.sigreg == pytest.approx(0.02 * 128)
    config.lejepa_lambda, config.batch_size = 0.1, 64
    assert dict(config.weights)["prediction"] == 0.9 and dict(config.weights)["sigreg"] == pytest.approx(6.4)
    (line,) = config_checks.in_published_units(config)
    assert "lejepa_lambda 0.1" in line and "weights.prediction 0.9, weights.sigreg 6.4" in line
    config_checks.check(config)


def test_the_total_is_the_papers_loss():
    measured = trained()[1]
    expected = 0.98 * measured["loss/prediction"] + 0.02 * measured["metric/sigreg/T"]
    np.testing.assert_allclose(measured["loss/total"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lejepa_lambda": 1.5}, r"config\.lejepa_lambda is 1\.5"),
        ({"weights.sigreg": 3.0}, "makes weights.sigreg 0.32, but it is set to 3: set config.lejepa_lambda alone"),
        ({"probes": ("arc",)}, "config.probes names 'arc'"),
        ({"objective.num_classes": 7}, "num_classes is 7, but the data has 10 classes"),
    ],
)
def test_what_contradicts_itself_is_said(overrides, message):
    with pytest.raises(ValueError, match=message):
        build(tiny(**overrides))


def test_a_lambda_that_nothing_reads_is_refused():
    config = main.load_config("configs/lejepa.py:tiny")
    config.lejepa_lambda = 0.1
    with pytest.raises(ValueError, match=r"makes weights\.prediction 0\.9, but it is set to 1"):
        config_checks.check(config)


def test_probes_of_images_ask_for_labels():
    config = main.load_config("configs/lejepa.py:tiny")
    config.probes = ("images",)
    with pytest.raises(ValueError, match="names 'images', which asks for labelled ones"):
        config_checks.check_labels(config, {"tasks": 3.0})


# --- the online probe -----------------------------------------------------------------------------------------------


def test_the_online_probe_leaves_everything_else_to_the_bit():
    (watched, with_probe), (alone, without) = trained(), trained(**{"objective.num_classes": None})
    for part in ("trunk", "heads"):
        jax.tree.map(np.testing.assert_array_equal, watched.params[part], alone.params[part])
    for name in ("loss/total", "grad/norm", "share/sigreg"):
        assert with_probe[name] == without[name]
    assert "monitor" in watched.params and "monitor" not in alone.params
    assert with_probe["detached/online"] > 0 and not any(name.startswith("detached/") for name in without)


@pytest.mark.slow
def test_clipping_the_trunk_does_not_clip_the_probe():
    batch, parts = batch_at(built(), 0), built()
    state = parts.init()
    # Gradient descent, under which a gradient's length shows in the step.
    state = state.replace(tx=optax.sgd(1.0), opt_state=optax.sgd(1.0).init(state.params))

    def moved(max_grad_norm):
        step = jax.jit(train_step.make_train_step(parts.objective, parts.weights, max_grad_norm=max_grad_norm))
        after, measured = step(state, batch)
        return jax.tree.map(lambda new, old: new - old, after.params, state.params), measured

    (little, measured), (much, _) = moved(1e-3), moved(1e6)
    jax.tree.map(np.testing.assert_array_equal, little["monitor"], much["monitor"])
    trunk = {name: part for name, part in little.items() if name != "monitor"}
    np.testing.assert_allclose(optax.tree.norm(trunk), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(measured["grad/norm"], optax.tree.norm({k: much[k] for k in trunk}), rtol=1e-4)


def test_the_probe_is_logistic_regression_on_what_it_sees():
    z, labels = jax.random.normal(jax.random.key(0), (5, 2, 6)), jnp.array([0, 2, 1, 1, 0])
    params = {"monitor": _monitor.init(jax.random.key(1), z, 3)}
    head = params["monitor"]["online"]["Dense_0"]
    centred = np.asarray(z) - np.mean(z, axis=-1, keepdims=True)
    scores = centred / np.std(z, axis=-1, keepdims=True) @ np.asarray(head["kernel"]) + head["bias"][None, None]
    chance = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    entropy, correct = _monitor.watch(params, z, labels)
    expected = -np.mean([np.log(chance[i, :, label]) for i, label in enumerate(labels)])
    np.testing.assert_allclose(entropy, expected, rtol=1e-4)
    np.testing.assert_array_equal(correct, (scores.argmax(-1) == np.asarray(labels)[:, None]).mean(1))
    assert not jax.grad(lambda z: _monitor.watch(params, z, labels)[0])(z).any()


@pytest.mark.slow
def test_held_out_accuracy_is_taken_on_the_images_as_they_are():
    parts, (state, _) = built(), trained()
    figures = parts.evaluate(state, 40).metrics
    held_out = parts.source.validation["images"]
    rows = np.concatenate([held_out.indices(step) for step in range(3)])[:40]
    numbers = np.asarray(held_out.tables["numbers"])[rows]
    pixels, labels = (np.asarray(held_out.tables[name])[numbers] for name in ("pixels", "labels"))

    @jax.jit
    def classify(pixels):
        encoded = parts.objective.encode(state.params, state.objective_state, {"image": pixels})
        return _monitor.logits(state.params, encoded.pooled).argmax(-1)

    assert figures["val/online_accuracy"] == pytest.approx(np.mean(classify(pixels) == labels))
    assert figures["val/prediction"] > 0  # whose views are drawn as in training


@pytest.mark.slow
def test_the_probe_neither_decays_nor_counts_among_what_is_diagnosed():
    params = trained()[0].params
    assert not any(jax.tree.leaves(optimizer.decayed(params)["monitor"]))
    parts, (state, _) = built(), trained()
    figures = parts.diagnose(state, parts.source.indices(3))
    assert figures["grad/prediction"] > 0 and not [name for name in figures if "monitor" in name]


def test_data_without_labels_have_no_online_probe():
    config = main.load_config("configs/lejepa.py:tiny")
    parts, batch = built(), batch_at(built(), 0)
    assert "num_classes" not in config.objective
    with pytest.raises(ValueError, match="the data has no labels"):
        jax.eval_shape(parts.objective.init, jax.random.key(0), batch._replace(labels=None))


# --- the projector --------------------------------------------------------------------------------------------------


def test_the_projector_normalises_by_its_batch_in_training_and_by_its_averages_elsewhere():
    parts = built()
    state, kept = parts.init(), trained()[0].objective_state["projector"]
    moved = jax.tree.map(lambda leaf, start: np.abs(leaf - start).max(), kept, state.objective_state["projector"])
    assert min(jax.tree.leaves(moved)) > 1e-4
    x = 3.0 * jax.random.normal(jax.random.key(0), (5, 2, 16)) + 1.0
    params = jax.device_get(state.params["heads"]["projector"])

    def reference(averages):
        """Layer by layer; averages None is batch normalisation by the rows of x themselves."""
        h = np.asarray(x, np.float64)
        for layer in range(2):
            h = h @ params[f"Dense_{layer}"]["kernel"] + np.asarray(params[f"Dense_{layer}"]["bias"])
            mean, var = h.mean((0, 1)), h.var((0, 1))
            if averages is not None:
                mean, var = (np.asarray(averages[f"BatchNorm_{layer}"][name]) for name in ("mean", "var"))
            h = np.maximum((h - mean) / np.sqrt(var + 1e-5), 0.0)  # scale 1 and bias 0, as they start
        return h @ params["Dense_2"]["kernel"] + np.asarray(params["Dense_2"]["bias"])

    project = jax.jit(parts.objective.project, static_argnums=3)
    np.testing.assert_allclose(
        project(state.params, {"projector": kept}, x, True), reference(None), rtol=1e-3, atol=1e-4
    )
    held = project(state.params, {"projector": kept}, x, False)
    np.testing.assert_allclose(held, reference(kept), rtol=1e-3, atol=1e-4)
    alone = jax.jit(parts.objective.project)(state.params, {"projector": kept}, x[3, 1])
    np.testing.assert_allclose(alone, held[3, 1], rtol=1e-4, atol=1e-5)


def test_an_unknown_normalisation_is_said():
    with pytest.raises(ValueError, match=r"projector_norm is 'layer'; it must be 'none' or 'batch'"):
        build(tiny(**{"objective.projector_norm": "layer"}))


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_ends_with_probes_of_images_and_its_page_shows_them(tmp_path, capsys):
    config, workdir = tiny(probes=("images",)), tmp_path / "run"
    train.run(config, workdir)
    result = json.loads((workdir / "probes.json").read_text())
    assert [row["probe"] for row in result["image_probes"]["rows"]] == ["logistic", "5-nn", "5-shot"]
    assert result["image_probes"]["num_held_out"] == 359 and 0 <= result["validation"]["val/online_accuracy"] <= 1
    said = capsys.readouterr().out
    assert "weights.prediction 0.98, weights.sigreg 0.32" in said and "accuracy on 359 held-out images" in said
    train.run(config, workdir)
    assert "is finished at step 20" in capsys.readouterr().out
    report.write([workdir], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "359 held-out images" in page and "val/online_accuracy" in page


# --- the encoder in training ----------------------------------------------------------------------------------------


def test_paths_are_dropped_in_training_and_not_in_evaluation():
    parts = built(**{"encoder.depth": 2, "encoder.drop_rate": 0.5})
    batch = batch_at(parts, 0)
    state = parts.init()

    @functools.partial(jax.jit, static_argnums=1)
    def pooled(key, train):
        fixed = (state.params, None, state.objective_state)
        latents, _ = parts.objective.trunk(*fixed, batch, key=key, step=0, train=train)
        return latents["online"].pooled

    keys = [step_keys(state.replace(step=step)).trunk for step in (0, 1)]
    assert np.abs(pooled(keys[0], True) - pooled(keys[1], True)).max() > 1e-3
    np.testing.assert_array_equal(pooled(keys[0], False), pooled(keys[1], False))
