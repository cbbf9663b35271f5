"""Seeds trained as one program are what they would be by themselves."""

import jax
import numpy as np
import pytest

from jepa import checkpoint, main, metrics, seeds, train
from jepa.parts import build, of_seeds

CONFIGS = ("configs/lejepa.py:tiny", "configs/lejepa_codes.py:tiny", "configs/infonce.py:tiny")


def config_of(spec, seed, **fields):
    config = main.load_config(spec)
    config.seed = seed
    config.update(fields)
    return config


@pytest.mark.parametrize("spec", [CONFIGS[0], *(pytest.param(spec, marks=pytest.mark.slow) for spec in CONFIGS[1:])])
def test_a_step_of_two_seeds_is_two_steps(spec):
    """Two steps from the initial states: losses and gradient norms to float32 rounding."""
    configs = [config_of(spec, seed, steps_per_call=1) for seed in (3, 4)]
    parts = of_seeds(configs)
    dispatch = train.make_dispatch(configs[0], parts[0])
    together = jax.jit(jax.vmap(dispatch, (0, None, 0)))
    states = [each.init() for each in parts]
    rows = [jax.tree.map(lambda leaf: leaf[None], each.source.indices(0)) for each in parts]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    after, measured = together(seeds.stack(states), parts[0].source.tables, stacked)
    alone = jax.jit(dispatch)
    for number, (state, own) in enumerate(zip(states, rows, strict=True)):
        expected, line = alone(state, parts[number].source.tables, own)
        for name in ("loss/total", "grad/norm"):
            np.testing.assert_allclose(measured[name][number], line[name], rtol=2e-5)
        moments = [jax.tree.leaves(s.opt_state) for s in (seeds.of_member(after, number), expected)]
        for one, other in zip(*moments, strict=True):  # the first moments are the gradients, times a constant
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * max(1e-3, np.abs(other).max()))


@pytest.mark.slow
def test_parts_of_seeds_are_those_of_each_seed():
    shared = of_seeds([config_of(CONFIGS[0], seed) for seed in (0, 5)])[1]
    own = build(config_of(CONFIGS[0], 5))
    jax.tree.map(np.testing.assert_array_equal, shared.source.indices(3), own.source.indices(3))
    started = [jax.tree.map(np.asarray, each.init().params) for each in (shared, own)]
    jax.tree.map(np.testing.assert_array_equal, *started)
    assert shared.evaluate(shared.init(), 16).metrics == own.evaluate(own.init(), 16).metrics


@pytest.mark.slow
def test_every_seed_has_the_run_it_would_have_by_itself_also_after_an_interruption(tmp_path, monkeypatch):
    configs = [config_of(CONFIGS[0], seed) for seed in (0, 1)]
    places = [tmp_path / f"together{seed}" for seed in (0, 1)]

    def evaluated_until(step):
        evaluate = seeds.evaluate

        def stopping(members, states, at, *rest):
            if at > step:
                raise KeyboardInterrupt
            return evaluate(members, states, at, *rest)

        return stopping

    with monkeypatch.context() as patched:
        patched.setattr(seeds, "evaluate", evaluated_until(10))
        with pytest.raises(KeyboardInterrupt):
            seeds.run(configs, places, tmp_path / "joint")
    assert (tmp_path / "joint" / "checkpoints").is_dir()
    seeds.run(configs, places, tmp_path / "joint")
    assert not (tmp_path / "joint").exists()
    seeds.run(configs, [tmp_path / f"again{seed}" for seed in (0, 1)], tmp_path / "joint")
    for seed in (0, 1):
        train.run(configs[seed], tmp_path / f"alone{seed}")
        folders = {name: tmp_path / f"{name}{seed}" for name in ("together", "again", "alone")}
        records = {name: metrics.read_record(folder / "metrics.jsonl") for name, folder in folders.items()}
        assert records["together"] == records["again"]  # the interruption left no trace
        for ours, theirs in zip(records["together"], records["alone"], strict=True):
            assert ours.keys() == theirs.keys()
            for name in ("loss/total", "grad/norm", "val/prediction"):
                if name in ours:
                    assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
        # The folder is that of a run: it can be read, and extended.
        assert checkpoint.read(folders["together"]).step == 20
        longer = config_of(CONFIGS[0], seed, num_steps=30)
        train.run(longer, folders["together"])
        assert checkpoint.read(folders["together"]).step == 30


def test_runs_that_cannot_be_trained_together_are_refused(tmp_path):
    one, two = config_of(CONFIGS[0], 0), config_of(CONFIGS[0], 1)
    with pytest.raises(ValueError, match=r"differ in their seed alone.*batch_size"):
        seeds.check([one, config_of(CONFIGS[0], 1, batch_size=8)])
    with pytest.raises(ValueError, match="have different seeds"):
        seeds.check([one, one])
    for config in (one, two):
        config.early_stopping.patience = 2
    with pytest.raises(ValueError, match="train these seeds one by one"):
        seeds.check([one, two])


@pytest.mark.slow
def test_a_seed_that_stays_non_finite_stands_still_and_the_others_are_finished(tmp_path, monkeypatch):
    configs = [config_of(CONFIGS[0], seed, max_bad_steps=3) for seed in (0, 1)]
    places = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    fresh = seeds.start.fresh

    def broken(config, parts):
        run, record = fresh(config, parts)
        if config.seed == 1:
            run = run.replace(params=jax.tree.map(lambda leaf: leaf * np.nan, run.params))
        return run, record

    monkeypatch.setattr(seeds.start, "fresh", broken)
    for _ in range(2):  # the second time nothing is left to train
        with pytest.raises(FloatingPointError, match=r"seed 1: .* steps in a row were not finite"):
            seeds.run(configs, places, tmp_path / "joint")
        assert (places[0] / "probes.json").is_file() and not (places[1] / "probes.json").exists()
    lines = [line for line in metrics.read_record(places[0] / "metrics.jsonl") if "health/skipped" in line]
    assert (lines[-1]["step"], lines[-1]["health/skipped"]) == (20, 0)
